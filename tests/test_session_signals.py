"""Signal handlers that Python runs in the middle of a call that waits for a peer."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dwcp_fast as dwcp
from dwcp_fast import errors
from two_ends import LOCAL, WAIT_S, accepted, meanwhile, pairing_of

STATE = {"state": b"state"}


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep identities and indices of tests out of the user's own."""
    monkeypatch.setenv("DWCP_STATE_DIR", str(tmp_path / "state"))


@contextlib.contextmanager
def handled(handler: Callable[[], object], when: Callable[[], bool]) -> Iterator[None]:
    """Have a signal handler called once, on this thread, as soon as something is the case."""
    over = threading.Event()

    def ring() -> None:
        while not over.wait(0.01):
            if when():
                os.kill(os.getpid(), signal.SIGALRM)
                return

    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    try:
        with meanwhile(ring):
            try:
                yield
            finally:
                over.set()
    finally:
        signal.signal(signal.SIGALRM, before)


def soon() -> Callable[[], bool]:
    """Tell whether a tenth of a second is over."""
    end = time.monotonic() + 0.1
    return lambda: time.monotonic() >= end


def under_way(sending: dwcp.Session) -> Callable[[], bool]:
    """Tell whether a session sends."""
    return lambda: sending.progress().state_bytes_total > 0


def interrupt() -> None:
    """Raise what Ctrl-C raises."""
    raise KeyboardInterrupt


def test_a_handler_that_raises_ends_the_wait_for_a_peer() -> None:
    with dwcp.listen(LOCAL) as listener, pytest.raises(KeyboardInterrupt), handled(interrupt, soon()):
        listener.accept(WAIT_S)


def test_a_handler_that_raises_ends_the_wait_for_a_transfer() -> None:
    with (
        dwcp.listen(LOCAL) as listener,
        dwcp.connect(pairing_of(listener)),
        accepted(listener) as incoming,
        pytest.raises(KeyboardInterrupt),
        handled(interrupt, soon()),
    ):
        incoming.receive(WAIT_S)


def test_a_handler_that_raises_ends_a_transfer_that_nobody_takes() -> None:
    with dwcp.listen(LOCAL) as listener, dwcp.connect(pairing_of(listener)) as sending:
        with pytest.raises(KeyboardInterrupt), handled(interrupt, under_way(sending)):
            sending.send(STATE)
        with pytest.raises(errors.DwcpError) as caught:
            sending.send(STATE)
    assert caught.value.code == "cancelled"


def test_a_handler_that_returns_disturbs_nothing() -> None:
    called = threading.Event()

    def serve() -> dwcp.Received | None:
        with accepted(listener) as incoming:
            assert called.wait(WAIT_S)
            return incoming.receive(WAIT_S)

    with (
        dwcp.listen(LOCAL) as listener,
        meanwhile(serve) as arriving,
        dwcp.connect(pairing_of(listener)) as sending,
        handled(called.set, under_way(sending)),
    ):
        assert sending.send(STATE).verified
        received = arriving.result(WAIT_S)
    assert received is not None


def test_a_handler_that_sends_in_the_middle_of_a_send_is_told_so() -> None:
    """It would wait for the call that it interrupts."""
    with (
        dwcp.listen(LOCAL) as listener,
        dwcp.connect(pairing_of(listener)) as sending,
        pytest.raises(errors.ConfigError, match="in the middle of another"),
        handled(lambda: sending.send(STATE), under_way(sending)),
    ):
        sending.send(STATE)


def test_a_handler_may_close_the_session_of_the_call_that_it_interrupts() -> None:
    with (
        dwcp.listen(LOCAL) as listener,
        dwcp.connect(pairing_of(listener)) as sending,
        pytest.raises(errors.DwcpError) as caught,
        handled(sending.close, under_way(sending)),
    ):
        sending.send(STATE)
    assert caught.value.code == "cancelled"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads have names in /proc only")
def test_only_where_signals_come_a_call_has_a_thread_beside_it() -> None:
    def threads_of_calls() -> int:
        names = []
        for path in Path("/proc/self/task").glob("*/comm"):
            # It may have ended since it was listed.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                names.append(path.read_text())
        return names.count("dwcp-call\n")

    most = 0

    def watch() -> None:
        nonlocal most
        while not over.wait(0.01):
            most = max(most, threads_of_calls())

    def wait_in_vain() -> None:
        assert listener.accept(timeout_s=0.3) is None

    over = threading.Event()
    with dwcp.listen(LOCAL) as listener, meanwhile(watch):
        try:
            with meanwhile(wait_in_vain) as waiting:
                waiting.result(WAIT_S)
            assert most == 0
            wait_in_vain()
        finally:
            over.set()
    assert most == 1
