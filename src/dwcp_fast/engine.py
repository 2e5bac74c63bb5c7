"""Which engine, v1 or v3, new sessions of this process use, and the process-wide kill switch."""

import logging
from typing import Final

from dwcp_fast.options import Protocol
from dwcp_fast.policy.choice import Choice
from dwcp_fast.policy.engine import Engine, choose_engine
from dwcp_fast.rollout.flags import FILE_VARIABLE, current_flags, node_name
from dwcp_fast.rollout.switch import SWITCH

__all__ = ["FLAGS_VARIABLE", "current_flags", "engine_for", "force_v1", "is_v1_forced"]

LOG: Final = logging.getLogger(__name__)
FLAGS_VARIABLE: Final = FILE_VARIABLE


def force_v1(on: bool) -> None:
    """Turn the kill switch on or off: from now on this process uses v1, and no v3.

    Open v3 sessions are stopped. What they send goes on in v1 where the protocol was ``"auto"`` and v1 can
    carry it; all else raises :class:`~dwcp_fast.V3StoppedError`. v1 neither authenticates nor verifies.

    Args:
        on: Whether v1 is forced.
    """
    if on != SWITCH.forced:
        LOG.warning("v1 is %s", "forced" if on else "no longer forced")
    SWITCH.force(on)


def is_v1_forced() -> bool:
    """Tell whether the kill switch is on."""
    return SWITCH.forced


def engine_for(requested: Protocol) -> Choice[Engine]:
    """Choose the engine for a new session, with the flags that are in force now.

    Args:
        requested: What the caller asks for.

    Returns:
        The engine and why.

    Raises:
        ConfigError: The flags cannot be used, and never could be.
        NegotiationError: v3 was asked for by name while a kill switch forbids it.
        OSError: The flags cannot be read, and never could be.
    """
    return choose_engine(requested, forced_v1=is_v1_forced(), flags=current_flags(), node=node_name())
