"""Looks at the way to a receiver without a transfer: bytes go there that it drops.

>>> import threading
>>> from dwcp_fast import listen
>>> from dwcp_fast.probing import probe_link
>>> with listen("127.0.0.1:0") as listener:
...     probe = probe_link(listener.pairing, seconds=0.5, max_bytes=1 << 20)
>>> probe.handshake_ms > 0 and probe.lanes
4
"""

from dataclasses import asdict, dataclass
from typing import Any, Final, get_args

from dwcp_fast import _core
from dwcp_fast.carriers import carrier_order
from dwcp_fast.engine import engine_for
from dwcp_fast.errors import ConfigError
from dwcp_fast.metrics.meter import METER
from dwcp_fast.options import Carrier, check_addresses, check_choice, check_int, check_seconds
from dwcp_fast.policy.link import LinkCounts, LinkSample, sample_between
from dwcp_fast.policy.mode import FoundMode, mode_shown
from dwcp_fast.policy.transport import explain_link
from dwcp_fast.rollout.switch import SWITCH
from dwcp_fast.told import CountsTold, ProbeSettings, ProbeTold
from dwcp_fast.trust import Insecure, Trust, address_of, dial_security

__all__ = ["LinkProbe", "probe_link"]

PROBE_LANES: Final = 4
BURST_S: Final = 3.0
BURST_BYTES: Final = 256 << 20
MAX_BURST_S: Final = 60.0
MAX_BURST_BYTES: Final = 1 << 40
PIECE_BYTES: Final = 65_536
WARM_UP: Final = 0.5
"""The share of a burst that is left to the connections to find their pace in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkProbe:
    """What the way to a receiver is like. None stands for what is not known.

    Attributes:
        peer: The receiver, as ``HOST:PORT``.
        transport: ``"tls"``, ``"tcp"``, ``"shm"`` or ``"rdma"``; of the last two TCP measures nothing.
        why: Why that carries the lanes.
        lanes: Connections that were used.
        handshake_ms: Milliseconds of the TCP handshake, or of making the connection otherwise.
        rtt_ms: Milliseconds of a round trip while the link had little to carry.
        jitter_ms: Milliseconds by which round trips differed from that, on average.
        loaded_rtt_ms: Milliseconds of a round trip while it had as much to carry as it could.
        goodput_bits_per_s: Bits per second that arrived then, in the second half of that time.
        limited: Whether the link was what limited that. If not, it carries at least as much.
        loss: The share of bytes that had to be sent again then, 0 to 1.
        sent_bytes: Bytes that TCP sent in all.
        seconds: How long as much was sent as passed.
        mode: What mode a session over such a link would be in; ``"unknown"`` if that was not shown.
    """

    peer: str
    transport: str
    why: str
    lanes: int
    handshake_ms: float
    rtt_ms: float | None
    jitter_ms: float | None
    loaded_rtt_ms: float | None
    goodput_bits_per_s: float | None
    limited: bool | None
    loss: float | None
    sent_bytes: int | None
    seconds: float
    mode: FoundMode

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as a dictionary of plain values."""
        return asdict(self)


def probe_link(
    target: str,
    *,
    trust: Trust | None = None,
    lanes: int = PROBE_LANES,
    seconds: float = BURST_S,
    max_bytes: int = BURST_BYTES,
    connect_timeout_s: float = 10.0,
    local_addresses: tuple[str, ...] = (),
    link: Carrier = "tcp",
) -> LinkProbe:
    """Look at the way to a receiver.

    It has to let this side in as if it were to send; a pairing that nobody has used belongs to this machine
    afterwards. Nothing is staged or kept there.

    Args:
        target: ``HOST:PORT``, or the pairing string that the receiver prints.
        trust: How to know the receiver; None if `target` is a pairing string.
        lanes: Connections to use, 1 to 256; the receiver may allow fewer.
        seconds: How long to send as much as passes, at most 60 s.
        max_bytes: How much to send in that time at most.
        connect_timeout_s: Seconds for connecting and the handshake of a lane.
        local_addresses: IP addresses of this machine that lanes come from, in turn.
        link: What carries the lanes, as for :class:`~dwcp_fast.SendOptions`. Only TCP shows what the network
            is like; of others it is seen whether they reach the receiver.

    Returns:
        What was seen.

    Raises:
        ConfigError: An argument cannot be used.
        AuthError: The two sides do not trust each other.
        TransportError: The receiver cannot be reached, or is gone.
        NegotiationError: It speaks no v3, or the kill switch is on.
        V3StoppedError: The kill switch was turned on meanwhile.
        DeadlineError: The handshake took longer than `connect_timeout_s`.
        PeerError: It does not take senders.
    """
    check_int("lanes", lanes, 1, 256)
    check_seconds("seconds", seconds)
    if seconds > MAX_BURST_S:
        raise ConfigError(f"seconds is {seconds!r}: the most is {MAX_BURST_S:.0f}")
    check_int("max_bytes", max_bytes, PIECE_BYTES, MAX_BURST_BYTES)
    check_seconds("connect_timeout_s", connect_timeout_s)
    check_addresses(local_addresses)
    check_choice("link", link, get_args(Carrier))
    security = dial_security(target, trust)
    order = carrier_order(link, local_addresses=local_addresses, plain=isinstance(trust, Insecure))
    settings: ProbeSettings = {
        "lanes": lanes,
        "burst_s": seconds,
        "burst_bytes": max_bytes,
        "connect_timeout_s": connect_timeout_s,
        "local_addresses": list(local_addresses),
        "links": list(order.value),
    }
    told = probe(address_of(target), security, settings)
    # Where something near answers for the receiver, TCP tells nothing of the way to it.
    calm = None if told["relayed"] else told["calm"]
    burst = None if told["relayed"] else told["burst"]
    rtt_ms = calm["rtt_ms"] if calm else None
    carried = sample_of(told["counts"], rtt_ms) if burst else None
    paths = [path["sent_bytes"] or 0 for path in (told["calm"], told["burst"]) if path]
    transport = told["link"]
    if transport == "tcp" and not isinstance(trust, Insecure):
        transport = "tls"
    return LinkProbe(
        peer=told["peer"],
        transport=transport,
        why=explain_link(order, told["link"], told["passed_over"]).why,
        lanes=told["lanes"],
        handshake_ms=told["handshake_ms"],
        rtt_ms=rtt_ms,
        jitter_ms=calm["jitter_ms"] if calm else None,
        loaded_rtt_ms=burst["rtt_ms"] if burst else None,
        goodput_bits_per_s=carried.carried_bits_per_s if carried else None,
        limited=carried.limited if carried else None,
        loss=burst["retransmitted_share"] if burst else None,
        sent_bytes=sum(paths) if paths else None,
        seconds=told["counts"][-1][0] if told["counts"] else 0.0,
        mode=mode_shown(carried) if carried else "unknown",
    )


def probe(address: str, security: _core.DialSecurity, settings: ProbeSettings) -> ProbeTold:
    """Look at the way as long as v3 may be used, and count that."""
    try:
        engine_for("v3")
        cancel = _core.Cancel()
        guard = SWITCH.guard(cancel.cancel)
        mark = METER.opened(guard, "probe")
        try:
            with guard.told():
                return _core.probe_link(address, security, settings, cancel)
        finally:
            guard.release()
            mark.close()
    except BaseException as error:
        METER.count_error("connect", error)
        raise


def sample_of(counts: list[CountsTold], rtt_ms: float | None) -> LinkSample | None:
    """Make one sample of the second half of a burst, with the round trip from before it."""
    if len(counts) < 2:
        return None
    end_s = counts[-1][0]
    from_s, first = next(told for told in counts if told[0] >= WARM_UP * end_s or told is counts[-2])
    sample = sample_between(
        LinkCounts(**first), LinkCounts(**counts[-1][1]), seconds=end_s - from_s, at_s=end_s
    )
    return sample and LinkSample(end_s, rtt_ms, sample.carried_bits_per_s, sample.limited)
