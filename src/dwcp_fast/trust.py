"""How the two sides of a session know each other."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Final, TypeAlias, final

from dwcp_fast import _core
from dwcp_fast.errors import AuthError, ConfigError
from dwcp_fast.state import KeptPairing, client_identity

__all__ = [
    "INSECURE",
    "Insecure",
    "MutualTls",
    "Trust",
    "address_of",
    "dial_security",
    "is_pairing",
    "listen_security",
]

PAIRING_SCHEME: Final = "dwcp://"


@final
class Insecure:
    """The type of :data:`INSECURE`."""

    def __repr__(self) -> str:
        """Give the name under which it is exported."""
        return "INSECURE"


INSECURE: Final = Insecure()
"""No encryption and no authentication; both sides have to say so."""


@dataclass(frozen=True, slots=True)
class MutualTls:
    """Both sides show a certificate that a known authority signed.

    Attributes:
        certificate: PEM file with this side's certificate chain.
        key: PEM file with its private key.
        ca: PEM file with the authorities that may have signed the peer's certificate.
        server_name: Name that the receiver's certificate must have; None means the host that is dialled.
    """

    certificate: str | PathLike[str]
    key: str | PathLike[str]
    ca: str | PathLike[str]
    server_name: str | None = None


Trust: TypeAlias = str | MutualTls | Insecure
"""A pairing string, certificates, or :data:`INSECURE`."""


def is_pairing(target: str) -> bool:
    """Tell whether a target is a pairing string rather than ``HOST:PORT``."""
    return target.startswith(PAIRING_SCHEME)


def address_of(target: str) -> str:
    """Give ``HOST:PORT`` of a target.

    Args:
        target: ``HOST:PORT`` or a pairing string.

    Returns:
        ``HOST:PORT``.

    Raises:
        ConfigError: `target` is neither.
    """
    if is_pairing(target):
        return _core.pairing_address(target)
    _core.split_address(target)
    return target


def dial_security(target: str, trust: Trust | None) -> _core.DialSecurity:
    """Say how a sender knows the receiver at a target.

    Args:
        target: ``HOST:PORT`` or a pairing string.
        trust: How to know the receiver; None takes the pairing string from `target`.

    Returns:
        What the native side asks for.

    Raises:
        AuthError: `target` is a bare address and nothing says how to trust it.
        ConfigError: The pairing string or a certificate cannot be used, or two ways are given at once.
    """
    if trust is None:
        if not is_pairing(target):
            raise AuthError(
                f"nothing says how to trust {target}",
                hint="use the receiver's pairing string, certificates, or --insecure on both sides",
            )
        trust = target
    elif is_pairing(target) and trust != target:
        raise ConfigError("the target is a pairing string, and another way to trust it was given too")
    match trust:
        case str():
            return _core.DialSecurity.paired(trust, client_identity())
        case MutualTls():
            identity = _core.Identity.load_pem(Path(trust.certificate), Path(trust.key))
            host, _ = _core.split_address(target)
            return _core.DialSecurity.mutual(identity, Path(trust.ca), trust.server_name or host)
        case Insecure():
            return _core.DialSecurity.insecure()


def listen_security(
    trust: MutualTls | Insecure | None, kept: KeptPairing | None, clients: int | None
) -> tuple[_core.ListenSecurity, _core.Identity | None]:
    """Say how a listener knows those who dial.

    Args:
        trust: Certificates, :data:`INSECURE`, or None for pairing.
        kept: The pairing of an earlier listener, None for a new one.
        clients: How many clients the pairing is good for, None for any number.

    Returns:
        What the native side asks for, and the identity that is paired with, if one is.

    Raises:
        ConfigError: A certificate cannot be used.
    """
    match trust:
        case Insecure():
            return _core.ListenSecurity.insecure(), None
        case MutualTls():
            identity = _core.Identity.load_pem(Path(trust.certificate), Path(trust.key))
            return _core.ListenSecurity.mutual(identity, Path(trust.ca)), None
        case None if kept is not None:
            identity = _core.Identity.from_blob(kept.identity)
            return _core.ListenSecurity.paired(identity, kept.tickets, clients), identity
        case None:
            identity = _core.Identity.generate()
            return _core.ListenSecurity.paired(identity, None, clients), identity
