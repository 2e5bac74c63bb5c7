"""Which store a name means."""

import re
from os import PathLike
from typing import Final

from dwcp_fast.errors import ConfigError
from dwcp_fast.trust import Trust
from dwcp_fast.versions.asking import AHEAD_BYTES
from dwcp_fast.versions.directory import DirectoryStore
from dwcp_fast.versions.peer import PeerSource
from dwcp_fast.versions.store import Source, Store

__all__ = ["is_address", "open_source", "open_store"]

ADDRESS: Final = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^/\\:\s]+):\d{1,5}")


def is_address(text: str) -> bool:
    """Tell whether a text names a peer: ``HOST:PORT`` or a pairing string."""
    return text.startswith("dwcp://") or ADDRESS.fullmatch(text) is not None


def open_store(place: str | PathLike[str] | Store) -> Store:
    """Open a store.

    Args:
        place: A directory, ``s3://bucket/prefix`` (also ``gs://``, ``az://``), or a store.

    Returns:
        The store.

    Raises:
        ConfigError: It is an address, or the library for object stores is not installed.
    """
    if isinstance(place, str):
        if is_address(place):
            raise ConfigError(f"{place} is an address, not a place to keep versions in")
        if "://" in place:
            # Imported late: it needs an optional library.
            from dwcp_fast.versions.bucket import BucketStore

            return BucketStore.open(place)
        return DirectoryStore(place)
    return DirectoryStore(place) if isinstance(place, PathLike) else place


def open_source(place: str | PathLike[str] | Source, trust: Trust | None, max_version_bytes: int) -> Source:
    """Open a source.

    Args:
        place: What :func:`open_store` takes, or the address or pairing string of a publisher that listens.
        trust: How to know that publisher.
        max_version_bytes: Most bytes that a version may have.

    Returns:
        The source.

    Raises:
        ConfigError: `trust` is given for something that is not an address, or as for :func:`open_store`.
    """
    if isinstance(place, str) and is_address(place):
        return PeerSource(place, trust, max_bytes=max_version_bytes + max_version_bytes // 8 + AHEAD_BYTES)
    if trust is not None:
        raise ConfigError(f"trust is for publishers that listen, and {place} is none")
    if isinstance(place, str | PathLike):
        return open_store(place)
    return place
