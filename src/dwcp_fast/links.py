"""What carries transfers to a receiver: a v3 session, or v1 connections made for each transfer."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from dwcp_fast import _core
from dwcp_fast.buffers import BufferLike
from dwcp_fast.dictionary import native
from dwcp_fast.errors import ConfigError, NegotiationError
from dwcp_fast.options import SendOptions
from dwcp_fast.paths import PathReport
from dwcp_fast.policy.choice import Choice
from dwcp_fast.policy.codec import choose_codec
from dwcp_fast.policy.lanes import LaneChange, choose_congestion, choose_lanes, explain_lanes, lane_range
from dwcp_fast.policy.selection import ActionShare, Selection
from dwcp_fast.reports import CodecShare, Progress, SendReport, make_progress
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
    "scan_paths",
    "send_report",
    "send_settings",
]

V1_TIMEOUT_S: Final = 86_400.0
V1_CONGESTION: Final = ("auto", "yielding", "system")
LOG: Final = logging.getLogger(__name__)
Events = Callable[[dict[str, Any]], None]


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

    @property
    def protocol(self) -> Literal["v3", "v1"]:
        """The engine."""

    def send(self, objects: Mapping[str, BufferLike]) -> SendReport:
        """Send named buffers."""

    def send_scan(self, scan: ScannedPaths) -> SendReport:
        """Send files."""

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
        options.block_bytes,
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

    protocol: Final = "v3"
    _native: _core.Sender | _core.Fetcher

    def __init__(self, trust: Trust | None, cancel: _core.Cancel, choices: list[Choice[Any]]) -> None:
        """Note how to stop, and what was chosen."""
        self._cancel = cancel
        self._choices = choices
        self._transport = "tcp" if isinstance(trust, Insecure) else "tls"

    def progress(self) -> Progress:
        """Tell where the transfer stands."""
        return make_progress(self._native.progress())

    def choices(self) -> list[Choice[Any]]:
        """Tell what was chosen and why."""
        return self._choices

    def cancel(self) -> None:
        """Stop what is under way; the session is of no use afterwards."""
        self._cancel.cancel()

    def close(self) -> None:
        """Part in peace."""
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
        codec = choose_codec(options.codec)
        lanes = choose_lanes(options.streams, polite=options.polite)
        choices = [engine, codec, lanes, base_choice(options), *dictionary_choice(options)]
        super().__init__(trust, cancel, choices)
        self._options = options
        self._peer = address_of(target)
        settings = send_settings(options)
        self._native = _core.Sender(self._peer, dial_security(target, trust), settings, cancel, events)
        self._throttle = follow_schedule(self, options)

    def send(self, objects: Mapping[str, BufferLike]) -> SendReport:
        """Send named buffers."""
        return self._sent(self._native.send_buffers(list(objects.items()), self._options.block_bytes))

    def send_scan(self, scan: ScannedPaths) -> SendReport:
        """Send files."""
        return self._sent(self._native.send_scan(scan.native))

    def set_bandwidth_limit(self, bytes_per_s: int | None) -> None:
        """Set the rate, and follow no schedule any more."""
        if self._throttle is not None:
            self._throttle.stop()
        self.set_rate(bytes_per_s)

    def set_rate(self, bytes_per_s: int | None) -> None:
        """Set the rate."""
        self._native.set_bandwidth_limit(bytes_per_s)

    def close(self) -> None:
        """Part in peace."""
        if self._throttle is not None:
            self._throttle.stop()
        super().close()

    def _sent(self, told: SendTold) -> SendReport:
        report = send_report(told, self._peer, self._transport, self._choices)
        self._choices = with_findings(self._choices, report.selection, report.lane_changes)
        return report


class V1Link:
    """v1: connects anew for each transfer of one object, and neither authenticates nor verifies."""

    protocol: Final = "v1"

    def __init__(self, target: str, options: SendOptions, cancel: _core.Cancel, engine: Choice[Any]) -> None:
        """Note where to send; nothing is connected yet."""
        # Imported late: the engine is not needed, nor its libraries, while v3 does the work.
        from dwcp_fast.v1 import V1Stop

        check_v1(options, engine)
        self._peer = address_of(target)
        self._options = options
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
            timeout_s=V1_TIMEOUT_S if options.timeout_s is None else options.timeout_s,
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
        "bandwidth_bits_per_s": options.bandwidth_bits_per_s,
        "bandwidth_schedule": options.bandwidth_schedule,
        "congestion": None if options.congestion in V1_CONGESTION else options.congestion,
        "local_addresses": options.local_addresses or None,
    }
    told = ", ".join(f"{name}={value!r}" for name, value in asked.items() if value is not None)
    if told:
        raise NegotiationError(
            f"v1 cannot keep {told}, and it is to be used: {engine.why}", hint="use v3, or ask for none of it"
        )


def send_settings(options: SendOptions) -> SendSettings:
    """Make of options what the native side takes."""
    is_auto = options.codec == "auto"
    # A model that is named is looked at, also where it is not used.
    model = load_selector(options.codec_model) if is_auto or options.codec_model is not None else None
    return {
        "lanes": choose_lanes(options.streams, polite=options.polite).value,
        "adaptive": lane_range(options.streams, polite=options.polite),
        "block_bytes": options.block_bytes,
        "codec": options.codec,
        "dictionary": native(options.dictionary),
        "codec_model": model if is_auto else None,
        "idle_timeout_s": options.idle_timeout_s,
        "connect_timeout_s": options.connect_timeout_s,
        "reconnect_s": options.reconnect_s,
        "timeout_s": options.timeout_s,
        "base_allowed": options.base != "none",
        "bandwidth_bytes_per_s": bandwidth_now(options),
        "socket_buffer_bytes": None,
        "congestion": choose_congestion(options.congestion, polite=options.polite),
        "local_addresses": list(options.local_addresses),
    }


def send_report(told: SendTold, peer: str, transport: str, choices: Sequence[Choice[Any]]) -> SendReport:
    """Make a report of what the native side tells."""
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
    made = with_findings(choices, selection, changes)
    why = {choice.name: f"{choice.value}: {choice.why}" for choice in made}
    return SendReport(protocol="v3", verified=True, peer=peer, transport=transport, why=why, **plain)


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
