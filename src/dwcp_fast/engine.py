"""The kill switch and the rollout: which engine new sessions of this process use."""

import logging
import os
import socket
import threading
from pathlib import Path
from typing import Final

from dwcp_fast.options import Protocol
from dwcp_fast.policy.choice import Choice
from dwcp_fast.policy.engine import Engine, choose_engine
from dwcp_fast.policy.rollout import RolloutFlags, parse_flags

__all__ = ["FLAGS_VARIABLE", "current_flags", "engine_for", "force_v1", "is_v1_forced"]

LOG: Final = logging.getLogger(__name__)
FLAGS_VARIABLE: Final = "DWCP_FLAGS_FILE"
FORCED: Final = threading.Event()


def force_v1(on: bool) -> None:
    """Turn the kill switch on or off: from now on every new session of this process uses v1.

    Sessions that are open go on as they are. v1 neither authenticates nor verifies.

    Args:
        on: Whether v1 is forced.
    """
    if on != FORCED.is_set():
        LOG.warning("v1 is %s for new sessions", "forced" if on else "no longer forced")
    if on:
        FORCED.set()
    else:
        FORCED.clear()


def is_v1_forced() -> bool:
    """Tell whether the kill switch is on."""
    return FORCED.is_set()


def engine_for(requested: Protocol) -> Choice[Engine]:
    """Choose the engine for a new session, with the flags as their file has them now.

    Args:
        requested: What the caller asks for.

    Returns:
        The engine and why.

    Raises:
        ConfigError: The flag file cannot be used.
        NegotiationError: v3 was asked for by name while a kill switch forbids it.
        OSError: The flag file cannot be read.
    """
    return choose_engine(
        requested, forced_v1=is_v1_forced(), flags=current_flags(), node=socket.gethostname()
    )


def current_flags() -> RolloutFlags | None:
    """Read the flag file that the environment names, None if it names none."""
    path = os.environ.get(FLAGS_VARIABLE)
    return parse_flags(Path(path).read_bytes()) if path else None
