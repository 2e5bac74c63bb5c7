"""What a place that keeps versions can do; each backend does no more than this."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

__all__ = ["Source", "Stamp", "Store", "is_key", "manifest_key", "pack_key"]

KEY: Final = re.compile(r"(?:manifests|packs)/[0-9a-f]{32}")


def manifest_key(digest: str) -> str:
    """Give the key of a manifest."""
    return f"manifests/{digest}"


def pack_key(digest: str) -> str:
    """Give the key of a pack."""
    return f"packs/{digest}"


def is_key(text: str) -> bool:
    """Tell whether a text is the key of an object; nothing else may become a path."""
    return KEY.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Stamp:
    """The head as it was read.

    Attributes:
        data: Its bytes.
        token: What the store calls this state of it.
    """

    data: bytes
    token: str


class Source(Protocol):
    """A place that versions can be read from."""

    def read_head(self) -> Stamp | None:
        """Read the head.

        Returns:
            The head, None if there is none yet.

        Raises:
            OSError: It cannot be read.
            TransportError: The store cannot be reached.
        """
        ...

    def wait_head(self, seen: Stamp | None, held: str | None, timeout_s: float) -> Stamp | None:
        """Wait until there is a head that is not the one seen.

        Args:
            seen: The head that is known.
            held: Digest of the content that is held, so that what follows can be fetched ahead.
            timeout_s: Seconds to wait at most; 0 only looks.

        Returns:
            The head, None if it did not change.

        Raises:
            OSError: It cannot be read.
            TransportError: The store cannot be reached.
        """
        ...

    def read(self, key: str, length: int) -> bytes | memoryview:
        """Read an object.

        Args:
            key: Its key.
            length: Its length; never more than this is read.

        Returns:
            Its bytes, as they are in the store: of another length, or damaged, if it lies.

        Raises:
            FileNotFoundError: It is not there.
            OSError: It cannot be read.
            TransportError: The store cannot be reached.
        """
        ...

    def tell(self, version: int | None, failure: str | None) -> None:
        """Let the other side know, where there is one, how this side fares.

        Args:
            version: Number of the version that is committed, None for none.
            failure: What went wrong with the newest version, None if nothing did.
        """
        ...

    def interrupt(self) -> None:
        """Make a wait that is under way end soon, from any thread."""
        ...

    def close(self) -> None:
        """Let go of what is held; a second time does nothing."""
        ...


class Store(Source, Protocol):
    """A place that versions can be kept in."""

    def replace_head(self, data: bytes, seen: Stamp | None) -> Stamp:
        """Replace the head as one step, durable when this returns.

        Args:
            data: The new head.
            seen: The head that is replaced, None for none.

        Returns:
            The new head as it is now.

        Raises:
            ConflictError: The head is another one by now.
            OSError: It cannot be written.
            TransportError: The store cannot be reached; it may or may not have been replaced.
        """
        ...

    def write(self, key: str, data: bytes) -> None:
        """Write an object, whole when this returns, and durable before a head is replaced after it.

        One that is there is written again.

        Args:
            key: Its key.
            data: Its bytes.

        Raises:
            OSError: It cannot be written.
            TransportError: The store cannot be reached.
        """
        ...

    def remove(self, key: str) -> None:
        """Remove an object; one that is not there is no error.

        Args:
            key: Its key.

        Raises:
            OSError: It cannot be removed.
            TransportError: The store cannot be reached.
        """
        ...

    def list_keys(self) -> Iterator[str]:
        """List the objects, the head apart.

        Yields:
            Their keys.

        Raises:
            OSError: They cannot be listed.
            TransportError: The store cannot be reached.
        """
        ...
