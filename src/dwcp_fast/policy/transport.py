"""What carries the lanes of a session: TCP, or memory that two processes on one host share."""

from collections.abc import Mapping
from typing import Any, Final

from dwcp_fast.options import Carrier
from dwcp_fast.policy.choice import Choice

__all__ = ["choose_links", "explain_link"]

NETWORK_MODES: Final = ("hybrid", "internet")


def choose_links(
    requested: Carrier, *, shares_memory: bool, asked: Mapping[str, Any], mode: str
) -> Choice[tuple[str, ...]]:
    """Choose what may carry the lanes.

    Args:
        requested: What the caller asks for.
        shares_memory: Whether this system lets processes share memory.
        asked: What was asked for that only a network can keep, by the names of the options; what is None or
            empty was not.
        mode: What kind of link the caller says there is.

    Returns:
        What is tried, in this order. Memory is passed over where the peer is on another host.
    """
    if requested != "auto":
        return Choice("link", (requested,), "asked for")
    if not shares_memory:
        return Choice("link", ("tcp",), "this system lets processes share no memory")
    if mode in NETWORK_MODES:
        return Choice("link", ("tcp",), f"mode {mode} is one of a network")
    kept = [name for name, value in asked.items() if value]
    if kept:
        return Choice("link", ("tcp",), f"{' and '.join(kept)} can be kept on a network only")
    return Choice("link", ("shm", "tcp"), "memory is faster where both ends are on one host")


def explain_link(choice: Choice[tuple[str, ...]], carried_by: str, passed_over: str | None) -> Choice[str]:
    """Say what came of the order.

    Args:
        choice: What was to be tried.
        carried_by: What carries the lanes.
        passed_over: What was tried before that and why it does not, None if nothing was.

    Returns:
        What carries the lanes, and why.
    """
    why = choice.why if passed_over is None else f"{choice.why}, but {passed_over}"
    return Choice(choice.name, carried_by, why)
