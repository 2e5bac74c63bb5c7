"""What lanes are made of, and what they fall back to."""

from dataclasses import dataclass
from typing import Final, Literal

from dwcp_fast.errors import ConfigError
from dwcp_fast.options import Link
from dwcp_fast.policy.choice import Choice

__all__ = ["TRIAL_S", "Carrier", "RdmaOffer", "choose_carrier", "fall_back", "offers_rdma", "patience_s"]

Carrier = Literal["tcp", "rdma"]

TRIAL_S: Final = 3.0
"""Seconds that connecting over RDMA may take where TCP is there to fall back to: a firewall between the two
may drop what it does not know, without a word."""


@dataclass(frozen=True, slots=True)
class RdmaOffer:
    """What this machine offers of RDMA.

    Attributes:
        devices: Names of the devices that can be used.
        fault: Why there is none, None if there is one.
    """

    devices: tuple[str, ...]
    fault: str | None


def choose_carrier(asked: Link, *, plain: bool, offer: RdmaOffer) -> Choice[Carrier]:
    """Choose what lanes are made of, for who dials.

    Args:
        asked: What was asked for.
        plain: Whether the peers neither encrypt nor authenticate, which is all that RDMA can do.
        offer: What this machine offers.

    Returns:
        The choice. What was asked for by name is chosen, also where it will fail: the error tells then.

    Raises:
        ConfigError: RDMA is asked for, and the peers are to know each other.
    """
    name = "link"
    if asked == "rdma":
        if not plain:
            raise insecure()
        return Choice(name, "rdma", "asked for")
    if asked == "tcp":
        return Choice(name, "tcp", "asked for")
    if not plain:
        return Choice(name, "tcp", "the only one that is encrypted")
    if offer.fault is not None:
        return Choice(name, "tcp", offer.fault)
    return Choice(name, "rdma", f"there is {', '.join(offer.devices)}")


def patience_s(asked: Link, connect_timeout_s: float) -> float:
    """Tell how long connecting over RDMA may take.

    Args:
        asked: What was asked for.
        connect_timeout_s: Seconds that connecting may take.
    """
    return connect_timeout_s if asked == "rdma" else min(connect_timeout_s, TRIAL_S)


def fall_back(asked: Link, chosen: Choice[Carrier], reason: str) -> Choice[Carrier] | None:
    """Choose what lanes are made of after connecting has failed.

    Args:
        asked: What was asked for.
        chosen: What has failed.
        reason: Why it has.

    Returns:
        The choice, None if there is nothing to fall back to.
    """
    if asked != "auto" or chosen.value != "rdma":
        return None
    return Choice(chosen.name, "tcp", f"fallen back from rdma: {reason}")


def offers_rdma(asked: Link, *, plain: bool, offer: RdmaOffer) -> bool:
    """Tell whether a listener takes connections over RDMA too.

    Args:
        asked: What was asked for.
        plain: Whether the peers neither encrypt nor authenticate.
        offer: What this machine offers.

    Raises:
        ConfigError: RDMA is asked for, and the peers are to know each other.
    """
    if asked == "rdma" and not plain:
        raise insecure()
    return asked == "rdma" or (asked == "auto" and plain and offer.fault is None)


def insecure() -> ConfigError:
    """Make the error for what RDMA cannot do."""
    return ConfigError(
        "link 'rdma' is neither encrypted nor authenticated, and the peers are to know each other",
        hint="use it with INSECURE (--insecure), on a network that is trusted, or link 'tcp'",
    )
