"""The relay that carries a machine's migration, and what goes with it, between two hosts.

The host that the machine leaves dials (:class:`SourceRelay`), the other listens (:class:`TargetRelay`).
A channel is a pair of Unix sockets of the same name: whoever connects to the source's has a connection made
to the target's. The streams of the channel :data:`MIGRATION` are looked into for guest pages.

>>> import pathlib, socket, tempfile
>>> folder = tempfile.TemporaryDirectory()
>>> leaving, arriving = (pathlib.Path(folder.name, name) for name in ("out", "in"))
>>> machine = socket.socket(socket.AF_UNIX)
>>> machine.bind(str(arriving))
>>> machine.listen()
>>> with TargetRelay("127.0.0.1:0", {MIGRATION: arriving}) as target:
...     with SourceRelay(target.pairing, {MIGRATION: leaving}) as source:
...         target.accept(timeout_s=10)
...         with socket.socket(socket.AF_UNIX) as sender:
...             sender.connect(str(leaving))
...             sender.sendall(b"state")
...         with machine.accept()[0] as receiver, receiver.makefile("rb") as stream:
...             print(stream.read())
...         source.finish()
...         print(source.wait(10).state)
b'state'
finished
>>> machine.close()
>>> folder.cleanup()
"""

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from dwcp_fast import _core
from dwcp_fast.closing import Closing
from dwcp_fast.errors import ConfigError, DeadlineError, DwcpError
from dwcp_fast.links import Events
from dwcp_fast.listener import reachable_host
from dwcp_fast.metrics.meter import METER, SessionMark
from dwcp_fast.metrics.stats import Direction
from dwcp_fast.options import check_codec, check_congestion, check_int, check_seconds
from dwcp_fast.policy.lanes import choose_lanes
from dwcp_fast.selector import load_selector
from dwcp_fast.state import KeptPairing, read_pairing, write_pairing
from dwcp_fast.told import RelaySettings
from dwcp_fast.trust import Insecure, MutualTls, Trust, address_of, dial_security, listen_security
from dwcp_fast.vm.relay_stats import RelayStats, RelayTick, make_stats

__all__ = ["MIGRATION", "RelayOptions", "RelayStats", "RelayTick", "SourceRelay", "TargetRelay"]

MIGRATION: Final = "migration"
"""The channel whose streams are looked into for guest pages."""

CHANNEL: Final = re.compile(r"[a-z0-9._-]{1,32}")
MAX_LANES: Final = 64
FAR: Final = (3, 8, 16)
"""Fewest, first and most lanes to a peer that is far; what each has unsent is late when a machine stops."""

MAX_CACHE_BYTES: Final = 1 << 40
MAX_BASE_BYTES: Final = 1 << 40
MAX_SOCKET_PATH: Final = 107


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayOptions:
    """How a relay works; what is the other side's matter is not looked at.

    Attributes:
        lanes: Number of connections, 1 to 64; None leaves it to the policy, and to what is found while data
            flows if the target is far.
        codec: ``"auto"``, ``"none"``, ``"lz4"``, ``"zstd"`` or ``"zstd:LEVEL"``.
        page_cache_bytes: Bytes of pages that each side holds of a migration, so that a page that is sent
            again costs what differs. The source's number counts for both; 0 holds nothing.
        max_page_cache_bytes: Most that a target agrees to.
        base: Target: directory with an earlier copy of the machine, a raw file for each block of RAM, called
            as the block with what is not a letter, a digit or one of ``._-`` as ``%XX``. Pages that are there
            are not sent. None has no such copy.
        max_base_bytes: Source: the most of the target's base whose digests it holds, at about 50 bytes for
            4,096; pages beyond that are sent. None holds all that is told, up to 1 TiB.
        keep: Directory, made if missing, where each page is written as it was last sent, in the form that
            `base` takes. It must not be that of `base`. None keeps nothing.
        bandwidth_bytes_per_s: Most bytes per second on the wire, all lanes together; None for no limit.
        congestion: As for :class:`~dwcp_fast.SendOptions`.
        idle_timeout_s: Seconds without a word from the peer after which a lane is given up.
        connect_timeout_s: Seconds for the handshake of a lane, and for connecting to a channel's socket.
        reconnect_s: Seconds for which a relay that lost all its lanes waits for one to come back.

    Raises:
        ConfigError: A value is out of range; the message names the field.
    """

    lanes: int | None = None
    codec: str = "auto"
    page_cache_bytes: int = 256 << 20
    max_page_cache_bytes: int = 4 << 30
    base: Path | None = None
    max_base_bytes: int | None = None
    keep: Path | None = None
    bandwidth_bytes_per_s: int | None = None
    congestion: str = "auto"
    idle_timeout_s: float = 30.0
    connect_timeout_s: float = 10.0
    reconnect_s: float = 10.0

    def __post_init__(self) -> None:
        """Check every field."""
        if self.lanes is not None:
            check_int("lanes", self.lanes, 1, MAX_LANES)
        check_codec(self.codec)
        check_int("page_cache_bytes", self.page_cache_bytes, 0, MAX_CACHE_BYTES)
        check_int("max_page_cache_bytes", self.max_page_cache_bytes, 0, MAX_CACHE_BYTES)
        if self.max_base_bytes is not None:
            check_int("max_base_bytes", self.max_base_bytes, 0, MAX_BASE_BYTES)
        if self.bandwidth_bytes_per_s is not None:
            check_int("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s, 1_000, 1 << 47)
        check_congestion(self.congestion)
        check_seconds("idle_timeout_s", self.idle_timeout_s)
        check_seconds("connect_timeout_s", self.connect_timeout_s)
        check_seconds("reconnect_s", self.reconnect_s, zero=True)


DEFAULTS: Final = RelayOptions()


class Relay(Closing):
    """What both sides of a relay have in common."""

    _direction: Direction
    _last: RelayStats | None = None
    _mark: SessionMark | None = None

    @abstractmethod
    def _native_side(self) -> "_core.SourceRelay | _core.TargetRelay | None":
        """Give the native side, None where there is no peer yet."""

    def stats(self) -> RelayStats:
        """Tell where the relay stands; afterwards, where it stood when it was closed."""
        if self._last is not None:
            return self._last
        native = self._native_side()
        return make_stats(None if native is None else native.report())

    def present(self) -> RelayStats:
        """Tell the same without the time line: for who asks often, of a relay that takes long."""
        if self._last is not None:
            return replace(self._last, timeline=())
        native = self._native_side()
        return make_stats(None if native is None else native.present())

    def wait(self, timeout_s: float | None = None) -> RelayStats:
        """Wait for the end of the relay.

        Args:
            timeout_s: Seconds to wait; None waits as long as it takes.

        Returns:
            Where it stands at the end.

        Raises:
            DeadlineError: It has not ended in time, and goes on.
            TransportError: The peer is gone, or a machine did not take its stream.
            IntegrityError: Bytes were altered on the way, more than once.
            DwcpError: It was stopped, or there is no peer yet.
        """
        native = self._native_side()
        if native is None:
            raise DwcpError("the relay has no peer yet")
        if not native.wait(timeout_s):
            raise DeadlineError(f"the relay has not ended within {timeout_s} s")
        return self.stats()

    def stop(self, reason: str = "cancelled") -> None:
        """End the relay at once: every socket of both sides is shut, so that machines see a failure.

        Args:
            reason: What the peer is told.
        """
        native = self._native_side()
        if native is not None and self._last is None:
            native.stop(reason)

    def close(self) -> None:
        """End the relay, if it has not ended; a second time does nothing."""
        if self._last is None:
            native = self._native_side()
            if native is not None:
                native.stop("closed")
            self._last = self.stats()
            self._count(self._last)
        self._close_native()

    def _count(self, stats: RelayStats) -> None:
        """Count what was carried."""
        if self._mark is None:
            return
        self._mark.close()
        error = None
        try:
            self.wait(0.0)
        except DwcpError as failure:
            error = failure
        wire, state = stats.wire_bytes, stats.stream_bytes
        METER.count_ended(
            self._direction, "v3", state_bytes=state, wire_bytes=wire, seconds=stats.seconds, error=error
        )

    @abstractmethod
    def _close_native(self) -> None:
        """End the native side."""


class SourceRelay(Relay):
    """The side that dials, on the host that the machine leaves."""

    _direction = "sent"

    def __init__(
        self,
        to: str,
        channels: Mapping[str, Path],
        *,
        trust: Trust | None = None,
        options: RelayOptions = DEFAULTS,
        events: Events | None = None,
    ) -> None:
        """Open a session, and listen at the sockets of the channels.

        Args:
            to: ``HOST:PORT`` of the target, or its pairing string.
            channels: Name and Unix socket of each; the sockets are made, and removed at the end.
            trust: How to know the target; None if `to` is a pairing string.
            options: How to work.
            events: Called with a dictionary for each event, from threads of the library; should return soon.

        Raises:
            ConfigError: `to`, `channels` or `trust` cannot be used.
            AuthError: The two sides do not trust each other.
            TransportError: The target cannot be reached, or is gone.
            NegotiationError: The target knows of no relays.
            LimitExceededError: The target does not hold as many bytes of pages.
            PeerError: The target takes no relays, or has another source already.
            DeadlineError: The handshake took longer than ``options.connect_timeout_s``.
            OSError: A socket cannot be made, for example since there is a file.
        """
        settings = make_settings(channels, options)
        security = dial_security(to, trust)
        self._native = _core.SourceRelay(address_of(to), security, settings, _core.Cancel(), events)
        self._mark = METER.opened(self, "relay")

    def finish(self) -> None:
        """Open no further streams: the relay is over once those that are there have ended."""
        self._native.finish()

    def set_bandwidth_limit(self, bytes_per_s: int | None) -> None:
        """Change, from any thread, what all lanes together send.

        Args:
            bytes_per_s: Most bytes per second on the wire, None for no limit.

        Raises:
            ConfigError: The rate is out of range.
        """
        if bytes_per_s is not None:
            check_int("bytes_per_s", bytes_per_s, 1_000, 1 << 47)
        self._native.set_bandwidth_limit(bytes_per_s)

    def _native_side(self) -> _core.SourceRelay:
        return self._native

    def _close_native(self) -> None:
        self._native.close()


class TargetRelay(Relay):
    """The side that listens, on the host that the machine comes to; for the first source that is let in."""

    _direction = "received"

    def __init__(
        self,
        address: str,
        channels: Mapping[str, Path],
        *,
        trust: MutualTls | Insecure | None = None,
        options: RelayOptions = DEFAULTS,
        events: Events | None = None,
        pairing_file: Path | None = None,
    ) -> None:
        """Listen; a base is read first.

        Args:
            address: ``HOST:PORT``; port 0 takes a free one.
            channels: Name of each, and the Unix socket to connect to; it need not be there yet.
            trust: How to know sources; None for pairing.
            options: How to work.
            events: Called with a dictionary for each event, from threads of the library; should return soon.
            pairing_file: A file, made if missing, that keeps the pairing for relays that are made later.

        Raises:
            ConfigError: `address`, `channels` or another option cannot be used.
            OSError: The address cannot be listened on, or the base not be read.
        """
        settings = make_settings(channels, options)
        self._file = pairing_file
        kept = None if pairing_file is None or trust is not None else read_pairing(pairing_file)
        self._security, self._identity = listen_security(trust, kept, 1)
        self._host, _ = _core.split_address(address)
        self._cancel = _core.Cancel()
        self._native = _core.TargetRelay(address, self._security, settings, MAX_LANES, self._cancel, events)
        self._peer: str | None = None
        self._keep_pairing()

    @property
    def address(self) -> str:
        """Where it listens, as ``HOST:PORT``."""
        host, port = self._native.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def pairing(self) -> str | None:
        """The pairing string, None without pairing. It is a secret."""
        return self._security.pairing(reachable_host(self._host), self._native.address[1])

    def accept(self, timeout_s: float | None = None) -> None:
        """Wait for a source.

        Args:
            timeout_s: Seconds to wait; None waits until :meth:`stop` is called.

        Raises:
            DeadlineError: None came in time.
            DwcpError: It was stopped or closed.
        """
        peer = self._native.accept(timeout_s)
        if peer is None:
            raise DeadlineError(f"no source came within {timeout_s} s")
        self._peer = peer
        self._mark = METER.opened(self, "relay")
        # By now the token belongs to this source, and must still do so for a relay that is made later.
        self._keep_pairing()

    def stop(self, reason: str = "cancelled") -> None:
        """End the relay at once, or the wait for a source; see :meth:`Relay.stop`."""
        super().stop(reason)
        if self._peer is None:
            self._cancel.cancel()

    def close(self) -> None:
        """Stop listening, and end the relay if it has not ended; a second time does nothing."""
        if self._peer is None:
            self._cancel.cancel()
        super().close()

    def _native_side(self) -> _core.TargetRelay | None:
        return None if self._peer is None else self._native

    def _close_native(self) -> None:
        self._native.close()

    def _keep_pairing(self) -> None:
        tickets = self._security.tickets()
        if self._file is not None and self._identity is not None and tickets is not None:
            port = self._native.address[1]
            write_pairing(self._file, KeptPairing(self._identity.to_blob(), tickets, port))


def make_settings(channels: Mapping[str, Path], options: RelayOptions) -> RelaySettings:
    """Make of options what the native side takes."""
    for name, path in channels.items():
        if not CHANNEL.fullmatch(name):
            raise ConfigError(f"{name!r} is no channel: 1 to 32 small letters, digits, '.', '_' and '-'")
        length = len(bytes(path))
        if length > MAX_SOCKET_PATH:
            raise ConfigError(
                f"the socket of channel {name} has a path of {length} bytes, the most is {MAX_SOCKET_PATH}"
            )
    if options.base is not None and options.base == options.keep:
        raise ConfigError(f"base and keep are both {options.base}: a base is read while the copy is written")
    return {
        "channels": [(name, Path(path)) for name, path in channels.items()],
        "lanes": choose_lanes(options.lanes).value,
        "adaptive": FAR if options.lanes is None else None,
        "codec": options.codec,
        "codec_model": load_selector(None) if options.codec == "auto" else None,
        "page_cache_bytes": options.page_cache_bytes,
        "max_page_cache_bytes": options.max_page_cache_bytes,
        "base": options.base,
        "max_base_bytes": options.max_base_bytes,
        "keep": options.keep,
        "bandwidth_bytes_per_s": options.bandwidth_bytes_per_s,
        "congestion": options.congestion,
        "idle_timeout_s": options.idle_timeout_s,
        "connect_timeout_s": options.connect_timeout_s,
        "reconnect_s": options.reconnect_s,
    }
