"""Moves to a QEMU without a monitor, which starts its guest by itself: it runs on one side all the same."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from dwcp_fast.demo.guest import Machine
from dwcp_fast.errors import ConfigError, PeerError, QmpError, TransportError
from dwcp_fast.vm.migrate import Migration
from dwcp_fast.vm.options import AcceptOptions, MigrateOptions

from .moves import Acceptor, Pair, check_downtime, check_guest, move, until
from .test_commands import command, migrating, outcome
from .test_moves import CutAt
from .tunnel import SourceTunnel


@pytest.fixture
def door(tmp_path: Path) -> Path:
    """Where the QEMU that waits listens."""
    return tmp_path / "in.sock"


@pytest.fixture
def alone(initramfs: Path, tmp_path: Path, door: Path) -> Iterator[Pair]:
    """A guest, and a QEMU that waits for it; its monitor is for the test to look through."""
    with Pair(tmp_path, initramfs, incoming=f"unix:{door}") as made:
        yield made


def another(pair: Pair, folder: Path, initramfs: Path, door: Path) -> Machine:
    """A QEMU that waits where one did before."""
    door.unlink(missing_ok=True)
    append = "writer.mib=32"
    return Machine(folder, "next", initramfs, memory_mib=128, append=append, incoming=f"unix:{door}")


def test_two_commands_move_a_guest_to_a_qemu_without_a_monitor(alone: Pair, door: Path) -> None:
    alone.source.console.ask("r 1000", "RATE")
    arguments = ["vm", "accept", "--to-unix", str(door), "--listen", "127.0.0.1:0", "--json-lines"]
    with command(*arguments) as taking:
        assert taking.stdout is not None
        pairing = json.loads(taking.stdout.readline())["pairing"]
        with migrating(alone.source, pairing) as moving:
            code, told = outcome(moving)
            assert code == 0, told
            taken = outcome(taking)
    assert taken[0] == 0 and taken[1]["running"] and taken[1]["pages"]["full"] > 1000
    alone.check_moved()
    check_downtime(alone.source.console, alone.target.console, told["downtime_s"])


def test_a_paused_guest_arrives_paused_without_a_monitor(alone: Pair, door: Path) -> None:
    alone.source.qmp.execute("stop")
    with Acceptor(alone.target, to_unix=door) as acceptor:
        move(alone, acceptor=acceptor)
        assert acceptor.report is not None and not acceptor.report.running
    assert alone.running() == []
    alone.target.qmp.execute("cont")
    alone.check_moved()


@pytest.mark.parametrize("word", [b'"go"', b'"type": "running"'])
def test_a_link_that_is_lost_at_the_handover_is_found_again_without_a_monitor(
    alone: Pair, door: Path, word: bytes
) -> None:
    armed = [True]
    report = None
    # What is still on its way of the stream before "go" may be lost with the link, and then it goes on here.
    loses = suppress(PeerError) if word == b'"go"' else nullcontext()
    with Acceptor(alone.target, to_unix=door) as acceptor, loses:
        report = move(
            alone,
            dial=lambda to, channels: CutAt(to, channels, word, armed, delivered=False),
            acceptor=acceptor,
        )
    assert armed == []
    if report is None:
        alone.check_stayed()
    else:
        assert report.settled
        alone.check_moved()


def give_up(pair: Pair, door: Path, word: bytes) -> None:
    """Move a guest, lose the tunnel at a word for good, and end both commands."""
    armed = [True]

    def dial(to: str, channels: Any) -> SourceTunnel:
        if not armed:
            raise TransportError("no way to the other side")
        return CutAt(to, channels, word, armed, delivered=False)

    acceptor = Acceptor(pair.target, to_unix=door, options=AcceptOptions(settle_s=0.5))
    options = MigrateOptions(settle_s=0.5)
    with pytest.raises(TransportError, match="could not be learnt"):
        Migration(str(pair.source.monitor), acceptor.address, dial=dial, options=options).run()
    acceptor.end()


def test_a_guest_that_was_never_let_go_there_goes_on_here(
    alone: Pair, initramfs: Path, tmp_path: Path, door: Path
) -> None:
    """Both commands ended before it was to be started; with them went the end of its stream, and QEMU."""
    give_up(alone, door, b'"go"')
    alone.target.process.wait(10)
    assert alone.running() == []
    with (
        another(alone, tmp_path, initramfs, door) as waiting,
        Acceptor(waiting, to_unix=door) as acceptor,
        pytest.raises(PeerError, match="goes on here: it never arrived"),
    ):
        Migration(str(alone.source.monitor), acceptor.address, dial=SourceTunnel).run()
    alone.end_watch()
    assert alone.source.is_running()
    check_guest(alone.source)


def test_a_guest_that_runs_there_is_settled_by_new_commands_without_a_monitor(
    alone: Pair, door: Path
) -> None:
    give_up(alone, door, b'"type": "running"')
    assert alone.running() == [alone.target]
    with Acceptor(alone.target, to_unix=door) as again:
        report = Migration(str(alone.source.monitor), again.address, dial=SourceTunnel).run()
        assert again.end() is not None
    assert report.settled
    alone.check_moved()


def test_a_guest_that_ran_there_and_is_gone_does_not_go_on_here(
    alone: Pair, initramfs: Path, tmp_path: Path, door: Path
) -> None:
    give_up(alone, door, b'"type": "running"')
    alone.end_watch()
    alone.target.qmp.execute("quit")
    alone.target.process.wait(10)
    with (
        another(alone, tmp_path, initramfs, door) as waiting,
        Acceptor(waiting, to_unix=door) as acceptor,
        pytest.raises(PeerError, match="was let run here, and its QEMU has ended since"),
    ):
        Migration(str(alone.source.monitor), acceptor.address, dial=SourceTunnel).run()
    assert alone.source.status() == "postmigrate"


def test_a_guest_whose_devices_are_not_there_goes_on_here(
    initramfs: Path, tmp_path: Path, door: Path
) -> None:
    """What QEMU cannot load it says only by ending; the guest cannot have run, since it never had the end."""
    image = tmp_path / "disk.img"
    image.touch()
    os.truncate(image, 16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True, capture_output=True)
    with Pair(tmp_path, initramfs, disks=(image, None), incoming=f"unix:{door}") as pair:
        with (
            Acceptor(pair.target, to_unix=door) as acceptor,
            pytest.raises((PeerError, QmpError, TransportError)) as told,
        ):
            move(pair, acceptor=acceptor)
        until(lambda: pair.source.is_running(), "the guest to go on")
        assert "could not be learnt" not in str(told.value)
        pair.target.process.wait(10)
        pair.check_stayed()


def test_disks_and_connections_are_refused_without_a_monitor(alone: Pair, door: Path) -> None:
    with Acceptor(alone.target, to_unix=door) as acceptor, pytest.raises(PeerError, match="need the monitor"):
        move(alone, acceptor=acceptor, options=MigrateOptions(multifd=2))
    with Acceptor(alone.target, to_unix=door), pytest.raises(ConfigError, match="another process waits"):
        Acceptor(alone.target, to_unix=door)
    alone.check_stayed()
