"""Which codec a transfer uses."""

from typing import Final

from dwcp_fast.policy.choice import Choice
from dwcp_fast.policy.selection import Selection

__all__ = ["choose_codec"]

RULED_BY: Final = {
    "start": "before the link was known",
    "model": "by the model",
    "means": "by what earlier blocks gave",
    "probe": "by a probe that found nothing to gain",
    "bypass": "by how little the blocks before had to gain",
    "trial": "to measure none or zstd:1",
    "guard": "by the guard, which had measured that to be faster",
}
"""How each reason reads behind a share of blocks."""


def choose_codec(
    requested: str, *, selection: Selection | None = None, refusal: str | None = None
) -> Choice[str]:
    """Choose the codec of a transfer.

    Args:
        requested: ``"auto"`` or the name of a codec.
        selection: What ``"auto"`` chose in the last transfer, if there was one.
        refusal: Why ``"auto"`` may not compress, None if it may.

    Returns:
        The name of a codec; ``"auto"`` where each block has its own.
    """
    if requested != "auto":
        return Choice("codec", requested, "asked for")
    if refusal is not None:
        return Choice("codec", "none", refusal)
    if selection is None:
        why = "each block as its content, the processors and the link have it; nothing was measured yet"
        return Choice("codec", "auto", why)
    return Choice("codec", "auto", explain_selection(selection))


def explain_selection(selection: Selection) -> str:
    """Say what was chosen for the blocks of a transfer, and which measurements led to it."""
    raw = sum(share.raw_bytes for share in selection.actions)
    if not raw:
        return "there was no block to choose for"
    largest = sorted(selection.actions, key=lambda share: -share.raw_bytes)
    used = ", ".join(f"{share.action} {share.raw_bytes / raw:.0%}" for share in largest)
    blocks = sum(selection.reasons.values())
    ranked = sorted(selection.reasons.items(), key=lambda item: -item[1])
    rules = ", ".join(f"{count / blocks:.0%} {RULED_BY[reason]}" for reason, count in ranked)
    if selection.link_bytes_per_s is None:
        link = "the link was not known"
    else:
        link = f"the link carried {selection.link_bytes_per_s * 8 / 1e6:,.0f} Mbps"
        if selection.known_bytes_per_s is not None:
            link += f" (by an earlier session {selection.known_bytes_per_s * 8 / 1e6:,.0f})"
    trips = f"; the guard stepped in {selection.guard_trips} times" if selection.guard_trips else ""
    return (
        f"{used}; {link} and kept lanes waiting {selection.blocked_share:.0%} of their time, "
        f"{selection.processors:.1f} processors were to be had, which priced their time against the link's "
        f"at {selection.price:.2f} of 1; decided {rules}{trips}"
    )
