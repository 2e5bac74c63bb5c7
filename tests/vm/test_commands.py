"""``dwcp vm`` as it is typed: two processes and the relay between them, ended at any moment."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dwcp_fast.demo.guest import Machine
from dwcp_fast.demo.link import Link, LinkShape

from .moves import Pair, check_downtime, until

DWCP = [sys.executable, "-m", "dwcp_fast"]
WAIT_S = 60.0


@contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command at work; killed at the end if it is still there."""
    process = subprocess.Popen(
        [*DWCP, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=WAIT_S)


@contextmanager
def accepting(machine: Machine, *more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``dwcp vm accept`` and its pairing string."""
    arguments = ["vm", "accept", "--qmp", str(machine.monitor), "--listen", "127.0.0.1:0", "--json-lines"]
    with command(*arguments, *more) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield process, str(json.loads(line)["pairing"])


def migrating(machine: Machine, to: str, *more: str) -> Any:
    """``dwcp vm migrate``."""
    return command("vm", "migrate", "--qmp", str(machine.monitor), "--to", to, "--json", *more)


def through(link: Link, pairing: str) -> str:
    """The pairing string with the link's address in place of its own."""
    scheme, _, rest = pairing.partition("://")
    address, _, secret = rest.partition("#")
    host, _, port = address.rpartition(":")
    link.retarget(host, int(port))
    return f"{scheme}://127.0.0.1:{link.port}#{secret}"


def outcome(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    """Exit code and last object of a command."""
    out, err = process.communicate(timeout=WAIT_S)
    lines = out.splitlines()
    assert lines, err
    return process.returncode, json.loads(lines[-1])


def test_two_commands_move_a_guest_and_tell_how(pair: Pair, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pair.source.console.ask("r 2000", "RATE")
    page = tmp_path / "report.html"
    with (
        accepting(pair.target) as (taking, pairing),
        # Over loopback, what is chosen by itself is to compress little or nothing.
        migrating(pair.source, pairing, "--report", str(page), "--codec", "zstd:1") as moving,
    ):
        code, told = outcome(moving)
        assert code == 0, told
        assert outcome(taking)[0] == 0
    pair.check_moved()
    assert told["type"] == "moved" and told["opaque"] is None and told["rounds"]
    assert told["wire_bytes"] < told["sent_bytes"] * 0.7, "text and repeated pages were not coded"
    assert told["pages"]["full"] > 1000
    check_downtime(pair.source.console, pair.target.console, told["downtime_s"])
    assert "<svg" in page.read_text(encoding="utf-8")


def test_a_writer_faster_than_the_link_ends_with_seven(pair: Pair) -> None:
    pair.source.console.ask("r 30000", "RATE")
    with (
        # Slow enough for a guest that gets little of a busy machine, too.
        Link(LinkShape(rate_bps=60e6, delay_s=0.002)) as link,
        accepting(pair.target) as (taking, pairing),
        migrating(
            pair.source,
            through(link, pairing),
            "--patience",
            "3",
            "--max-downtime",
            "30ms",
            "--codec",
            "none",
        ) as moving,
    ):
        code, told = outcome(moving)
        assert (code, told["code"]) == (7, "not-converging"), told
        assert outcome(taking)[0] != 0
    pair.check_stayed()


def test_a_wrong_token_changes_nothing(pair: Pair) -> None:
    with accepting(pair.target) as (_, pairing):
        head, tail = pairing[:-6], pairing[-6:]
        wrong = head + ("A" * 6 if tail != "A" * 6 else "B" * 6)
        with migrating(pair.source, wrong) as moving:
            code, _ = outcome(moving)
    assert code in {2, 5}
    assert pair.target.status() == "inmigrate"
    pair.check_stayed()


def test_a_damaged_byte_is_never_given_to_the_guest(pair: Pair) -> None:
    with (
        Link(LinkShape(rate_bps=200e6, delay_s=0.002)) as link,
        accepting(pair.target) as (_, pairing),
        migrating(pair.source, through(link, pairing)) as moving,
    ):
        link.flip_byte(5_000_000)
        code, _ = outcome(moving)
        assert link.stats().flipped == 1
    # TLS notices; another lane does its work, or the move ends and the guest stays.
    pair.check_moved() if code == 0 else pair.check_stayed()


def test_ctrl_c_leaves_the_guest_where_it_was(pair: Pair) -> None:
    with (
        Link(LinkShape(rate_bps=60e6, delay_s=0.002)) as link,
        accepting(pair.target) as (_, pairing),
        migrating(pair.source, through(link, pairing)) as moving,
    ):
        until(lambda: pair.source.qmp.execute("query-migrate").get("status") == "active", "the move")
        moving.send_signal(signal.SIGINT)
        moving.communicate(timeout=WAIT_S)
        assert moving.returncode == 130
    pair.check_stayed()


def test_a_lane_that_is_lost_is_not_the_end(pair: Pair) -> None:
    with (
        Link(LinkShape(rate_bps=100e6, delay_s=0.005)) as link,
        accepting(pair.target) as (taking, pairing),
        migrating(pair.source, through(link, pairing), "--streams", "3") as moving,
    ):
        until(lambda: link.stats().bytes_up > 3_000_000, "a part of the move")
        assert link.kill_one() == 1
        code, told = outcome(moving)
        assert code == 0, told
        assert outcome(taking)[0] == 0
    assert told["lanes_lost"] >= 1
    pair.check_moved()


@pytest.mark.parametrize("victim", ["source", "target"])
@pytest.mark.parametrize("moment", range(int(os.environ.get("VM_TEST_MOMENTS", "2"))))
def test_a_command_that_is_killed_at_any_moment_leaves_one_guest(
    pair: Pair, victim: str, moment: int
) -> None:
    """Killed in the middle, the guest stays; at the very end, running both again settles where it runs."""
    pair.source.console.ask("r 1000", "RATE")
    chance = random.Random(f"{victim} {moment}")
    with Link(LinkShape(rate_bps=200e6, delay_s=0.005)) as link:
        with (
            accepting(pair.target, "--settle", "1s") as (taking, pairing),
            migrating(pair.source, through(link, pairing), "--settle", "1s") as moving,
        ):
            until(lambda: link.stats().bytes_up > 0, "the move")
            time.sleep(chance.random() * 4)
            (moving if victim == "source" else taking).kill()
            moving.communicate(timeout=WAIT_S)
            if victim == "target":
                taking.communicate(timeout=WAIT_S)
        if not pair.running():
            settle_or_stay(pair)
        until(lambda: len(pair.running()) == 1, "a side on which the guest runs")
    (where,) = pair.running()
    pair.check_stayed() if where is pair.source else pair.check_moved()


def settle_or_stay(pair: Pair) -> None:
    """Give QEMU time to notice, and if the guest stands still then, run both commands again."""
    deadline = time.monotonic() + 5
    while not pair.running() and time.monotonic() < deadline:
        time.sleep(0.05)
    if pair.running():
        return
    with accepting(pair.target) as (taking, pairing), migrating(pair.source, pairing) as moving:
        assert outcome(moving)[0] == 0
        assert outcome(taking)[0] == 0


def test_the_way_back_to_a_host_with_the_old_memory_is_short(
    initramfs: Path, tmp_path: Path, pair: Pair
) -> None:
    kept = tmp_path / "kept"
    with (
        accepting(pair.target) as (taking, pairing),
        migrating(pair.source, pairing, "--keep", str(kept)) as moving,
    ):
        code, there = outcome(moving)
        assert code == 0, there
        assert outcome(taking)[0] == 0
    pair.check_moved()
    pair.target.console.ask("x 800", "WROTE")
    append = "writer.mib=32"
    with (
        Machine(tmp_path, "back", initramfs, memory_mib=128, append=append, incoming="defer") as home,
        accepting(home, "--base", str(kept)) as (taking, pairing),
        migrating(pair.target, pairing) as moving,
    ):
        code, back = outcome(moving)
        assert code == 0, back
        assert outcome(taking)[0] == 0
        home.console.wait_for_ticks()
        told = home.console.ask("v", "VERIFIED")
        assert " bad=0 " in told and told.endswith("ever_bad=0"), told
    assert back["pages"]["base"] > 5000
    assert back["wire_bytes"] < there["wire_bytes"] * 0.25


def test_an_estimate_tells_a_quiet_guest_from_a_busy_one(pair: Pair) -> None:
    def ask(link: str) -> tuple[int, dict[str, Any]]:
        with command("vm", "estimate", "--qmp", str(pair.source.monitor), "--link", link, "--json") as asking:
            return outcome(asking)

    code, quiet = ask("100Mbps")
    assert code == 0 and quiet["converges"] and quiet["seconds"] > 5, quiet
    pair.source.console.ask("r 16000", "RATE")
    # A host with much else to do has its guest write less than it is asked to.
    code, busy = ask("10Mbps")
    assert code == 7 and not busy["converges"] and busy["dirty_bytes_per_s"] > 1.25e6, busy
    assert "MB/s" in busy["why"]
