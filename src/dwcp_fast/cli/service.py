"""What ``dwcp recv`` and ``dwcp serve`` run: a listener, a thread for each peer, a queue of outcomes."""

import errno
import queue
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Final, NoReturn, Self

import click

from dwcp_fast.cli.metrics import serving_metrics
from dwcp_fast.cli.output import Output, describe, failure_dict
from dwcp_fast.errors import DwcpError, exit_code_for
from dwcp_fast.incoming import IncomingSession
from dwcp_fast.listener import Listener

__all__ = ["Outcome", "Service", "run_service"]

PARTING_S: Final = 3.0
BIND_ERRNOS: Final = frozenset({errno.EACCES, errno.EADDRINUSE, errno.EADDRNOTAVAIL})


class Stopped(BaseException):
    """The process was told to end, and is to do so in order; no code should take it for a failure."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one transfer, or the listener itself, ended."""

    told: dict[str, Any]
    text: str
    error: BaseException | None = None


class Service(ABC):
    """A listener at work. The main thread only waits for outcomes, so that signals reach it."""

    def __init__(self, address: str, output: Output) -> None:
        """Listen."""
        self._address = address
        self._output = output
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._sessions: set[IncomingSession] = set()
        self._lock = threading.Lock()
        try:
            self._listener = self._listen()
        except OSError as error:
            if error.errno not in BIND_ERRNOS or error.filename is not None:
                raise
            # The system does not say which address it was.
            raise OSError(error.errno, error.strerror, address) from error

    @abstractmethod
    def _listen(self) -> Listener:
        """Make the listener."""

    @abstractmethod
    def _instruct(self, target: str) -> tuple[dict[str, Any], str]:
        """Give what is told a program of the listener, and the command for the other machine."""

    @abstractmethod
    def _attend(self, session: IncomingSession) -> None:
        """Do what a peer came for, until it leaves."""

    def run(self, *, once: bool) -> int:
        """Serve until a signal comes, or with `once` until one transfer is done.

        Returns:
            The exit code.
        """
        self._tell_listening()
        self._start(self._accept, "dwcp-accept")
        while True:
            outcome = self._outcomes.get()
            if outcome.error is None:
                self._output.result(outcome.told, outcome.text)
                if once:
                    return 0
                continue
            resumable = isinstance(outcome.error, DwcpError) and outcome.error.resumable
            if once and not resumable:
                raise outcome.error
            self._output.event(outcome.told)
            self._output.note(f"error: {outcome.text}")

    def __enter__(self) -> Self:
        """Use the service in a ``with`` statement."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every session, keeping what is staged."""
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.close()
        self._listener.cancel()
        # All together: a fleet of sessions is not waited for one after the other.
        end = time.monotonic() + PARTING_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        self._listener.close()

    def _tell_listening(self) -> None:
        address, pairing = self._listener.address, self._listener.pairing
        more, command = self._instruct(pairing or address)
        told = {"type": "listening", "address": address, "pairing": pairing, **more}
        if self._output.json_lines:
            self._output.event(told)
            return
        text = (
            f"listening on {address}" if pairing is None else f"listening on {address}; on the other machine:"
        )
        if self._output.json_final:
            # Also where notes are not wanted, if nobody could connect without it.
            self._output.note(f"{text}\n  {command}", needed=pairing is not None)
        else:
            self._output.result(told, f"{text}\n  {command}")

    def _start(self, work: Callable[..., None], name: str, *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, name=name, daemon=True)
        self._threads = [other for other in self._threads if other.is_alive()] + [thread]
        thread.start()

    def _accept(self) -> None:
        try:
            while True:
                session = self._listener.accept()
                if session is not None:
                    with self._lock:
                        self._sessions.add(session)
                    self._start(self._serve, "dwcp-session", session)
        except DwcpError as error:
            if error.code != "cancelled":
                self._fail(error)
        except Exception as error:  # noqa: BLE001  # whatever it is, the main thread must hear of it
            self._fail(error)

    def _serve(self, session: IncomingSession) -> None:
        try:
            with session:
                self._attend(session)
        except Exception as error:  # noqa: BLE001  # whatever it is, the main thread must hear of it
            if not (isinstance(error, DwcpError) and error.code == "cancelled"):
                self._fail(error, session.peer)
        finally:
            with self._lock:
                self._sessions.discard(session)

    def _done(self, told: dict[str, Any], text: str) -> None:
        self._outcomes.put(Outcome(told, text))

    def _fail(self, error: BaseException, peer: str | None = None) -> None:
        told = {**failure_dict(error), "peer": peer, "exit_code": exit_code_for(error)}
        self._outcomes.put(Outcome(told, describe(error), error))

    def _on_event(self, event: dict[str, Any]) -> None:
        self._output.event(event)


def run_service(make: Callable[[], Service], printer: Output, *, once: bool, metrics: str | None) -> int:
    """Run a service until it is done or the process is told to end.

    Args:
        make: Makes the service, which listens from then on.
        printer: Where what happens is told.
        once: Whether it ends after one transfer.
        metrics: Where metrics are served meanwhile, if they are.

    Returns:
        The exit code.

    Raises:
        UsageError: One object is to be printed of what has no end.
    """
    if printer.json_final and not (printer.json_lines or once):
        raise click.UsageError("--json is one object at the end: give --once too, or --json-lines instead")
    signal.signal(signal.SIGTERM, stop)
    try:
        # What tells how the service does is there before it, and still when it ends.
        with serving_metrics(metrics, printer), make() as service:
            return service.run(once=once)
    except Stopped:
        return 0


def stop(_number: int, _frame: FrameType | None) -> NoReturn:
    """End in order."""
    raise Stopped
