"""What ``dwcp recv`` runs: a listener, a thread for each sender, and one queue of outcomes."""

import itertools
import os
import queue
import secrets
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from dwcp_fast.cli.output import Output, describe, failure_dict, format_bytes
from dwcp_fast.errors import DwcpError, exit_code_for
from dwcp_fast.incoming import IncomingSession
from dwcp_fast.listener import listen
from dwcp_fast.options import ReceiveOptions
from dwcp_fast.trust import Insecure, MutualTls

if TYPE_CHECKING:
    from dwcp_fast.v1 import V1Delivery

__all__ = ["Service"]

PARTING_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one transfer, or the listener itself, ended."""

    told: dict[str, Any]
    text: str
    error: BaseException | None = None


class Service:
    """A listener at work. The main thread only waits for outcomes, so that signals reach it."""

    def __init__(
        self,
        address: str,
        trust: MutualTls | Insecure | None,
        options: ReceiveOptions,
        into: Path,
        output: Output,
    ) -> None:
        """Listen."""
        self._into = into
        self._output = output
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._sessions: set[IncomingSession] = set()
        self._lock = threading.Lock()
        self._v1_numbers = itertools.count(1)
        self._listener = listen(
            address,
            trust=trust,
            options=options,
            events=self._on_event,
            on_v1=self._on_v1,
            keep_pairing_in=into,
        )

    def run(self, *, once: bool) -> int:
        """Serve until a signal comes, or with `once` until one transfer is done.

        Returns:
            The exit code.
        """
        self._tell_listening()
        self._start(self._accept, "dwcp-recv-accept")
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
        for thread in self._threads:
            thread.join(PARTING_S)
        self._listener.close()

    def _tell_listening(self) -> None:
        address, pairing = self._listener.address, self._listener.pairing
        told = {"type": "listening", "address": address, "pairing": pairing, "into": os.fsdecode(self._into)}
        if self._output.json_lines:
            self._output.event(told)
            return
        text = (
            f"listening on {address}" if pairing is None else f"listening on {address}; on the other machine:"
        )
        command = f"  dwcp send PATH... --to '{pairing or address}'"
        if self._output.json_final:
            self._output.note(f"{text}\n{command}")
        else:
            self._output.result(told, f"{text}\n{command}")

    def _start(self, work: Any, name: str, *arguments: Any) -> None:
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
                    self._start(self._serve, "dwcp-recv-session", session)
        except DwcpError as error:
            if error.code != "cancelled":
                self._fail(error)
        except Exception as error:  # noqa: BLE001  # whatever it is, the main thread must hear of it
            self._fail(error)

    def _serve(self, session: IncomingSession) -> None:
        try:
            with session, self._output.progress(f"from {session.peer}", session.progress):
                while (report := session.receive_tree(self._into)) is not None:
                    told = {"type": "received", **report.to_dict(), "record": report.record()}
                    text = (
                        f"received {report.entries} entries, {format_bytes(report.bytes_raw)} "
                        f"from {report.peer} in {report.seconds:.2f} s "
                        f"({format_bytes(report.bytes_wire)} on the wire), verified"
                    )
                    self._outcomes.put(Outcome(told, text))
        except Exception as error:  # noqa: BLE001  # whatever it is, the main thread must hear of it
            if not (isinstance(error, DwcpError) and error.code == "cancelled"):
                self._fail(error, session.peer)
        finally:
            with self._lock:
                self._sessions.discard(session)

    def _fail(self, error: BaseException, peer: str | None = None) -> None:
        told = {**failure_dict(error), "peer": peer, "exit_code": exit_code_for(error)}
        self._outcomes.put(Outcome(told, describe(error), error))

    def _on_event(self, event: dict[str, Any]) -> None:
        self._output.event(event)

    def _on_v1(self, delivery: "V1Delivery") -> None:
        try:
            path = self._write_v1(delivery)
        except OSError as error:
            self._fail(error, delivery.peer[0])
            return
        told = {"type": "received", "protocol": "v1", "path": os.fsdecode(path), **delivery.to_dict()}
        size = format_bytes(len(delivery.payload))
        text = f"received {size} from v1 peer {delivery.peer[0]} as {path}, NOT verified: v1 cannot"
        self._outcomes.put(Outcome(told, text))

    def _write_v1(self, delivery: "V1Delivery") -> Path:
        """Write a delivery under a name of its own, whole or not at all."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        host = delivery.peer[0].replace(":", "-").replace("%", "-")
        staged = self._into / f".v1-{secrets.token_hex(8)}.part"
        try:
            with staged.open("xb") as file:
                file.write(delivery.payload)
                file.flush()
                os.fsync(file.fileno())
            while True:
                path = self._into / f"v1-{stamp}-{host}-{next(self._v1_numbers)}.bin"
                try:
                    # A link fails where a rename would replace.
                    os.link(staged, path)
                except FileExistsError:
                    continue
                return path
        finally:
            staged.unlink(missing_ok=True)
