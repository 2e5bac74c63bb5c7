"""How many lanes a session uses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dwcp_fast.policy.choice import Choice

__all__ = ["DEFAULT_LANES", "LaneChange", "choose_congestion", "choose_lanes", "explain_lanes", "lane_range"]

DEFAULT_LANES: Final = 4
POLITE_LANES: Final = 1
FAR: Final = (3, 16, 64)
"""Fewest, first and most lanes to a peer that is far. Another connection that shares a full link with the
fewest keeps a quarter of it."""
POLITE_FAR: Final = (1, 1, 8)
"""The same for who is to leave half of a full link to a single other connection."""


@dataclass(frozen=True, slots=True)
class LaneChange:
    """A change of the number of lanes.

    Attributes:
        seconds: When, from the beginning of the transfer on.
        lanes: How many there were to be from then on.
        bytes_per_s: What all lanes together had delivered before, in bytes a second; 0 if nothing was
            measured yet.
        why: The reason, for people.
    """

    seconds: float
    lanes: int
    bytes_per_s: float
    why: str


def choose_lanes(requested: int | None, *, polite: bool = False) -> Choice[int]:
    """Choose the number of lanes.

    Args:
        requested: A number of lanes, None for a choice by rule.
        polite: Whether others on the link go first.

    Returns:
        The number of lanes to a peer that is near; the receiver may allow fewer.
    """
    if requested is not None:
        return Choice("streams", requested, "asked for")
    if polite:
        return Choice("streams", POLITE_LANES, "others on the link go first")
    why = "a loss on one lane leaves three at work, and each adds a core's worth of coding"
    return Choice("streams", DEFAULT_LANES, why)


def choose_congestion(requested: str, *, polite: bool = False) -> str:
    """Choose what the kernel is asked for.

    Args:
        requested: ``"auto"``, ``"yielding"``, ``"system"`` or the name of a congestion control.
        polite: Whether others on the link go first.

    Returns:
        The same; ``"yielding"`` for ``"auto"`` where others go first, since ``"auto"`` may come to BBR, which
        does not give way.
    """
    return "yielding" if polite and requested == "auto" else requested


def lane_range(requested: int | None, *, polite: bool = False) -> tuple[int, int, int] | None:
    """Give the fewest, the first and the most lanes to a peer that is far.

    Args:
        requested: A number of lanes, None for a choice by rule.
        polite: Whether others on the link go first.

    Returns:
        The three numbers, None if their number was asked for.
    """
    if requested is not None:
        return None
    return POLITE_FAR if polite else FAR


def explain_lanes(changes: Sequence[LaneChange]) -> Choice[int] | None:
    """Say how the number of lanes was found in a transfer.

    Args:
        changes: How it was changed.

    Returns:
        The last number and how it came to that, None if it was not looked for.
    """
    if not changes:
        return None
    steps = [f"{changes[0].lanes} {changes[0].why}"]
    for change in changes[1:]:
        rate = f" at {change.bytes_per_s * 8 / 1e6:,.0f} Mbps" if change.bytes_per_s else ""
        steps.append(f"{change.lanes} after {change.seconds:.1f} s since {change.why}{rate}")
    return Choice("streams", changes[-1].lanes, ", ".join(steps))
