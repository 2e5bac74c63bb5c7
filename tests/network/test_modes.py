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
from .lab import LEFT, Lab, Shape, why_missing
from .test_lab import send_command, start_recv

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(why_missing() is not None, reason=why_missing() or "nothing is missing"),
]

WAIT_S = 120.0
NEAR: dict[str, Any] = {"rate_bps": None, "delay_ms": 0.5}
FAR: dict[str, Any] = {"rate_bps": 200e6, "delay_ms": 40.0, "queue_ms": 50.0}
ACT_S = 2.0
COOLDOWN_S = 30.0


def write_noise(path: Path, mebibytes: int) -> None:
    """A file that no codec makes smaller."""
    random = np.random.default_rng(7)
    with path.open("wb") as file:
        for _ in range(0, mebibytes, 16):
            file.write(random.bytes(16 * MIB))


class Sending:
    """A sender on the left, and what it tells."""

    def __init__(self, lab: Lab, machine: Machine, state: Path, pairing: str, *options: str) -> None:
        command = [*send_command(state, pairing)[:-1], "--json-lines", "--codec", "none", *options]
        self._process = lab.start(LEFT, command, env=machine.env("sender"), stdout=subprocess.PIPE, text=True)
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


@pytest.mark.timeout(240)
def test_a_transfer_crosses_from_near_to_far_and_back_with_no_byte_lost_or_repeated(
    machine: Machine, tmp_path: Path
) -> None:
    state, inbox = tmp_path / "state", tmp_path / "inbox"
    write_noise(state, 3072)
    with Lab([Shape(delay_ms=0.5)]) as lab:
        recv, pairing = start_recv(lab, machine, inbox)
        sending = Sending(lab, machine, state, pairing)
        told = sending.next("mode-switched", "sent")
        if told["type"] == "sent" or told["mode"] != "datacenter":
            pytest.skip("this machine carries no 1 Gbps over the lab")
        lab.change(**FAR)
        changed = time.monotonic()
        # Smoothed round trips may pass through hybrid on their way.
        while (told := sending.next("mode-switched", "sent"))["mode"] != "internet":
            assert told["mode"] == "hybrid"
        assert time.monotonic() - changed < ACT_S + sending.late_s(changed)
        switched = time.monotonic()
        # Two samples before the cooldown is over, so that nothing is waited for but that.
        time.sleep(COOLDOWN_S - 4.0)
        lab.change(**NEAR)
        told = sending.next("mode-switched", "sent")
        report = told if told["type"] == "sent" else sending.next("sent")
        assert recv.wait(WAIT_S) == 0
    compared = subprocess.run(["cmp", state, inbox / "state"], check=False)
    assert compared.returncode == 0
    assert (report["sessions"], report["lanes_lost"], report["blocks_resent"]) == (1, 0, 0)
    # One that was sent twice, at the very end, is written once.
    assert report["blocks_sent"] - report["blocks_helped"] == 3072
    modes = [switch["mode"] for switch in report["mode_switches"]]
    at = modes.index("internet")
    assert modes[0] == "datacenter" and set(modes[1:at]) <= {"hybrid"}
    far, *back = report["mode_switches"][at:]
    assert far["rtt_ms"] > 55
    lanes = [(change["lanes"], change["why"]) for change in report["lane_changes"]]
    assert lanes[:2] == [(4, "to begin with"), (8, "the mode was changed")]
    assert "cubic" in report["path"]["congestion"]
    assert report["why"]["mode"].count(" after ") == len(report["mode_switches"])
    if not back:
        pytest.skip("this machine carried no 1 Gbps over the lab the second time")
    assert back[0]["mode"] in ("datacenter", "hybrid")
    assert time.monotonic() - switched > back[0]["seconds"] - far["seconds"] >= COOLDOWN_S


def test_a_forced_mode_stays_forced_whatever_the_link_becomes(machine: Machine, tmp_path: Path) -> None:
    state, inbox = tmp_path / "state", tmp_path / "inbox"
    write_noise(state, 64)
    with Lab([Shape(delay_ms=0.5, rate_bps=100e6)]) as lab:
        recv, pairing = start_recv(lab, machine, inbox)
        sending = Sending(lab, machine, state, pairing, "--mode", "datacenter")
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
