"""What carries transfers to a receiver: a v3 session, or v1 connections made for each transfer."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from dwcp_fast import _core
from dwcp_fast.buffers import BufferLike
from dwcp_fast.carriers import UNNAMED_CONGESTION, link_order
from dwcp_fast.dictionary import native
from dwcp_fast.errors import ConfigError, NegotiationError
from dwcp_fast.link_memory import KnownLink, recall_link, remember_link
from dwcp_fast.metrics.meter import METER, Counting, count_failed
from dwcp_fast.modes import ModeKeeper
from dwcp_fast.options import SendOptions
from dwcp_fast.paths import PathReport
from dwcp_fast.policy.blocks import BLOCK_BYTES, choose_block_bytes
from dwcp_fast.policy.choice import Choice
from dwcp_fast.policy.codec import choose_codec
from dwcp_fast.policy.engine import Engine
from dwcp_fast.policy.lanes import LaneChange, choose_congestion, choose_lanes, explain_lanes, lane_range
from dwcp_fast.policy.link import LinkCounts
from dwcp_fast.policy.mode import ModeSwitch, Treatment, far_if_forced
from dwcp_fast.policy.selection import ActionShare, Selection
from dwcp_fast.policy.transport import explain_link
from dwcp_fast.reports import CodecShare, Progress, SendReport, make_progress
from dwcp_fast.rollout.flags import component_refusal
from dwcp_fast.rollout.switch import SWITCH, Guard
from dwcp_fast.selector import load_selector
from dwcp_fast.state import sent_index
from dwcp_fast.throttle import bandwidth_now, follow_schedule
from dwcp_fast.told import PathTold, SelectionTold, SendSettings, SendTold
from dwcp_fast.trust import Insecure, Trust, address_of, dial_security

__all__ = [
    "Events",
    "Link",
    "NativeLink",
    "ScannedPaths",
    "V1Link",
    "V3Link",
    "base_choice",
    "block_bytes_of",
    "counted",
    "scan_paths",
    "send_report",
    "send_settings",
]

V1_TIMEOUT_S: Final = 86_400.0
LOG: Final = logging.getLogger(__name__)
Events = Callable[[dict[str, Any]], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ScannedPaths:
    """What is to be sent of a file system.

    Attributes:
        paths: What was asked for.
        entries: Files, directories and links found.
        files: Files among them.
        total_bytes: Bytes of all files.
        has_base: Whether there is a base to offer for any file.
        native: The scan itself.
    """

    paths: tuple[Path, ...]
    entries: int
    files: int
    total_bytes: int
    has_base: bool
    native: _core.Scan


class Link(Protocol):
    """What a session needs of the engine below it."""

    def send(self, objects: Mapping[str, BufferLike]) -> SendReport:
        """Send named buffers."""

    def send_scan(self, scan: ScannedPaths) -> SendReport:
        """Send files."""

    def engine(self) -> Engine:
        """Tell which engine is at work."""

    def progress(self) -> Progress:
        """Tell where the transfer stands."""

    def choices(self) -> list[Choice[Any]]:
        """Tell what was chosen and why."""

    def set_bandwidth_limit(self, bytes_per_s: int | None) -> None:
        """Set the rate of all lanes together."""

    def cancel(self) -> None:
        """Stop what is under way."""

    def close(self) -> None:
        """Part in peace."""


def scan_paths(
    paths: Sequence[str | os.PathLike[str]], options: SendOptions, cancel: _core.Cancel | None = None
) -> ScannedPaths:
    """Walk what is to be sent, before anything is connected.

    Args:
        paths: Files, directories and links; each is sent under its last component.
        options: How to send; of these ``block_bytes``, ``symlinks`` and ``base`` matter here.
        cancel: Stops the walk.

    Returns:
        What was found.

    Raises:
        ConfigError: Nothing was named.
        DwcpError: Something cannot be sent, such as a device; the message names it.
        OSError: Something cannot be read.
    """
    named = tuple(Path(path) for path in paths)
    if not named:
        raise ConfigError("no path to send")
    native = _core.Scan(
        list(named),
        options.block_bytes or BLOCK_BYTES,
        options.symlinks == "keep",
        sent_index(),
        {"auto": None, "none": []}[options.base] if isinstance(options.base, str) else list(options.base),
        cancel or _core.Cancel(),
    )
    return ScannedPaths(
        paths=named,
        entries=native.entries,
        files=native.files,
        total_bytes=native.total_bytes,
        has_base=native.has_base,
        native=native,
    )


class NativeLink:
    """What a v3 session is to both who sends and who fetches."""

    _native: _core.Sender | _core.Fetcher

    def __init__(self, trust: Trust | None, cancel: _core.Cancel, choices: list[Choice[Any]]) -> None:
        """Note how to stop, and what was chosen."""
        self._cancel = cancel
        self._guard = SWITCH.guard(cancel.cancel)
        self._choices = choices
        self._security = "tcp" if isinstance(trust, Insecure) else "tls"
        self._noted_link: tuple[str, str | None] | None = None

    def progress(self) -> Progress:
        """Tell where the transfer stands."""
        return make_progress(self._native.progress())

    def choices(self) -> list[Choice[Any]]:
        """Tell what was chosen and why."""
        return self._choices

    def _note_link(self, order: Choice[tuple[str, ...]], carried_by: str, passed_over: str | None) -> None:
        """Say what carries the lanes, among the choices."""
        if self._noted_link == (carried_by, passed_over):
            return
        self._noted_link = (carried_by, passed_over)
        link = explain_link(order, carried_by, passed_over)
        LOG.info("the link is %s: %s", link.value, link.why)
        self._choices = [link if choice.name == link.name else choice for choice in self._choices]

    def cancel(self) -> None:
        """Stop what is under way; the session is of no use afterwards."""
        self._guard.release()
        self._cancel.cancel()

    def close(self) -> None:
        """Part in peace."""
        self._guard.release()
        self._native.close()


class V3Link(NativeLink):
    """A v3 session with a receiver."""

    _native: _core.Sender

    def __init__(
        self,
        target: str,
        trust: Trust | None,
        options: SendOptions,
        cancel: _core.Cancel,
        events: Events | None,
        engine: Choice[Any],
    ) -> None:
        """Connect."""
        codec = choose_codec(options.codec, refusal=component_refusal("compression"))
        options = replace(options, codec=codec.value)
        lanes = choose_lanes(options.streams, polite=options.polite)
        self._mode = ModeKeeper(options, events)
        self._order = link_order(options, plain=isinstance(trust, Insecure))
        choices = [engine, self._mode.choice, codec, lanes, base_choice(options), *dictionary_choice(options)]
        choices.append(self._order)
        super().__init__(trust, cancel, choices)
        self._options = options
        self._peer = address_of(target)
        # What a bounded rate lets through tells nothing of the link.
        is_bounded = options.bandwidth_bits_per_s is not None or options.bandwidth_schedule is not None
        self._remembers = options.link_memory and options.codec == "auto" and not is_bounded
        self._link: KnownLink | None = None
        known = recall_link(self._peer) if self._remembers else None
        settings = send_settings(options, known)
        settings["links"] = list(self._order.value)
        with self._guard.told():
            self._native = _core.Sender(self._peer, dial_security(target, trust), settings, cancel, events)
        self._note_link(self._order, *self._native.link)
        self._throttle = follow_schedule(self, options)

    def send(self, objects: Mapping[str, BufferLike]) -> SendReport:
        """Send named buffers."""
        buffers, block_bytes = list(objects.items()), block_bytes_of(objects, self._options, far=self.is_far)
        return self._sent(lambda: self._native.send_buffers(buffers, block_bytes))

    def send_scan(self, scan: ScannedPaths) -> SendReport:
        """Send files."""
        return self._sent(lambda: self._native.send_scan(scan.native))

    def engine(self) -> Engine:
        """Tell which engine is at work."""
        return "v3"

    def choices(self) -> list[Choice[Any]]:
        """Tell what was chosen and why, the mode as it is now."""
        mode = self._mode.choice
        return [mode if choice.name == mode.name else choice for choice in self._choices]

    @property
    def is_far(self) -> bool:
        """Whether the receiver was found to be far when it was dialled."""
        return self._native.is_far

    def counts(self) -> LinkCounts | None:
        """Tell what TCP has counted in the transfer that is under way."""
        path = self.progress().path
        return None if path is None else path.link

    def relocate(self, treatment: Treatment, round_trip_s: float) -> None:
        """Go by another treatment from now on."""
        self._native.relocate(treatment.lanes, treatment.far, round_trip_s)

    def set_bandwidth_limit(self, bytes_per_s: int | None) -> None:
        """Set the rate, and follow no schedule any more."""
        if self._throttle is not None:
            self._throttle.stop()
        self._remembers = False
        self.set_rate(bytes_per_s)

    def set_rate(self, bytes_per_s: int | None) -> None:
        """Set the rate."""
        self._native.set_bandwidth_limit(bytes_per_s)

    def close(self) -> None:
        """Part in peace."""
        if self._throttle is not None:
            self._throttle.stop()
        super().close()
        link, self._link = self._link, None
        if self._remembers and link is not None:
            remember_link(self._peer, link)

    def _sent(self, send: Callable[[], SendTold]) -> SendReport:
        with self._mode.keep(self) as before:
            told = counted(self._native, self._guard, send)
        # A session that was lost may have come back another way.
        self._note_link(self._order, told["link"], told["passed_over"])
        choices, switches = self.choices(), self._mode.switches_since(before)
        report = send_report(told, self._peer, self._security, choices, switches)
        selection = report.selection
        if selection is not None or report.lane_changes:
            self._choices = with_findings(choices, selection, report.lane_changes)
        if selection is not None and selection.link_bytes_per_s is not None:
            self._link = KnownLink(selection.link_bytes_per_s, selection.link_was_limit)
        return report


class V1Link:
    """v1: connects anew for each transfer of one object, and neither authenticates nor verifies."""

    def __init__(self, target: str, options: SendOptions, cancel: _core.Cancel, engine: Choice[Any]) -> None:
        """Note where to send; nothing is connected yet."""
        # Imported late: the engine is not needed, nor its libraries, while v3 does the work.
        from dwcp_fast.v1 import V1Stop

        check_v1(options, engine)
        self._peer = address_of(target)
        self._options = options
        self.timeout_s = options.timeout_s
        """Seconds that the next transfer may take, None for a day."""
        self._cancel = cancel
        self._stop = V1Stop()
        self._lanes = choose_lanes(options.streams, polite=options.polite)
        payload = Choice("payload", options.v1_payload, f"asked for, generation {options.v1_generation}")
        self._choices: list[Choice[Any]] = [engine, self._lanes, payload]
        LOG.warning("v1 to %s: neither authenticated nor encrypted nor verified (%s)", self._peer, engine.why)

    def send(self, objects: Mapping[str, BufferLike]) -> SendReport:
        """Send one buffer."""
        if len(objects) != 1:
            raise NegotiationError(f"v1 carries one object, not {len(objects)}", hint="send them one by one")
        (payload,) = objects.values()
        return self._send(payload)

    def send_scan(self, scan: ScannedPaths) -> SendReport:
        """Send one file."""
        if scan.entries != 1 or scan.files != 1:
            raise NegotiationError(
                f"v1 carries one file, not {scan.entries} entries",
                hint="send the files one by one, or use v3",
            )
        return self._send(scan.paths[0].read_bytes())

    def engine(self) -> Engine:
        """Tell which engine is at work."""
        return "v1"

    def progress(self) -> Progress:
        """Tell nothing: v1 has no acknowledgement to tell it from."""
        return Progress(0, 0, 0, 0, 0)

    def choices(self) -> list[Choice[Any]]:
        """Tell what was chosen and why."""
        return self._choices

    def set_bandwidth_limit(self, bytes_per_s: int | None) -> None:  # noqa: ARG002 - what all links have
        """Refuse: v1 sends as fast as it can."""
        raise NegotiationError("v1 keeps no rate", hint="use v3 to limit the bandwidth")

    def cancel(self) -> None:
        """Stop what is under way; the session is of no use afterwards."""
        self._cancel.cancel()
        self._stop.stop()

    def close(self) -> None:
        """Do nothing: v1 holds no connection between transfers."""

    def _send(self, payload: BufferLike) -> SendReport:
        return METER.measure("sent", "v1", lambda: self._carried(payload))

    def _carried(self, payload: BufferLike) -> SendReport:
        from dwcp_fast.v1 import send_v1

        host, port = _core.split_address(self._peer)
        options = self._options
        told = send_v1(
            host,
            port,
            payload,
            streams=self._lanes.value,
            payload_format=options.v1_payload,
            generation=options.v1_generation,
            connect_timeout_s=options.connect_timeout_s,
            timeout_s=V1_TIMEOUT_S if self.timeout_s is None else self.timeout_s,
            idle_timeout_s=options.idle_timeout_s,
            stop=self._stop,
        )
        return SendReport(
            protocol="v1",
            verified=False,
            peer=self._peer,
            transport="tcp",
            why={choice.name: f"{choice.value}: {choice.why}" for choice in self._choices},
            transfer_id=None,
            transfer_digest=None,
            entries=1,
            bytes_raw=told.payload_bytes,
            bytes_wire=told.wire_bytes,
            bytes_sent_raw=told.payload_bytes,
            seconds=told.duration_s,
            blocks_sent=told.chunks,
            lanes_used=told.streams,
        )


def check_v1(options: SendOptions, engine: Choice[Any]) -> None:
    """Refuse what was asked for and v1 cannot keep.

    Raises:
        NegotiationError: There is any of it.
    """
    asked = {
        "mode": None if options.mode == "auto" else options.mode,
        "bandwidth_bits_per_s": options.bandwidth_bits_per_s,
        "bandwidth_schedule": options.bandwidth_schedule,
        "congestion": None if options.congestion in UNNAMED_CONGESTION else options.congestion,
        "local_addresses": options.local_addresses or None,
        "link": None if options.link in ("auto", "tcp") else options.link,
    }
    told = ", ".join(f"{name}={value!r}" for name, value in asked.items() if value is not None)
    if told:
        raise NegotiationError(
            f"v1 cannot keep {told}, and it is to be used: {engine.why}", hint="use v3, or ask for none of it"
        )


def counted(native: Counting, guard: Guard, transfer: Callable[[], T], *, waits: bool = False) -> T:
    """Make a transfer; what it raises says so if the kill switch ended it, and is counted so.

    Args:
        native: The session.
        guard: What tells whether the kill switch ended it.
        transfer: Makes it.
        waits: Whether that begins by waiting for the peer.
    """
    try:
        with guard.told():
            return transfer()
    except BaseException as error:
        count_failed(native, error, waits=waits)
        raise


def block_bytes_of(objects: Mapping[str, BufferLike], options: SendOptions, *, far: bool) -> int:
    """Give the length of a block for buffers that go to a receiver, far or near."""
    total_bytes = sum(map(bytes_in, objects.values())) if far else 0
    return choose_block_bytes(options.block_bytes, far=far, total_bytes=total_bytes).value


def bytes_in(buffer: BufferLike) -> int:
    """Give the length of a buffer; arrays may be of elements that a view knows nothing of."""
    told = getattr(buffer, "nbytes", None)
    return told if isinstance(told, int) else memoryview(buffer).nbytes


def send_settings(options: SendOptions, known: KnownLink | None = None) -> SendSettings:
    """Make of options, and of what an earlier session has found out, what the native side takes."""
    is_auto = options.codec == "auto"
    # A model that is named is looked at, also where it is not used.
    model = load_selector(options.codec_model) if is_auto or options.codec_model is not None else None
    return {
        "lanes": choose_lanes(options.streams, polite=options.polite).value,
        "adaptive": lane_range(options.streams, polite=options.polite),
        "far": far_if_forced(options.mode),
        "block_bytes": options.block_bytes or BLOCK_BYTES,
        "codec": options.codec,
        "dictionary": native(options.dictionary),
        "codec_model": model if is_auto else None,
        "known_link": None if known is None else (known.bytes_per_s, known.was_limit),
        "idle_timeout_s": options.idle_timeout_s,
        "connect_timeout_s": options.connect_timeout_s,
        "reconnect_s": options.reconnect_s,
        "timeout_s": options.timeout_s,
        "stall_timeout_s": options.stall_timeout_s,
        "base_allowed": options.base != "none",
        "bandwidth_bytes_per_s": bandwidth_now(options),
        "socket_buffer_bytes": None,
        "congestion": choose_congestion(options.congestion, polite=options.polite),
        "local_addresses": list(options.local_addresses),
        "links": ["tcp"],
    }


def send_report(
    told: SendTold,
    peer: str,
    security: str,
    choices: Sequence[Choice[Any]],
    switches: tuple[ModeSwitch, ...],
) -> SendReport:
    """Make a report of what the native side tells, of peers that speak ``"tls"`` or ``"tcp"`` over TCP."""
    shares = tuple(CodecShare(**share) for share in told["codec_mix"])
    selection = make_selection(told["selection"])
    changes = tuple(LaneChange(**change) for change in told["lane_changes"])
    path = make_path(told["path"])
    retransmits = path.retransmitted_segments if path else None
    plain: dict[str, Any] = {
        **told,
        "codec_mix": shares,
        "selection": selection,
        "path": path,
        "retransmits": retransmits,
        "lane_changes": changes,
    }
    del plain["link"], plain["passed_over"]
    made = with_findings(choices, selection, changes)
    why = {choice.name: f"{choice.value}: {choice.why}" for choice in made}
    mode = next(choice.value for choice in choices if choice.name == "mode")
    transport = security if told["link"] == "tcp" else told["link"]
    return SendReport(
        protocol="v3",
        verified=True,
        peer=peer,
        transport=transport,
        why=why,
        mode=mode,
        mode_switches=switches,
        **plain,
    )


def with_findings(
    choices: Sequence[Choice[Any]], selection: Selection | None, changes: Sequence[LaneChange]
) -> list[Choice[Any]]:
    """Give the choices with what was found while data flowed, if anything was."""
    codec = None if selection is None else choose_codec("auto", selection=selection)
    found = {choice.name: choice for choice in (codec, explain_lanes(changes)) if choice is not None}
    return [found.get(choice.name, choice) for choice in choices]


def dictionary_choice(options: SendOptions) -> list[Choice[str]]:
    """Say which dictionary is offered, if one is."""
    if options.dictionary is None:
        return []
    why = "asked for; short blocks are made with it if the receiver takes it"
    return [Choice("dictionary", options.dictionary.digest, why)]


def make_selection(told: SelectionTold | None) -> Selection | None:
    """Make of what the native side tells what a report holds."""
    if told is None:
        return None
    plain: dict[str, Any] = {**told, "actions": tuple(ActionShare(**share) for share in told["actions"])}
    return Selection(**plain)


def make_path(told: PathTold | None) -> PathReport | None:
    """Make of what the native side tells what a report holds."""
    if told is None:
        return None
    plain: dict[str, Any] = {**told, "congestion": tuple(told["congestion"])}
    return PathReport(**plain)


def base_choice(options: SendOptions) -> Choice[str]:
    """Say which bases are used."""
    match options.base:
        case "auto":
            return Choice(
                "base", "auto", "what was sent before and is still there, if the receiver has it too"
            )
        case "none":
            return Choice("base", "none", "asked for")
        case _:
            return Choice("base", ", ".join(map(str, options.base)), "asked for")
