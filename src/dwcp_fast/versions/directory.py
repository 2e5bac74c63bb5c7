"""A directory that keeps versions: every file is complete and on disk before it has its name."""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Final

from dwcp_fast.errors import ConflictError, LimitExceededError
from dwcp_fast.staging import begun, sync_directory, write_parts
from dwcp_fast.versions.manifest import MAX_HEAD_BYTES, content_digest
from dwcp_fast.versions.store import Stamp, is_key

__all__ = ["DirectoryStore"]

HEAD_NAME: Final = "head.json"
LOCK_NAME: Final = "head.lock"
ROOMS: Final = ("manifests", "packs")
POLL_S: Final = 0.05
"""How often the head is read while it is waited for, as a directory may be shared by way of a network."""
LOOK_S: Final = 0.004
"""How often it is looked whether the file is another one."""


class DirectoryStore:
    """Versions in a directory, also one that several hosts share."""

    def __init__(self, path: str | PathLike[str]) -> None:
        """Use a directory; a publisher makes it.

        Args:
            path: The directory.
        """
        self._path = Path(path)
        self._interrupted = threading.Event()
        # Directories with new names that may not be on disk yet.
        self._unsynced: set[Path] = set()

    def __repr__(self) -> str:
        """Give its place."""
        return f"DirectoryStore({str(self._path)!r})"

    def read_head(self) -> Stamp | None:
        """Read the head; see :meth:`.store.Source.read_head`."""
        try:
            data = read_bounded(self._path / HEAD_NAME, MAX_HEAD_BYTES + 1)
        except FileNotFoundError:
            return None
        if len(data) > MAX_HEAD_BYTES:
            raise LimitExceededError(f"the head has more than {MAX_HEAD_BYTES} bytes, which is the limit")
        return Stamp(data, content_digest(data))

    def wait_head(self, seen: Stamp | None, held: str | None, timeout_s: float) -> Stamp | None:  # noqa: ARG002
        """Wait for another head; see :meth:`.store.Source.wait_head`."""
        until = time.monotonic() + timeout_s
        while True:
            mark = self._mark()
            head = self.read_head()
            if head is not None and (seen is None or head.token != seen.token):
                return head
            read_at = time.monotonic()
            while time.monotonic() < read_at + POLL_S and self._mark() == mark:
                left = until - time.monotonic()
                if left <= 0 or self._interrupted.wait(min(left, LOOK_S)):
                    # Cleared here and not before, so that an interruption that came too early counts.
                    self._interrupted.clear()
                    return None

    def read(self, key: str, length: int) -> bytes:
        """Read an object; see :meth:`.store.Source.read`."""
        return read_bounded(self._place(key), length + 1)

    def tell(self, version: int | None, failure: str | None) -> None:
        """Do nothing: nobody listens."""

    def interrupt(self) -> None:
        """End a wait; see :meth:`.store.Source.interrupt`."""
        self._interrupted.set()

    def close(self) -> None:
        """Do nothing: nothing is held between calls."""

    def replace_head(self, data: bytes, seen: Stamp | None) -> Stamp:
        """Replace the head; see :meth:`.store.Store.replace_head`."""
        if not self._path.is_dir():
            self._path.mkdir(parents=True, exist_ok=True)
            sync_directory(self._path.parent)
        lock = os.open(self._path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # The lock makes comparing and replacing one step for publishers; readers do not need it.
            fcntl.flock(lock, fcntl.LOCK_EX)
            now = self.read_head()
            if (now and now.token) != (seen and seen.token):
                raise ConflictError(f"the head of {self._path} was changed by another publisher")
            with begun(self._path / HEAD_NAME) as (_, descriptor):
                write_parts(descriptor, [data])
                # What it names has its name on disk first. A journal is written by this sync already.
                os.fsync(descriptor)
                for room in sorted(self._unsynced):
                    sync_directory(room)
                self._unsynced.clear()
            sync_directory(self._path)
        finally:
            os.close(lock)
        return Stamp(data, content_digest(data))

    def write(self, key: str, data: bytes) -> None:
        """Write an object; see :meth:`.store.Store.write`."""
        place = self._place(key)
        place.parent.mkdir(parents=True, exist_ok=True)
        with begun(place) as (_, descriptor):
            write_parts(descriptor, [data])
        self._unsynced |= {place.parent, self._path}

    def remove(self, key: str) -> None:
        """Remove an object; see :meth:`.store.Store.remove`."""
        self._place(key).unlink(missing_ok=True)

    def list_keys(self) -> Iterator[str]:
        """List the objects, and remove what a killed publisher left half written."""
        for room in (".", *ROOMS):
            try:
                found = list((self._path / room).iterdir())
            except FileNotFoundError:
                continue
            for path in found:
                key = f"{room}/{path.name}"
                if is_key(key):
                    yield key
                elif path.name.startswith(".") and path.name.endswith(".part"):
                    path.unlink(missing_ok=True)

    def _mark(self) -> tuple[int, int, int] | None:
        """Tell the file of the head from others that had its name."""
        try:
            found = (self._path / HEAD_NAME).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _place(self, key: str) -> Path:
        if not is_key(key):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key)
        return self._path / key


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a file, at most `limit` bytes of it; links and devices are not followed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        length = os.fstat(descriptor).st_size
        wanted = min(length, limit)
        # Almost always all of it at once, and then nothing is copied.
        parts = [os.read(descriptor, wanted)]
        while parts[-1] and (left := wanted - sum(map(len, parts))) > 0:
            parts.append(os.read(descriptor, left))
        return b"".join(parts)
    finally:
        os.close(descriptor)
