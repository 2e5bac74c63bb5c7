"""What a process counts of itself: at one moment, whoever counts meanwhile, and from real sessions."""

import contextlib
import gc
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

import dwcp_fast as dwcp
from dwcp_fast import errors, metrics
from dwcp_fast.metrics.meter import ERROR_CODES, METER, Meter, error_code
from dwcp_fast.metrics.stats import DIRECTIONS, FlowStats, Role, SessionStats, Stats, rates_between
from dwcp_fast.probing import probe_link
from dwcp_fast.reports import CodecShare, SendReport
from dwcp_fast.vm.relay import SourceRelay, TargetRelay
from two_ends import LOCAL, WAIT_S, accepted, meanwhile, pairing_of


def sent(wire: int, **more: Any) -> SendReport:
    """A report of a transfer whose blocks took so many bytes."""
    plain: dict[str, Any] = {
        "protocol": "v3",
        "verified": True,
        "peer": "192.0.2.1:7443",
        "transport": "tls",
        "why": {},
        "transfer_id": None,
        "transfer_digest": None,
        "entries": 1,
        "bytes_raw": 2 * wire,
        "bytes_wire": wire,
        "bytes_sent_raw": 2 * wire,
        "seconds": 0.25,
        "codec_mix": (CodecShare("plain", "none", 1, 2 * wire, wire),),
    }
    return SendReport(**{**plain, **more})


def check_sums(stats: Stats) -> None:
    """Hold that the numbers of a snapshot fit together."""
    flow = stats.flow("sent")
    assert flow.started == flow.completed + flow.failed + flow.withdrawn + flow.active and flow.active >= 0
    assert sum(error.count for error in stats.errors if error.phase == "transfer") == flow.failed
    assert sum(share.wire_bytes for share in flow.codecs) + flow.unfinished_wire_bytes == flow.wire_bytes
    assert sum(share.blocks for share in flow.codecs) == flow.completed
    assert flow.state_bytes == 2 * (flow.wire_bytes - flow.unfinished_wire_bytes)
    assert flow.seconds == flow.completed * 0.25
    assert all(0 <= row.closed <= row.opened for row in stats.sessions)


class Job:
    """A transfer that takes no time."""

    def __init__(self, wire: int, fails: bool) -> None:
        self.wire, self.fails = wire, fails

    def run(self) -> SendReport:
        if self.fails:
            raise errors.IntegrityError("altered")
        return sent(self.wire)


def test_totals_of_one_snapshot_never_disagree_while_many_threads_count() -> None:
    meter, stop, found = Meter(), threading.Event(), []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        while not stop.is_set():
            job = Job(chance.randrange(1, 99), chance.random() < 0.3)
            mark = meter.opened(job, "send")
            with contextlib.suppress(errors.IntegrityError):
                meter.measure("sent", "v3", job.run)
            if chance.random() < 0.5:
                mark.close()

    def look() -> None:
        last, end = meter.snapshot(), time.monotonic() + WAIT_S
        rounds = 0
        # Enough for both outcomes to have been counted between two looks, on any machine.
        while rounds < 200 or not last.flow("sent").completed or not last.flow("sent").failed:
            rounds += 1
            stats = meter.snapshot()
            try:
                check_sums(stats)
                assert stats.flow("sent").wire_bytes >= last.flow("sent").wire_bytes
                assert stats.flow("sent").started >= last.flow("sent").started
                assert time.monotonic() < end, "both outcomes were never seen"
            except AssertionError as error:
                found.append(error)
                return
            last = stats

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    lookers = [threading.Thread(target=look) for _ in range(2)]
    for thread in workers + lookers:
        thread.start()
    for thread in lookers:
        thread.join(2 * WAIT_S)
    stop.set()
    for thread in workers:
        thread.join(WAIT_S)
    assert not found and not any(thread.is_alive() for thread in workers + lookers)
    stats = meter.snapshot()
    check_sums(stats)
    assert stats.flow("sent").active == 0 and stats.flow("sent").completed > 0 < stats.flow("sent").failed


def test_a_snapshot_does_not_change_any_more() -> None:
    meter = Meter()
    before = meter.snapshot()
    plain = before.to_dict()
    meter.measure("sent", "v3", lambda: sent(5))
    assert before.to_dict() == plain and meter.snapshot().flow("sent").completed == 1
    with pytest.raises(FrozenInstanceError):
        before.integrity_failures = 1  # type: ignore[misc]


def test_a_session_is_open_until_it_is_closed_or_garbage() -> None:
    class Held:
        """Something that can be held weakly."""

    meter, kept, lost = Meter(), Held(), Held()
    mark = meter.opened(kept, "send")
    meter.opened(lost, "send")
    assert meter.snapshot().sessions[0].open == 2
    del lost
    gc.collect()
    assert meter.snapshot().sessions[0].open == 1
    mark.close()
    mark.close()
    assert meter.snapshot().sessions[0].open == 0


def test_sessions_that_have_ended_do_not_pile_up_where_nobody_looks() -> None:
    meter = Meter()
    for _ in range(100):
        meter.opened(meter, "send").close()
    assert meter._ended.qsize() == 1
    assert (meter.snapshot().sessions[0].opened, meter.snapshot().sessions[0].closed) == (100, 100)


def test_what_goes_wrong_has_one_of_few_names() -> None:
    odd = errors.DwcpError("x")
    odd.code = "made-up-by-a-peer"  # type: ignore[misc]
    told = [odd, errors.AuthError("x"), OSError(5, "x"), KeyboardInterrupt(), KeyError("x")]
    assert [error_code(error) for error in told] == ["other", "auth", "system", "interrupted", "internal"]
    assert {error_code(error) for error in told} <= ERROR_CODES


def test_nothing_is_counted_while_it_is_turned_off() -> None:
    meter = Meter()
    meter.set_enabled(False)
    meter.opened(meter, "send").close()
    meter.measure("sent", "v3", lambda: sent(5))
    meter.count_error("connect", errors.AuthError("x"))
    assert replace(meter.snapshot(), taken_s=0.0) == replace(Meter().snapshot(), taken_s=0.0)


def test_rates_are_of_the_time_between_two_snapshots() -> None:
    meter = Meter()
    before = meter.snapshot()
    meter.measure("sent", "v3", lambda: sent(50))
    with pytest.raises(errors.AuthError):
        meter.measure("sent", "v3", refuse)
    after = replace(meter.snapshot(), taken_s=before.taken_s + 2)
    rates = rates_between(before, after)[0]
    assert (rates.wire_bytes_per_s, rates.state_bytes_per_s, rates.transfers_per_s) == (25, 50, 1)
    assert (rates.failed_share, rates.mean_s) == (0.5, 0.25)
    assert rates_between(after, after)[0].failed_share is None


def refuse() -> SendReport:
    raise errors.AuthError("no")


def grown(before: Stats, after: Stats, **of: Any) -> FlowStats:
    """What was counted between two snapshots."""
    old, new = before.flow(**of), after.flow(**of)
    plain = {
        name: getattr(new, name) - getattr(old, name)
        for name in FlowStats.__dataclass_fields__
        if name not in {"direction", "protocol", "codecs"}
    }
    return replace(new, **plain)


def test_sessions_and_listeners_are_counted_at_both_ends() -> None:
    before = metrics.snapshot()
    noise = random.Random(3).randbytes(3 << 20)

    def serve() -> int:
        with accepted(listener) as incoming:
            states = 0
            while incoming.receive(WAIT_S) is not None:
                states += 1
            return states

    with dwcp.listen(LOCAL) as listener, meanwhile(serve) as serving:
        with dwcp.connect(pairing_of(listener)) as sending:
            reports = [sending.send({"noise": noise, "zeros": bytes(2 << 20)}) for _ in range(2)]
            during = metrics.snapshot()
        assert serving.result(WAIT_S) == 2
    after = metrics.snapshot()
    for direction in ("sent", "received"):
        flow = grown(before, after, direction=direction)
        assert (flow.completed, flow.failed) == (2, 0)
        assert flow.wire_bytes == sum(report.bytes_wire for report in reports)
        assert flow.state_bytes == sum(report.bytes_raw for report in reports)
        assert flow.unfinished_wire_bytes == 0
    roles = {row.role: row for row in after.sessions}
    old = {row.role: row for row in before.sessions}
    assert {role: roles[role].opened - old[role].opened for role in roles} == {
        "send": 1,
        "receive": 1,
        "fetch": 0,
        "serve": 0,
        "probe": 0,
        "relay": 0,
    }
    assert all(roles[role].open == old[role].open for role in roles)
    assert next(row for row in during.sessions if row.role == "send").open == old["send"].open + 1
    assert after.lanes.opened > before.lanes.opened and after.lanes.lost == before.lanes.lost


@contextlib.contextmanager
def paired(**more: Any) -> Iterator[tuple[dwcp.Session, dwcp.IncomingSession]]:
    """Both ends of a session."""
    options = dwcp.SendOptions(streams=2, codec="none", base="none", **more)
    with (
        dwcp.listen(LOCAL) as listener,
        dwcp.connect(pairing_of(listener), options=options) as sending,
        accepted(listener) as incoming,
    ):
        yield sending, incoming


def errors_of(stats: Stats, code: str) -> int:
    """How many transfers failed with a code."""
    return sum(told.count for told in stats.errors if (told.phase, told.code) == ("transfer", code))


def wait_for_bytes(before: Stats) -> Stats:
    """Look until bytes of a transfer under way are counted at both ends."""
    end, last = time.monotonic() + WAIT_S, before
    while time.monotonic() < end:
        stats = metrics.snapshot()
        for way in DIRECTIONS:
            assert stats.flow(way).wire_bytes >= last.flow(way).wire_bytes
        last = stats
        if all(grown(before, stats, direction=way).unfinished_wire_bytes for way in DIRECTIONS):
            return stats
    pytest.fail("no bytes of a transfer under way were counted")


def test_bytes_of_a_transfer_under_way_are_counted_once_at_both_ends() -> None:
    before = metrics.snapshot()
    with (
        paired(bandwidth_bits_per_s=16_000_000) as (sending, incoming),
        meanwhile(lambda: incoming.receive(WAIT_S)) as arriving,
        meanwhile(lambda: sending.send({"noise": random.Random(5).randbytes(2 << 20)})) as going,
    ):
        during = wait_for_bytes(before)
        # What is left needs no limit.
        sending.set_bandwidth_limit(None)
        report, received = going.result(WAIT_S), arriving.result(WAIT_S)
    assert received is not None
    for way in DIRECTIONS:
        under_way = grown(before, during, direction=way)
        assert (under_way.active, under_way.completed) == (1, 0)
        assert under_way.wire_bytes == under_way.unfinished_wire_bytes <= report.bytes_wire
        done = grown(before, metrics.snapshot(), direction=way)
        assert (done.wire_bytes, done.unfinished_wire_bytes, done.active) == (report.bytes_wire, 0, 0)
    assert during.lanes.open >= 2


def test_a_transfer_that_is_broken_off_is_counted_by_its_code_and_its_bytes_stay() -> None:
    before = metrics.snapshot()
    with (
        paired(bandwidth_bits_per_s=16_000_000) as (sending, incoming),
        meanwhile(lambda: incoming.receive(WAIT_S)) as arriving,
        meanwhile(lambda: sending.send({"noise": random.Random(5).randbytes(16 << 20)})) as going,
    ):
        wait_for_bytes(before)
        sending.cancel()
        with pytest.raises(dwcp.DwcpError):
            going.result(WAIT_S)
        # This side wants no more of it, which is no failure.
        incoming.close()
        assert arriving.result(WAIT_S) is None
    after = metrics.snapshot()
    sent, received = (grown(before, after, direction=way) for way in DIRECTIONS)
    assert (sent.failed, sent.withdrawn, received.failed, received.withdrawn) == (1, 0, 0, 1)
    for flow in (sent, received):
        assert (flow.completed, flow.active) == (0, 0)
        assert flow.wire_bytes == flow.unfinished_wire_bytes > 0
    assert errors_of(after, "cancelled") == errors_of(before, "cancelled") + 1


def test_a_wait_without_an_offer_is_no_failure() -> None:
    before = metrics.snapshot()
    with paired() as (sending, incoming):
        with pytest.raises(errors.DeadlineError):
            incoming.receive(0.05)
        sending.close()
        assert incoming.receive(WAIT_S) is None
    flow = grown(before, metrics.snapshot(), direction="received")
    assert (flow.started, flow.withdrawn, flow.failed) == (2, 2, 0)


def test_a_transfer_that_could_not_begin_has_failed() -> None:
    before = metrics.snapshot()
    with paired() as (sending, _), pytest.raises(dwcp.ConfigError):
        sending.send({"": b"without a name"})
    after = metrics.snapshot()
    assert grown(before, after, direction="sent").failed == 1
    assert errors_of(after, "config") == errors_of(before, "config") + 1


def test_transfers_are_not_counted_while_counting_is_off() -> None:
    before = metrics.snapshot()
    with paired() as (sending, incoming):
        for counts in (False, True):
            metrics.set_enabled(counts)
            try:
                with meanwhile(lambda: incoming.receive(WAIT_S)) as arriving:
                    sending.send({"state": b"state " * 999})
                    arriving.result(WAIT_S)
            finally:
                metrics.set_enabled(True)
    after = metrics.snapshot()
    assert [grown(before, after, direction=way).started for way in DIRECTIONS] == [1, 1]


def test_what_cannot_be_connected_to_is_counted_by_its_code() -> None:
    def refusals(stats: Stats) -> int:
        return sum(
            error.count for error in stats.errors if (error.phase, error.code) == ("connect", "transport")
        )

    before = metrics.snapshot()
    with pytest.raises(OSError, match="refused"):
        dwcp.connect("127.0.0.1:1", trust=dwcp.INSECURE)
    assert refusals(metrics.snapshot()) == refusals(before) + 1


def test_a_relay_counts_as_one_transfer_of_each_side_and_one_that_breaks_as_failed(tmp_path: Path) -> None:
    before = metrics.snapshot()
    for ends_well in (True, False):
        with (
            TargetRelay(LOCAL, {"other": tmp_path / "in"}) as target,
            SourceRelay(target.pairing or "", {"other": tmp_path / "out"}) as source,
        ):
            target.accept(WAIT_S)
            assert role(metrics.snapshot(), "relay").open - role(before, "relay").open == 2
            if ends_well:
                source.finish()
                assert target.wait(WAIT_S).state == source.wait(WAIT_S).state == "finished"
    after = metrics.snapshot()
    assert role(after, "relay").opened - role(before, "relay").opened == 4
    assert role(after, "relay").open == role(before, "relay").open
    for direction in ("sent", "received"):
        flow = grown(before, after, direction=direction)
        assert (flow.started, flow.completed, flow.failed) == (2, 1, 1)


def role(stats: Stats, name: Role) -> SessionStats:
    """The sessions of a role."""
    return next(row for row in stats.sessions if row.role == name)


def test_a_probe_is_counted_and_one_that_is_refused_by_its_code() -> None:
    before = metrics.snapshot()
    with dwcp.listen(LOCAL) as listener:
        probe_link(pairing_of(listener), seconds=0.1, max_bytes=1 << 20)
    with pytest.raises(OSError, match="refused"):
        probe_link("127.0.0.1:1", trust=dwcp.INSECURE, seconds=0.1)
    after = metrics.snapshot()
    assert role(after, "probe").opened - role(before, "probe").opened == 2
    assert role(after, "probe").open == role(before, "probe").open
    assert sum(error.count for error in after.errors) == sum(error.count for error in before.errors) + 1


def test_v1_is_counted_apart() -> None:
    before = METER.snapshot()
    arrived: list[Any] = []
    options = dwcp.ReceiveOptions(allow_v1=("127.0.0.0/8",))
    with dwcp.listen(LOCAL, trust=dwcp.INSECURE, options=options, on_v1=arrived.append) as listener:
        with dwcp.connect(listener.address, options=dwcp.SendOptions(protocol="v1")) as sending:
            sending.send({"state": b"v1 " * 1000})
        deadline = threading.Event()
        for _ in range(300):
            if arrived or deadline.wait(0.1):
                break
    after = METER.snapshot()
    for direction in ("sent", "received"):
        flow = grown(before, after, direction=direction, protocol="v1")
        assert (flow.completed, flow.state_bytes) == (1, 3000) and flow.wire_bytes > 0
        assert grown(before, after, direction=direction).started == 0
