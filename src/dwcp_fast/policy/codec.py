"""Which codec a transfer uses."""

from typing import Final

from dwcp_fast.policy.choice import Choice

__all__ = ["RAW_ABOVE_MBPS", "choose_codec"]

RAW_ABOVE_MBPS: Final = 20_000.0
"""Megabits per second from which one core's zstd level 1 per lane cannot keep several lanes busy."""


def choose_codec(requested: str, *, link_mbps: float | None = None) -> Choice[str]:
    """Choose the codec of a transfer.

    Each block is probed before it is compressed, and sent as it is if it would not shrink. So the choice here
    costs little where it is wrong for a block.

    Args:
        requested: ``"auto"`` or the name of a codec.
        link_mbps: Rate of the link in megabits per second, None where it is not known.

    Returns:
        The name of a codec, never ``"auto"``.
    """
    if requested != "auto":
        return Choice("codec", requested, "asked for")
    if link_mbps is not None and link_mbps >= RAW_ABOVE_MBPS:
        why = f"the link's {link_mbps:.0f} Mbps are more than compression keeps up with"
        return Choice("codec", "none", why)
    known = "is not known" if link_mbps is None else f"has {link_mbps:.0f} Mbps"
    return Choice("codec", "zstd:1", f"the link {known}; blocks that would not shrink are sent as they are")
