"""A real guest moves between two QEMUs, or stays: it runs on exactly one side, and its memory is right."""

import asyncio
import importlib
import os
import random
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dwcp_fast.demo.guest import Machine
from dwcp_fast.demo.link import Link, LinkShape
from dwcp_fast.engine import force_v1
from dwcp_fast.errors import (
    DeadlineError,
    NegotiationError,
    PeerError,
    QmpError,
    TransportError,
    V3StoppedError,
)
from dwcp_fast.vm.accept import Acceptance
from dwcp_fast.vm.migrate import Migration, migrate_async
from dwcp_fast.vm.options import AcceptOptions, MigrateOptions

from .moves import Acceptor, Pair, check_downtime, move, until
from .tunnel import SourceTunnel

MOVE = "0123456789abcdef" * 2
REACH_S = 5.0
"""What is promised of the kill switch."""


def test_a_writing_guest_moves_and_finds_its_memory_right(pair: Pair) -> None:
    pair.source.console.ask("r 2000", "RATE")
    events: list[dict[str, Any]] = []
    report = move(pair, events=events)
    pair.check_moved()
    rounds = [event for event in events if event["type"] == "round"]
    assert report.rounds and len(rounds) == len(report.rounds)
    assert all(event["ratio"] > 0 and "expected_end_s" in event for event in rounds)
    assert report.memory_bytes >= 128 << 20
    # The guest itself says for how long nobody heard of it; what is reported is no less than what QEMU saw.
    check_downtime(pair.source.console, pair.target.console, report.downtime_s)
    assert report.downtime_s >= (report.qemu_downtime_s or 0) * 0.5


def test_a_move_goes_on_when_it_is_told_of_and_not_when_somebody_looks(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    for side in ("migrate", "accept"):
        monkeypatch.setattr(importlib.import_module(f"dwcp_fast.vm.{side}"), "LOOK_S", 600.0)
    move(pair)
    pair.check_moved()


def test_a_guest_moves_over_several_connections_of_qemu_and_from_a_coroutine(pair: Pair) -> None:
    pair.source.console.ask("r 500", "RATE")
    with Acceptor(pair.target, listen=None) as acceptor:
        options = MigrateOptions(multifd=3, settle_s=20)
        to = acceptor.acceptance.pairing or ""
        report = asyncio.run(migrate_async(str(pair.source.monitor), to, options=options))
        taken = acceptor.end()
    pair.check_moved()
    assert taken is not None and taken.stream_bytes >= 32 << 20
    # They are not looked into: no page of the writer was seen.
    assert report.pages["full"] + report.pages["same"] < 1000
    assert taken.pages == report.pages


def test_a_guest_whose_qemu_compresses_by_itself_stays(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has QEMU compress between our look at it and its start; both sides would compress then."""
    move_of = importlib.import_module("dwcp_fast.vm.migrate")
    wanted = move_of.capabilities_of_a_move
    monkeypatch.setattr(move_of, "capabilities_of_a_move", lambda **how: {**wanted(**how), "compress": True})
    monkeypatch.setattr(
        importlib.import_module("dwcp_fast.vm.place"),
        "capabilities_of_a_move",
        lambda **how: {**wanted(**how), "compress": True},
    )
    with Acceptor(pair.target, listen=None) as acceptor:
        migration = Migration(str(pair.source.monitor), acceptor.acceptance.pairing or "")
        with pytest.raises(QmpError, match="compresses pages itself"):
            migration.run()
        acceptor.end()
    pair.check_stayed()


def test_a_paused_guest_arrives_paused(pair: Pair) -> None:
    pair.source.qmp.execute("stop")
    move(pair)
    assert pair.running() == []
    pair.target.qmp.execute("cont")
    pair.check_moved()


def test_a_move_that_is_cancelled_leaves_the_guest_where_it_was(pair: Pair) -> None:
    before = pair.source.qmp.execute("query-migrate-capabilities")
    with Link(LinkShape(rate_bps=100e6, delay_s=0.002)) as link, Acceptor(pair.target) as acceptor:
        host, _, port = acceptor.address.rpartition(":")
        link.retarget(host, int(port))
        migration = Migration(str(pair.source.monitor), f"127.0.0.1:{link.port}", dial=SourceTunnel)
        threading.Timer(1.0, migration.cancel).start()
        with pytest.raises(KeyboardInterrupt):
            migration.run()
        acceptor.end()
        assert isinstance(acceptor.error, TransportError) and "KeyboardInterrupt" in str(acceptor.error)
    pair.check_stayed()
    assert pair.source.qmp.execute("query-migrate-capabilities") == before


def test_a_move_is_stopped_by_the_kill_switch_and_the_guest_goes_on_where_it_was(pair: Pair) -> None:
    with Link(LinkShape(rate_bps=100e6, delay_s=0.002)) as link, Acceptor(pair.target) as acceptor:
        host, _, port = acceptor.address.rpartition(":")
        link.retarget(host, int(port))
        migration = Migration(str(pair.source.monitor), f"127.0.0.1:{link.port}", dial=SourceTunnel)
        turning = threading.Timer(1.0, force_v1, [True])
        turning.start()
        began = time.monotonic()
        try:
            with pytest.raises(V3StoppedError, match="the move was stopped"):
                migration.run()
            assert time.monotonic() - began < 1.0 + REACH_S
            acceptor.end()
            pair.check_stayed()
            with pytest.raises(NegotiationError, match="force_v1"):
                migration.run()
        finally:
            turning.join()
            force_v1(False)


class Stuck(SourceTunnel):
    """A tunnel that takes a megabyte of memory, and then nothing."""

    def passes(self, data: bytes) -> bool:
        if self.sent > 1_000_000:
            time.sleep(30)
        return True


def test_a_move_that_stands_still_is_given_up(pair: Pair) -> None:
    options = MigrateOptions(stall_s=1)
    with Acceptor(pair.target) as acceptor, pytest.raises(DeadlineError, match="nothing went on for"):
        move(pair, dial=Stuck, options=options, acceptor=acceptor)
    pair.check_stayed()


@pytest.mark.parametrize("moment", range(int(os.environ.get("VM_TEST_MOMENTS", "2"))))
def test_a_link_that_is_cut_at_any_moment_leaves_the_guest_on_one_side(pair: Pair, moment: int) -> None:
    pair.source.console.ask("r 1000", "RATE")
    chance = random.Random(moment)
    with Link(LinkShape(rate_bps=400e6, delay_s=0.01)) as link:

        def cut_later() -> None:
            # Cut where it matters: after so much has passed, up to the very end.
            limit = chance.random() * 75e6
            until(lambda: link.stats().bytes_up > limit, "the moment to cut")
            link.kill_all()

        cutting = threading.Thread(target=cut_later, daemon=True)
        cutting.start()
        try:
            move(pair, through=link)
        except (TransportError, QmpError):
            until(lambda: len(pair.running()) == 1, "a side on which the guest runs")
        cutting.join(30)
    (where,) = pair.running()
    pair.check_stayed() if where is pair.source else pair.check_moved()


class CutAt(SourceTunnel):
    """A tunnel that breaks, once, when a word passes on the way to the other side or back."""

    def __init__(self, to: str, channels: Any, word: bytes, armed: list[bool], *, delivered: bool) -> None:
        self._word, self._armed, self._delivered = word, armed, delivered
        super().__init__(to, channels)

    def passes(self, data: bytes) -> bool:
        if self._word not in data or not self._armed:
            return True
        self._armed.clear()
        if self._delivered:
            threading.Timer(0.2, self.stop).start()
            return True
        self.stop()
        return False


@pytest.mark.parametrize(
    ("word", "delivered"), [(b'"go"', False), (b'"go"', True), (b'"type": "running"', False)]
)
def test_a_link_that_is_lost_at_the_handover_is_found_again(pair: Pair, word: bytes, delivered: bool) -> None:
    armed = [True]
    report = move(pair, dial=lambda to, channels: CutAt(to, channels, word, armed, delivered=delivered))
    assert armed == []
    pair.check_moved()
    # Where the answer came before the end there was nothing to settle.
    assert report.settled or delivered


def give_up_in_doubt(pair: Pair, word: bytes) -> Acceptor:
    """Move a guest, lose the tunnel at a word for good, and end both commands."""
    armed = [True]

    def dial(to: str, channels: Any) -> SourceTunnel:
        if not armed:
            raise TransportError("no way to the other side")
        return CutAt(to, channels, word, armed, delivered=False)

    acceptor = Acceptor(pair.target, options=AcceptOptions(settle_s=0.5))
    migration = Migration(
        str(pair.source.monitor), acceptor.address, dial=dial, options=MigrateOptions(settle_s=0.5)
    )
    with pytest.raises(TransportError, match="whether it runs there could not be learnt"):
        migration.run()
    acceptor.end()
    return acceptor


def test_a_move_given_up_in_doubt_is_settled_when_both_commands_are_run_again(pair: Pair) -> None:
    acceptor = give_up_in_doubt(pair, b'"go"')
    assert acceptor.error is not None
    assert pair.running() == []
    with Acceptor(pair.target) as again:
        report = Migration(str(pair.source.monitor), again.address, dial=SourceTunnel).run()
        assert again.end() is not None
    assert report.settled
    pair.check_moved()


def test_a_guest_that_runs_there_already_is_settled_by_a_new_process(pair: Pair) -> None:
    """The answer was lost, and then both commands ended."""
    give_up_in_doubt(pair, b'"type": "running"')
    assert pair.running() == [pair.target]
    with Acceptor(pair.target) as again:
        report = Migration(str(pair.source.monitor), again.address, dial=SourceTunnel).run()
        assert again.end() is not None
    assert report.settled
    pair.check_moved()


def test_a_way_back_that_is_refused_leaves_the_guest_where_it_came_to(
    pair: Pair, initramfs: Path, tmp_path: Path
) -> None:
    """QEMU there still says "completed" of the move that brought it."""
    move(pair)
    pair.turn(tmp_path, initramfs)
    with (
        Machine(tmp_path, "small", initramfs, memory_mib=64, incoming="defer") as small,
        Acceptor(small) as acceptor,
        pytest.raises(PeerError, match="here it would have"),
    ):
        move(pair, acceptor=acceptor)
    assert pair.source.qmp.execute("query-migrate")["status"] == "completed"
    move(pair)
    pair.check_moved()


def test_a_paused_guest_is_settled_paused_by_a_new_process(pair: Pair) -> None:
    pair.source.qmp.execute("stop")
    armed = [True]

    def dial(to: str, channels: Any) -> SourceTunnel:
        if not armed:
            raise TransportError("no way to the other side")
        return CutAt(to, channels, b'"go"', armed, delivered=False)

    acceptor = Acceptor(pair.target, options=AcceptOptions(settle_s=0.5))
    migration = Migration(
        str(pair.source.monitor), acceptor.address, dial=dial, options=MigrateOptions(settle_s=0.5)
    )
    with pytest.raises(TransportError, match="could not be learnt"):
        migration.run()
    acceptor.end()
    with Acceptor(pair.target) as again:
        report = Migration(str(pair.source.monitor), again.address, dial=SourceTunnel).run()
        told = again.end()
    assert report.settled and told is not None and not told.running
    assert pair.target.status() == "paused"


def leave_for_nowhere(pair: Pair) -> None:
    """Have QEMU count a move as done that brought the guest nowhere."""
    pair.source.qmp.execute("migrate", {"uri": "exec:cat > /dev/null"})
    until(lambda: pair.source.status() == "postmigrate", "the guest to have left")


def note(machine: Machine, name: str) -> None:
    machine.qmp.execute("object-add", {"qom-type": "secret", "id": name, "data": name})


def test_a_guest_that_never_arrived_goes_on_when_that_is_settled(pair: Pair) -> None:
    """Its QEMU counted the move as done, and the one that it left for still waits."""
    note(pair.source, f"dwcp-left-{MOVE}")
    note(pair.target, f"dwcp-came-{MOVE}")
    leave_for_nowhere(pair)
    with Acceptor(pair.target) as acceptor, pytest.raises(PeerError, match="goes on here: it never arrived"):
        Migration(str(pair.source.monitor), acceptor.address, dial=SourceTunnel).run()
    pair.check_stayed()
    objects = pair.source.qmp.execute("qom-list", {"path": "/objects"})
    assert not [one for one in objects if one["name"].startswith("dwcp-")]


def test_a_guest_that_left_by_another_hand_is_not_settled(pair: Pair) -> None:
    leave_for_nowhere(pair)
    with Acceptor(pair.target) as acceptor, pytest.raises(QmpError, match="not by a move of ours"):
        Migration(str(pair.source.monitor), acceptor.address, dial=SourceTunnel).run()
    assert pair.running() == []


def test_a_guest_whose_qemu_was_replaced_since_it_ran_there_is_not_let_go_on_here(
    pair: Pair, initramfs: Path, tmp_path: Path
) -> None:
    """It ran there, and the answer was lost; the next QEMU waits there as if no guest had come."""
    give_up_in_doubt(pair, b'"type": "running"')
    assert pair.running() == [pair.target]
    pair.end_watch()
    pair.target.qmp.execute("quit")
    pair.target.process.wait(10)
    with Machine(tmp_path, "next", initramfs, memory_mib=128, incoming="defer") as replaced:
        with (
            Acceptor(replaced) as acceptor,
            pytest.raises(PeerError, match="not the one that the guest left"),
        ):
            Migration(str(pair.source.monitor), acceptor.address, dial=SourceTunnel).run()
        assert acceptor.error is not None
        # Neither is it taken for one that was made ready for another guest.
        note(replaced, f"dwcp-came-{MOVE}")
        with Acceptor(replaced) as acceptor, pytest.raises(PeerError, match="the guest of another move"):
            Migration(str(pair.source.monitor), acceptor.address, dial=SourceTunnel).run()
        assert pair.source.status() == "postmigrate" and replaced.status() == "inmigrate"


def test_a_qemu_that_does_not_wait_for_a_guest_is_refused(pair: Pair) -> None:
    with pytest.raises(QmpError, match=r"the guest of .* is running") as refused:
        Acceptance(str(pair.source.monitor), "127.0.0.1:0")
    assert "-incoming defer" in (refused.value.hint or "")


def test_a_disk_moves_while_it_is_written(initramfs: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here.img", tmp_path / "there.img"
    for image in (here, there):
        image.touch()
        os.truncate(image, 48 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", here], check=True, capture_output=True)
    with Pair(tmp_path, initramfs, disks=(here, there)) as pair:
        pair.source.console.ask("r 500", "RATE")
        with Link(LinkShape(rate_bps=200e6, delay_s=0.002)) as link:
            report = move(pair, options=MigrateOptions(disks=True), through=link)
        assert report.disk_bytes == 48 << 20
        pair.check_moved()
        told = pair.target.console.ask("d 0", "DISK")
        written = int(told.partition("=")[2])
        pair.target.qmp.execute("quit")
        pair.target.process.wait(10)
    subprocess.run(["e2fsck", "-fn", there], check=True, capture_output=True)
    log = tmp_path / "log"
    told = subprocess.run(["debugfs", "-R", f"dump /log {log}", there], capture_output=True, text=True).stderr
    assert log.exists(), told
    data = log.read_bytes()
    numbers = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 512)]
    assert written > 10 and numbers == list(range(written))
