"""Receiving: listeners, and the sessions of the senders that were let in."""

import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from dwcp_fast import _core
from dwcp_fast.buffers import BufferLike
from dwcp_fast.errors import ConfigError
from dwcp_fast.options import ReceiveOptions
from dwcp_fast.reports import CodecShare, Progress, ReceiveReport
from dwcp_fast.state import KeptPairing, forget_pairing, keep_pairing, kept_pairing
from dwcp_fast.told import ReceiveSettings, ReceiveTold
from dwcp_fast.trust import INSECURE, Insecure, MutualTls
from dwcp_fast.waiting import Worker

if TYPE_CHECKING:
    from dwcp_fast.links import Events
    from dwcp_fast.v1 import V1Delivery, V1Receiver

__all__ = [
    "AsyncIncomingSession",
    "AsyncListener",
    "IncomingSession",
    "Listener",
    "Received",
    "listen",
    "listen_async",
]

LOG: Final = logging.getLogger(__name__)
DEFAULTS: Final = ReceiveOptions()
V1_CLOSE_S: Final = 5.0
EVERYWHERE: Final = ("0.0.0.0/0", "::/0")
OnV1 = Callable[["V1Delivery"], None]


def listen(
    address: str,
    *,
    trust: MutualTls | Insecure | None = None,
    options: ReceiveOptions = DEFAULTS,
    events: "Events | None" = None,
    on_v1: OnV1 | None = None,
    keep_pairing_in: str | PathLike[str] | None = None,
) -> "Listener":
    """Listen for senders.

    Args:
        address: ``HOST:PORT``; port 0 takes a free one.
        trust: :class:`~dwcp_fast.MutualTls`, :data:`~dwcp_fast.INSECURE`, or None for pairing: the listener
            then has a pairing string that is good for one sender.
        options: How to receive, and the limits on what senders may ask for.
        events: Called with a dictionary for each event, from threads of the library; should return soon.
        on_v1: Called with what v1 senders deliver, from threads of the library; needed with
            ``options.allow_v1``.
        keep_pairing_in: A target directory. While an unfinished transfer is staged there, a listener made
            again has the same pairing string.

    Returns:
        The listener, a context manager that closes it.

    Raises:
        ConfigError: `address`, `trust` or `options` cannot be used.
        OSError: The address cannot be listened on.
    """
    return Listener(address, trust, options, events, on_v1, keep_pairing_in)


def listen_async(
    address: str,
    *,
    trust: MutualTls | Insecure | None = None,
    options: ReceiveOptions = DEFAULTS,
    events: "Events | None" = None,
    on_v1: OnV1 | None = None,
    keep_pairing_in: str | PathLike[str] | None = None,
) -> "AsyncListener":
    """Listen for senders from coroutines; the result is for ``async with``.

    Args:
        address: As for :func:`listen`.
        trust: As for :func:`listen`.
        options: As for :func:`listen`.
        events: As for :func:`listen`.
        on_v1: As for :func:`listen`.
        keep_pairing_in: As for :func:`listen`.

    Returns:
        The listener.

    Raises:
        ConfigError: As for :func:`listen`.
        OSError: The address cannot be listened on.
    """
    return AsyncListener(
        listen(
            address, trust=trust, options=options, events=events, on_v1=on_v1, keep_pairing_in=keep_pairing_in
        )
    )


class Listener:
    """A socket that senders connect to; made by :func:`listen`."""

    def __init__(
        self,
        address: str,
        trust: MutualTls | Insecure | None,
        options: ReceiveOptions,
        events: "Events | None",
        on_v1: OnV1 | None,
        keep_pairing_in: str | PathLike[str] | None,
    ) -> None:
        """Listen."""
        self._options = options
        self._cancel = _core.Cancel()
        self._into = None if keep_pairing_in is None else Path(keep_pairing_in)
        self._transport = "tcp" if trust is INSECURE else "tls"
        self._identity: _core.Identity | None = None
        self._v1 = make_v1_receiver(options, on_v1)
        host, port = _core.split_address(address)
        kept = kept_pairing(self._into) if self._into is not None and trust is None else None
        self._security = self._make_security(trust, kept)
        settings: ReceiveSettings = {
            "max_lanes": options.max_lanes,
            "max_block_bytes": options.max_block_bytes,
            "max_entries": options.max_entries,
            "max_object_bytes": options.max_object_bytes,
            "idle_timeout_s": options.idle_timeout_s,
            "handshake_timeout_s": options.handshake_timeout_s,
            "v1_networks": list(options.allow_v1 or EVERYWHERE),
        }

        def bind(at: str) -> _core.Listener:
            take_v1 = None if self._v1 is None else self._take_v1
            return _core.Listener(at, self._security, settings, self._cancel, events, take_v1)

        self._native = bind_as_before(bind, host, port, kept)
        self._host = host
        if self._v1 is not None:
            LOG.warning("v1 peers are served: they are neither authenticated nor verified")
        self._keep()

    @property
    def address(self) -> str:
        """Where it listens, as ``HOST:PORT``."""
        host, port = self._native.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def pairing(self) -> str | None:
        """The pairing string for one sender, None without pairing. It is a secret."""
        return self._security.pairing(reachable_host(self._host), self._native.address[1])

    def accept(self, timeout_s: float | None = None) -> "IncomingSession | None":
        """Wait for a sender.

        Args:
            timeout_s: Seconds to wait; None waits until :meth:`cancel` is called.

        Returns:
            The sender's session, None when the time has passed.

        Raises:
            DwcpError: The listener was cancelled, or closed before (``code`` says which).
        """
        native = self._native.accept(timeout_s)
        if native is None:
            return None
        # By now the token belongs to this sender, and must still do so after a restart.
        self._keep()
        return IncomingSession(native, self._options, self._transport)

    def cancel(self) -> None:
        """Stop, from any thread, everything under way on this listener; it is of no use afterwards."""
        self._cancel.cancel()

    def close(self) -> None:
        """Stop listening; a second time does nothing."""
        self._native.close()
        if self._v1 is not None:
            self._v1.close(V1_CLOSE_S)
        if self._into is not None and self._identity is not None:
            forget_pairing(self._into)

    def __enter__(self) -> Self:
        """Use the listener in a ``with`` statement."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _make_security(
        self, trust: MutualTls | Insecure | None, kept: KeptPairing | None
    ) -> _core.ListenSecurity:
        match trust:
            case Insecure():
                return _core.ListenSecurity.insecure()
            case MutualTls():
                identity = _core.Identity.load_pem(Path(trust.certificate), Path(trust.key))
                return _core.ListenSecurity.mutual(identity, Path(trust.ca))
            case None if kept is not None:
                self._identity = _core.Identity.from_blob(kept.identity)
                return _core.ListenSecurity.paired(self._identity, kept.tickets)
            case None:
                self._identity = _core.Identity.generate()
                return _core.ListenSecurity.paired(self._identity)

    def _keep(self) -> None:
        tickets = self._security.tickets()
        if self._into is not None and self._identity is not None and tickets is not None:
            pairing = KeptPairing(self._identity.to_blob(), tickets, self._native.address[1])
            keep_pairing(self._into, pairing)

    def _take_v1(self, descriptor: int, host: str, port: int) -> None:
        connection = socket.socket(fileno=descriptor)
        if self._v1 is None or not self._v1.add_connection(connection, (host, port)):
            LOG.info("v1 peer %s was turned away", host)


class IncomingSession:
    """The session of a sender that was let in; made by :meth:`Listener.accept`."""

    def __init__(self, native: _core.Receiver, options: ReceiveOptions, transport: str) -> None:
        """Take over a native session."""
        self._native = native
        self._options = options
        self._transport = transport

    @property
    def peer(self) -> str:
        """The sender's address."""
        return self._native.peer

    def receive(self, timeout_s: float | None = None) -> "Received | None":
        """Receive the next state of buffers into new memory.

        Args:
            timeout_s: Seconds to wait for the sender's offer.

        Returns:
            The buffers, complete and verified; None when the sender has closed the session.

        Raises:
            DeadlineError: No offer came in time.
            LimitExceededError: The state is larger than ``options.max_total_bytes``.
            TransportError: The sender is gone, or reports a failure.
            IntegrityError: Bytes were altered on the way.
            DwcpError: The sender offers files, or the listener was cancelled.
        """
        outcome = self._native.receive_buffers(self._options.max_total_bytes, timeout_s)
        if outcome is None:
            return None
        buffers, told = outcome
        return Received({name: memoryview(buffer) for name, buffer in buffers}, self._report(told))

    def receive_into(
        self, buffers: Mapping[str, BufferLike], timeout_s: float | None = None
    ) -> ReceiveReport | None:
        """Receive the next state of buffers into the caller's memory.

        Until this returns the buffers must not be touched; after an exception their content is unspecified.

        Args:
            buffers: Writable contiguous buffers by name, each of exactly the length that will come.
            timeout_s: Seconds to wait for the sender's offer.

        Returns:
            What was done; None when the sender has closed the session.

        Raises:
            BufferError: A buffer is not contiguous or read-only.
            DwcpError: The sender offers another name or length; otherwise as for :meth:`receive`.
        """
        told = self._native.receive_into(dict(buffers), timeout_s)
        return None if told is None else self._report(told)

    def receive_tree(self, into: str | PathLike[str], timeout_s: float | None = None) -> ReceiveReport | None:
        """Receive the next state of files into a directory.

        Everything is staged in ``.dwcp`` there, and put in place only when all of it is verified. What an
        exception leaves staged is continued when the sender tries again.

        Args:
            into: A directory that exists.
            timeout_s: Seconds to wait for the sender's offer.

        Returns:
            What was done; None when the sender has closed the session.

        Raises:
            OSError: Something cannot be written, exists and is not to be overwritten, or does not fit.
            DwcpError: The sender offers what is refused, such as a link out of the directory; otherwise as
                for :meth:`receive`.
        """
        options = self._options
        told = self._native.receive_tree(
            Path(into), options.overwrite, options.symlinks == "keep", options.sync, timeout_s
        )
        return None if told is None else self._report(told)

    def progress(self) -> Progress:
        """Tell, from any thread, where the transfer stands."""
        return Progress(**self._native.progress())

    def close(self) -> None:
        """End the session, also from another thread; a second time does nothing. What is staged stays."""
        self._native.close()

    def __enter__(self) -> Self:
        """Use the session in a ``with`` statement."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _report(self, told: ReceiveTold) -> ReceiveReport:
        shares = tuple(CodecShare(**share) for share in told["codec_mix"])
        plain: dict[str, Any] = {**told, "codec_mix": shares}
        return ReceiveReport(transport=self._transport, **plain)


class Received(Mapping[str, memoryview]):
    """Buffers that were received, by name, and the report.

    Attributes:
        report: What was done.
    """

    def __init__(self, objects: dict[str, memoryview], report: ReceiveReport) -> None:
        """Hold both."""
        self._objects = objects
        self.report = report

    def __getitem__(self, name: str) -> memoryview:
        """Give a buffer; it is the receiver's to keep and to write to."""
        return self._objects[name]

    def __iter__(self) -> Iterator[str]:
        """Give the names."""
        return iter(self._objects)

    def __len__(self) -> int:
        """Count the buffers."""
        return len(self._objects)


class AsyncListener:
    """A listener for coroutines; made by :func:`listen_async`."""

    def __init__(self, listener: Listener) -> None:
        """Wrap a listener."""
        self._listener = listener
        self._worker = Worker("dwcp-listener")

    @property
    def address(self) -> str:
        """Where it listens, as ``HOST:PORT``."""
        return self._listener.address

    @property
    def pairing(self) -> str | None:
        """The pairing string for one sender, None without pairing. It is a secret."""
        return self._listener.pairing

    async def accept(self, timeout_s: float | None = None) -> "AsyncIncomingSession | None":
        """Wait for a sender; see :meth:`Listener.accept`. Cancelling this cancels the listener."""
        session = await self._worker.run(lambda: self._listener.accept(timeout_s), self._listener.cancel)
        return None if session is None else AsyncIncomingSession(session)

    async def close(self) -> None:
        """Stop listening; a second time does nothing."""
        await self._worker.run(self._listener.close, self._listener.cancel)

    async def __aenter__(self) -> Self:
        """Use the listener in an ``async with`` statement."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.close()
        self._worker.close()


class AsyncIncomingSession:
    """An incoming session for coroutines. Cancelling a call closes the session; what is staged stays."""

    def __init__(self, session: IncomingSession) -> None:
        """Wrap a session."""
        self._session = session
        self._worker = Worker("dwcp-incoming")

    @property
    def peer(self) -> str:
        """The sender's address."""
        return self._session.peer

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
        await self._worker.run(self._session.close, self._session.close)

    async def __aenter__(self) -> Self:
        """Use the session in an ``async with`` statement."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.close()
        self._worker.close()


def make_v1_receiver(options: ReceiveOptions, on_v1: OnV1 | None) -> "V1Receiver | None":
    """Make what serves v1 peers, if they are to be served."""
    if options.allow_v1 is None:
        return None
    if on_v1 is None:
        raise ConfigError("allow_v1 is given, but no on_v1 to take what v1 senders deliver")
    # Imported late: the engine is not needed, nor its libraries, while nobody is to be served by it.
    from dwcp_fast.v1 import V1Options, V1Receiver

    v1_options = V1Options(generation=options.v1_generation, payload_format=options.v1_payload)
    return V1Receiver(v1_options, on_delivery=on_v1)


def bind_as_before(
    bind: Callable[[str], _core.Listener], host: str, port: int, kept: KeptPairing | None
) -> _core.Listener:
    """Listen; where any port will do, on the port that an interrupted sender still knows."""
    name = f"[{host}]" if ":" in host else host
    if port == 0 and kept is not None:
        with contextlib.suppress(OSError):
            return bind(f"{name}:{kept.port}")
    return bind(f"{name}:{port}")


def reachable_host(host: str) -> str:
    """Give a host that senders can dial: of a wildcard, the address of the way out of this machine."""
    try:
        if not ipaddress.ip_address(host).is_unspecified:
            return host
    except ValueError:
        # A name.
        return host
    family, anywhere = (socket.AF_INET6, "2001:db8::1") if ":" in host else (socket.AF_INET, "192.0.2.1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            # A datagram socket only looks up the route; nothing is sent.
            probe.connect((anywhere, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()
