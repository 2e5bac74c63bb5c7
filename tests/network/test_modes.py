"""A transfer whose link becomes another under way, on the link lab."""

import json
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dwcp_fast.policy.mode import SAMPLE_S

from .conftest import DWCP, MIB, Machine
from .lab import LEFT, RIGHT, Lab, Shape, why_missing
from .test_lab import start_recv

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(why_missing() is not None, reason=why_missing() or "nothing is missing"),
]

WAIT_S = 120.0
NEAR_BPS = 10e9
FAR = Shape(rate_bps=200e6, delay_ms=40.0, queue_ms=50.0)
LIMIT = "1300Mbps"
"""Of the sender: more than makes a datacenter, and so little that the state lasts."""
STATE_MIB = 2304
SERVED_MIB = 768
PLAINLY = ("--codec", "none")
ACT_S = 2.0
COOLDOWN_S = 30.0
WINDOW_S = 3.0


def write_noise(path: Path, mebibytes: int) -> None:
    """A file that no codec makes smaller."""
    random = np.random.default_rng(7)
    with path.open("wb") as file:
        for _ in range(0, mebibytes, 16):
            file.write(random.bytes(16 * MIB))


class Running:
    """A command on the left, and what it tells."""

    def __init__(self, lab: Lab, machine: Machine, *command: str | Path) -> None:
        words = [*DWCP, *command, "--json-lines"]
        self._process = lab.start(LEFT, words, env=machine.env("sender"), stdout=subprocess.PIPE, text=True)
        self._late: list[tuple[float, float]] = []
        threading.Thread(target=self._sleep, daemon=True).start()

    def _sleep(self) -> None:
        """Note how late this machine is with a thread that does what a look at the mode waits for."""
        while self._process.poll() is None:
            began = time.monotonic()
            time.sleep(SAMPLE_S)
            self._late.append((began, time.monotonic() - began - SAMPLE_S))

    def late_s(self, since: float) -> float:
        """By how much looks were late in all since then."""
        return sum(late for began, late in list(self._late) if began + SAMPLE_S > since)

    def next(self, *kinds: str) -> dict[str, Any]:
        """The next event of one of the kinds."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told: dict[str, Any] = json.loads(line)
            if told["type"] in kinds:
                return told
        pytest.fail("the sender has ended")

    def wait_until_near(self) -> None:
        """The switch to datacenter, or to hybrid."""
        told = self.next("mode-switched", "sent")
        assert told["type"] == "mode-switched" and told["mode"] in ("datacenter", "hybrid"), told

    def wait_until_far(self) -> dict[str, Any]:
        """The switch to internet; smoothed round trips may pass through hybrid on their way."""
        while (told := self.next("mode-switched"))["mode"] != "internet":
            assert told["mode"] == "hybrid"
        return told


def check_near(switch: dict[str, Any]) -> None:
    """That the link was found to be near.

    A machine that keeps both ends from their processors makes its round trips long, and then it is hybrid. A
    single sample need not prove that the link is fast, but none of the far one shows so much.
    """
    assert switch["carried_bits_per_s"] > 2 * 200e6, switch
    is_late = switch["rtt_ms"] > 9
    assert switch["mode"] == "datacenter" or (switch["mode"] == "hybrid" and is_late), switch


@pytest.mark.timeout(240)
def test_a_transfer_crosses_from_near_to_far_and_back_with_no_byte_lost_or_repeated(
    machine: Machine, tmp_path: Path
) -> None:
    state, inbox = tmp_path / "state", tmp_path / "inbox"
    write_noise(state, STATE_MIB)
    with Lab([FAR], urgent=True) as lab:
        lab.bypass(NEAR_BPS)
        # How fast a disk is, is not asked here.
        recv, pairing = start_recv(lab, machine, inbox, "--no-sync")
        sending = Running(lab, machine, "send", state, "--to", pairing, *PLAINLY, "--bwlimit", LIMIT)
        sending.wait_until_near()
        lab.rejoin()
        changed = time.monotonic()
        sending.wait_until_far()
        assert time.monotonic() - changed < ACT_S + sending.late_s(changed)
        # A window of samples before the cooldown is over, so that nothing is waited for but that.
        time.sleep(COOLDOWN_S - WINDOW_S)
        carried = lab.stats()["ab"]["delivered_bytes"]
        lab.bypass(NEAR_BPS)
        sending.wait_until_near()
        report = sending.next("sent")
        assert recv.wait(WAIT_S) == 0
    assert carried > 0.5 * 200e6 / 8 * (COOLDOWN_S - WINDOW_S)
    compared = subprocess.run(["cmp", state, inbox / "state"], check=False)
    for large in (state, inbox / "state"):
        large.unlink()
    assert compared.returncode == 0
    assert (report["sessions"], report["lanes_lost"], report["blocks_resent"]) == (1, 0, 0)
    # One that was sent twice, at the very end, is written once.
    assert report["blocks_sent"] - report["blocks_helped"] == STATE_MIB
    modes = [switch["mode"] for switch in report["mode_switches"]]
    at = modes.index("internet")
    assert set(modes[1:at]) <= {"hybrid"}
    check_near(report["mode_switches"][0])
    check_near(report["mode_switches"][at + 1])
    far, back = report["mode_switches"][at], report["mode_switches"][at + 1]
    assert far["rtt_ms"] > 55 and back["seconds"] - far["seconds"] >= COOLDOWN_S
    lanes = [(change["lanes"], change["why"]) for change in report["lane_changes"]]
    assert lanes[0] == (4, "to begin with") and lanes[1][0] > 4, lanes
    assert lanes[1][1] == "the mode was changed"
    assert modes[-1] != "datacenter" or lanes[-1] == (4, "the mode was changed")
    assert report["why"]["mode"].count(" after ") == len(report["mode_switches"])


@pytest.mark.timeout(240)
def test_a_server_goes_by_the_link_to_whoever_pulls_from_it(machine: Machine, tmp_path: Path) -> None:
    state, into = tmp_path / "state", tmp_path / "into"
    write_noise(state, SERVED_MIB)
    with Lab([FAR], urgent=True) as lab:
        lab.bypass(NEAR_BPS)
        listen = ["--listen", f"{lab.address(LEFT)}:0", "--once"]
        serving = Running(lab, machine, "serve", state, *listen, *PLAINLY, "--bwlimit", LIMIT)
        pairing = serving.next("listening")["pairing"]
        pulling = lab.start(RIGHT, [*DWCP, "pull", pairing, into, "--quiet"], env=machine.env("puller"))
        serving.wait_until_near()
        lab.rejoin()
        changed = time.monotonic()
        serving.wait_until_far()
        assert time.monotonic() - changed < ACT_S + serving.late_s(changed)
        report = serving.next("sent")
        assert pulling.wait(WAIT_S) == 0
    compared = subprocess.run(["cmp", state, into / "state"], check=False)
    for large in (state, into / "state"):
        large.unlink()
    assert compared.returncode == 0
    assert (report["sessions"], report["lanes_lost"], report["blocks_resent"]) == (1, 0, 0)
    assert report["blocks_sent"] - report["blocks_helped"] == SERVED_MIB
    modes = [switch["mode"] for switch in report["mode_switches"]]
    check_near(report["mode_switches"][0])
    assert modes[-1] == report["mode"] == "internet"
    assert report["why"]["mode"].count(" after ") == len(modes)
    assert "cubic" in report["path"]["congestion"]


def test_a_forced_mode_stays_forced_whatever_the_link_becomes(machine: Machine, tmp_path: Path) -> None:
    state, inbox = tmp_path / "state", tmp_path / "inbox"
    write_noise(state, 64)
    with Lab([Shape(delay_ms=0.5, rate_bps=100e6)]) as lab:
        recv, pairing = start_recv(lab, machine, inbox)
        sending = Running(lab, machine, "send", state, "--to", pairing, *PLAINLY, "--mode", "datacenter")
        sending.next("progress")
        lab.change(delay_ms=40.0)
        told = sending.next("mode-switched", "sent")
        assert recv.wait(WAIT_S) == 0
    assert (told["type"], told["mode"], told["mode_switches"]) == ("sent", "datacenter", [])
    assert told["lane_changes"] == [] and told["lanes_used"] == 4


def test_a_probe_measures_what_the_link_is(machine: Machine, tmp_path: Path) -> None:
    with Lab([Shape(rate_bps=50e6, delay_ms=20, loss=0.01)]) as lab:
        recv, pairing = start_recv(lab, machine, tmp_path / "inbox")
        command = [*DWCP, "link", "probe", pairing, "--json"]
        told = lab.run(LEFT, command, env=machine.env("sender"), timeout_s=WAIT_S)
        assert recv.poll() is None, "a receiver of one transfer has had none"
        sent = lab.stats()["ab"]["delivered_bytes"]
        lab.kill(recv)
    seen = json.loads(told.stdout)
    # A busy machine answers late; what is told is held to what the link has carried meanwhile.
    assert 40 <= seen["rtt_ms"] < 80 and seen["loaded_rtt_ms"] >= 40
    assert sent * 8 / seen["seconds"] * 0.5 < seen["goodput_bits_per_s"] < 50e6 and seen["limited"]
    assert seen["loss"] > 0.005 and seen["mode"] == "internet"
    # No more than the burst: TCP counts no headers.
    assert 0.9 * sent < seen["sent_bytes"] * 1.1 and sent < (seen["seconds"] + 0.5) * 50e6 / 8
    assert [path.name for path in (tmp_path / "inbox").iterdir()] in ([], [".dwcp"])
