"""What a block costs under an action: closed forms over measured or predicted size and CPU time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Costs", "Overlap", "Situation", "grid"]

Floats = NDArray[np.float64]

Overlap = Literal["sequential", "pipelined"]
"""Whether compressing, sending and decompressing a block follow each other or overlap."""

LINKS_BPS: Final = (10e6, 50e6, 100e6, 200e6, 500e6, 1e9, 2.5e9, 5e9, 10e9, 25e9)
CPU_SHARES: Final = (0.25, 1.0, 4.0)
"""Cores that a transfer has at each end: throttled, one, several lanes."""


@dataclass(frozen=True, slots=True)
class Situation:
    """Where a decision is taken.

    Attributes:
        link_bps: Rate of the link in bits per second.
        cpu_share: Cores at each end, above 0.
        overlap: Whether the stages overlap.
    """

    link_bps: float
    cpu_share: float
    overlap: Overlap


def grid(
    overlap: Overlap, links_bps: Sequence[float] = LINKS_BPS, cpu_shares: Sequence[float] = CPU_SHARES
) -> list[Situation]:
    """Give every combination of a link and a CPU share, links outermost."""
    return [Situation(link, share, overlap) for link in links_bps for share in cpu_shares]


@dataclass(frozen=True, slots=True)
class Costs:
    """What every action makes of every block.

    Attributes:
        wire_bytes: Bytes sent, blocks x actions; infinite where an action does not exist for a block.
        compress_ns: CPU nanoseconds to compress, likewise.
        decompress_ns: CPU nanoseconds to decompress, likewise.
    """

    wire_bytes: Floats
    compress_ns: Floats
    decompress_ns: Floats

    @classmethod
    def of(cls, wire_bytes: Floats, compress_ns: Floats, decompress_ns: Floats) -> "Costs":
        """Make costs of columns in which NaN says that an action does not exist for a block."""
        absent = np.isnan(wire_bytes)
        columns = (wire_bytes, compress_ns, decompress_ns)
        return cls(*(np.where(absent, np.inf, column) for column in columns))

    def seconds(self, situation: Situation) -> Floats:
        """Give the seconds that each action takes for each block, blocks x actions."""
        compress = self.compress_ns * (1e-9 / situation.cpu_share)
        wire = self.wire_bytes * (8 / situation.link_bps)
        decompress = self.decompress_ns * (1e-9 / situation.cpu_share)
        if situation.overlap == "sequential":
            return compress + wire + decompress
        return np.maximum(np.maximum(compress, wire), decompress)

    def rows(self, chosen: NDArray[np.bool_] | NDArray[np.intp]) -> "Costs":
        """Give the costs of some of the blocks."""
        return Costs(self.wire_bytes[chosen], self.compress_ns[chosen], self.decompress_ns[chosen])
