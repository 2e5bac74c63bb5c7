"""What carries lanes: looks at what this machine offers, and asks the policy."""

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from dwcp_fast import _core
from dwcp_fast.errors import TransportError
from dwcp_fast.options import Carrier, ListenOn, SendOptions
from dwcp_fast.policy.choice import Choice
from dwcp_fast.policy.transport import NO_RDMA, RdmaOffer, choose_links, offers_rdma
from dwcp_fast.told import ReceiveSettings

__all__ = [
    "UNNAMED_CONGESTION",
    "bind_with_rdma",
    "carrier_order",
    "link_order",
    "locked_memory_limit",
    "rdma_devices",
]

LOG: Final = logging.getLogger(__name__)
UNNAMED_CONGESTION: Final = ("auto", "yielding", "system")
"""What names no congestion control of the kernel."""


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


def link_order(options: SendOptions, *, plain: bool) -> Choice[tuple[str, ...]]:
    """Choose what may carry the lanes of a session.

    Args:
        options: What was asked for.
        plain: Whether the peers neither encrypt nor authenticate.

    Raises:
        ConfigError: RDMA is asked for, and the peers are to know each other.
    """
    bounded = options.bandwidth_bits_per_s is not None or options.bandwidth_schedule is not None
    return carrier_order(
        options.link,
        local_addresses=options.local_addresses,
        congestion=options.congestion,
        bounded=bounded,
        mode=options.mode,
        plain=plain,
    )


def carrier_order(
    requested: Carrier,
    *,
    local_addresses: Sequence[str] = (),
    congestion: str = "auto",
    bounded: bool = False,
    mode: str = "auto",
    plain: bool,
) -> Choice[tuple[str, ...]]:
    """Choose what may carry lanes.

    Args:
        requested: What was asked for.
        local_addresses: Addresses of this machine that lanes are to come from.
        congestion: The congestion control that was asked for.
        bounded: Whether there is a limit to what is sent.
        mode: What kind of link the caller says there is.
        plain: Whether the peers neither encrypt nor authenticate.

    Raises:
        ConfigError: RDMA is asked for, and the peers are to know each other.
    """
    asked = {
        "local_addresses": local_addresses,
        "congestion": congestion not in UNNAMED_CONGESTION,
        "a bandwidth limit": bounded,
    }
    return choose_links(
        requested,
        shares_memory=sys.platform == "linux",
        asked=asked,
        mode=mode,
        plain=plain,
        rdma=rdma_offer() if requested == "auto" and plain else NO_RDMA,
    )


def bind_with_rdma(
    bind: Callable[[ReceiveSettings], _core.Listener],
    settings: ReceiveSettings,
    link: ListenOn,
    *,
    plain: bool,
) -> _core.Listener:
    """Listen, also for RDMA if that is asked for, or if it is not refused and can be had.

    Args:
        bind: Listens with such settings.
        settings: The settings, without RDMA.
        link: What was asked for.
        plain: Whether the peers neither encrypt nor authenticate.

    Returns:
        What `bind` has made.

    Raises:
        ConfigError: RDMA is asked for, and the peers are to know each other.
        TransportError: RDMA is asked for, and cannot be had.
    """
    offer = rdma_offer() if link == "auto" and plain else NO_RDMA
    if not offers_rdma(link, plain=plain, rdma=offer):
        return bind(settings)
    try:
        return bind({**settings, "rdma": True})
    except TransportError as error:
        if link == "rdma":
            raise
        LOG.warning("no lanes over rdma are taken: %s", error)
        return bind(settings)
