"""Changes of a flags file that other programs change too, and that is read a moment later."""

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dwcp_fast.errors import ConfigError, DeadlineError, LimitExceededError
from dwcp_fast.policy.rollout import RolloutFlags, format_flags, merge_flags
from dwcp_fast.rollout.flags import FileFlags
from dwcp_fast.staging import replace_file

__all__ = ["change_flags", "change_held", "held", "read_flags"]

LOG: Final = logging.getLogger(__name__)
PATIENCE_S: Final = 10.0
LOOK_S: Final = 0.02


def read_flags(path: Path) -> RolloutFlags | None:
    """Read the flags in a file; names it leaves out take their defaults.

    Args:
        path: The file.

    Returns:
        The flags, None if there is no such file.

    Raises:
        DwcpError: The file holds something else.
        OSError: It cannot be read.
    """
    try:
        return merge_flags(RolloutFlags(), FileFlags(path).read())
    except FileNotFoundError:
        return None


def change_flags(
    path: Path, change: Callable[[RolloutFlags], RolloutFlags], *, instead: RolloutFlags | None = None
) -> RolloutFlags:
    """Change the flags in a file, whole or not at all; of two that do it at once, neither is lost.

    Args:
        path: The file; if there is none, it is made.
        change: Gives the new flags for those in the file.
        instead: What is changed where the file holds something else; with None it stays as it is.

    Returns:
        The new flags.

    Raises:
        DeadlineError: Another program keeps the file for longer than 10 s.
        DwcpError: The file holds something else; or what `change` raises.
        OSError: It cannot be read or written.
    """
    with held(path):
        return change_held(path, change, instead=instead)


def change_held(
    path: Path, change: Callable[[RolloutFlags], RolloutFlags], *, instead: RolloutFlags | None = None
) -> RolloutFlags:
    """Change the flags in a file as :func:`change_flags` does, within :func:`held`."""
    try:
        old = read_flags(path)
    except (ConfigError, LimitExceededError) as exc:
        if instead is None:
            raise
        LOG.warning("%s is written anew, since it cannot be used: %s", path, exc)
        old = None
    new = change(old or instead or RolloutFlags())
    if new != old:
        replace_file(path, [f"{format_flags(new)}\n".encode()])
    return new


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other writers of a file waiting; not to be entered again within.

    Raises:
        DeadlineError: Another program keeps the file for longer than 10 s.
        OSError: The lock beside the file cannot be made.
    """
    lock = path.with_name(f".{path.name}.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    end = time.monotonic() + PATIENCE_S
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as exc:
                if exc.errno not in {errno.EAGAIN, errno.EACCES}:
                    raise
                if time.monotonic() >= end:
                    raise DeadlineError(f"{lock} is held by another program for over {PATIENCE_S} s") from exc
                time.sleep(LOOK_S)
        yield
    finally:
        os.close(descriptor)
