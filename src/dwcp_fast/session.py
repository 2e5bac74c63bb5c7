"""Dialling: sessions with a receiver to send to, or with a listener that serves to fetch from.

Each session carries any number of transfers, one after the other. A transfer either ends with the
receiver's word that it holds exactly the sender's state, or raises; where the exception says
``resumable``, sending the same state again continues.

>>> import threading
>>> from dwcp_fast import connect, listen
>>> with listen("127.0.0.1:0") as listener:
...     def serve():
...         with listener.accept(timeout_s=10) as incoming:
...             received.update(incoming.receive(timeout_s=10))
...     received = {}
...     thread = threading.Thread(target=serve)
...     thread.start()
...     with connect(listener.pairing) as session:
...         report = session.send({"weights": b"state" * 1000})
...     thread.join()
>>> report.verified, bytes(received["weights"]) == b"state" * 1000
(True, True)
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dwcp_fast import _core
from dwcp_fast.buffers import BufferLike
from dwcp_fast.closing import Closing
from dwcp_fast.engine import engine_for
from dwcp_fast.errors import ClosedError, ConfigError, DwcpError, NegotiationError
from dwcp_fast.fetching import FetchLink
from dwcp_fast.links import Events, Link, ScannedPaths, V1Link, V3Link, scan_paths
from dwcp_fast.metrics.meter import METER
from dwcp_fast.options import ReceiveOptions, SendOptions
from dwcp_fast.policy.choice import Choice
from dwcp_fast.received import Received
from dwcp_fast.reports import Progress, ReceiveReport, SendReport
from dwcp_fast.rollout.outcomes import failures_recorded, recorded
from dwcp_fast.switching import SwitchingLink
from dwcp_fast.throttle import check_rate
from dwcp_fast.trust import Trust
from dwcp_fast.waiting import Worker

__all__ = ["AsyncSession", "Session", "connect", "connect_async"]

DEFAULTS = SendOptions()


def connect(
    target: str,
    *,
    trust: Trust | None = None,
    options: SendOptions = DEFAULTS,
    receive: ReceiveOptions | None = None,
    events: Events | None = None,
) -> "Session":
    """Open a session, in order to send or, with `receive`, to fetch.

    Args:
        target: ``HOST:PORT``, or the pairing string that the receiver prints.
        trust: How to know the receiver: a pairing string, :class:`~dwcp_fast.MutualTls`, or
            :data:`~dwcp_fast.INSECURE`; None if `target` is a pairing string.
        options: How to send. A session that fetches takes the number of lanes, the times and the
            local addresses from it.
        receive: How to receive what is fetched from a listener that serves; None for a session that sends.
        events: Called with a dictionary for each event, from threads of the library; should return soon.

    Returns:
        The session, a context manager that closes it.

    Raises:
        ConfigError: `target`, `trust` or `options` cannot be used.
        AuthError: The two sides do not trust each other.
        TransportError: The receiver cannot be reached, or is gone.
        NegotiationError: The two sides have no protocol in common, or v1 is used and cannot keep an option.
        DeadlineError: The handshake took longer than ``options.connect_timeout_s``.
        PeerError: The listener only receives, or only sends.
    """
    return Session(open_link(target, trust, options, receive, _core.Cancel(), events), options)


def connect_async(
    target: str,
    *,
    trust: Trust | None = None,
    options: SendOptions = DEFAULTS,
    receive: ReceiveOptions | None = None,
    events: Events | None = None,
) -> "AsyncSession":
    """Open a session from a coroutine; the result is for ``async with``.

    Args:
        target: As for :func:`connect`.
        trust: As for :func:`connect`.
        options: As for :func:`connect`.
        receive: As for :func:`connect`.
        events: As for :func:`connect`.

    Returns:
        A session that connects when it is entered. Its entering raises what :func:`connect` raises.
    """
    return AsyncSession(target, trust, options, receive, events)


class Session(Closing):
    """A session with a peer that was dialled; made by :func:`connect`. One transfer at a time."""

    def __init__(self, link: Link | FetchLink, options: SendOptions) -> None:
        """Take over a link."""
        self._link = link
        self._options = options
        self._sending = False
        self._mark = METER.opened(self, "fetch" if isinstance(link, FetchLink) else "send")

    def send(self, objects: Mapping[str, BufferLike]) -> SendReport:
        """Send named buffers as one state.

        They are read where they are, and must not be written to before this returns.

        Args:
            objects: C-contiguous buffers by name.

        Returns:
            What was done.

        Raises:
            BufferError: A buffer is not contiguous.
            ConfigError: A name cannot be used, or a signal handler sends in the middle of another send.
            LimitExceededError: The receiver does not take that much.
            TransportError: The receiver is gone and did not come back, or reports a failure.
            IntegrityError: Bytes were altered on the way, more than once.
            DeadlineError: It took longer than ``options.timeout_s``.
            NegotiationError: v1 is used, and there is not exactly one object.
        """
        return self._sent(lambda link: link.send(objects))

    def send_paths(self, paths: Sequence[str | os.PathLike[str]]) -> SendReport:
        """Send files and directories as one state.

        Args:
            paths: What to send; each arrives under its last component.

        Returns:
            What was done.

        Raises:
            OSError: Something cannot be read.
            DwcpError: Something cannot be sent, or a file changed meanwhile; otherwise as for :meth:`send`.
        """
        return self.send_scan(scan_paths(paths, self._options))

    def send_scan(self, scan: ScannedPaths) -> SendReport:
        """Send what :func:`~dwcp_fast.links.scan_paths` found; raises what :meth:`send_paths` raises."""
        return self._sent(lambda link: link.send_scan(scan))

    def fetch(self, request: bytes = b"", *, timeout_s: float | None = None) -> Received:
        """Ask for a state of buffers, and receive it into new memory.

        If the listener is lost, it is looked for during ``options.reconnect_s`` and asked again; what had
        come by then does not come twice.

        Args:
            request: What is asked for, in words that only the two applications know; up to 65,536 bytes.
            timeout_s: Seconds to wait for an offer, however long the listener is silent about it; None waits
                as long as it is there.

        Returns:
            The buffers, complete and verified.

        Raises:
            DeadlineError: No offer came in time, or it took longer than ``options.timeout_s``.
            PeerError: The listener refuses, or reports a failure.
            LimitExceededError: The state is larger than ``max_total_bytes`` of the receive options.
            TransportError: The listener is gone and did not come back, or ended the session unanswered.
            IntegrityError: Bytes were altered on the way, more than once.
            ConfigError: The session sends, or `request` is too long.
            DwcpError: The listener offers files, or the session was cancelled.
        """
        return self._fetcher().fetch(request, timeout_s)

    def fetch_to(
        self, buffers: Mapping[str, BufferLike], request: bytes = b"", *, timeout_s: float | None = None
    ) -> ReceiveReport:
        """Ask for a state of buffers, and receive it into the caller's memory.

        Until this returns the buffers must not be touched; after an exception their content is unspecified.

        Args:
            buffers: Writable contiguous buffers by name, each of exactly the length that will come.
            request: As for :meth:`fetch`.
            timeout_s: As for :meth:`fetch`.

        Returns:
            What was done.

        Raises:
            BufferError: A buffer is not contiguous or read-only.
            DwcpError: The listener offers another name or length; otherwise as for :meth:`fetch`.
        """
        return self._fetcher().fetch_to(buffers, request, timeout_s)

    def fetch_into(
        self,
        directory: str | os.PathLike[str],
        request: bytes = b"",
        *,
        timeout_s: float | None = None,
    ) -> ReceiveReport:
        """Ask for files, and receive them into a directory.

        Everything is staged in ``.dwcp`` there, and put in place only when all of it is verified. What an
        exception leaves staged is continued when the same is fetched again.

        Args:
            directory: A directory that exists.
            request: As for :meth:`fetch`.
            timeout_s: As for :meth:`fetch`.

        Returns:
            What was done.

        Raises:
            OSError: Something cannot be written, exists and is not to be overwritten, or does not fit.
            DwcpError: The listener offers what is refused, such as a link out of the directory; otherwise as
                for :meth:`fetch`.
        """
        return self._fetcher().fetch_into(Path(directory), request, timeout_s)

    def progress(self) -> Progress:
        """Tell, from any thread, where the transfer stands."""
        return self._link.progress()

    def set_bandwidth_limit(self, bits_per_s: int | None) -> None:
        """Change, from any thread, the rate of all lanes together, also of a transfer that is under way.

        A schedule of the options is not followed any more.

        Args:
            bits_per_s: Most bits per second on the wire, None for no limit.

        Raises:
            ConfigError: The rate is out of range, or the session fetches: the side that sends keeps the rate.
            NegotiationError: v1 is used, which keeps no rate.
        """
        self._sender().set_bandwidth_limit(check_rate(bits_per_s))

    def explain(self) -> list[Choice[Any]]:
        """Tell what was chosen for this session, and why."""
        return list(self._link.choices())

    def cancel(self) -> None:
        """Stop, from any thread, what is under way; it raises, and the session is of no use afterwards."""
        self._link.cancel()

    def close(self) -> None:
        """End the session, and what it sends or fetches on another thread; a second time does nothing."""
        if self._sending:
            # It would go on to its end otherwise, on a session that nobody holds any more.
            self._link.cancel()
        self._link.close()
        self._mark.close()

    def _sent(self, send: Callable[[Link], SendReport]) -> SendReport:
        link = self._sender()
        self._sending = True
        try:
            return recorded(link.engine, lambda: send(link))
        finally:
            self._sending = False

    def _sender(self) -> Link:
        if isinstance(self._link, FetchLink):
            raise ConfigError(
                "this session fetches and cannot send", hint="connect without `receive` to send"
            )
        return self._link

    def _fetcher(self) -> FetchLink:
        if not isinstance(self._link, FetchLink):
            raise ConfigError(
                "this session sends and cannot fetch", hint="connect with receive=ReceiveOptions() to fetch"
            )
        return self._link


class AsyncSession:
    """The same from coroutines; made by :func:`connect_async`.

    Every call runs in a thread. When the awaiting task is cancelled, the native work is cancelled, and its
    end is awaited.
    """

    def __init__(
        self,
        target: str,
        trust: Trust | None,
        options: SendOptions,
        receive: ReceiveOptions | None,
        events: Events | None,
    ) -> None:
        """Note what to connect to."""
        self._open = (target, trust, options, receive)
        self._events = events
        self._options = options
        self._cancel = _core.Cancel()
        self._worker = Worker("dwcp-session")
        self._session: Session | None = None
        self._opening = False
        self._given_up = False

    async def send(self, objects: Mapping[str, BufferLike]) -> SendReport:
        """Send named buffers; see :meth:`Session.send`."""
        session = self._entered()
        return await self._worker.run(lambda: session.send(objects), session.cancel)

    async def send_paths(self, paths: Sequence[str | os.PathLike[str]]) -> SendReport:
        """Send files and directories; see :meth:`Session.send_paths`."""
        session = self._entered()
        # A token of its own: that of the session is used up when the kill switch ends v3.
        scanning = _core.Cancel()

        def send() -> SendReport:
            return session.send_scan(scan_paths(paths, self._options, scanning))

        def cancel() -> None:
            scanning.cancel()
            session.cancel()

        return await self._worker.run(send, cancel)

    async def fetch(self, request: bytes = b"", *, timeout_s: float | None = None) -> Received:
        """Ask for buffers; see :meth:`Session.fetch`."""
        session = self._entered()
        return await self._worker.run(lambda: session.fetch(request, timeout_s=timeout_s), session.cancel)

    async def fetch_to(
        self, buffers: Mapping[str, BufferLike], request: bytes = b"", *, timeout_s: float | None = None
    ) -> ReceiveReport:
        """Ask for buffers, into the caller's memory; see :meth:`Session.fetch_to`."""
        session = self._entered()
        return await self._worker.run(
            lambda: session.fetch_to(buffers, request, timeout_s=timeout_s), session.cancel
        )

    async def fetch_into(
        self,
        directory: str | os.PathLike[str],
        request: bytes = b"",
        *,
        timeout_s: float | None = None,
    ) -> ReceiveReport:
        """Ask for files; see :meth:`Session.fetch_into`."""
        session = self._entered()
        return await self._worker.run(
            lambda: session.fetch_into(directory, request, timeout_s=timeout_s), session.cancel
        )

    def progress(self) -> Progress:
        """Tell where the transfer stands."""
        return self._entered().progress()

    def set_bandwidth_limit(self, bits_per_s: int | None) -> None:
        """Change the rate; see :meth:`Session.set_bandwidth_limit`."""
        self._entered().set_bandwidth_limit(bits_per_s)

    def explain(self) -> list[Choice[Any]]:
        """Tell what was chosen for this session, and why."""
        return self._entered().explain()

    async def close(self) -> None:
        """End the session, or give up opening it; a second time does nothing."""
        if self._opening:
            self._given_up = True
            self._cancel.cancel()
            return
        session, self._session = self._session, None
        if session is not None:
            await self._worker.end(session.close, session.cancel)
        self._worker.close()

    async def __aenter__(self) -> Self:
        """Connect."""
        target, trust, options, receive = self._open

        def open_session() -> Session:
            link = open_link(target, trust, options, receive, self._cancel, self._events)
            return Session(link, options)

        self._opening = True
        try:
            # A cancellation may come when the session is open already, and nobody would close it.
            session = await self._worker.run(open_session, self._cancel.cancel, Session.close)
            if self._given_up:
                await self._worker.end(session.close, session.cancel)
                raise ClosedError("the session was closed while it was being opened")
        except DwcpError as error:
            self._worker.close()
            if self._given_up and not isinstance(error, ClosedError):
                raise ClosedError("the session was closed while it was being opened") from error
            raise
        except BaseException:
            self._worker.close()
            raise
        finally:
            self._opening = False
        self._session = session
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.close()

    def _entered(self) -> Session:
        if self._session is None:
            raise ClosedError("the session is not open: use it inside `async with`")
        return self._session


def open_link(
    target: str,
    trust: Trust | None,
    options: SendOptions,
    receive: ReceiveOptions | None,
    cancel: _core.Cancel,
    events: Events | None,
) -> Link | FetchLink:
    """Connect with the engine that is to be used now."""
    try:
        return make_link(target, trust, options, receive, cancel, events)
    except BaseException as error:
        METER.count_error("connect", error)
        raise


def make_link(
    target: str,
    trust: Trust | None,
    options: SendOptions,
    receive: ReceiveOptions | None,
    cancel: _core.Cancel,
    events: Events | None,
) -> Link | FetchLink:
    """Make the link of the engine that is to be used now."""
    engine = engine_for(options.protocol)
    if receive is not None:
        if engine.value == "v1":
            raise NegotiationError(f"v1 cannot fetch, and it is to be used: {engine.why}")
        return FetchLink(target, trust, options, receive, cancel, events, engine)
    if engine.value == "v1":
        return V1Link(target, options, cancel, engine)
    made = SwitchingLink if options.protocol == "auto" else V3Link
    with failures_recorded(lambda: engine.value):
        return made(target, trust, options, cancel, events, engine)
