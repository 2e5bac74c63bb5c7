"""Bytes to measure, wherever they are: in a file, in memory, or the difference of two files."""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dwcp_fast.errors import DeadlineError

__all__ = ["BytesContent", "Content", "Deadline", "FileContent", "Opener", "difference", "file_content"]


@dataclass(frozen=True, slots=True)
class Deadline:
    """The time by which a file has to be done with.

    Attributes:
        limit_s: Seconds that were given.
        end: The instant, of the monotonic clock.
    """

    limit_s: float
    end: float

    @classmethod
    def after(cls, limit_s: float) -> "Deadline":
        """Begin to count now."""
        return cls(limit_s, time.monotonic() + limit_s)

    @property
    def remaining_s(self) -> float:
        """Seconds left, 0 if there are none."""
        return max(0.0, self.end - time.monotonic())

    def check(self) -> None:
        """Refuse to go on after the end.

        Raises:
            DeadlineError: It has passed.
        """
        if not self.remaining_s:
            raise DeadlineError(f"not done within {self.limit_s:g} s")


class Content(Protocol):
    """Bytes that can be read at any place."""

    @property
    def length(self) -> int:
        """How many bytes there are."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Give bytes, fewer only at the end.

        Raises:
            OSError: They cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class BytesContent:
    """Bytes in memory."""

    data: bytes

    @property
    def length(self) -> int:
        """How many bytes there are."""
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        """Give bytes, fewer only at the end."""
        return self.data[offset : offset + length]


@dataclass(frozen=True, slots=True)
class FileContent:
    """Bytes of a regular file, as many as it had when it was opened."""

    descriptor: int
    length: int

    def read(self, offset: int, length: int) -> bytes:
        """Give bytes, fewer only at the end.

        Raises:
            OSError: They cannot be read, or the file has become shorter.
        """
        wanted = min(length, max(0, self.length - offset))
        parts = []
        while wanted:
            part = os.pread(self.descriptor, wanted, offset)
            if not part:
                raise OSError(errno.EIO, "became shorter while it was read")
            parts.append(part)
            wanted -= len(part)
            offset += len(part)
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class XorContent:
    """The bits in which one content differs from another, as far as both go."""

    new: Content
    old: Content

    @property
    def length(self) -> int:
        """How many bytes there are."""
        return min(self.new.length, self.old.length)

    def read(self, offset: int, length: int) -> bytes:
        """Give bytes, fewer only at the end.

        Raises:
            OSError: They cannot be read.
        """
        length = min(length, max(0, self.length - offset))
        new, old = self.new.read(offset, length), self.old.read(offset, length)
        bits = int.from_bytes(new, "little") ^ int.from_bytes(old, "little")
        return bits.to_bytes(length, "little")


Opener = Callable[[Deadline], AbstractContextManager[Content]]
"""Gives a content while a block runs; what takes longer than its deadline is given up."""


@contextmanager
def file_content(path: Path) -> Iterator[FileContent]:
    """Give the content of a file while the block runs.

    Raises:
        OSError: It is no regular file, or cannot be opened.
    """
    # Not to wait for the other end of what turns out to be a pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        told = os.fstat(descriptor)
        if not stat.S_ISREG(told.st_mode):
            raise OSError(errno.EINVAL, "is no regular file")
        yield FileContent(descriptor, told.st_size)
    finally:
        os.close(descriptor)


@contextmanager
def difference(new: Path, old: Path) -> Iterator[XorContent]:
    """Give the bits in which two files differ while the block runs.

    Raises:
        OSError: One of them cannot be read.
    """
    with file_content(new) as after, file_content(old) as before:
        yield XorContent(after, before)
