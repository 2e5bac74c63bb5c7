"""Two processes on one host share memory: what arrives, who is refused, and what is left when one dies."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dwcp_fast as dwcp
from two_ends import LOCAL, accepted, meanwhile

from .conftest import WAIT_S, Machine, Recv, relay_to, wait_until_staged

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is shared on Linux only")

RING_BYTES = 1 << 16
REGION_BYTES = 4096 + 2 * RING_BYTES
OFFER = b"DWSM" + RING_BYTES.to_bytes(4, "little")
SLOWLY = ("--link", "shm", "--bwlimit", "100Mbps")
NOBODY = 65_534
TO_NOBODY = f"import os, socket; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"


def beside(address: str) -> str:
    """The name of the Unix socket that goes with a TCP address."""
    return f"\0dwcp-fast/{os.geteuid()}/{address}"


def memory(length: int, *, sealed: bool) -> int:
    """A descriptor of memory."""
    import fcntl

    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, length)
    if sealed:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return descriptor


def refusals() -> tuple[list[str], Callable[[dict[str, Any]], None], threading.Event]:
    """What a listener tells of those it turned away."""
    told: list[str] = []
    came = threading.Event()

    def event(facts: dict[str, Any]) -> None:
        if facts["type"] == "refused":
            told.append(facts["reason"])
            came.set()

    return told, event, came


def send_some(address: str) -> str:
    """Send a state, and tell what carried it."""
    options = dwcp.SendOptions(codec="none")
    with dwcp.connect(address, trust=dwcp.INSECURE, options=options) as sending:
        return sending.send({"state": b"state" * 1000}).transport


def receive_some(listener: dwcp.Listener) -> str:
    """Receive one, and tell what carried it."""
    with accepted(listener) as incoming:
        received = incoming.receive(WAIT_S)
    assert received is not None and bytes(received["state"]) == b"state" * 1000
    return received.report.transport


def test_a_state_goes_through_memory_on_one_host_and_both_reports_say_so(
    machine: Machine, recv: Recv, state: Path
) -> None:
    sent = machine.send(state, "--to", recv.pairing, "--json")
    assert sent.code == 0, sent.err
    assert (sent.json["transport"], sent.json["lanes_lost"]) == ("shm", 0)
    assert sent.json["why"]["link"].startswith("shm: memory is faster")
    assert recv.wait_for("received")["transport"] == "shm"
    assert (recv.into / "state").read_bytes() == state.read_bytes()


def test_what_shares_no_memory_is_reached_through_tcp_and_that_is_told(
    machine: Machine, recv: Recv, state: Path
) -> None:
    with relay_to(recv) as relay:
        sent = machine.send(state, "--to", relay.reroute(recv.pairing), "--json")
        refused = machine.send(state, "--to", relay.reroute(recv.pairing), "--link", "shm", "--json")
    assert (sent.code, sent.json["transport"]) == (0, "tls")
    assert "but shm: cannot reach" in sent.json["why"]["link"]
    assert refused.code == 4, refused.err
    assert "through shared memory" in refused.err
    with machine.recv("--link", "tcp", name="other") as other:
        assert machine.send(state, "--to", other.pairing, "--json").json["transport"] == "tls"


def test_the_end_of_the_receiver_is_noticed_and_the_transfer_goes_on_with_the_next(
    machine: Machine, state: Path
) -> None:
    with machine.recv() as first:
        sending = machine.start_send(state, "--to", first.pairing, *SLOWLY, "--reconnect", "1s", "--json")
        wait_until_staged(first.into, 4)
        first.end(signal.SIGKILL)
        sent = machine.finish(sending)
    assert sent.code == 12, sent.err
    assert sent.json["resumable"] is True
    with machine.recv() as second:
        again = machine.send(state, "--to", second.pairing, "--link", "shm", "--json")
        assert again.code == 0, again.err
        assert again.json["blocks_held"] >= 4
        assert (second.into / "state").read_bytes() == state.read_bytes()


def test_a_receiver_that_comes_back_is_met_again_through_memory(machine: Machine, state: Path) -> None:
    with machine.recv() as first:
        sending = machine.start_send(state, "--to", first.pairing, *SLOWLY, "--json")
        wait_until_staged(first.into, 4)
        first.end(signal.SIGKILL)
        with machine.recv() as second:
            sent = machine.finish(sending)
            assert sent.code == 0, sent.err
            assert (second.into / "state").read_bytes() == state.read_bytes()
    assert (sent.json["transport"], sent.json["sessions"]) == ("shm", 2)
    assert sent.json["blocks_held"] >= 4


def test_the_end_of_the_sender_leaves_what_came_to_the_next(
    machine: Machine, recv: Recv, state: Path
) -> None:
    sending = machine.start_send(state, "--to", recv.pairing, *SLOWLY)
    wait_until_staged(recv.into, 4)
    sending.kill()
    sending.communicate(timeout=WAIT_S)
    recv.wait_for("lane-down")
    sent = machine.send(state, "--to", recv.pairing, "--json")
    assert sent.code == 0, sent.err
    assert sent.json["blocks_held"] >= 4
    assert (recv.into / "state").read_bytes() == state.read_bytes()


def test_a_sender_that_is_interrupted_ends_at_once(machine: Machine, recv: Recv, state: Path) -> None:
    slowest = ("--link", "shm", "--bwlimit", "10Mbps")
    sending = machine.start_send(state, "--to", recv.pairing, *slowest, "--json")
    wait_until_staged(recv.into, 1)
    sending.send_signal(signal.SIGINT)
    assert machine.finish(sending).code == 130


@pytest.mark.parametrize(
    ("offer", "length", "sealed", "reason"),
    [
        (OFFER, REGION_BYTES, False, "not sealed"),
        (OFFER, REGION_BYTES - 4096, True, "bytes"),
        (b"DWSM" + (1 << 31).to_bytes(4, "little"), REGION_BYTES, True, "no power of two"),
        (b"GET / HT", REGION_BYTES, True, "no offer"),
        (OFFER, None, True, "without exactly one descriptor"),
    ],
)
def test_memory_that_may_not_be_trusted_is_refused_and_others_are_served(
    offer: bytes, length: int | None, sealed: bool, reason: str
) -> None:
    told, event, came = refusals()
    with dwcp.listen(LOCAL, trust=dwcp.INSECURE, events=event) as listener:
        with socket.socket(socket.AF_UNIX) as hostile:
            hostile.settimeout(WAIT_S)
            hostile.connect(beside(listener.address))
            descriptors = [] if length is None else [memory(length, sealed=sealed)]
            socket.send_fds(hostile, [offer], descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            assert hostile.recv(1) == b""
        assert came.wait(WAIT_S) and reason in told[0]
        with meanwhile(lambda: receive_some(listener)) as arriving:
            assert send_some(listener.address) == arriving.result(WAIT_S) == "shm"


@pytest.mark.parametrize("indices", [[1 << 40] * 8, [(1 << 64) - 1] * 8, [RING_BYTES + 1] + [0] * 7])
def test_indices_that_cannot_be_end_that_lane_and_nothing_else(indices: list[int]) -> None:
    told, event, came = refusals()
    with dwcp.listen(LOCAL, trust=dwcp.INSECURE, events=event) as listener:
        descriptor = memory(REGION_BYTES, sealed=True)
        for line, index in enumerate(indices):
            os.pwrite(descriptor, index.to_bytes(8, "little"), line * 128)
        with socket.socket(socket.AF_UNIX) as hostile:
            hostile.settimeout(WAIT_S)
            hostile.connect(beside(listener.address))
            socket.send_fds(hostile, [OFFER], [descriptor])
            assert hostile.recv(1) == b"\1"
            assert came.wait(WAIT_S) and "does not fit" in told[0]
        os.close(descriptor)
        with meanwhile(lambda: receive_some(listener)) as arriving:
            assert send_some(listener.address) == arriving.result(WAIT_S) == "shm"


@pytest.mark.privileged
def test_a_process_of_another_user_is_refused_at_either_end() -> None:
    told, event, came = refusals()
    with dwcp.listen(LOCAL, trust=dwcp.INSECURE, events=event) as listener:
        dialler = (
            f"{TO_NOBODY}hostile = socket.socket(socket.AF_UNIX)\n"
            f"hostile.settimeout({WAIT_S})\nhostile.connect({beside(listener.address)!r})\n"
            "assert hostile.recv(1) == b''\n"
        )
        subprocess.run([sys.executable, "-c", dialler], check=True, timeout=WAIT_S)
        assert came.wait(WAIT_S) and f"user {NOBODY} is at the other end" in told[0]
    # And who has taken the name of a listener that shares none.
    options = dwcp.ReceiveOptions(link="tcp")
    with dwcp.listen(LOCAL, trust=dwcp.INSECURE, options=options) as listener:
        squatter = (
            f"{TO_NOBODY}hostile = socket.socket(socket.AF_UNIX)\n"
            f"hostile.bind({beside(listener.address)!r})\nhostile.listen()\nprint(flush=True)\n"
            "while True:\n    print(len(hostile.accept()[0].recv(1)), flush=True)\n"
        )
        with subprocess.Popen([sys.executable, "-c", squatter], stdout=subprocess.PIPE, text=True) as running:
            try:
                assert running.stdout is not None and running.stdout.readline() == "\n"
                with pytest.raises(dwcp.AuthError, match=f"user {NOBODY}"):
                    shared = dwcp.SendOptions(link="shm")
                    dwcp.connect(listener.address, trust=dwcp.INSECURE, options=shared)
                # It was told nothing.
                assert running.stdout.readline() == "0\n"
                with meanwhile(lambda: receive_some(listener)) as arriving:
                    assert send_some(listener.address) == arriving.result(WAIT_S) == "tcp"
            finally:
                running.kill()


def mapped() -> int:
    """How many mappings of such memory this process has."""
    return Path("/proc/self/maps").read_text().count("memfd:dwcp-fast")


def test_two_hundred_sessions_leave_no_descriptor_and_no_mapping() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    noise = np.random.default_rng(1).bytes(300_000)
    with dwcp.listen(LOCAL, trust=dwcp.INSECURE) as listener:

        def session() -> None:
            def receive() -> bytes:
                with accepted(listener) as incoming:
                    received = incoming.receive(WAIT_S)
                assert received is not None
                return bytes(received["noise"])

            with meanwhile(receive) as arriving:
                options = dwcp.SendOptions(link="shm", streams=1)
                with dwcp.connect(listener.address, trust=dwcp.INSECURE, options=options) as sending:
                    assert mapped() > 0
                    assert sending.send({"noise": noise}).transport == "shm"
                assert arriving.result(WAIT_S) == noise

        session()
        before = descriptors()
        for _ in range(200):
            session()
        after, left = descriptors(), mapped()
    assert (after - before, left) == (0, 0)
