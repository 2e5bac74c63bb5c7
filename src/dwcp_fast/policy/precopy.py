"""How the move of a running machine goes on: rounds that each send what was written during the one before."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["Forecast", "Round", "fit_writing", "forecast", "seconds_left", "why_not_converging"]

MAX_ROUNDS: Final = 200
GAIN: Final = 0.95
"""A round has come nearer to the end if it left less than this share of the least that was left before."""
SETTLED: Final = 1e-3
"""A round that leaves all but this share of what the one before left gets no further."""

LEAST_NEW: Final = 0.02
"""Shares of new pages below this cannot be told from none by sampling."""


@dataclass(frozen=True, slots=True)
class Round:
    """The state at the end of a round.

    Attributes:
        number: From 1; the first sends all memory.
        at_s: Seconds since the start.
        remaining_bytes: Memory that was written meanwhile and is still to be sent.
        dirty_bytes_per_s: How fast the guest writes memory.
        bytes_per_s: How fast memory is sent.
    """

    number: int
    at_s: float
    remaining_bytes: int
    dirty_bytes_per_s: float
    bytes_per_s: float

    @property
    def downtime_s(self) -> float:
        """For how long the guest would stand still if this were the last round."""
        return self.remaining_bytes / self.bytes_per_s if self.bytes_per_s > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a move would take.

    Attributes:
        converges: Whether it ends with the downtime that is allowed.
        seconds: Until the guest runs elsewhere; where it does not converge, until that is known.
        wire_bytes: On the link.
        rounds: How often memory is gone through, the last time with the guest standing still.
        downtime_s: For how long the guest stands still; where it does not converge, the least that is
            reached.
        why: Why it converges or does not.
    """

    converges: bool
    seconds: float
    wire_bytes: int
    rounds: int
    downtime_s: float
    why: str


def forecast(
    *,
    memory_bytes: float,
    dirty_bytes_per_s: float,
    working_set_bytes: float,
    link_bytes_per_s: float,
    ratio: float = 1.0,
    rtt_s: float = 0.0,
    max_downtime_s: float = 0.3,
) -> Forecast:
    """Say what a move would take, by a model of rounds.

    In `t` seconds a guest that writes `D` bytes a second, anywhere in a working set of `W` bytes, leaves
    ``W (1 - exp(-D t / W))`` bytes dirty: what is written twice is sent once.

    Args:
        memory_bytes: Memory that is not zero.
        dirty_bytes_per_s: How fast the guest writes memory.
        working_set_bytes: Memory that it writes again and again.
        link_bytes_per_s: What the link carries.
        ratio: Bytes of memory for each byte on the link.
        rtt_s: Round trip; the guest's stop and start cost one.
        max_downtime_s: For how long the guest may stand still.

    Returns:
        The forecast.
    """
    rate = link_bytes_per_s * ratio
    working_set = min(max(working_set_bytes, 1.0), max(memory_bytes, 1.0))
    allowed = max(max_downtime_s - rtt_s, 0.0)
    left, sent, seconds, least = max(memory_bytes, 0.0), 0.0, 0.0, math.inf
    for number in range(1, MAX_ROUNDS + 1):
        took = left / rate
        seconds += took
        sent += left
        dirty = working_set * -math.expm1(-dirty_bytes_per_s * took / working_set)
        if dirty / rate <= allowed:
            downtime = dirty / rate + rtt_s
            return Forecast(
                converges=True,
                seconds=seconds + downtime,
                wire_bytes=round((sent + dirty) / ratio),
                rounds=number + 1,
                downtime_s=downtime,
                why=f"the guest writes {in_mb(dirty_bytes_per_s)} MB/s of {in_mb(working_set)} MB, "
                f"{in_mb(rate)} MB/s of memory can be sent",
            )
        settled = number > 1 and dirty >= left * (1 - SETTLED)
        least = min(least, dirty / rate + rtt_s)
        left = dirty
        if settled:
            break
    why = (
        f"the guest writes {in_mb(dirty_bytes_per_s)} MB/s, of which {in_mb(left)} MB are left after each "
        f"round, and {in_mb(rate)} MB/s can be sent: it would stand still for {least:.2g} s, "
        f"{max_downtime_s:g} s are allowed"
    )
    if rtt_s >= max_downtime_s:
        why = f"one round trip takes {rtt_s:g} s, and the guest may stand still for {max_downtime_s:g} s"
    return Forecast(
        converges=False,
        seconds=seconds,
        wire_bytes=round(sent / ratio),
        rounds=number,
        downtime_s=least,
        why=why,
    )


def fit_writing(
    once_bytes: float, twice_bytes: float, probe_s: float, memory_bytes: float
) -> tuple[float, float]:
    """Find out how fast a guest writes, and how much it writes again and again.

    With ``D`` and ``W`` as for :func:`forecast`, twice the time leaves ``1 + exp(-D t / W)`` times the dirty
    bytes.

    Args:
        once_bytes: Memory that was dirty after `probe_s` seconds.
        twice_bytes: Memory that was dirty after twice as many.
        probe_s: The shorter time.
        memory_bytes: Memory of the guest, the largest working set there is.

    Returns:
        Bytes written a second, and the working set in bytes.
    """
    if once_bytes <= 0:
        return twice_bytes / (2 * probe_s), memory_bytes
    again = min(max(twice_bytes / once_bytes - 1, LEAST_NEW), 1.0)
    working_set = min(once_bytes / (1 - again), memory_bytes) if again < 1 else memory_bytes
    left = 1 - once_bytes / working_set
    if left <= LEAST_NEW:
        # All of it is written in less than the time of a probe; how fast cannot be told, and need not be.
        left = LEAST_NEW
    return -math.log(left) * working_set / probe_s, working_set


def seconds_left(ended: Round) -> float | None:
    """Tell how long a move takes from the end of a round on, if all goes on as in it.

    Args:
        ended: The round.

    Returns:
        Seconds; None if the guest writes as fast as is sent, so that no end is in sight.
    """
    gain = ended.bytes_per_s - ended.dirty_bytes_per_s
    return ended.remaining_bytes / gain if gain > 0 else None


def why_not_converging(rounds: Sequence[Round], *, max_downtime_s: float, patience_rounds: int) -> str | None:
    """Tell why a move will not end by itself, from how its rounds went.

    It will not if `patience_rounds` rounds one after the other left no less than what was reached before
    them, and each more than the guest may stand still for.

    Args:
        rounds: Those so far, oldest first.
        max_downtime_s: For how long the guest may stand still.
        patience_rounds: Rounds without gain that are waited for.

    Returns:
        The reason, or None while it may still end.
    """
    if len(rounds) <= patience_rounds:
        return None
    earlier, recent = rounds[:-patience_rounds], rounds[-patience_rounds:]
    reached = min(one.remaining_bytes for one in earlier)
    if any(one.downtime_s <= max_downtime_s or one.remaining_bytes < reached * GAIN for one in recent):
        return None
    last = recent[-1]
    return (
        f"after {last.number} rounds {in_mb(last.remaining_bytes)} MB are left, no less than before: the "
        f"guest writes {in_mb(last.dirty_bytes_per_s)} MB/s and {in_mb(last.bytes_per_s)} MB/s are sent, so "
        f"that it would "
        f"stand still for {last.downtime_s:.2g} s where {max_downtime_s:g} s are allowed"
    )


def in_mb(count: float) -> str:
    """Write a number of bytes in megabytes."""
    return f"{count / 1e6:.3g}"
