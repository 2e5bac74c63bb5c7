"""Listeners: where peers are let in, to send or to fetch."""

import contextlib
import ipaddress
import logging
import socket
import time
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from dwcp_fast import _core
from dwcp_fast.carriers import bind_with_rdma
from dwcp_fast.closing import Closing
from dwcp_fast.dictionary import natives
from dwcp_fast.errors import ConfigError
from dwcp_fast.incoming import STOPPED, AsyncIncomingSession, IncomingSession, dismiss
from dwcp_fast.links import Events, send_settings
from dwcp_fast.metrics.meter import METER
from dwcp_fast.options import ReceiveOptions, SendOptions, check_int
from dwcp_fast.rollout.switch import SWITCH
from dwcp_fast.state import (
    KeptPairing,
    forget_pairing,
    keep_pairing,
    kept_pairing,
    read_pairing,
    write_pairing,
)
from dwcp_fast.throttle import check_rate, follow_schedule
from dwcp_fast.told import ReceiveSettings
from dwcp_fast.trust import INSECURE, Insecure, MutualTls, listen_security
from dwcp_fast.waiting import Worker

if TYPE_CHECKING:
    from dwcp_fast.v1 import V1Delivery, V1Receiver

__all__ = ["AsyncListener", "Listener", "listen", "listen_async"]

LOG: Final = logging.getLogger(__name__)
DEFAULTS: Final = ReceiveOptions()
V1_CLOSE_S: Final = 5.0
MAX_CLIENTS: Final = 65_536
MAX_V1_TRANSFERS: Final = 1_024
EVERYWHERE: Final = ("0.0.0.0/0", "::/0")
OnV1 = Callable[["V1Delivery"], None]


def listen(
    address: str,
    *,
    trust: MutualTls | Insecure | None = None,
    options: ReceiveOptions = DEFAULTS,
    serve: SendOptions | None = None,
    receive: bool = True,
    clients: int | None = 1,
    events: Events | None = None,
    on_v1: OnV1 | None = None,
    keep_pairing_in: str | PathLike[str] | None = None,
    pairing_file: str | PathLike[str] | None = None,
) -> "Listener":
    """Listen for peers: for senders, and with `serve` for those that fetch.

    Args:
        address: ``HOST:PORT``; port 0 takes a free one.
        trust: :class:`~dwcp_fast.MutualTls`, :data:`~dwcp_fast.INSECURE`, or None for pairing: the listener
            then has a pairing string that is good for as many clients as `clients` says.
        options: How to receive, and the limits on what senders may ask for.
        serve: How to send to peers that fetch; None lets none of them in. The bandwidth is that of all peers.
        receive: Whether senders are let in.
        clients: How many clients the pairing string is good for: it is bound to the certificates of the first
            that come. None lets in whoever has it.
        events: Called with a dictionary for each event, from threads of the library; should return soon.
        on_v1: Called with what v1 senders deliver, from threads of the library; needed with
            ``options.allow_v1``.
        keep_pairing_in: A target directory. While an unfinished transfer is staged there, a listener made
            again has the same pairing string.
        pairing_file: A file, made if missing, that keeps the pairing for listeners that are made later.

    Returns:
        The listener, a context manager that closes it.

    Raises:
        ConfigError: `address`, `trust` or another option cannot be used.
        OSError: The address cannot be listened on.
    """
    return Listener(
        address,
        trust,
        options,
        events,
        on_v1,
        keep_pairing_in,
        serve=serve,
        receive=receive,
        clients=clients,
        pairing_file=pairing_file,
    )


def listen_async(
    address: str,
    *,
    trust: MutualTls | Insecure | None = None,
    options: ReceiveOptions = DEFAULTS,
    serve: SendOptions | None = None,
    receive: bool = True,
    clients: int | None = 1,
    events: Events | None = None,
    on_v1: OnV1 | None = None,
    keep_pairing_in: str | PathLike[str] | None = None,
    pairing_file: str | PathLike[str] | None = None,
) -> "AsyncListener":
    """Listen for peers from coroutines; the result is for ``async with``.

    Args:
        address: As for :func:`listen`.
        trust: As for :func:`listen`.
        options: As for :func:`listen`.
        serve: As for :func:`listen`.
        receive: As for :func:`listen`.
        clients: As for :func:`listen`.
        events: As for :func:`listen`.
        on_v1: As for :func:`listen`.
        keep_pairing_in: As for :func:`listen`.
        pairing_file: As for :func:`listen`.

    Returns:
        The listener.

    Raises:
        ConfigError: As for :func:`listen`.
        OSError: The address cannot be listened on.
    """
    return AsyncListener(
        listen(
            address,
            trust=trust,
            options=options,
            serve=serve,
            receive=receive,
            clients=clients,
            events=events,
            on_v1=on_v1,
            keep_pairing_in=keep_pairing_in,
            pairing_file=pairing_file,
        )
    )


class Listener(Closing):
    """A socket that peers connect to; made by :func:`listen`."""

    def __init__(
        self,
        address: str,
        trust: MutualTls | Insecure | None,
        options: ReceiveOptions,
        events: Events | None,
        on_v1: OnV1 | None,
        keep_pairing_in: str | PathLike[str] | None,
        *,
        serve: SendOptions | None,
        receive: bool,
        clients: int | None,
        pairing_file: str | PathLike[str] | None,
    ) -> None:
        """Listen."""
        if serve is None and not receive:
            raise ConfigError("a listener that neither receives nor serves has nobody to let in")
        if clients is not None:
            check_int("clients", clients, 1, MAX_CLIENTS)
        self._options = options
        self._serve = serve
        self._events = events
        self._clients = clients
        self._kept_tickets: bytes | None = None
        self._file = None if pairing_file is None else Path(pairing_file)
        self._cancel = _core.Cancel()
        self._into = None if keep_pairing_in is None else Path(keep_pairing_in)
        self._transport = "tcp" if trust is INSECURE else "tls"
        self._identity: _core.Identity | None = None
        self._v1 = make_v1_receiver(options, on_v1)
        host, port = _core.split_address(address)
        kept = None if trust is not None else self._kept()
        self._security = self._make_security(trust, kept)
        settings: ReceiveSettings = {
            "max_lanes": options.max_lanes,
            "max_block_bytes": options.max_block_bytes,
            "max_entries": options.max_entries,
            "max_object_bytes": options.max_object_bytes,
            "max_dictionary_bytes": options.max_dictionary_bytes,
            "dictionaries": natives(options.dictionaries),
            "idle_timeout_s": options.idle_timeout_s,
            "handshake_timeout_s": options.handshake_timeout_s,
            "senders": receive,
            "max_sessions": options.max_sessions,
            "v1_networks": list(options.allow_v1 or EVERYWHERE),
            "shares_memory": options.link == "auto",
            "rdma": False,
        }

        serving = None if serve is None else send_settings(serve)

        def bind(at: str) -> _core.Listener:
            take_v1 = None if self._v1 is None else self._take_v1

            def bind_as(how: ReceiveSettings) -> _core.Listener:
                return _core.Listener(
                    at, self._security, how, serving, self._cancel, events, take_v1, refusal
                )

            return bind_with_rdma(bind_as, settings, options.link, plain=trust is INSECURE)

        self._native = bind_as_before(bind, host, port, kept)
        self._throttle = follow_schedule(self, serve)
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
        """The pairing string, None without pairing. It is a secret."""
        return self._security.pairing(reachable_host(self._host), self._native.address[1])

    def accept(self, timeout_s: float | None = None) -> IncomingSession | None:
        """Wait for a peer: a sender, or one that has asked for something.

        While the kill switch is on, v3 peers are turned away, those that only probe the link too.

        Args:
            timeout_s: Seconds to wait; None waits until :meth:`close` or :meth:`cancel` is called.

        Returns:
            The peer's session, None when the time has passed.

        Raises:
            ClosedError: The listener was closed, before or meanwhile.
            DwcpError: It was cancelled (``code`` says so).
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            native = self._native.accept(timeout_s)
            if native is None:
                return None
            # It may have been let in before the switch was on.
            why = SWITCH.refusal()
            if why is None:
                break
            LOG.warning("v3 peer %s is turned away: %s", native.peer, why)
            dismiss(native, STOPPED)
            native.close()
            timeout_s = None if end is None else max(0.0, end - time.monotonic())
        # By now the token belongs to this peer, and must still do so after a restart.
        self._keep()
        return IncomingSession(native, self._options, self._serve, self._transport, self._events)

    def set_bandwidth_limit(self, bits_per_s: int | None) -> None:
        """Change, from any thread, the rate of all peers together that are sent to.

        A schedule of the options given as `serve` is not followed any more.

        Args:
            bits_per_s: Most bits per second on the wire, None for no limit.

        Raises:
            ConfigError: The rate is out of range.
        """
        rate = check_rate(bits_per_s)
        if self._throttle is not None:
            self._throttle.stop()
        self.set_rate(rate)

    def set_rate(self, bytes_per_s: int | None) -> None:
        """Set the rate in bytes per second, as a schedule does; see :meth:`set_bandwidth_limit`."""
        self._native.set_bandwidth_limit(bytes_per_s)

    def cancel(self) -> None:
        """Stop, from any thread, everything under way on this listener; it is of no use afterwards."""
        self._cancel.cancel()

    def close(self) -> None:
        """Stop listening, also from another thread; a second time does nothing. Sessions let in go on."""
        if self._throttle is not None:
            self._throttle.stop()
        self._native.close()
        if self._v1 is not None:
            self._v1.close(V1_CLOSE_S)
        if self._into is not None and self._identity is not None:
            forget_pairing(self._into)

    def _make_security(
        self, trust: MutualTls | Insecure | None, kept: KeptPairing | None
    ) -> _core.ListenSecurity:
        security, self._identity = listen_security(trust, kept, self._clients)
        return security

    def _kept(self) -> KeptPairing | None:
        if self._file is not None:
            return read_pairing(self._file)
        return None if self._into is None else kept_pairing(self._into)

    def _keep(self) -> None:
        tickets = self._security.tickets()
        if self._identity is None or tickets is None or tickets == self._kept_tickets:
            return
        self._kept_tickets = tickets
        pairing = KeptPairing(self._identity.to_blob(), tickets, self._native.address[1])
        if self._file is not None:
            write_pairing(self._file, pairing)
        if self._into is not None:
            keep_pairing(self._into, pairing)

    def _take_v1(self, descriptor: int, host: str, port: int) -> None:
        connection = socket.socket(fileno=descriptor)
        if self._v1 is None or not self._v1.add_connection(connection, (host, port)):
            LOG.info("v1 peer %s was turned away", host)


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
        """The pairing string, None without pairing. It is a secret."""
        return self._listener.pairing

    async def accept(self, timeout_s: float | None = None) -> AsyncIncomingSession | None:
        """Wait for a peer; see :meth:`Listener.accept`. Cancelling this cancels the listener."""
        session = await self._worker.run(
            lambda: self._listener.accept(timeout_s), self._listener.cancel, close_accepted
        )
        return None if session is None else AsyncIncomingSession(session)

    async def close(self) -> None:
        """Stop listening; a second time does nothing."""
        try:
            await self._worker.end(self._listener.close, self._listener.cancel)
        finally:
            self._worker.close()

    async def __aenter__(self) -> Self:
        """Use the listener in an ``async with`` statement."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.close()


def refusal() -> str | None:
    """Tell a v3 peer why it is not let in, None if it is."""
    return None if SWITCH.refusal() is None else STOPPED


def close_accepted(session: IncomingSession | None) -> None:
    """Close what nobody waits for any more."""
    if session is not None:
        session.close()


def make_v1_receiver(options: ReceiveOptions, on_v1: OnV1 | None) -> "V1Receiver | None":
    """Make what serves v1 peers, if they are to be served."""
    if options.allow_v1 is None:
        return None
    if on_v1 is None:
        raise ConfigError("allow_v1 is given, but no on_v1 to take what v1 senders deliver")
    # Imported late: the engine is not needed, nor its libraries, while nobody is to be served by it.
    from dwcp_fast.v1 import V1Options, V1Receiver

    v1_options = V1Options(
        generation=options.v1_generation,
        payload_format=options.v1_payload,
        # A fleet that goes back to v1 does so at once. The memory of all transfers together stays bounded.
        max_transfers=min(options.max_sessions, MAX_V1_TRANSFERS),
    )

    def take(delivery: "V1Delivery") -> None:
        METER.count_ended(
            "received",
            "v1",
            state_bytes=len(delivery.payload),
            wire_bytes=delivery.wire_bytes,
            seconds=delivery.duration_s,
        )
        on_v1(delivery)

    return V1Receiver(v1_options, on_delivery=take)


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
