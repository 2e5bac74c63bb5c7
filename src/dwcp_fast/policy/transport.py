"""What carries the lanes of a session: TCP, RDMA, or memory that two processes on one host share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dwcp_fast.errors import ConfigError
from dwcp_fast.options import Carrier, ListenOn
from dwcp_fast.policy.choice import Choice

__all__ = ["NO_RDMA", "RdmaOffer", "choose_links", "explain_link", "offers_rdma"]

NETWORK_MODES: Final = ("hybrid", "internet")
TCP_ONLY: Final = "congestion"


@dataclass(frozen=True, slots=True)
class RdmaOffer:
    """What this machine offers of RDMA.

    Attributes:
        devices: Names of the devices that can be used.
        fault: Why there is none, None if there is one.
    """

    devices: tuple[str, ...]
    fault: str | None


NO_RDMA: Final = RdmaOffer((), "nobody has looked for rdma")


def choose_links(
    requested: Carrier,
    *,
    shares_memory: bool,
    asked: Mapping[str, Any],
    mode: str,
    plain: bool,
    rdma: RdmaOffer,
) -> Choice[tuple[str, ...]]:
    """Choose what may carry the lanes.

    Args:
        requested: What the caller asks for.
        shares_memory: Whether this system lets processes share memory.
        asked: What was asked for that only a network can keep, by the names of the options; what is None or
            empty was not. RDMA has no congestion control that could be chosen.
        mode: What kind of link the caller says there is.
        plain: Whether the peers neither encrypt nor authenticate, which is all that RDMA can do.
        rdma: What this machine offers of it.

    Returns:
        What is tried, in this order. Memory is passed over where the peer is on another host, RDMA where it
        does not listen for it, or no device leads to it.

    Raises:
        ConfigError: RDMA is asked for, and the peers are to know each other.
    """
    if requested == "rdma" and not plain:
        raise insecure()
    if requested != "auto":
        return Choice("link", (requested,), "asked for")
    if mode in NETWORK_MODES:
        return Choice("link", ("tcp",), f"mode {mode} is one of a network")
    links, reasons = [], []
    kept = [name for name, value in asked.items() if value]
    if not shares_memory:
        reasons.append("this system lets processes share no memory")
    elif kept:
        reasons.append(f"{' and '.join(kept)} can be kept on a network only")
    else:
        links.append("shm")
        reasons.append("memory is faster where both ends are on one host")
    if plain and TCP_ONLY not in kept:
        if rdma.fault is None:
            links.append("rdma")
            reasons.append(f"there is {', '.join(rdma.devices)}")
        else:
            reasons.append(rdma.fault)
    return Choice("link", (*links, "tcp"), "; ".join(reasons))


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


def offers_rdma(requested: ListenOn, *, plain: bool, rdma: RdmaOffer) -> bool:
    """Tell whether a listener takes connections over RDMA too.

    Args:
        requested: What was asked for.
        plain: Whether the peers neither encrypt nor authenticate.
        rdma: What this machine offers.

    Raises:
        ConfigError: RDMA is asked for, and the peers are to know each other.
    """
    if requested == "rdma" and not plain:
        raise insecure()
    return requested == "rdma" or (requested == "auto" and plain and rdma.fault is None)


def insecure() -> ConfigError:
    """Make the error for what RDMA cannot do."""
    return ConfigError(
        "link 'rdma' is neither encrypted nor authenticated, and the peers are to know each other",
        hint="use it with INSECURE (--insecure), on a network that is trusted, or link 'tcp'",
    )
