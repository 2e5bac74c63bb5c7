"""What networks and clocks do to a transfer between two processes: it goes on, or ends at its deadline."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from .breaker import Breaker
from .conftest import MIB, WAIT_S, Ended, Machine, Recv, Service
from .soak import Footprint, wait_until_settled

SIZE = 6 * MIB


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A file that no codec makes smaller."""
    path = tmp_path / "state"
    path.write_bytes(np.random.default_rng(12).bytes(SIZE))
    return path


@contextlib.contextmanager
def breaker_to(service: Service) -> Iterator[Breaker]:
    host, _, port = service.address.rpartition(":")
    breaker = Breaker((host, int(port)))
    try:
        yield breaker
    finally:
        breaker.close()


def arrived(sent: Ended, recv: Recv, state: Path) -> None:
    assert sent.code == 0, sent.err
    assert (recv.into / "state").read_bytes() == state.read_bytes()


def wait_until_still(breaker: Breaker) -> None:
    """Wait until the relay gets rid of nothing for a second: every buffer and window is full."""
    end = time.monotonic() + WAIT_S
    last, since = breaker.passed, time.monotonic()
    while time.monotonic() - since < 1:
        assert time.monotonic() < end, "it never stands still"
        time.sleep(0.05)
        if breaker.passed != last:
            last, since = breaker.passed, time.monotonic()


def test_a_receiver_that_stands_still_is_waited_for_and_then_given_up(machine: Machine, state: Path) -> None:
    # More than what the system would hold for it.
    size = 32 * MIB
    state.write_bytes(np.random.default_rng(13).bytes(size))
    with machine.recv() as recv, breaker_to(recv) as breaker:
        breaker.stop_at(MIB)
        sending = machine.start_send(state, "--to", breaker.reroute(recv.pairing), "--json", "--streams", "2")
        assert breaker.wait_until_held(WAIT_S)
        recv.process.send_signal(signal.SIGSTOP)
        breaker.stop_at(None)
        wait_until_still(breaker)
        assert sending.poll() is None and breaker.passed < size
        recv.process.send_signal(signal.SIGCONT)
        arrived(machine.finish(sending), recv, state)

        state.write_bytes(np.random.default_rng(14).bytes(size))
        breaker.stop_at(breaker.passed + MIB)
        target = breaker.reroute(recv.pairing)
        sending = machine.start_send(state, "--to", target, "--timeout", "3s", "--json", "--streams", "2")
        assert breaker.wait_until_held(WAIT_S)
        recv.process.send_signal(signal.SIGSTOP)
        breaker.stop_at(None)
        given_up = machine.finish(sending)
        assert given_up.code == 12 and given_up.json["code"] == "deadline", given_up.err
        recv.process.send_signal(signal.SIGCONT)
        arrived(machine.send(state, "--to", recv.pairing), recv, state)


def test_a_sender_that_stands_still_is_given_up_and_comes_back(machine: Machine, state: Path) -> None:
    with machine.recv("--idle-timeout", "2s") as recv, breaker_to(recv) as breaker:
        before = Footprint.of(recv.process.pid)
        breaker.stop_at(MIB)
        sending = machine.start_send(state, "--to", breaker.reroute(recv.pairing), "--json")
        assert breaker.wait_until_held(WAIT_S)
        sending.send_signal(signal.SIGSTOP)
        breaker.stop_at(None)
        recv.wait_for("lane-down")
        wait_until_settled(recv.process.pid, before)
        sending.send_signal(signal.SIGCONT)
        arrived(machine.finish(sending), recv, state)


def test_a_block_may_take_longer_than_silence_may_last(machine: Machine, state: Path) -> None:
    state.write_bytes(state.read_bytes()[: 2 * MIB])
    options = ["--streams", "2", "--codec", "none", "--json"]
    with machine.recv("--idle-timeout", "1s") as recv:
        # Slow to write: two blocks of 1 MiB on two lanes take two seconds.
        limited = machine.send(state, "--to", recv.pairing, "--bwlimit", "8Mbps", *options)
        arrived(limited, recv, state)
        assert limited.json["lanes_lost"] == 0
        # Slow to read: the relay takes no more than about 800 KiB a second of each lane.
        state.write_bytes(np.random.default_rng(14).bytes(2 * MIB))
        with breaker_to(recv) as breaker:
            breaker.lag = lambda _: 0.02
            slow = machine.send(state, "--to", breaker.reroute(recv.pairing), *options)
        arrived(slow, recv, state)
        assert slow.json["lanes_lost"] == 0


def test_lanes_that_overtake_each_other_change_nothing(machine: Machine, recv: Recv, state: Path) -> None:
    rng = random.Random(15)
    with breaker_to(recv) as breaker:
        breaker.lag = lambda _: rng.choice([0, 0, 0, 0.03])
        options = ["--streams", "4", "--block-size", "64KiB", "--json"]
        for seed in (16, 17):
            arrived(machine.send(state, "--to", breaker.reroute(recv.pairing), *options), recv, state)
            state.write_bytes(state.read_bytes()[: SIZE // 2] + np.random.default_rng(seed).bytes(SIZE // 3))


class Path3:
    """Three network namespaces in a row; the one in the middle forwards, or throws away without a word."""

    def __init__(self) -> None:
        self.names = [f"dwcp-{os.getpid()}-{end}" for end in "abc"]
        self._made: list[str] = []

    def run(self, *words: str) -> None:
        subprocess.run(words, check=True, capture_output=True, timeout=WAIT_S)

    def inside(self, index: int) -> list[str]:
        """What a command in one of them begins with."""
        return ["ip", "netns", "exec", self.names[index]]

    def open(self) -> None:
        a, middle, c = self.names
        for name in self.names:
            self.run("ip", "netns", "add", name)
            self._made.append(name)
            self.run("ip", "-n", name, "link", "set", "lo", "up")
        for end, number in ((a, 1), (c, 2)):
            veth = f"v{number}"
            veths = ["v0", "type", "veth", "peer", "name", veth, "netns", middle]
            self.run("ip", "-n", end, "link", "add", *veths)
            for name, link, host in ((end, "v0", 2), (middle, veth, 1)):
                self.run("ip", "-n", name, "addr", "add", f"192.0.2.{16 * number + host}/28", "dev", link)
                self.run("ip", "-n", name, "link", "set", link, "up")
            self.run("ip", "-n", end, "route", "add", "default", "via", f"192.0.2.{16 * number + 1}")
        self.forward(True)

    def forward(self, does: bool) -> None:
        """Forward, or be a black hole: addresses, routes and carriers stay as they are."""
        self.run(*self.inside(1), "sysctl", "-q", f"net.ipv4.ip_forward={int(does)}")

    def close(self) -> None:
        for name in self._made:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=WAIT_S)


@pytest.fixture
def path() -> Iterator[Path3]:
    """A way from the first namespace to the last."""
    if not (shutil.which("ip") and shutil.which("sysctl")):
        pytest.skip("needs ip and sysctl")
    made = Path3()
    try:
        try:
            made.open()
        except (subprocess.CalledProcessError, OSError) as error:
            pytest.skip(f"cannot make network namespaces here: {error}")
        yield made
    finally:
        made.close()


@pytest.mark.privileged
def test_a_black_hole_is_outlived_or_ends_at_the_deadline_on_both_sides(
    tmp_path: Path, state: Path, path: Path3
) -> None:
    machine = Machine(tmp_path, {"receiver": path.inside(2), "sender": path.inside(0)})
    with machine.recv("--idle-timeout", "2s", listen="192.0.2.34:0") as recv:
        before = Footprint.of(recv.process.pid)
        slow = ["--to", recv.pairing, "--bwlimit", "24Mbps", "--codec", "none", "--json"]
        # It comes back: nobody notices, or dials again.
        sending = machine.start_send(state, *slow)
        recv.wait_for("session-opened")
        path.forward(False)
        time.sleep(1)
        path.forward(True)
        arrived(machine.finish(sending), recv, state)
        # It does not: the sender keeps its deadline, and the receiver its own, without a FIN from anybody.
        state.write_bytes(np.random.default_rng(18).bytes(SIZE))
        sending = machine.start_send(state, *slow, "--timeout", "3s")
        recv.wait_for("session-opened")
        path.forward(False)
        given_up = machine.finish(sending)
        assert given_up.code == 12 and given_up.json["code"] == "deadline", given_up.err
        wait_until_settled(recv.process.pid, before)
        # The path is back, and so is the sender.
        path.forward(True)
        arrived(machine.send(state, "--to", recv.pairing), recv, state)
        # A sender that dies in a black hole leaves its connections half open.
        state.write_bytes(np.random.default_rng(19).bytes(SIZE))
        sending = machine.start_send(state, *slow)
        recv.wait_for("session-opened")
        path.forward(False)
        sending.kill()
        sending.communicate(timeout=WAIT_S)
        wait_until_settled(recv.process.pid, before)
        path.forward(True)
        arrived(machine.send(state, "--to", recv.pairing), recv, state)


STEPPING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

/* The wall clock is a day early in one second, and a day late in the next. */
static time_t step(void) {
    static int (*real)(clockid_t, struct timespec *);
    struct timespec now;
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    real(CLOCK_MONOTONIC, &now);
    return now.tv_sec % 2 ? 86400 : -86400;
}
int clock_gettime(clockid_t clock, struct timespec *out) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, out);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) out->tv_sec += step();
    return result;
}
int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    static int (*real)(struct timeval *restrict, void *restrict);
    if (!real) real = (int (*)(struct timeval *restrict, void *restrict))dlsym(RTLD_NEXT, "gettimeofday");
    int result = real(out, zone);
    if (!result && out) out->tv_sec += step();
    return result;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


@pytest.fixture
def stepping(tmp_path: Path) -> str:
    """A library that steps the wall clock of whoever it is loaded into."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler to step the wall clock of a process")
    source, library = tmp_path / "stepping.c", tmp_path / "stepping.so"
    source.write_text(STEPPING)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, timeout=WAIT_S)
    return str(library)


def test_steps_of_the_wall_clock_move_no_deadline(tmp_path: Path, state: Path, stepping: str) -> None:
    machine = Machine(tmp_path, LD_PRELOAD=stepping)
    with machine.recv("--idle-timeout", "3s") as recv, breaker_to(recv) as breaker:
        # Over several steps, nothing is given up too early.
        sent = machine.send(state, "--to", recv.pairing, "--bwlimit", "20Mbps", "--codec", "none", "--json")
        arrived(sent, recv, state)
        assert sent.json["lanes_lost"] == 0 and sent.json["sessions"] == 1
        recv.wait_for("received")
        # And nothing too late.
        state.write_bytes(np.random.default_rng(20).bytes(SIZE))
        breaker.stop_at(MIB)
        sent = machine.send(state, "--to", breaker.reroute(recv.pairing), "--timeout", "3s", "--json")
        assert sent.code == 12 and sent.json["code"] == "deadline", sent.err
        stamps = [event["ts"][:10] for event in recv.events]
        assert len(set(stamps)) > 1, "the clock was not stepped"
