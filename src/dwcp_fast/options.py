"""Options of transfers, checked when they are made, and the units a person writes them in."""

import ipaddress
import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final, Literal, get_args
from typing import Protocol as Shape

from dwcp_fast.errors import ConfigError

__all__ = [
    "MAX_DICTIONARY_BYTES",
    "BandwidthSchedule",
    "Carrier",
    "CommonContent",
    "Generation",
    "ListenOn",
    "Mode",
    "Payload",
    "Protocol",
    "ReceiveOptions",
    "SendOptions",
    "Symlinks",
    "parse_bytes",
    "parse_duration",
    "parse_rate",
    "parse_schedule",
]

Protocol = Literal["auto", "v1", "v3"]
Carrier = Literal["auto", "tcp", "shm", "rdma"]
"""What carries the lanes of a session."""
ListenOn = Literal["auto", "tcp", "rdma"]
"""Where a listener is reached beside TCP: through memory, by processes of its user, and over RDMA."""
Mode = Literal["auto", "datacenter", "internet", "hybrid"]
Symlinks = Literal["keep", "refuse"]
Generation = Literal["A", "B", "C"]
Payload = Literal["hde", "raw"]

KIB: Final = 1 << 10
MIB: Final = 1 << 20
MIN_BLOCK_BYTES: Final = 64 * KIB
MAX_BLOCK_BYTES: Final = 4 * MIB
MAX_LANES: Final = 256
MAX_SESSIONS: Final = 65_536
MAX_THREADS: Final = 256
MAX_ENTRIES: Final = 1 << 20
MAX_OBJECT_BYTES: Final = 1 << 62
MAX_LOCAL_ADDRESSES: Final = 16
MAX_WINDOWS: Final = 48
DAY_MINUTES: Final = 24 * 60
MAX_SECONDS: Final = 30 * 86_400.0
MAX_DICTIONARY_BYTES: Final = (1 << 20) - 24
WINDOW: Final = re.compile(r"(\d{1,2}):(\d\d)-(\d{1,2}):(\d\d)", re.ASCII)
CONGESTION: Final = re.compile(r"[a-z0-9_-]{1,15}")
CODEC: Final = re.compile(r"auto|none|lz4(:\d{1,5})?|zstd(:-?\d{1,6})?")

QUANTITY: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z/]*)\s*", re.ASCII)
DECIMAL: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
BINARY: Final = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}


class CommonContent(Shape):
    """What small files have in common, as :class:`~dwcp_fast.Dictionary` is."""

    @property
    def digest(self) -> str:
        """Its name."""

    def to_bytes(self) -> bytes:
        """Give the bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SendOptions:
    """How to send.

    Attributes:
        protocol: ``"v3"``, ``"v1"`` (one object, neither authenticated nor verified), or ``"auto"``: v3
            unless the rollout says otherwise for this node.
        mode: What kind of link there is: ``"datacenter"``, ``"hybrid"`` or ``"internet"``, which stays as it
            is asked for, or ``"auto"``, which is found from what the link shows, and found anew when that
            changes. `streams`, `codec` and `congestion` go before it where they are asked for.
        streams: Number of lanes, 1 to 256; None leaves it to the policy, and to what is found while data
            flows if the peer is far.
        polite: Whether others on the link go first: ``congestion="auto"`` does not come to BBR then, which
            does not give way, and there are fewer lanes where ``streams`` is None.
        codec: ``"auto"``, ``"none"``, ``"lz4"``, ``"zstd"`` or ``"zstd:LEVEL"``.
        dictionary: What small files or buffers have in common, at most 1 048 552 bytes. It is offered to the
            receiver, and what is shorter than 128 KiB is made with it if the receiver takes it.
        codec_model: File with a model for ``codec="auto"``, as ``dwcp select train`` makes it; None for the
            one that comes with the package.
        link_memory: Whether ``codec="auto"`` begins with what the last session to the same address found out
            about the link, and keeps what this one does, in ``links.json`` of the state directory.
        block_bytes: Length of a block: a power of two, 64 KiB to 4 MiB; None for 1 MiB, and for 256 KiB of
            16 MiB to 2 GiB of buffers to a receiver that is far.
        bandwidth_bits_per_s: Most bits per second on the wire, all lanes together; None for no limit.
        bandwidth_schedule: The same by the time of day, as :func:`parse_schedule` reads it, such as
            ``"08:00-18:00=100Mbps,otherwise=off"``; goes with no `bandwidth_bits_per_s`.
        congestion: Congestion control of what is sent: ``"auto"`` (to a peer that is 10 ms away or more
            CUBIC, which gives way to others, and BBR once packets are lost with no queue in sight; with
            ``polite`` the same as ``"yielding"``), ``"yielding"`` (CUBIC whatever is lost), ``"system"``, or
            a name that the kernel knows, such as ``"bbr"``. What the kernel does not let this process have
            is left to the system, unless it was asked for by name. The report tells what was at work.
        local_addresses: IP addresses of this machine that lanes come from, in turn, at most 16; an empty
            tuple leaves it to the system. If one does not work, its lanes come from the others.
        link: What carries the lanes: ``"tcp"``, ``"shm"`` (memory shared with a process of the same user on
            this host, and nothing else), ``"rdma"`` (neither encrypted nor authenticated: only with
            :data:`~dwcp_fast.INSECURE`), or ``"auto"``: memory where that can be, RDMA with ``INSECURE``
            where both sides have it, and TCP elsewhere and where something was asked for that only TCP can
            keep. The report tells which it was, and why.
        timeout_s: Seconds that one transfer may take; None for no limit.
        stall_timeout_s: Seconds for which nothing of a transfer may move though the receiver is there, and
            one more for each 64 MiB of the state, which the receiver may have to read before it answers; None
            for no limit. A receiver whose application takes nothing for that long counts too.
        connect_timeout_s: Seconds for connecting and the handshake of a lane.
        idle_timeout_s: Seconds without a word from the peer after which a lane is given up; with v1, seconds
            in which it took nothing and closed no connection, after which the transfer is.
        reconnect_s: Seconds for which a transfer that lost all its lanes tries to go on.
        base: ``"auto"`` uses what the receiver was sent before, ``"none"`` nothing, and paths name files
            or directories with the bytes that the receiver holds.
        symlinks: Whether symbolic links are sent, or refused.
        v1_generation: Generation of HDE packets sent to a v1 receiver.
        v1_payload: What is sent to a v1 receiver: an HDE packet, or the bytes themselves.

    Raises:
        ConfigError: A value is out of range; the message names the field.
    """

    protocol: Protocol = "auto"
    mode: Mode = "auto"
    streams: int | None = None
    polite: bool = False
    codec: str = "auto"
    dictionary: CommonContent | None = None
    codec_model: Path | None = None
    link_memory: bool = True
    block_bytes: int | None = None
    bandwidth_bits_per_s: int | None = None
    bandwidth_schedule: str | None = None
    congestion: str = "auto"
    local_addresses: tuple[str, ...] = ()
    link: Carrier = "auto"
    timeout_s: float | None = None
    stall_timeout_s: float | None = 600.0
    connect_timeout_s: float = 10.0
    idle_timeout_s: float = 30.0
    reconnect_s: float = 30.0
    base: Literal["auto", "none"] | tuple[Path, ...] = "auto"
    symlinks: Symlinks = "keep"
    v1_generation: Generation = "A"
    v1_payload: Payload = "hde"

    def __post_init__(self) -> None:
        """Check every field, also of what is not made use of, and keep nothing that a caller can change."""
        for field in ("local_addresses", *(() if isinstance(self.base, str) else ("base",))):
            keep_tuple(self, field)
        check_choice("protocol", self.protocol, get_args(Protocol))
        check_choice("mode", self.mode, get_args(Mode))
        check_flag("polite", self.polite)
        check_flag("link_memory", self.link_memory)
        check_path("codec_model", self.codec_model)
        if self.streams is not None:
            check_int("streams", self.streams, 1, MAX_LANES)
        check_codec(self.codec)
        if self.dictionary is not None:
            check_sent(self.dictionary)
        if self.block_bytes is not None:
            check_block_bytes(self.block_bytes)
        if self.bandwidth_bits_per_s is not None:
            check_bandwidth("bandwidth_bits_per_s", self.bandwidth_bits_per_s)
        if self.bandwidth_schedule is not None:
            check_schedule("bandwidth_schedule", self.bandwidth_schedule)
            if self.bandwidth_bits_per_s is not None:
                raise ConfigError("bandwidth_bits_per_s and bandwidth_schedule exclude each other")
        check_congestion(self.congestion)
        check_addresses(self.local_addresses)
        check_choice("link", self.link, get_args(Carrier))
        if self.timeout_s is not None:
            check_seconds("timeout_s", self.timeout_s)
        if self.stall_timeout_s is not None:
            check_seconds("stall_timeout_s", self.stall_timeout_s)
        check_seconds("connect_timeout_s", self.connect_timeout_s)
        check_seconds("idle_timeout_s", self.idle_timeout_s)
        check_seconds("reconnect_s", self.reconnect_s, zero=True)
        if isinstance(self.base, str):
            check_choice("base", self.base, ("auto", "none"))
        elif not self.base:
            raise ConfigError("base is an empty tuple: name a path, or say 'auto' or 'none'")
        else:
            for path in self.base:
                check_path("base", path)
        check_choice("symlinks", self.symlinks, get_args(Symlinks))
        check_choice("v1_generation", self.v1_generation, get_args(Generation))
        check_choice("v1_payload", self.v1_payload, get_args(Payload))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveOptions:
    """How to receive, and the limits on what a peer may ask for.

    Attributes:
        overwrite: Whether files that exist may be replaced.
        symlinks: Whether symbolic links are made, or refused.
        sync: Whether files reach the disk before they are renamed into place.
        max_object_bytes: Longest file or buffer taken.
        max_total_bytes: Most bytes of buffers held in memory for one transfer.
        max_entries: Most files, directories, links or buffers of one transfer.
        max_block_bytes: Longest block taken: a power of two, 64 KiB to 4 MiB.
        max_dictionary_bytes: Longest dictionary that a sender may give, 0 to 1 048 552; longer ones are
            declined, and with 0 a sender offers none.
        dictionaries: Dictionaries that a sender need not give, since they are known by their digest.
        max_lanes: Most lanes of one session, 1 to 256.
        max_sessions: Most sessions of a listener at once; whoever comes beyond is told to try again.
            Also most v1 transfers at once, where v1 is served.
        idle_timeout_s: Seconds without a word from the peer after which a lane is given up.
        handshake_timeout_s: Seconds for the handshake of a lane.
        link: ``"auto"``: processes of the same user on this host may share memory with this one, where the
            system lets them, and lanes over RDMA are taken too where the peers need not know each other and
            there is a device; ``"tcp"``: all come through TCP; ``"rdma"``: over TCP or RDMA, or an error.
        allow_v1: Networks (``"10.0.0.0/8"``) whose peers may use v1, which has neither authentication nor
            integrity; an empty tuple allows all, None refuses v1.
        v1_generation: Generation of HDE packets expected from v1 senders.
        v1_payload: What v1 senders send: HDE packets, or the bytes themselves.

    Raises:
        ConfigError: A value is out of range; the message names the field.
    """

    overwrite: bool = True
    symlinks: Symlinks = "keep"
    sync: bool = True
    max_object_bytes: int = 1 << 46
    max_total_bytes: int = 1 << 36
    max_entries: int = MAX_ENTRIES
    max_block_bytes: int = MAX_BLOCK_BYTES
    max_dictionary_bytes: int = MAX_DICTIONARY_BYTES
    dictionaries: tuple[CommonContent, ...] = ()
    max_lanes: int = 64
    max_sessions: int = 64
    idle_timeout_s: float = 30.0
    handshake_timeout_s: float = 10.0
    link: ListenOn = "auto"
    allow_v1: tuple[str, ...] | None = None
    v1_generation: Generation = "A"
    v1_payload: Payload = "hde"

    def __post_init__(self) -> None:
        """Check every field, also of what is not made use of, and keep nothing that a caller can change."""
        for field in ("dictionaries", *(() if self.allow_v1 is None else ("allow_v1",))):
            keep_tuple(self, field)
        check_flag("overwrite", self.overwrite)
        check_flag("sync", self.sync)
        for dictionary in self.dictionaries:
            check_common("dictionaries", dictionary)
        check_choice("symlinks", self.symlinks, get_args(Symlinks))
        check_int("max_object_bytes", self.max_object_bytes, 1, MAX_OBJECT_BYTES)
        check_int("max_total_bytes", self.max_total_bytes, 1, MAX_OBJECT_BYTES)
        check_int("max_entries", self.max_entries, 1, MAX_ENTRIES)
        check_block_bytes(self.max_block_bytes, "max_block_bytes")
        check_int("max_dictionary_bytes", self.max_dictionary_bytes, 0, MAX_DICTIONARY_BYTES)
        check_int("max_lanes", self.max_lanes, 1, MAX_LANES)
        check_int("max_sessions", self.max_sessions, 1, MAX_SESSIONS)
        check_seconds("idle_timeout_s", self.idle_timeout_s)
        check_seconds("handshake_timeout_s", self.handshake_timeout_s)
        check_choice("link", self.link, get_args(ListenOn))
        for network in self.allow_v1 or ():
            try:
                # A number is a network to this function, and nobody means one.
                ipaddress.ip_network(str(network), strict=False)
            except ValueError as exc:
                raise ConfigError(f"allow_v1 {network!r} is no network: {exc}") from exc
        check_choice("v1_generation", self.v1_generation, get_args(Generation))
        check_choice("v1_payload", self.v1_payload, get_args(Payload))


def parse_bytes(text: str) -> int:
    """Read a length as a person writes it.

    Args:
        text: A number and a unit: ``B``, ``kB``, ``MB``, ``GB``, ``TB`` (powers of 1000), ``KiB``, ``MiB``,
            ``GiB``, ``TiB`` (powers of 1024), or no unit for bytes.

    Returns:
        The length in bytes.

    Raises:
        ConfigError: `text` is no such length.

    >>> parse_bytes("64MiB")
    67108864
    """
    number, unit = split_quantity(text, "length", "64MiB")
    scales = {prefix + suffix: scale for prefix, scale in (DECIMAL | BINARY).items() for suffix in ("b", "")}
    return round(number * scale_of(unit.lower(), scales, text, "length", "64MiB"))


def parse_rate(text: str) -> int:
    """Read a rate as a person writes it.

    Args:
        text: A number and ``bps``, ``kbps``, ``Mbps``, ``Gbps`` (or ``bit/s`` and so on), or bytes per second
            as ``MB/s``, ``MiB/s`` and so on. A small b before ``ps`` is bits and a capital B before ``/s`` is
            bytes; the other two are refused, since who writes them may mean either.

    Returns:
        The rate in bits per second.

    Raises:
        ConfigError: `text` is no such rate.

    >>> parse_rate("500Mbps"), parse_rate("1MiB/s")
    (500000000, 8388608)
    """
    number, written = split_quantity(text, "rate", "500Mbps")
    unit = written.lower()
    letter = {"b/s": "B", "bps": "b"}.get(unit[-3:])
    if letter is not None and written[-3] != letter:
        raise ConfigError(
            f"{text!r} is no rate: the unit may be bits or bytes, write them as in 500Mbps (bits) "
            "or 500MB/s (bytes)"
        )
    scales = {prefix + suffix: scale for prefix, scale in DECIMAL.items() for suffix in ("bps", "bit/s")}
    scales |= {prefix + "b/s": 8 * scale for prefix, scale in (DECIMAL | BINARY).items()}
    return round(number * scale_of(unit, scales, text, "rate", "500Mbps"))


@dataclass(frozen=True, slots=True)
class BandwidthSchedule:
    """Rates by the time of day.

    Attributes:
        windows: First minute of the day, the minute after the last, and the bits per second between them,
            None for no limit. A window whose end is not behind its start goes on after midnight.
        otherwise: Bits per second outside all windows, None for no limit.
    """

    windows: tuple[tuple[int, int, int | None], ...]
    otherwise: int | None

    def rate_at(self, minute: int) -> int | None:
        """Give the bits per second that hold at a minute of the day, None for no limit."""
        for start, end, rate in self.windows:
            inside = start <= minute < end if start < end else minute >= start or minute < end
            if inside:
                return rate
        return self.otherwise


def parse_schedule(text: str) -> BandwidthSchedule:
    """Read rates by the time of day.

    Args:
        text: Parts ``HH:MM-HH:MM=RATE`` and at most one ``otherwise=RATE``, with commas between; a rate as
            for :func:`parse_rate`, or ``off`` for no limit, which holds also where nothing is said. Of two
            windows that overlap the first holds. Times are local; a window may pass midnight.

    Returns:
        The schedule.

    Raises:
        ConfigError: `text` is no such schedule; the message names the part.

    >>> parse_schedule("22:00-06:00=off,otherwise=100Mbps").rate_at(12 * 60)
    100000000
    """
    parts = text.split(",")
    if len(parts) > MAX_WINDOWS:
        raise ConfigError(f"a schedule of {len(parts)} parts: the most is {MAX_WINDOWS}")
    windows: list[tuple[int, int, int | None]] = []
    otherwise: list[int | None] = []
    for part in parts:
        when, _, rate = (piece.strip() for piece in part.partition("="))
        match = WINDOW.fullmatch(when)
        if when == "otherwise" and not otherwise:
            otherwise.append(scheduled_rate(rate, part))
        elif match is not None:
            hours = (int(match[1]), int(match[3]))
            minutes = (int(match[2]), int(match[4]))
            start, end = (hour * 60 + minute for hour, minute in zip(hours, minutes, strict=True))
            if max(minutes) > 59 or start >= DAY_MINUTES or end > DAY_MINUTES or start == end:
                raise ConfigError(f"{part.strip()!r} names no span of a day: write 08:00-18:00=100Mbps")
            windows.append((start, end, scheduled_rate(rate, part)))
        else:
            raise ConfigError(
                f"{part.strip()!r} is no part of a schedule: write 08:00-18:00=100Mbps or otherwise=RATE"
            )
    return BandwidthSchedule(tuple(windows), otherwise[0] if otherwise else None)


def scheduled_rate(rate: str, part: str) -> int | None:
    """Read the rate of a part of a schedule."""
    if rate == "off":
        return None
    bits_per_s = parse_rate(rate)
    check_bandwidth(f"the rate of {part.strip()!r}", bits_per_s)
    return bits_per_s


def parse_duration(text: str) -> float:
    """Read a time span as a person writes it.

    Args:
        text: A number and ``us``, ``ms``, ``s``, ``m`` or ``min``, ``h``; no unit means seconds.

    Returns:
        The span in seconds.

    Raises:
        ConfigError: `text` is no such time span.

    >>> parse_duration("300ms")
    0.3
    """
    number, unit = split_quantity(text, "time span", "300ms")
    return number * scale_of(unit.lower() or "s", SECONDS, text, "time span", "300ms")


def split_quantity(text: str, what: str, example: str) -> tuple[float, str]:
    """Split ``"500Mbps"`` into the number and the unit as it is written."""
    match = QUANTITY.fullmatch(text)
    if match is None or len(match[1]) > 20:
        raise ConfigError(f"{text!r} is no {what}: write a number and a unit, such as {example}")
    return float(match[1]), match[2]


def scale_of(
    unit: str, scales: dict[str, int] | dict[str, float], text: str, what: str, example: str
) -> float:
    """Give the factor of a unit."""
    if unit not in scales:
        raise ConfigError(f"{text!r} is no {what}: the unit is not known, write it as in {example}")
    return scales[unit]


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise ConfigError(f"{field} is {value!r}: it must be one of {', '.join(choices)}")


def keep_tuple(options: object, field: str) -> None:
    """Make a tuple of what a frozen object was given, so that it shares no list with its maker."""
    value = getattr(options, field)
    if not isinstance(value, tuple | list):
        raise ConfigError(f"{field} is {value!r}: it must be a tuple")
    object.__setattr__(options, field, tuple(value))


def check_flag(field: str, value: bool) -> None:
    """Refuse what is neither true nor false: a text such as "no" would count as true."""
    if type(value) is not bool:
        raise ConfigError(f"{field} is {value!r}: it must be True or False")


def check_path(field: str, value: object) -> None:
    """Refuse what cannot name a file; whether there is one, using it shows."""
    if value is not None and not isinstance(value, str | PurePath):
        raise ConfigError(f"{field} is {value!r}: it must be a path")


def check_common(field: str, value: CommonContent) -> None:
    """Refuse what is no dictionary."""
    if not isinstance(getattr(value, "digest", None), str) or not callable(getattr(value, "to_bytes", None)):
        raise ConfigError(f"{field} is of type {type(value).__name__}: it must be a dwcp_fast.Dictionary")


def check_int(field: str, value: int, low: int, high: int) -> None:
    """Refuse a number outside its range."""
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{field} is {value!r}: it must be an integer from {low} to {high}")


def check_bandwidth(field: str, value: int) -> None:
    """Refuse a rate, in bits per second, that nobody means."""
    check_int(field, value, 8_000, 1 << 50)


def check_seconds(field: str, value: float, *, zero: bool = False) -> None:
    """Refuse a time span that is negative, endless or absurd."""
    if (
        type(value) not in (int, float)
        or not math.isfinite(value)
        or (value < 0 if zero else value <= 0)
        or value > MAX_SECONDS
    ):
        raise ConfigError(f"{field} is {value!r}: it must be seconds above 0, at most {MAX_SECONDS:.0f}")


def check_block_bytes(value: int, field: str = "block_bytes") -> None:
    """Refuse a block length that the wire has no room for."""
    check_int(field, value, MIN_BLOCK_BYTES, MAX_BLOCK_BYTES)
    if value & (value - 1):
        raise ConfigError(f"{field} is {value}: it must be a power of two")


def check_sent(dictionary: CommonContent) -> None:
    """Refuse a dictionary that no frame can hold."""
    check_common("dictionary", dictionary)
    length = len(dictionary.to_bytes())
    if length > MAX_DICTIONARY_BYTES:
        raise ConfigError(f"dictionary has {length} bytes: for a transfer it may have {MAX_DICTIONARY_BYTES}")


def check_threads(value: int) -> None:
    """Refuse a number of threads that nobody means."""
    check_int("threads", value, 1, MAX_THREADS)


def check_schedule(field: str, value: object) -> None:
    """Refuse what is no schedule of rates."""
    if not isinstance(value, str):
        raise ConfigError(f"{field} is {value!r}: it must be a text")
    try:
        parse_schedule(value)
    except ConfigError as exc:
        raise ConfigError(f"{field}: {exc}") from exc


def check_codec(value: object) -> None:
    """Refuse a name that is no codec; the level's range is the library's to check."""
    if not isinstance(value, str) or not CODEC.fullmatch(value):
        known = "auto, none, lz4, lz4:ACCELERATION, zstd or zstd:LEVEL"
        raise ConfigError(f"codec is {value!r}: it must be {known}")


def check_congestion(value: object) -> None:
    """Refuse what cannot be the name of a congestion control; which there are is the kernel's to say."""
    if not isinstance(value, str) or not CONGESTION.fullmatch(value):
        known = "auto, yielding, system, or a name of up to 15 small letters, digits, _ and -"
        raise ConfigError(f"congestion is {value!r}: it must be {known}")


def check_addresses(values: tuple[str, ...]) -> None:
    """Refuse what cannot be addresses of this machine; whether they are, connecting shows."""
    if len(values) > MAX_LOCAL_ADDRESSES:
        raise ConfigError(f"local_addresses has {len(values)} addresses: the most is {MAX_LOCAL_ADDRESSES}")
    for value in values:
        try:
            # A number is an address to this function, and nobody means one.
            address = ipaddress.ip_address(str(value))
        except ValueError as exc:
            raise ConfigError(f"local_addresses has {value!r}, which is no IP address") from exc
        if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
            raise ConfigError(f"local_addresses has {value!r}: addresses with a scope cannot be used")
