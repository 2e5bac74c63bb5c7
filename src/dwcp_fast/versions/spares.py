"""Memory of versions that nobody looks at any more, for the versions to come.

Writing to memory that is fresh from the system costs several times what decoding and proving does.
"""

import sys
import threading
from collections.abc import Iterable

__all__ = ["Spares"]


def references(buffers: list[bytearray], index: int) -> int:
    """Count who refers to a buffer of a list; a view of it counts, and so does an array over a view."""
    return sys.getrefcount(buffers[index])


UNSHARED = references([bytearray(1)], 0)
"""What :func:`references` says of a buffer that is in its list and nowhere else."""

COUNTS = getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether counts of references are exact; without a global lock they are not."""


class Spares:
    """Buffers that were given up; each is handed out again only when nothing refers to it."""

    def __init__(self) -> None:
        """Begin with none."""
        self._buffers: list[bytearray] = []
        self._lock = threading.Lock()

    def take(self, length: int) -> bytearray:
        """Give a buffer that nobody else has; its content is arbitrary.

        Args:
            length: Its length.

        Returns:
            The buffer.
        """
        with self._lock:
            for index in range(len(self._buffers)):
                if len(self._buffers[index]) == length and references(self._buffers, index) == UNSHARED:
                    return self._buffers.pop(index)
        return bytearray(length)

    def give(self, buffers: Iterable[bytes | bytearray]) -> None:
        """Take buffers back. The caller lets go of them; others may still look at them as long as they like.

        Args:
            buffers: The buffers; those that cannot be written to are let go.
        """
        if COUNTS:
            with self._lock:
                self._buffers += [one for one in buffers if isinstance(one, bytearray)]

    def drop(self) -> None:
        """Let go of all of them."""
        with self._lock:
            self._buffers = []
