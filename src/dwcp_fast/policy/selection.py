"""What ``codec="auto"`` chose for the blocks of a transfer."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["ActionShare", "Selection"]


@dataclass(frozen=True, slots=True)
class ActionShare:
    """The blocks for which ``codec="auto"`` chose one action.

    Attributes:
        action: ``"none"``, ``"lz4"``, ``"zstd:LEVEL"`` and so on, or ``"planes"``.
        blocks: How many.
        raw_bytes: Their length.
        wire_bytes: Their length on the wire.
        cpu_seconds: Processor time of looking at them and encoding them.
    """

    action: str
    blocks: int
    raw_bytes: int
    wire_bytes: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What ``codec="auto"`` chose for the blocks of a transfer, and what it had measured at the end.

    Blocks of one repeated byte, and those coded against a base, are nobody's choice and not in here.

    Attributes:
        has_model: Whether a model predicted what each action would make of a block.
        actions: What was chosen.
        reasons: Blocks by what decided: ``"start"`` (nothing was known of the link yet), ``"model"``,
            ``"means"`` (of earlier blocks), ``"probe"`` (which found nothing to gain), ``"bypass"`` (the
            blocks before had nothing to gain), ``"trial"`` (of one action for everything) and ``"guard"``
            (a trial had shown that to be faster).
        price: What processor time was worth: 0 where only the link counted, 1 where only processors did.
        link_bytes_per_s: What the link was taken to carry; None if nothing was acknowledged.
        link_was_limit: Whether everything waited for the link at some time, so that it carries no more.
        known_bytes_per_s: What the link was taken to carry at first, since it did in an earlier session; None
            if nothing was known of it.
        processors: How many processors the lanes were taken to get.
        blocked_share: The share of the lanes' time in which the link kept them waiting.
        trials: Trials of one action for everything.
        guard_trips: Trials that showed it to be faster.
    """

    has_model: bool
    actions: tuple[ActionShare, ...]
    reasons: Mapping[str, int]
    price: float
    link_bytes_per_s: float | None
    link_was_limit: bool
    known_bytes_per_s: float | None
    processors: float
    blocked_share: float
    trials: int
    guard_trips: int
