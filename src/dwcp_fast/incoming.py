"""The sessions of peers that were let in by a listener: received from, or sent to."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from dwcp_fast import _core
from dwcp_fast.buffers import BufferLike
from dwcp_fast.closing import Closing
from dwcp_fast.errors import ConfigError
from dwcp_fast.links import (
    Events,
    ScannedPaths,
    base_choice,
    block_bytes_of,
    counted,
    scan_paths,
    send_report,
)
from dwcp_fast.metrics.meter import METER
from dwcp_fast.modes import ModeKeeper
from dwcp_fast.options import ReceiveOptions, SendOptions
from dwcp_fast.policy.codec import choose_codec
from dwcp_fast.policy.link import LinkCounts
from dwcp_fast.policy.mode import Treatment
from dwcp_fast.received import Received, receive_report, received_buffers
from dwcp_fast.reports import Progress, ReceiveReport, SendReport, make_progress
from dwcp_fast.rollout.switch import SWITCH
from dwcp_fast.told import ReceiveTold, SendTold
from dwcp_fast.waiting import Worker

__all__ = ["STOPPED", "AsyncIncomingSession", "IncomingSession", "dismiss"]

T = TypeVar("T")
STOPPED: Final = "the kill switch of this side is on: it uses no v3"


class IncomingSession(Closing):
    """The session of a peer that was let in; made by :meth:`Listener.accept`.

    The peer either sends, and is received from, or fetches, and is sent to.
    """

    def __init__(
        self,
        native: _core.Receiver | _core.Server,
        options: ReceiveOptions,
        serve: SendOptions | None,
        security: str,
        events: Events | None,
    ) -> None:
        """Take over a native session."""
        self._native = native
        self._options = options
        self._serve = serve or SendOptions()
        self._security = security
        self._events = events
        self._mode: ModeKeeper | None = None
        self._mark = METER.opened(self, "serve" if self.fetches else "receive")
        self._guard = SWITCH.guard(partial(dismiss, native, STOPPED))

    @property
    def peer(self) -> str:
        """The peer's address."""
        return self._native.peer

    @property
    def fetches(self) -> bool:
        """Whether the peer fetches; otherwise it sends."""
        return isinstance(self._native, _core.Server)

    @property
    def request(self) -> bytes | None:
        """What the peer asks for and was not sent yet; None if it sends, or asks for nothing now."""
        return self._native.request if isinstance(self._native, _core.Server) else None

    def next_request(self, timeout_s: float | None = None) -> bytes | None:
        """Wait for what the peer asks for next; the first time that is what it has asked for already.

        Args:
            timeout_s: Seconds to wait; None waits as long as the peer is there.

        Returns:
            The request; None when the peer has left with nothing to ask for.

        Raises:
            DeadlineError: No request came in time.
            TransportError: The peer is gone with a request, or reports a failure.
            ConfigError: The peer sends.
        """
        with self._guard.told():
            return self._server().next_request(timeout_s)

    def send(self, objects: Mapping[str, BufferLike]) -> SendReport:
        """Answer the request with named buffers.

        They are read where they are, and must not be written to before this returns.

        Args:
            objects: C-contiguous buffers by name.

        Returns:
            What was done.

        Raises:
            BufferError: A buffer is not contiguous.
            ConfigError: A name cannot be used, the peer sends, or it has asked for nothing.
            LimitExceededError: The peer does not take that much.
            TransportError: The peer is gone and did not come back, or reports a failure.
            IntegrityError: Bytes were altered on the way, more than once.
            DeadlineError: It took longer than ``timeout_s`` of the options given as ``serve``.
        """
        server = self._server()
        buffers, block_bytes = list(objects.items()), block_bytes_of(objects, self._serve, far=server.is_far)
        return self._sent(lambda: server.send_buffers(buffers, block_bytes))

    def send_paths(self, paths: Sequence[str | PathLike[str]]) -> SendReport:
        """Answer the request with files and directories.

        Args:
            paths: What to send; each arrives under its last component.

        Returns:
            What was done.

        Raises:
            OSError: Something cannot be read.
            DwcpError: Something cannot be sent, or a file changed meanwhile; otherwise as for :meth:`send`.
        """
        self._server()
        return self.send_scan(scan_paths(paths, self._serve))

    def send_scan(self, scan: ScannedPaths) -> SendReport:
        """Answer with what :func:`~dwcp_fast.links.scan_paths` found; raises as :meth:`send_paths` does."""
        server = self._server()
        return self._sent(lambda: server.send_scan(scan.native))

    def refuse(self, reason: str) -> None:
        """Refuse what the peer asks for; its fetch fails with the reason, and the session ends.

        Args:
            reason: Text for people, of which 1,024 bytes are told.

        Raises:
            ConfigError: The peer sends.
        """
        with self._guard.told():
            self._server().refuse(reason)

    def receive(self, timeout_s: float | None = None) -> "Received | None":
        """Receive the next state of buffers into new memory.

        Args:
            timeout_s: Seconds to wait for the sender's offer.

        Returns:
            The buffers, complete and verified; None when the session has ended. A sender that has more opens
            another then, also by itself where copies of the last blocks may still be under way: accept it.

        Raises:
            DeadlineError: No offer came in time.
            LimitExceededError: The state is larger than ``options.max_total_bytes``.
            TransportError: The sender is gone, or reports a failure.
            IntegrityError: Bytes were altered on the way.
            DwcpError: The sender offers files, the peer fetches, or the listener was cancelled.
        """
        native, most = self._receiver(), self._options.max_total_bytes
        outcome = counted(native, self._guard, lambda: native.receive_buffers(most, timeout_s), waits=True)
        return None if outcome is None else received_buffers(*outcome, self._security)

    def receive_into(
        self, buffers: Mapping[str, BufferLike], timeout_s: float | None = None
    ) -> ReceiveReport | None:
        """Receive the next state of buffers into the caller's memory.

        Until this returns the buffers must not be touched; after an exception their content is unspecified.

        Args:
            buffers: Writable contiguous buffers by name, each of exactly the length that will come.
            timeout_s: Seconds to wait for the sender's offer.

        Returns:
            What was done; None when the session has ended, as in :meth:`receive`.

        Raises:
            BufferError: A buffer is not contiguous or read-only.
            DwcpError: The sender offers another name or length; otherwise as for :meth:`receive`.
        """
        native, named = self._receiver(), dict(buffers)
        return self._received(lambda: native.receive_into(named, timeout_s))

    def receive_tree(self, into: str | PathLike[str], timeout_s: float | None = None) -> ReceiveReport | None:
        """Receive the next state of files into a directory.

        Everything is staged in ``.dwcp`` there, and put in place only when all of it is verified. What an
        exception leaves staged is continued when the sender tries again.

        Args:
            into: A directory that exists.
            timeout_s: Seconds to wait for the sender's offer.

        Returns:
            What was done; None when the session has ended, as in :meth:`receive`.

        Raises:
            OSError: Something cannot be written, exists and is not to be overwritten, or does not fit.
            DwcpError: The sender offers what is refused, such as a link out of the directory; otherwise as
                for :meth:`receive`.
        """
        native, options, directory = self._receiver(), self._options, Path(into)
        return self._received(
            lambda: native.receive_tree(
                directory, options.overwrite, options.symlinks == "keep", options.sync, timeout_s
            )
        )

    def progress(self) -> Progress:
        """Tell, from any thread, where the transfer stands."""
        return make_progress(self._native.progress())

    def close(self) -> None:
        """End the session, also from another thread; a second time does nothing. What is staged stays."""
        self._guard.release()
        self._native.close()
        self._mark.close()

    def _receiver(self) -> _core.Receiver:
        if isinstance(self._native, _core.Server):
            raise ConfigError("this peer fetches: answer it with send()")
        return self._native

    def _server(self) -> _core.Server:
        if isinstance(self._native, _core.Receiver):
            raise ConfigError("this peer sends: take what it offers with receive()")
        return self._native

    def _sent(self, send: Callable[[], SendTold]) -> SendReport:
        choices = [choose_codec(self._serve.codec), base_choice(self._serve)]
        if self._mode is None:
            self._mode = ModeKeeper(self._serve, self._events)
        mode = self._mode
        with mode.keep(ServedWay(self._server())) as before:
            told = counted(self._native, self._guard, send)
        switches = mode.switches_since(before)
        return send_report(told, self.peer, self._security, [*choices, mode.choice], switches)

    def _received(self, receive: Callable[[], ReceiveTold | None]) -> ReceiveReport | None:
        told = counted(self._native, self._guard, receive, waits=True)
        return None if told is None else receive_report(told, self._security)


class ServedWay:
    """The way to a peer that fetches, as the mode sees it: how many lanes there are is that peer's matter."""

    def __init__(self, native: _core.Server) -> None:
        """Note the session."""
        self._native = native

    @property
    def is_far(self) -> bool:
        """Whether the peer is far, as far as TCP has seen by now."""
        return self._native.is_far

    def counts(self) -> LinkCounts | None:
        """Tell what TCP has counted in the transfer; None while it tells nothing."""
        path = make_progress(self._native.progress()).path
        return None if path is None else path.link

    def relocate(self, treatment: Treatment, round_trip_s: float) -> None:
        """Go by another treatment from now on, but for the lanes."""
        self._native.relocate(treatment.far, round_trip_s)


def dismiss(native: _core.Receiver | _core.Server, reason: str) -> None:
    """End a session and tell the peer why."""
    if isinstance(native, _core.Server):
        native.refuse(reason)
        native.close()
    else:
        native.dismiss(reason)


class AsyncIncomingSession:
    """An incoming session for coroutines. Cancelling a call closes the session; what is staged stays."""

    def __init__(self, session: IncomingSession) -> None:
        """Wrap a session."""
        self._session = session
        self._worker = Worker("dwcp-incoming")

    @property
    def peer(self) -> str:
        """The peer's address."""
        return self._session.peer

    @property
    def fetches(self) -> bool:
        """Whether the peer fetches; otherwise it sends."""
        return self._session.fetches

    @property
    def request(self) -> bytes | None:
        """What the peer asks for and was not sent yet; None if it sends, or asks for nothing now."""
        return self._session.request

    async def next_request(self, timeout_s: float | None = None) -> bytes | None:
        """Wait for a request; see :meth:`IncomingSession.next_request`."""
        return await self._worker.run(lambda: self._session.next_request(timeout_s), self._session.close)

    async def send(self, objects: Mapping[str, BufferLike]) -> SendReport:
        """Answer with named buffers; see :meth:`IncomingSession.send`."""
        return await self._worker.run(lambda: self._session.send(objects), self._session.close)

    async def send_paths(self, paths: Sequence[str | PathLike[str]]) -> SendReport:
        """Answer with files and directories; see :meth:`IncomingSession.send_paths`."""
        return await self._worker.run(lambda: self._session.send_paths(paths), self._session.close)

    async def refuse(self, reason: str) -> None:
        """Refuse the request; see :meth:`IncomingSession.refuse`."""
        await self._worker.run(lambda: self._session.refuse(reason), self._session.close)

    async def receive(self, timeout_s: float | None = None) -> Received | None:
        """Receive buffers; see :meth:`IncomingSession.receive`."""
        return await self._worker.run(lambda: self._session.receive(timeout_s), self._session.close)

    async def receive_into(
        self, buffers: Mapping[str, BufferLike], timeout_s: float | None = None
    ) -> ReceiveReport | None:
        """Receive into buffers; see :meth:`IncomingSession.receive_into`."""
        return await self._worker.run(
            lambda: self._session.receive_into(buffers, timeout_s), self._session.close
        )

    async def receive_tree(
        self, into: str | PathLike[str], timeout_s: float | None = None
    ) -> ReceiveReport | None:
        """Receive files; see :meth:`IncomingSession.receive_tree`."""
        return await self._worker.run(
            lambda: self._session.receive_tree(into, timeout_s), self._session.close
        )

    def progress(self) -> Progress:
        """Tell where the transfer stands."""
        return self._session.progress()

    async def close(self) -> None:
        """End the session; a second time does nothing."""
        try:
            await self._worker.end(self._session.close, self._session.close)
        finally:
            self._worker.close()

    async def __aenter__(self) -> Self:
        """Use the session in an ``async with`` statement."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.close()
