"""Where a subscriber keeps its version: one safetensors file, replaced as a whole."""

import fcntl
import json
import logging
import os
from pathlib import Path
from typing import Final

from dwcp_fast.delta import Snapshot
from dwcp_fast.errors import ConfigError, ConflictError, FormatError, LimitExceededError
from dwcp_fast.staging import replace_file
from dwcp_fast.versions.layout import Layout
from dwcp_fast.versions.manifest import version_digest
from dwcp_fast.versions.safetensors import header_of, read_exactly, read_header
from dwcp_fast.versions.state import State, group_digests, run_over

__all__ = ["FILE_NAME", "Folder"]

LOG: Final = logging.getLogger(__name__)
FILE_NAME: Final = "model.safetensors"
LOCK_NAME: Final = ".dwcp-versions.lock"
VERSION: Final = "dwcp.version"
DIGEST: Final = "dwcp.digest"
GROUPS: Final = "dwcp.groups"


class Folder:
    """A directory with the committed version; the file says which version it is."""

    def __init__(self, path: Path) -> None:
        """Use a directory, which is made if need be, and keep other subscribers out of it.

        Args:
            path: The directory.

        Raises:
            ConflictError: Another subscriber uses it.
            OSError: It cannot be made or opened.
        """
        path.mkdir(parents=True, exist_ok=True)
        self.path = path / FILE_NAME
        self._lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ConflictError(f"another subscriber uses {path}") from None
        for left in path.glob(f".{FILE_NAME}.*.part"):
            left.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others use it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def load(self, threads: int, max_bytes: int) -> State | None:
        """Read the committed version, and prove it.

        Args:
            threads: Threads that read.
            max_bytes: Most bytes it may have.

        Returns:
            The version; None if there is none, or if the file is not any more what was written.

        Raises:
            ConfigError: The file is there, but no subscriber wrote it.
            LimitExceededError: It is too large.
            OSError: It cannot be read.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return read_state(descriptor, threads, max_bytes)
        except FormatError as exc:
            LOG.warning("%s is not what was committed there, so it is not used as a base: %s", self.path, exc)
            return None
        except ForeignFile:
            raise ConfigError(
                f"{self.path} was not written by a subscriber, and would be replaced",
                hint="name another directory, or remove the file",
            ) from None
        finally:
            os.close(descriptor)

    def commit(self, state: State) -> None:
        """Replace the file by a version, as one step.

        Args:
            state: The version.

        Raises:
            OSError: It cannot be written.
        """
        metadata = {
            "format": "pt",
            VERSION: str(state.version),
            DIGEST: state.digest,
            GROUPS: json.dumps([group.count for group in state.layout.groups], separators=(",", ":")),
        }
        views = (group.view() for group in state.groups)
        replace_file(self.path, [header_of(state.layout.specs, metadata), *views])


class ForeignFile(Exception):  # noqa: N818 - a signal between two functions
    """The file carries no version."""


def read_state(descriptor: int, threads: int, max_bytes: int) -> State:
    """Read and prove the version in an open file."""
    length = os.fstat(descriptor).st_size
    if length > max_bytes + (1 << 27):
        raise LimitExceededError(f"the committed file has {length} bytes, the limit is {max_bytes}")
    found, metadata = read_header(descriptor, length)
    if VERSION not in metadata:
        raise ForeignFile
    specs = [spec for spec, _ in found]
    try:
        version = int(metadata[VERSION])
        counts = json.loads(metadata.get(GROUPS, "[]"))
        layout = Layout.build(specs, [int(count) for count in counts])
    except (TypeError, ValueError) as exc:
        raise FormatError(f"what the file says of its version is damaged: {exc}") from exc

    def read(index: int) -> tuple[Snapshot, list[str]]:
        group = layout.groups[index]
        data = read_exactly(descriptor, group.nbytes, found[group.first][1])
        if len(data) != group.nbytes:
            raise FormatError("the file ends too early")
        snapshot = Snapshot(data)
        return snapshot, group_digests(layout, index, snapshot)

    groups, digests = [], []
    for snapshot, told in run_over(threads, read, range(len(layout.groups))):
        groups.append(snapshot)
        digests += told
    digest = version_digest(layout, digests)
    if digest != metadata.get(DIGEST):
        raise FormatError(f"its content has digest {digest}, not {metadata.get(DIGEST)}")
    return State(version, digest, layout, tuple(digests), tuple(groups))
