"""Files that take their names only when they are complete and on disk."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["begun", "replace_file", "staged", "sync_directory", "write_parts"]


@contextlib.contextmanager
def begun(target: Path) -> Iterator[tuple[Path, int]]:
    """Give a new file beside `target`, open to write, that takes its place, on disk, when all went well."""
    # Opened like any new file, so that the umask is the system's to apply.
    name = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.part")
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            yield name, descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        name.replace(target)
    except BaseException:
        # What went wrong first is what is told.
        with contextlib.suppress(OSError):
            name.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def staged(target: Path, like: Path | None = None) -> Iterator[Path]:
    """Give a new file beside `target` that takes its place, on disk, when all went well.

    Args:
        target: The file.
        like: A file whose permissions it gets, None for those of any new file.

    Raises:
        OSError: It cannot be written, or `target` is a directory; what was there is unchanged, unless only
            the last sync failed.
    """
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    with begun(target) as (name, descriptor):
        yield name
        if like is not None:
            os.fchmod(descriptor, like.stat().st_mode & 0o777)
    sync_directory(target.parent)


def replace_file(path: Path, parts: Iterable[bytes | bytearray | memoryview]) -> None:
    """Write a file that takes its name, whole and on disk, as one step.

    Args:
        path: The file.
        parts: Its content.

    Raises:
        OSError: It cannot be written; what was there is unchanged, unless only the last sync failed.
    """
    with begun(path) as (_, descriptor):
        write_parts(descriptor, parts)
    sync_directory(path.parent)


def write_parts(descriptor: int, parts: Iterable[bytes | bytearray | memoryview]) -> None:
    """Write parts to an open file, one behind the other."""
    for part in parts:
        left = memoryview(part)
        while left.nbytes:
            left = left[os.write(descriptor, left[: 1 << 30]) :]


def sync_directory(path: Path) -> None:
    """Put the names in a directory on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
