"""Patches of many groups, written to a store as a few objects."""

from typing import Final

from dwcp_fast.versions.manifest import Pack, Patches, Place, content_digest
from dwcp_fast.versions.store import Store, pack_key

__all__ = ["Packer"]

PACK_BYTES: Final = 64 << 20
"""Length from which on a pack is closed."""


class Packer:
    """Takes the patches of a version in the order of its groups, and writes packs as they fill."""

    def __init__(self, store: Store, written: set[str]) -> None:
        """Write to a store, and note the keys in `written` beforehand."""
        self._store = store
        self._written = written
        self._packs: list[Pack] = []
        self._places: list[Place | None] = []
        self._parts: list[bytes] = []
        self._length = 0

    def add(self, patch: bytes | None) -> None:
        """Take the patch of the next group.

        Args:
            patch: The patch, None if the group is as in the base.

        Raises:
            OSError: A pack cannot be written.
            TransportError: The store cannot be reached.
        """
        if patch is None:
            self._places.append(None)
            return
        self._places.append(Place(len(self._packs), self._length, len(patch)))
        self._parts.append(patch)
        self._length += len(patch)
        if self._length >= PACK_BYTES:
            self._flush()

    def finish(self) -> Patches:
        """Write what is left.

        Returns:
            Where everything is.

        Raises:
            OSError: A pack cannot be written.
            TransportError: The store cannot be reached.
        """
        if self._parts:
            self._flush()
        return Patches(tuple(self._packs), tuple(self._places))

    def _flush(self) -> None:
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        name = content_digest(data)
        self._written.add(pack_key(name))
        self._store.write(pack_key(name), data)
        self._packs.append(Pack(name, len(data)))
        self._parts = []
        self._length = 0
