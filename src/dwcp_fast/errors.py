"""Every exception this package raises on its own account, and the exit code each one means.

The tree::

    DwcpError
    ├── FormatError (ValueError)            bytes that are not what they claim to be
    │   ├── IntegrityError                  a digest or check that does not match
    │   └── UnsupportedFormatError          well formed, but of a version or kind not known here
    ├── DeltaError (ValueError)             a delta that cannot be made or applied
    │   └── BaseMismatchError               the base held is not the base the delta was made from
    ├── TransportError (ConnectionError)    the connection to the peer failed
    │   ├── PeerClosedError                 the peer went away before the exchange was complete
    │   └── PeerError                       the peer reported a failure of its own
    │       └── QmpError                    QEMU refused a command, or is in no state for it
    ├── NegotiationError                    the two sides have no common way to talk
    │   ├── AuthError                       a side could not prove who it is
    │   └── V3StoppedError                  the kill switch ended a v3 session
    ├── DeadlineError (TimeoutError)        it did not finish in the time given
    ├── NotConvergingError                  what is to be moved changes faster than it can be sent
    ├── LimitExceededError                  a size, count or ratio above its limit
    ├── ConflictError                       somebody else changed what was to be replaced
    ├── ClosedError (RuntimeError)          something of this side is used before it is open, or after its end
    └── ConfigError (ValueError)            an option or a setting that cannot be used

Failures of files and sockets that the operating system reports stay plain :class:`OSError`.
This module imports nothing else of the package, so that every other module may import it.
"""

import errno
import socket
from typing import ClassVar, Final

__all__ = [
    "AuthError",
    "BaseMismatchError",
    "ClosedError",
    "ConfigError",
    "ConflictError",
    "DeadlineError",
    "DeltaError",
    "DwcpError",
    "FormatError",
    "IntegrityError",
    "LimitExceededError",
    "NegotiationError",
    "NotConvergingError",
    "PeerClosedError",
    "PeerError",
    "QmpError",
    "TransportError",
    "UnsupportedFormatError",
    "V3StoppedError",
    "exit_code_for",
]

EXIT_OTHER: Final = 1
EXIT_SOURCE_NOT_FOUND: Final = 3
EXIT_UNREACHABLE: Final = 4
EXIT_PARTIAL: Final = 12
EXIT_INTERRUPTED: Final = 130

UNREACHABLE_ERRNOS: Final = frozenset(
    {errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH}
)
"""Connect failures for which Python has no :class:`ConnectionError` subclass. EADDRNOTAVAIL is none of them:
the address that is not available is one of this machine, such as that to listen on."""


class DwcpError(Exception):
    """Root of every exception raised by this package on its own account.

    Attributes:
        code: Stable name of the failure in kebab case, for programs; never reworded.
        exit_code: What the command line exits with when this ends it.
        retryable: Whether the same call may succeed later without a change by the caller.
        hint: What the user can do about it, or None.
        resumable: Whether verified work was kept, so that the same call continues instead of starting over.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = EXIT_OTHER
    retryable: ClassVar[bool] = False

    hint: str | None
    resumable: bool

    def __init__(self, message: str, *, hint: str | None = None, resumable: bool = False) -> None:
        """Make the exception.

        Args:
            message: What is wrong, with the value and the limit; lower case, no full stop.
            hint: What the user can do about it.
            resumable: Whether verified work was kept and the same call would continue it.
        """
        super().__init__(message)
        self.hint = hint
        self.resumable = resumable


class FormatError(DwcpError, ValueError):
    """Bytes that are not what they claim to be: truncated, malformed, or lying about a length."""

    code = "malformed"
    exit_code = 6


class IntegrityError(FormatError):
    """A digest or check that does not match the bytes it covers."""

    code = "integrity"


class UnsupportedFormatError(FormatError):
    """Bytes of a version, codec or kind that this release does not read."""

    code = "unsupported-format"
    exit_code = 10


class DeltaError(DwcpError, ValueError):
    """A delta that cannot be made from, or applied to, what was given."""

    code = "delta"
    exit_code = 6


class BaseMismatchError(DeltaError):
    """The base that is held is not the base the delta was made from; nothing was changed."""

    code = "base-mismatch"


class TransportError(DwcpError, ConnectionError):
    """The connection to the peer failed."""

    code = "transport"
    exit_code = EXIT_UNREACHABLE
    retryable = True


class PeerClosedError(TransportError):
    """The peer went away before the exchange was complete."""

    code = "peer-closed"


class PeerError(TransportError):
    """The peer reported a failure of its own; the message carries what it said."""

    code = "peer-failed"
    exit_code = EXIT_OTHER
    retryable = False


class QmpError(PeerError):
    """QEMU refused a command of its machine protocol, or is in no state for what was asked."""

    code = "qmp"


class NegotiationError(DwcpError):
    """The two sides have no protocol version, codec or mode in common."""

    code = "negotiation"
    exit_code = 10


class AuthError(NegotiationError):
    """A certificate, fingerprint or token was refused, or one was needed and not given."""

    code = "auth"
    exit_code = 5


class V3StoppedError(NegotiationError):
    """The kill switch ended a v3 session; what had arrived stays staged."""

    code = "v3-stopped"
    retryable = True


class DeadlineError(DwcpError, TimeoutError):
    """The work did not finish, or the peer did not answer, in the time given."""

    code = "deadline"
    exit_code = 7
    retryable = True


class NotConvergingError(DwcpError):
    """What is to be moved changes faster than it can be sent; it goes on where it was."""

    code = "not-converging"
    exit_code = 7
    retryable = True


class LimitExceededError(DwcpError):
    """A size, count or ratio is above its limit; nothing was allocated for it."""

    code = "limit"
    exit_code = 8


class ConflictError(DwcpError):
    """What was to be replaced was changed by somebody else in between; nothing was replaced."""

    code = "conflict"


class ClosedError(DwcpError, RuntimeError):
    """Something of this side is used before it is open, after it was closed, or was closed under a call."""

    code = "closed"


class ConfigError(DwcpError, ValueError):
    """An option or a setting that is unknown, out of range, or at odds with another."""

    code = "config"
    exit_code = 2


def exit_code_for(exc: BaseException) -> int:
    """Give the exit code that the command line ends with when `exc` ends it.

    A failure that kept verified work is 12 whatever its kind: the caller needs to know first that the
    same command continues it.

    Args:
        exc: The exception that ended the command.

    Returns:
        The documented exit code, 1 to 130; never 0.
    """
    if isinstance(exc, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(exc, DwcpError):
        return EXIT_PARTIAL if exc.resumable else exc.exit_code
    if isinstance(exc, FileNotFoundError):
        return EXIT_SOURCE_NOT_FOUND
    if isinstance(exc, (ConnectionError, TimeoutError, socket.gaierror)):
        return EXIT_UNREACHABLE
    if isinstance(exc, OSError) and exc.errno in UNREACHABLE_ERRNOS:
        return EXIT_UNREACHABLE
    return EXIT_OTHER
