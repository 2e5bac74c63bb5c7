"""The metrics by name: an interface, of which dashboards and alerts depend.

Labels have few values, known beforehand. A peer, a path or the text of an error is never one.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal

from dwcp_fast.metrics.stats import FlowStats, Stats

__all__ = ["FAMILIES", "Family", "Sample"]

Sample = tuple[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Family:
    """A metric.

    Attributes:
        name: Its name in Prometheus, with ``_total`` behind that of a counter.
        kind: A counter only grows.
        help: What it is.
        labels: The names of its labels.
        samples: Its values, with those of the labels, in a snapshot.
    """

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...]
    samples: Callable[[Stats], Iterable[Sample]]

    @property
    def unit(self) -> str:
        """The unit, as UCUM writes it: ``"By"``, ``"s"``, ``"By/s"`` or ``"1"``."""
        stem = self.name.removesuffix("_total")
        return next((unit for suffix, unit in UNITS.items() if stem.endswith(suffix)), "1")

    @property
    def dotted_name(self) -> str:
        """Its name in OpenTelemetry, where the unit is no part of it."""
        stem = self.name.removesuffix("_total")
        for suffix in UNITS:
            stem = stem.removesuffix(suffix)
        return stem.replace("_", ".")


UNITS: Final = {"_bytes_per_second": "By/s", "_bytes": "By", "_seconds": "s"}


def of_flows(read: Callable[[FlowStats], float]) -> Callable[[Stats], Iterable[Sample]]:
    """Make what gives a value for each direction and protocol."""
    return lambda stats: [((flow.direction, flow.protocol), read(flow)) for flow in stats.flows]


def of_codecs(read: Callable[[int, int, int], float]) -> Callable[[Stats], Iterable[Sample]]:
    """Make what gives a value for each way in which blocks were represented."""
    return lambda stats: [
        ((flow.direction, share.kind, share.codec), read(share.blocks, share.raw_bytes, share.wire_bytes))
        for flow in stats.flows
        for share in flow.codecs
    ]


def one(read: Callable[[Stats], float | None]) -> Callable[[Stats], Iterable[Sample]]:
    """Make what gives a single value, or none where it is not known."""

    def samples(stats: Stats) -> Iterable[Sample]:
        value = read(stats)
        return [] if value is None else [((), value)]

    return samples


FLOW: Final = ("direction", "protocol")
BLOCK: Final = ("direction", "kind", "codec")

FAMILIES: Final = (
    Family(
        "dwcp_sessions_total",
        "counter",
        "Sessions opened.",
        ("role",),
        lambda stats: [((row.role,), row.opened) for row in stats.sessions],
    ),
    Family(
        "dwcp_sessions_open",
        "gauge",
        "Sessions that are open.",
        ("role",),
        lambda stats: [((row.role,), row.open) for row in stats.sessions],
    ),
    Family(
        "dwcp_transfers_total",
        "counter",
        "Transfers that ended: completed, or failed.",
        (*FLOW, "outcome"),
        lambda stats: [
            ((flow.direction, flow.protocol, outcome), count)
            for flow in stats.flows
            for outcome, count in (("completed", flow.completed), ("failed", flow.failed))
        ],
    ),
    Family(
        "dwcp_transfers_active",
        "gauge",
        "Transfers under way, those that wait for an offer included.",
        FLOW,
        of_flows(lambda flow: flow.active),
    ),
    Family(
        "dwcp_transfer_seconds_total",
        "counter",
        "Time that completed transfers took, added up.",
        FLOW,
        of_flows(lambda flow: flow.seconds),
    ),
    Family(
        "dwcp_cpu_seconds_total",
        "counter",
        "Processor time of the lanes of completed transfers.",
        FLOW,
        of_flows(lambda flow: flow.cpu_seconds),
    ),
    Family(
        "dwcp_state_bytes_total",
        "counter",
        "Bytes of the states of completed transfers.",
        FLOW,
        of_flows(lambda flow: flow.state_bytes),
    ),
    Family(
        "dwcp_wire_bytes_total",
        "counter",
        "Bytes of coded blocks, those of unfinished transfers included.",
        FLOW,
        of_flows(lambda flow: flow.wire_bytes),
    ),
    Family(
        "dwcp_saved_bytes_total",
        "counter",
        "Bytes that were not sent: held from an interrupted transfer, or the same in a base.",
        ("direction", "reason"),
        lambda stats: [
            ((flow.direction, reason), count)
            for flow in stats.flows
            if flow.protocol == "v3"
            for reason, count in (("held", flow.held_bytes), ("same", flow.same_bytes))
        ],
    ),
    Family(
        "dwcp_blocks_total",
        "counter",
        "Blocks of completed transfers, by representation and codec.",
        BLOCK,
        of_codecs(lambda blocks, _raw, _wire: blocks),
    ),
    Family(
        "dwcp_block_raw_bytes_total",
        "counter",
        "Bytes of the state that these blocks stand for.",
        BLOCK,
        of_codecs(lambda _blocks, raw, _wire: raw),
    ),
    Family(
        "dwcp_block_wire_bytes_total",
        "counter",
        "Bytes of these blocks on the wire.",
        BLOCK,
        of_codecs(lambda _blocks, _raw, wire: wire),
    ),
    Family(
        "dwcp_blocks_resent_total",
        "counter",
        "Blocks that were sent again.",
        FLOW,
        of_flows(lambda flow: flow.blocks_resent),
    ),
    Family(
        "dwcp_base_differs_total",
        "counter",
        "Blocks that a base did not fit, so that they went in full.",
        FLOW,
        of_flows(lambda flow: flow.nacks),
    ),
    Family(
        "dwcp_tcp_sent_bytes_total",
        "counter",
        "Bytes that TCP sent for completed transfers, TLS and repetitions included.",
        (),
        one(lambda stats: stats.flow("sent").tcp_sent_bytes),
    ),
    Family(
        "dwcp_tcp_retransmitted_bytes_total",
        "counter",
        "Bytes that TCP sent again.",
        (),
        one(lambda stats: stats.flow("sent").tcp_retransmitted_bytes),
    ),
    Family(
        "dwcp_tcp_retransmitted_segments_total",
        "counter",
        "TCP segments sent again.",
        (),
        one(lambda stats: stats.flow("sent").tcp_retransmitted_segments),
    ),
    Family(
        "dwcp_lanes_total",
        "counter",
        "Lanes that came up.",
        (),
        one(lambda stats: stats.lanes.opened),
    ),
    Family(
        "dwcp_lanes_lost_total",
        "counter",
        "Lanes that ended with a failure.",
        (),
        one(lambda stats: stats.lanes.lost),
    ),
    Family(
        "dwcp_lanes_open",
        "gauge",
        "Lanes of the transfers under way.",
        (),
        one(lambda stats: stats.lanes.open),
    ),
    Family(
        "dwcp_reconnects_total",
        "counter",
        "Attempts to make a lane again.",
        (),
        one(lambda stats: stats.lanes.reconnects),
    ),
    Family(
        "dwcp_round_trip_seconds",
        "gauge",
        "A round trip as TCP measures it, the mean of the transfers that send.",
        (),
        one(lambda stats: stats.lanes.rtt_s),
    ),
    Family(
        "dwcp_delivery_bytes_per_second",
        "gauge",
        "Bytes per second that reach the peers, as TCP measures it.",
        (),
        one(lambda stats: stats.lanes.delivery_bytes_per_s),
    ),
    Family(
        "dwcp_errors_total",
        "counter",
        "What went wrong, by code: while connecting, or in a transfer.",
        ("phase", "code"),
        lambda stats: [((error.phase, error.code), error.count) for error in stats.errors],
    ),
    Family(
        "dwcp_integrity_failures_total",
        "counter",
        "Times that altered bytes were found and refused.",
        (),
        one(lambda stats: stats.integrity_failures),
    ),
    Family(
        "dwcp_peers_refused_total",
        "counter",
        "Connections that listeners turned away.",
        (),
        one(lambda stats: stats.peers_refused),
    ),
)
