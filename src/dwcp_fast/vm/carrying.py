"""What carries the streams of a move between the two sides, as the two sides use it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from dwcp_fast.vm.relay import RelayStats

__all__ = ["Carrier", "SourceCarrier", "TargetCarrier", "socket_folder"]


class Carrier(Protocol):
    """One side of a relay."""

    def stats(self) -> RelayStats:
        """Give its counters, and how they came to be."""

    def present(self) -> RelayStats:
        """Give its counters as they are now: at the same cost however long it takes."""

    def wait(self, timeout_s: float | None) -> RelayStats:
        """Wait for its end in peace, or raise what it failed by."""

    def stop(self, reason: str = "cancelled") -> None:
        """Shut every socket of both sides."""

    def close(self) -> None:
        """End it."""


class SourceCarrier(Carrier, Protocol):
    """The side that dials."""

    def finish(self) -> None:
        """Open no further streams."""


class TargetCarrier(Carrier, Protocol):
    """The side that listens."""

    @property
    def address(self) -> str:
        """``HOST:PORT`` that is listened on."""

    @property
    def pairing(self) -> str | None:
        """The string for the other side."""

    def accept(self, timeout_s: float | None = None) -> None:
        """Wait for the other side."""


@contextmanager
def socket_folder(given: Path | None) -> Iterator[Path]:
    """Give a folder for Unix sockets: the one that is given, or a new private one that is removed."""
    if given is not None:
        yield given
        return
    # The names of Unix sockets have about a hundred bytes: no long prefix.
    with tempfile.TemporaryDirectory(prefix="dwcp-vm-") as made:
        yield Path(made)
