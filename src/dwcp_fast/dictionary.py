"""Trained dictionaries: what many small messages have in common, kept once by both sides.

A dictionary is named by the digest of its bytes. A container that was made with one says so, so that a
reader that holds several knows which to take, and nothing is ever decoded with the wrong one.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Self

from dwcp_fast import _core
from dwcp_fast.buffers import BufferLike
from dwcp_fast.options import CommonContent

__all__ = ["DEFAULT_MAX_BYTES", "Dictionary", "native", "natives"]

DEFAULT_MAX_BYTES: Final = 110 << 10
"""Length to which a dictionary is trained unless told otherwise."""


class Dictionary:
    """A dictionary ready for use; immutable, and good for any number of threads.

    >>> from dwcp_fast import compress, decompress
    >>> messages = [f'{{"user": {i}, "region": "eu-west", "state": "ok"}}'.encode() for i in range(500)]
    >>> common = Dictionary.train(messages, max_bytes=1024)
    >>> packed = compress(messages[7], "zstd", dictionary=common)
    >>> len(packed) < len(compress(messages[7], "zstd")), decompress(packed, dictionary=common) == messages[7]
    (True, True)
    """

    __slots__ = ("_native",)

    def __init__(self, data: BufferLike) -> None:
        """Make a dictionary ready.

        Args:
            data: What :meth:`to_bytes` gave, any dictionary of zstd, or content that data has in common.

        Raises:
            FormatError: It is empty, longer than 16 MiB, or damaged.
            BufferError: It is not C-contiguous.
        """
        self._native = _core.Dictionary(data)

    @classmethod
    def train(cls, samples: Iterable[BufferLike], *, max_bytes: int = DEFAULT_MAX_BYTES) -> Self:
        """Train a dictionary, by the COVER algorithm of zstd.

        It pays for messages of up to some tens of KiB that look alike. About a hundred times `max_bytes`
        of samples train well.

        Args:
            samples: Typical messages, each as it will be compressed; 8 or more.
            max_bytes: Length of the dictionary in bytes, at most: 256 to 16 777 216.

        Returns:
            The dictionary; the same samples give the same.

        Raises:
            ConfigError: There are too few samples, too little in them, or `max_bytes` is out of range.
            BufferError: A sample is not C-contiguous.
        """
        return cls(_core.Dictionary.train(list(samples), max_bytes).to_bytes())

    @property
    def digest(self) -> str:
        """The name of the dictionary: XXH3-128 of its bytes, in hex."""
        return self._native.digest

    def to_bytes(self) -> bytes:
        """Give the bytes, to be kept or sent."""
        return self._native.to_bytes()

    def __eq__(self, other: object) -> bool:
        """Tell whether the bytes are the same."""
        return isinstance(other, Dictionary) and self.digest == other.digest

    def __hash__(self) -> int:
        """Go by the digest."""
        return hash(self.digest)

    def __repr__(self) -> str:
        """Show the digest."""
        return f"<Dictionary {self.digest}>"

    def __reduce__(self) -> tuple[type["Dictionary"], tuple[bytes]]:
        """Travel as bytes."""
        return Dictionary, (self.to_bytes(),)


def native(dictionary: CommonContent | None) -> _core.Dictionary | None:
    """Give the native half of a dictionary, where there is one."""
    return None if dictionary is None else ready(dictionary)


def natives(dictionaries: Sequence[CommonContent]) -> list[_core.Dictionary]:
    """Give the native halves of dictionaries."""
    return [ready(dictionary) for dictionary in dictionaries]


def ready(dictionary: CommonContent) -> _core.Dictionary:
    """Give what is ready in a :class:`Dictionary`, and make it of what is not."""
    if isinstance(dictionary, Dictionary):
        return dictionary._native  # noqa: SLF001
    return _core.Dictionary(dictionary.to_bytes())
