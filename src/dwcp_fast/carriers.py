"""What lanes are made of: looks at what there is, and dials by what the policy chooses."""

import logging
from collections.abc import Callable
from typing import Any, Final, TypeVar

from dwcp_fast import _core
from dwcp_fast.errors import DeadlineError, PeerError, TransportError
from dwcp_fast.options import Link
from dwcp_fast.policy.carrier import Carrier, RdmaOffer, choose_carrier, fall_back, patience_s
from dwcp_fast.policy.choice import Choice

__all__ = ["dial", "locked_memory_limit", "rdma_devices", "rdma_offer"]

LOG: Final = logging.getLogger(__name__)
T = TypeVar("T")


def rdma_devices() -> tuple[list[dict[str, Any]], str | None]:
    """List the RDMA devices that can be used, with their limits; and why there is none, if there is none."""
    devices, fault = _core.rdma_offer()
    return [dict(device) for device in devices], fault


def locked_memory_limit() -> int | None:
    """Tell how many bytes of memory this process may lock; None for any number, or where nobody tells."""
    try:
        import resource
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


def rdma_offer() -> RdmaOffer:
    """Look at what this machine offers of RDMA; opens its libraries only where there is a device."""
    devices, fault = _core.rdma_offer()
    return RdmaOffer(tuple(device["name"] for device in devices), fault)


def dial(
    asked: Link,
    connect_timeout_s: float,
    make: Callable[[Carrier, float], T],
    *,
    plain: bool,
    events: Callable[[dict[str, Any]], None] | None,
) -> tuple[T, Choice[Carrier]]:
    """Dial a peer by what the policy chooses, and by what it falls back to.

    Args:
        asked: What was asked for.
        connect_timeout_s: Seconds that connecting may take.
        make: Dials with lanes of that kind, within so many seconds.
        plain: Whether the peers neither encrypt nor authenticate.
        events: Is told when it falls back.

    Returns:
        What `make` has made, and what its lanes are made of and why.

    Raises:
        ConfigError: RDMA is asked for, and the peers are to know each other.
        DwcpError: What `make` raises and nothing is fallen back to.
    """
    offer = rdma_offer() if asked == "auto" and plain else RdmaOffer((), None)
    chosen = choose_carrier(asked, plain=plain, offer=offer)
    if chosen.value == "tcp":
        return make("tcp", connect_timeout_s), chosen
    try:
        return make("rdma", patience_s(asked, connect_timeout_s)), chosen
    except PeerError:
        # There is a peer, and it has answered.
        raise
    except (TransportError, DeadlineError) as error:
        other = fall_back(asked, chosen, str(error))
        if other is None:
            raise
        LOG.warning("%s instead of rdma: %s", other.value, error)
        if events is not None:
            events({"type": "link", "link": other.value, "why": other.why})
        return make(other.value, connect_timeout_s), other
