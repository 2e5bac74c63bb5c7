"""The exception tree: what programs and scripts may rely on."""

import errno
import pickle
import socket

import pytest

from dwcp_fast import errors
from dwcp_fast.errors import DwcpError, exit_code_for

CLASSES: list[type[DwcpError]] = [
    found
    for name in errors.__all__
    if isinstance(found := getattr(errors, name), type) and name != "DwcpError"
]


@pytest.mark.parametrize(
    ("name", "code", "exit_code", "retryable", "also"),
    [
        ("FormatError", "malformed", 6, False, ValueError),
        ("IntegrityError", "integrity", 6, False, errors.FormatError),
        ("UnsupportedFormatError", "unsupported-format", 10, False, errors.FormatError),
        ("DeltaError", "delta", 6, False, ValueError),
        ("BaseMismatchError", "base-mismatch", 6, False, errors.DeltaError),
        ("TransportError", "transport", 4, True, ConnectionError),
        ("PeerClosedError", "peer-closed", 4, True, errors.TransportError),
        ("PeerError", "peer-failed", 1, False, errors.TransportError),
        ("QmpError", "qmp", 1, False, errors.PeerError),
        ("NegotiationError", "negotiation", 10, False, DwcpError),
        ("AuthError", "auth", 5, False, errors.NegotiationError),
        ("V3StoppedError", "v3-stopped", 10, True, errors.NegotiationError),
        ("NotConvergingError", "not-converging", 7, True, DwcpError),
        ("DeadlineError", "deadline", 7, True, TimeoutError),
        ("LimitExceededError", "limit", 8, False, DwcpError),
        ("ConflictError", "conflict", 1, False, DwcpError),
        ("ClosedError", "closed", 1, False, RuntimeError),
        ("ConfigError", "config", 2, False, ValueError),
    ],
)
def test_codes_never_change(
    name: str, code: str, exit_code: int, retryable: bool, also: type[Exception]
) -> None:
    found: type[DwcpError] = getattr(errors, name)
    assert (found.code, found.exit_code, found.retryable) == (code, exit_code, retryable)
    assert issubclass(found, also) and issubclass(found, DwcpError)


def test_every_class_is_listed_and_has_a_code_of_its_own() -> None:
    assert len(CLASSES) == 18
    assert len({found.code for found in CLASSES}) == len(CLASSES)


@pytest.mark.parametrize("found", CLASSES)
def test_an_error_survives_the_way_to_another_process(found: type[DwcpError]) -> None:
    error = pickle.loads(pickle.dumps(found("length 9 is above 8", hint="ask for less", resumable=True)))
    assert type(error) is found
    assert (str(error), error.hint, error.resumable) == ("length 9 is above 8", "ask for less", True)


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (KeyboardInterrupt(), 130),
        (FileNotFoundError(errno.ENOENT, "no such file"), 3),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), 4),
        (socket.gaierror(socket.EAI_NONAME, "not known"), 4),
        (TimeoutError("timed out"), 4),
        (OSError(errno.EHOSTUNREACH, "no route to host"), 4),
        (OSError(errno.ENOSPC, "no space left on device"), 1),
        (OSError(errno.EADDRNOTAVAIL, "cannot assign requested address"), 1),
        (errors.DeadlineError("took 3 s of 2 s"), 7),
        (errors.DeadlineError("took 3 s of 2 s", resumable=True), 12),
        (errors.PeerClosedError("closed at byte 7", resumable=True), 12),
        (RuntimeError("a fault of ours"), 1),
    ],
)
def test_exit_code_says_what_happened(error: BaseException, exit_code: int) -> None:
    assert exit_code_for(error) == exit_code
