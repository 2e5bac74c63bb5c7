"""The mode of real sessions, and the probe of a link, on the loopback."""

import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import dwcp_fast
from dwcp_fast import INSECURE, ConfigError, Listener, NegotiationError, SendOptions, connect, listen
from dwcp_fast.cli.program import run
from dwcp_fast.modes import ModeKeeper
from dwcp_fast.options import Mode
from dwcp_fast.policy.link import LinkCounts, LinkSample
from dwcp_fast.policy.mode import FoundMode, KnownMode, ModeSwitch, Treatment
from dwcp_fast.probing import probe_link
from two_ends import meanwhile

WAIT_S = 20.0
STILL = LinkCounts(
    lane_seconds=0.0,
    cwnd_seconds=0.0,
    waiting_seconds=0.0,
    queued_seconds=0.0,
    arrived_bytes=0,
    lost_segments=0,
    rtt_ms=None,
)


@contextmanager
def receiving(listener: Listener) -> Iterator[list[str | None]]:
    """A receiver of what each session sends, until it leaves; gives the digests."""
    digests: list[str | None] = []

    def receive() -> None:
        incoming = listener.accept(timeout_s=WAIT_S)
        assert incoming is not None
        with incoming:
            while (received := incoming.receive(timeout_s=WAIT_S)) is not None:
                digests.append(received.report.transfer_digest)

    thread = threading.Thread(target=receive)
    thread.start()
    try:
        yield digests
    finally:
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_a_forced_mode_is_told_and_stays_forced() -> None:
    modes: list[tuple[KnownMode, int]] = [("datacenter", 4), ("internet", 16)]
    for mode, lanes in modes:
        with listen("127.0.0.1:0") as listener, receiving(listener):
            # Until all lanes are there, and then for long enough for their number to be thought of.
            slow = SendOptions(codec="none", bandwidth_bits_per_s=4_000_000, block_bytes=65_536)
            options = replace(slow, mode=mode)
            with connect(listener.pairing or "", options=options) as session:
                with meanwhile(lambda: session.send({"a": bytes(range(256)) * 40_000})) as sending:
                    deadline = time.monotonic() + WAIT_S
                    while session.progress().lanes < lanes:
                        assert time.monotonic() < deadline and not sending.done()
                        time.sleep(0.01)
                    session.set_bandwidth_limit(80_000_000)
                    report = sending.result(WAIT_S)
                told = {choice.name: choice for choice in session.explain()}
        assert (report.mode, report.mode_switches) == (mode, ())
        assert report.record()["dwcp_mode"] == mode and report.why["mode"] == f"{mode}: asked for"
        assert told["mode"].value == mode
        # A peer that is near by its handshake is treated as far where that was asked for.
        changes = [change.lanes for change in report.lane_changes]
        assert changes[:1] == ([] if mode == "datacenter" else [lanes])
        assert report.lanes_used == lanes


def test_a_session_that_is_served_has_a_mode_too() -> None:
    modes: list[tuple[Mode, str]] = [("auto", "unknown: nothing was measured yet")]
    modes += [("internet", "internet: asked for")]
    for mode, why in modes:
        with (
            listen("127.0.0.1:0", serve=SendOptions(mode=mode, codec="none")) as listener,
            ThreadPoolExecutor(1) as pool,
        ):
            pulled = pool.submit(pull, listener.pairing or "")
            incoming = listener.accept(WAIT_S)
            assert incoming is not None
            with incoming:
                report = incoming.send({"a": b"state"})
            assert pulled.result(WAIT_S) == b"state"
        assert report.why["mode"] == why and why.startswith(f"{report.mode}:")
        assert report.mode_switches == ()


def pull(pairing: str) -> bytes:
    """Fetch all there is."""
    with connect(pairing, receive=dwcp_fast.ReceiveOptions()) as session:
        return bytes(session.fetch(timeout_s=WAIT_S)["a"])


def test_a_mode_that_was_not_found_is_unknown_and_no_datacenter() -> None:
    with listen("127.0.0.1:0") as listener, receiving(listener), connect(listener.pairing or "") as session:
        report = session.send({"a": b"short"})
    assert report.mode == "unknown" and report.record()["dwcp_mode"] is None
    assert report.why["mode"] == "unknown: nothing was measured yet"


def test_the_flags_of_a_deployment_are_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = tmp_path / "flags"
    told = {"enableV3Transport": True, "v3RolloutPercentage": 100}
    flags.write_text(json.dumps({**told, "enableModeDetection": False, "enableHybridMode": False}))
    monkeypatch.setenv("DWCP_FLAGS_FILE", str(flags))
    with listen("127.0.0.1:0") as listener, receiving(listener), connect(listener.pairing or "") as session:
        assert "enableModeDetection" in session.send({"a": b"short"}).why["mode"]
    with pytest.raises(ConfigError, match="enableHybridMode"):
        connect("127.0.0.1:1", trust=INSECURE, options=SendOptions(mode="hybrid"))
    with pytest.raises(NegotiationError, match="mode='internet'"):
        connect("127.0.0.1:1", options=SendOptions(mode="internet", protocol="v1"))
    with pytest.raises(ConfigError, match="mode is 'wan'"):
        SendOptions(mode="wan")  # type: ignore[arg-type]


class Line:
    """A session over a line that shows what it is told to."""

    def __init__(self, is_far: bool) -> None:
        self.is_far = is_far
        self.moves: list[Treatment] = []
        self.show: Callable[[LinkCounts], LinkCounts] = lambda counts: counts
        self._counts = STILL

    def counts(self) -> LinkCounts:
        self._counts = self.show(self._counts)
        return self._counts

    def relocate(self, treatment: Treatment, round_trip_s: float) -> None:
        assert round_trip_s > 0
        self.moves.append(treatment)


def grows(rtt_ms: float, gbps: float) -> Callable[[LinkCounts], LinkCounts]:
    """A link that is full, and carries so much, by the clock of this machine."""
    last = [time.monotonic()]

    def show(counts: LinkCounts) -> LinkCounts:
        seconds, last[0] = time.monotonic() - last[0], time.monotonic()
        return replace(
            counts,
            lane_seconds=counts.lane_seconds + seconds,
            cwnd_seconds=counts.cwnd_seconds + seconds,
            waiting_seconds=counts.waiting_seconds + seconds,
            queued_seconds=counts.queued_seconds + seconds,
            arrived_bytes=counts.arrived_bytes + round(gbps * 1e9 / 8 * seconds),
            rtt_ms=rtt_ms,
        )

    return show


def test_a_session_goes_by_what_is_found_only_where_that_means_something_else() -> None:
    line, events = Line(is_far=False), list[dict[str, Any]]()
    keeper = ModeKeeper(SendOptions(), events.append)

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + WAIT_S
        while len(events) < count:
            assert time.monotonic() < deadline, events
            time.sleep(0.01)

    with keeper.keep(line) as before:
        line.show = grows(1.0, 4.0)
        wait_for(1)
        line.show = grows(80.0, 0.2)
        wait_for(2)
    # Nobody is left to look once there is nothing to look at.
    deadline = time.monotonic() + WAIT_S
    while any(thread.name == "dwcp-mode" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert before == 0 and [event["mode"] for event in events] == ["datacenter", "internet"]
    # What the handshake had found was a datacenter's already.
    assert line.moves == [Treatment(lanes=(3, 16, 64), far=True)]
    assert [switch.mode for switch in keeper.switches_since(1)] == ["internet"]
    assert "80.0 ms" in keeper.choice.why


def test_one_thread_looks_at_all_sessions_and_one_that_fails_is_not_the_end_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(counts: LinkCounts) -> LinkCounts:
        raise RuntimeError("it cannot be counted")

    broken, lines = Line(is_far=False), [Line(is_far=False) for _ in range(3)]
    broken.show = fail
    keepers = [ModeKeeper(SendOptions(), None) for _ in lines]
    with ExitStack() as stack:
        stack.enter_context(ModeKeeper(SendOptions(), None).keep(broken))
        for keeper, line in zip(keepers, lines, strict=True):
            line.show = grows(80.0, 0.2)
            stack.enter_context(keeper.keep(line))
        deadline = time.monotonic() + WAIT_S
        while any(keeper.choice.value != "internet" for keeper in keepers):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert sum(thread.name == "dwcp-mode" for thread in threading.enumerate()) == 1
    assert caplog.text.count("RuntimeError: it cannot be counted") == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_child_has_a_thread_of_its_own_for_its_modes() -> None:
    def child(end: int) -> None:
        keeper, line = ModeKeeper(SendOptions(), None), Line(is_far=False)
        line.show = grows(80.0, 0.2)
        with keeper.keep(line):
            deadline = time.monotonic() + WAIT_S
            while keeper.choice.value != "internet" and time.monotonic() < deadline:
                time.sleep(0.01)
        os.write(end, keeper.choice.value.encode())

    here, there = os.pipe()
    with ModeKeeper(SendOptions(), None).keep(Line(is_far=False)), warnings.catch_warnings():
        # Python warns of forks beside threads, which is what this is about.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
        if not pid:
            try:
                child(there)
            finally:
                os._exit(0)
    os.close(there)
    with os.fdopen(here, "rb") as told:
        assert told.read() == b"internet"
    os.waitpid(pid, 0)


def test_a_session_whose_mode_changes_for_ever_tells_of_its_last_changes_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names: list[FoundMode] = ["hybrid", "internet"]

    class Fickle:
        """A detector that finds another mode each time that it looks."""

        def __init__(self) -> None:
            self.found = 0

        def observe(self, sample: LinkSample) -> ModeSwitch:
            self.found += 1
            before, mode = names[self.found % 2 - 1], names[self.found % 2]
            at_s, carried = float(self.found), {"carried_bits_per_s": None, "limited": False}
            return ModeSwitch(seconds=at_s, before=before, mode=mode, rtt_ms=60.0, **carried)  # type: ignore[arg-type]

    fickle = Fickle()
    monkeypatch.setattr("dwcp_fast.modes.detector_for", lambda *_, **__: fickle)
    monkeypatch.setattr("dwcp_fast.mode_watch.SAMPLE_S", 0.001)
    line = Line(is_far=True)
    line.show = grows(60.0, 0.5)
    keeper = ModeKeeper(SendOptions(), None)

    def keep(until: int) -> int:
        deadline = time.monotonic() + WAIT_S
        with keeper.keep(line) as before:
            while fickle.found < until:
                assert time.monotonic() < deadline
                time.sleep(0.001)
        return before

    def told(count: int) -> tuple[tuple[ModeSwitch, ...], str]:
        # The look that was under way when the transfer ended may find one more.
        while True:
            switches, why = keeper.switches_since(count), keeper.choice.why
            if switches == keeper.switches_since(count):
                return switches, why

    keep(100)
    switches, why = told(0)
    assert len(switches) == 32 and switches[-1].seconds > 98
    assert why.count(" after ") == 32
    assert why.startswith(f"{switches[0].before} to begin with, {switches[0].mode} after")
    before = keep(fickle.found + 3)
    assert before > 98, "so many there were before"
    switches, why = told(before)
    assert 1 <= len(switches) <= 32 and all(switch.seconds > before for switch in switches)
    assert why.count(" after ") == len(switches)


def test_a_probe_tells_of_the_link_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with listen("127.0.0.1:0") as listener:
        pairing = listener.pairing or ""
        told: list[object] = []

        def attend() -> None:
            # What came is no transfer: there is nothing to place, and no error.
            incoming = listener.accept(timeout_s=WAIT_S)
            assert incoming is not None
            with incoming:
                told.append(incoming.receive_tree(tmp_path, timeout_s=WAIT_S))

        thread = threading.Thread(target=attend)
        thread.start()
        assert run(["link", "probe", pairing, "--most", "4MiB", "--json"]) == 0
        thread.join(WAIT_S)
        seen = json.loads(capsys.readouterr().out)
        assert told == [None]
        assert (seen["type"], seen["lanes"], seen["transport"]) == ("probed", 4, "tls")
        # No more than was asked for, but for the little before it, frames and TLS; some may still wait.
        assert seen["rtt_ms"] > 0 and seen["sent_bytes"] > 3 << 20
        assert seen["sent_bytes"] * (1 - seen["loss"]) < 4.3 * 2**20
        with receiving(listener) as digests, connect(pairing) as session:
            report = session.send({"a": b"state"})
        assert digests == [report.transfer_digest]
        with pytest.raises(ConfigError, match="seconds is 61"):
            probe_link(pairing, seconds=61)
        with pytest.raises(ConfigError, match="max_bytes"):
            probe_link(pairing, max_bytes=1)
    with pytest.raises(dwcp_fast.TransportError):
        probe_link(pairing, connect_timeout_s=2)
