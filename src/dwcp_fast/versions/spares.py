"""Memory of versions that nobody looks at any more, for the versions to come.

Writing to memory that is fresh from the system costs several times what decoding and proving does.
"""

import threading
from collections.abc import Iterable

from dwcp_fast.delta import Snapshot

__all__ = ["Spares"]


class Spares:
    """Snapshots that were given up; the memory of each is used again only when nobody looks at it."""

    def __init__(self) -> None:
        """Begin with none."""
        self._snapshots: list[Snapshot] = []
        self._lock = threading.Lock()

    def take(self, length: int) -> Snapshot | None:
        """Give a snapshot that nobody looks at.

        Args:
            length: Its length.

        Returns:
            The snapshot, None if there is none.
        """
        with self._lock:
            for index, snapshot in enumerate(self._snapshots):
                if snapshot.size == length and not snapshot.is_viewed:
                    return self._snapshots.pop(index)
        return None

    def give(self, snapshots: Iterable[Snapshot]) -> None:
        """Take snapshots back. Nobody may begin to look at them; who does already may go on.

        Args:
            snapshots: The snapshots.
        """
        with self._lock:
            self._snapshots += snapshots

    def replace(self, snapshots: Iterable[Snapshot]) -> None:
        """Take snapshots back as :meth:`give` does, and let go of all others.

        Args:
            snapshots: The snapshots.
        """
        with self._lock:
            self._snapshots = list(snapshots)
