"""How many lanes a session uses."""

from typing import Final

from dwcp_fast.policy.choice import Choice

__all__ = ["DEFAULT_LANES", "choose_lanes"]

DEFAULT_LANES: Final = 4


def choose_lanes(requested: int | None) -> Choice[int]:
    """Choose the number of lanes.

    Args:
        requested: A number of lanes, None for a choice by rule.

    Returns:
        The number of lanes; the receiver may allow fewer.
    """
    if requested is not None:
        return Choice("streams", requested, "asked for")
    why = "a loss on one lane leaves three at work, and each adds a core's worth of coding"
    return Choice("streams", DEFAULT_LANES, why)
