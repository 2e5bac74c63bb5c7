"""What carries transfers from a listener that serves: a v3 session in which this side asks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dwcp_fast import _core
from dwcp_fast.buffers import BufferLike
from dwcp_fast.carriers import link_order
from dwcp_fast.dictionary import natives
from dwcp_fast.engine import current_flags
from dwcp_fast.links import Events, NativeLink, counted
from dwcp_fast.options import ReceiveOptions, SendOptions
from dwcp_fast.policy.choice import Choice
from dwcp_fast.policy.lanes import choose_lanes, explain_lanes, lane_range
from dwcp_fast.policy.mode import choose_mode, far_if_forced
from dwcp_fast.received import Received, receive_report, received_buffers
from dwcp_fast.reports import ReceiveReport
from dwcp_fast.told import FetchSettings, ReceiveTold
from dwcp_fast.trust import Insecure, Trust, address_of, dial_security

__all__ = ["FetchLink"]


class FetchLink(NativeLink):
    """A v3 session with a listener that sends what it is asked for."""

    _native: _core.Fetcher

    def __init__(
        self,
        target: str,
        trust: Trust | None,
        options: SendOptions,
        receive: ReceiveOptions,
        cancel: _core.Cancel,
        events: Events | None,
        engine: Choice[Any],
    ) -> None:
        """Connect."""
        lanes = choose_lanes(options.streams, polite=options.polite)
        adaptive = lane_range(options.streams, polite=options.polite)
        # What the link is like the side that sends measures: here the mode is the one that is asked for.
        mode = choose_mode(options.mode, flags=current_flags())
        order = link_order(options, plain=isinstance(trust, Insecure))
        super().__init__(trust, cancel, [engine, mode, lanes, order])
        self._receive = receive
        settings: FetchSettings = {
            "lanes": min(lanes.value, receive.max_lanes),
            "adaptive": None if adaptive is None else bounded(adaptive, receive.max_lanes),
            "far": far_if_forced(options.mode),
            "max_block_bytes": receive.max_block_bytes,
            "max_entries": receive.max_entries,
            "max_object_bytes": receive.max_object_bytes,
            "max_dictionary_bytes": receive.max_dictionary_bytes,
            "dictionaries": natives(receive.dictionaries),
            "idle_timeout_s": options.idle_timeout_s,
            "connect_timeout_s": options.connect_timeout_s,
            "reconnect_s": options.reconnect_s,
            "timeout_s": options.timeout_s,
            "local_addresses": list(options.local_addresses),
            "links": list(order.value),
        }
        security = dial_security(target, trust)
        with self._guard.told():
            self._native = _core.Fetcher(address_of(target), security, settings, cancel, events)
        self._order = order
        self._carried_by, passed_over = self._native.link
        self._note_link(order, self._carried_by, passed_over)

    def fetch(self, request: bytes, timeout_s: float | None) -> Received:
        """Take the answer into new memory."""
        most = self._receive.max_total_bytes
        buffers, told = counted(
            self._native, self._guard, lambda: self._native.fetch_buffers(request, most, timeout_s)
        )
        self._look_at_link(told)
        received = received_buffers(buffers, told, self._security)
        self._found(received.report)
        return received

    def fetch_to(
        self, buffers: Mapping[str, BufferLike], request: bytes, timeout_s: float | None
    ) -> ReceiveReport:
        """Take the answer into the caller's memory."""
        told = counted(
            self._native, self._guard, lambda: self._native.fetch_into(request, dict(buffers), timeout_s)
        )
        return self._told(told)

    def fetch_into(self, directory: Path, request: bytes, timeout_s: float | None) -> ReceiveReport:
        """Take the answer into a directory."""
        receive = self._receive
        keep = receive.symlinks == "keep"
        told = counted(
            self._native,
            self._guard,
            lambda: self._native.fetch_tree(
                request, directory, receive.overwrite, keep, receive.sync, timeout_s
            ),
        )
        return self._told(told)

    def _told(self, told: ReceiveTold) -> ReceiveReport:
        self._look_at_link(told)
        return self._found(receive_report(told, self._security))

    def _look_at_link(self, told: ReceiveTold) -> None:
        # A session that was lost may have come back another way.
        if told["link"] != self._carried_by:
            self._carried_by, passed_over = self._native.link
            self._note_link(self._order, self._carried_by, passed_over)

    def _found(self, report: ReceiveReport) -> ReceiveReport:
        lanes = explain_lanes(report.lane_changes)
        if lanes is not None:
            self._choices = [lanes if choice.name == lanes.name else choice for choice in self._choices]
        return report


def bounded(adaptive: tuple[int, int, int], most: int) -> tuple[int, int, int]:
    """Keep the numbers of lanes to what this side takes."""
    least, start, end = adaptive
    return min(least, most), min(start, most), min(end, most)
