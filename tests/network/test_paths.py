"""What a transfer over the link lab asks of TCP, what it reports, and how it uses several paths."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import MIB, Machine
from .lab import LEFT, RIGHT, Lab, Shape, why_missing
from .test_lab import send_command, start_recv

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(why_missing() is not None, reason=why_missing() or "nothing is missing"),
]

WAIT_S = 90.0
AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A file that does not compress, and takes long enough for what the path loses to be seen."""
    path = tmp_path / "state"
    path.write_bytes(os.urandom(16 * MIB))
    return path


def send(lab: Lab, machine: Machine, state: Path, inbox: Path, *options: str) -> dict[str, Any]:
    """Send the file from the left to the right; gives the report of the sender."""
    recv, pairing = start_recv(lab, machine, inbox)
    command = [*send_command(state, pairing), *options]
    done = lab.run(LEFT, command, env=machine.env("sender"), timeout_s=WAIT_S)
    assert recv.wait(WAIT_S) == 0
    assert (inbox / "state").read_bytes() == state.read_bytes()
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


@pytest.mark.skipif("bbr" not in AVAILABLE.read_text().split(), reason="the kernel has no BBR")
def test_a_far_path_gets_bbr_only_for_random_losses_and_where_the_kernel_lets_it(
    machine: Machine, state: Path, tmp_path: Path
) -> None:
    ways: dict[str, tuple[str, list[str]]] = {
        "locked": ("auto", ["reno"]),
        "free": ("auto", ["bbr", "cubic"]),
        "yielding": ("yielding", ["cubic"]),
        "asked": ("reno", ["reno"]),
    }
    paths = {}
    # Long round trips: what an end waits for a busy machine is taken for a queue where it is a tenth of them.
    with Lab([Shape(rate_bps=200e6, delay_ms=50, loss=0.02)], urgent=True) as lab:
        for way, (congestion, _) in ways.items():
            lab.lock_congestion("reno" if way == "locked" else None)
            paths[way] = send(lab, machine, state, tmp_path / way, "--congestion", congestion)["path"]
    # Here whatever is lost has not fitted into the queue.
    with Lab([Shape(rate_bps=20e6, delay_ms=20, queue_ms=50)]) as lab:
        paths["full"] = send(lab, machine, state, tmp_path / "full")["path"]
    for way, path in paths.items():
        assert path["congestion"] == ways.get(way, ("", ["cubic"]))[1], (way, path)
        assert 40 <= path["min_rtt_ms"] <= path["rtt_ms"] and path["retransmitted_segments"] > 0


def test_a_path_that_is_cut_ends_no_transfer(machine: Machine, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_bytes(os.urandom(16 * MIB))
    paths = [Shape(rate_bps=40e6, delay_ms=5), Shape(rate_bps=20e6, delay_ms=15)]
    with Lab(paths) as lab:
        recv, pairing = start_recv(lab, machine, tmp_path / "inbox")
        addresses = [lab.address(LEFT, path) for path in range(2)]
        sources = [word for address in addresses for word in ("--from", address)]
        command = [*send_command(state, pairing), *sources]
        sender = lab.start(LEFT, command, env=machine.env("sender"), stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + WAIT_S
        while min(lab.stats(path=path)["ab"]["delivered_bytes"] for path in range(2)) < MIB:
            assert time.monotonic() < deadline and sender.poll() is None
            time.sleep(0.01)
        lab.cut(path=1)
        told, _ = sender.communicate(timeout=WAIT_S)
        assert sender.returncode == 0 and recv.wait(WAIT_S) == 0
        report = json.loads(told.splitlines()[-1])
    assert (tmp_path / "inbox" / "state").read_bytes() == state.read_bytes()
    # What was under way on the dead path has gone over the other, after its lanes were lost or before.
    assert report["sessions"] == 1 and report["blocks_resent"] + report["blocks_helped"] >= 1


def test_an_address_of_no_path_is_refused(machine: Machine, state: Path) -> None:
    with Lab([Shape()]) as lab:
        command = [*send_command(state, f"{lab.address(RIGHT)}:1"), "--insecure", "--from", "192.0.2.1"]
        done = lab.run(LEFT, command, env=machine.env("sender"), check=False, timeout_s=WAIT_S)
    assert done.returncode == 2 and "192.0.2.1" in done.stderr
