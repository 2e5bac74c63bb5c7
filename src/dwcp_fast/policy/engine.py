"""Which engine, v1 or v3, talks to a receiver."""

from typing import Literal

from dwcp_fast.errors import NegotiationError
from dwcp_fast.options import Protocol
from dwcp_fast.policy.choice import Choice
from dwcp_fast.policy.rollout import RolloutFlags, bucket_of, component_uses_v3

__all__ = ["Engine", "choose_engine", "explain_kill"]

Engine = Literal["v1", "v3"]


def explain_kill(*, forced_v1: bool, flags: RolloutFlags | None) -> str | None:
    """Say which kill switch forbids v3, None if none does.

    Args:
        forced_v1: Whether the process-wide kill switch is on.
        flags: The deployment's rollout flags, None where there are none.
    """
    if forced_v1:
        return "force_v1 is on"
    return "the flags say forceV1Mode" if flags is not None and flags.forceV1Mode else None


def choose_engine(
    requested: Protocol, *, forced_v1: bool, flags: RolloutFlags | None, node: str
) -> Choice[Engine]:
    """Choose the engine for a new session.

    Args:
        requested: What the caller asks for.
        forced_v1: Whether the process-wide kill switch is on.
        flags: The deployment's rollout flags, None where there are none.
        node: Name of this node, which places it in the rollout.

    Returns:
        ``"v1"`` or ``"v3"``.

    Raises:
        NegotiationError: v3 was asked for by name while the kill switch forbids it.
    """
    killed = explain_kill(forced_v1=forced_v1, flags=flags)
    if killed is not None and requested == "v3":
        raise NegotiationError(
            f"protocol v3 was asked for, but {killed}", hint="lift the kill switch, or ask for auto"
        )
    if requested != "auto":
        return Choice("protocol", requested, "asked for")
    if killed is not None:
        return Choice("protocol", "v1", killed)
    if flags is None:
        return Choice("protocol", "v3", "no rollout flags are set")
    told = f"this node is in bucket {bucket_of(node)} of a rollout to {flags.v3RolloutPercentage} %"
    if not flags.enableV3Transport:
        return Choice("protocol", "v1", "the flags leave enableV3Transport off")
    return Choice("protocol", "v3" if component_uses_v3(flags, "transport", node) else "v1", told)
