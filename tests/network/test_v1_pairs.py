"""The four pairs of v1 and v3, on one port."""

import socket
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from dwcp_fast import errors
from dwcp_fast.v1 import V1Options, V1Receiver, send_v1
from dwcp_fast.v1.chunks import AMST_HEADER

from .conftest import WAIT_S, Machine
from .relay import Relay

STATE = np.random.default_rng(8).integers(0, 50, 1 << 20, dtype=np.uint8).tobytes()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """What is sent."""
    path = tmp_path / "state"
    path.write_bytes(STATE)
    return path


def test_v1_and_v3_senders_are_served_on_one_port_at_once(machine: Machine, state: Path) -> None:
    with machine.recv("--allow-v1") as recv:
        host, _, port = recv.address.rpartition(":")
        relay = Relay((host, int(port)))
        try:
            relay.hold_after = 100_000
            waiting = machine.start_send(state, "--to", relay.reroute(recv.pairing), "--codec", "none")
            assert relay.held.wait(WAIT_S)
            # While a v3 transfer is under way, a v1 one comes and goes.
            sent = machine.send(state, "--to", recv.address, "--protocol", "v1", "--json")
            assert sent.code == 0, sent.err
            assert (sent.json["protocol"], sent.json["verified"]) == ("v1", False)
            delivered = recv.wait_for("received")
            assert delivered["protocol"] == "v1" and delivered["verified"] is False
            assert Path(delivered["path"]).read_bytes() == STATE
            assert Path(delivered["path"]).name.startswith("v1-")
            relay.hold.set()
            assert machine.finish(waiting).code == 0
        finally:
            relay.close()
        assert recv.wait_for("received")["verified"] is True
        assert (recv.into / "state").read_bytes() == STATE
        assert "neither authenticated nor verified" in recv.err()


def test_a_v1_sender_is_refused_with_a_reason_where_v1_is_not_served(machine: Machine, state: Path) -> None:
    with machine.recv() as recv:
        sent = machine.send(state, "--to", recv.address, "--protocol", "v1")
        assert sent.code == 4 and "--allow-v1" in sent.err
        recv.wait_for("v1-refused")
        assert machine.send(state, "--to", recv.pairing).code == 0
    with machine.recv("--allow-v1", "192.0.2.0/24", name="elsewhere") as recv:
        assert machine.send(state, "--to", recv.address, "--protocol", "v1").code == 4


@pytest.mark.parametrize("generation", ["A", "B", "C"])
@pytest.mark.parametrize("payload", ["hde", "raw"])
def test_v1_to_v1(machine: Machine, state: Path, generation: str, payload: str) -> None:
    options = ["--v1-generation", generation, "--v1-payload", payload]
    with machine.recv("--allow-v1", "127.0.0.0/8", "--once", *options) as recv:
        assert machine.send(state, "--to", recv.address, "--protocol", "v1", *options).code == 0
        assert Path(recv.wait_for("received")["path"]).read_bytes() == STATE
        assert recv.process.wait(WAIT_S) == 0


def test_a_v3_sender_tells_a_v1_receiver_apart(machine: Machine, state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(WAIT_S)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with V1Receiver(V1Options(idle_timeout_s=2), on_delivery=lambda _: None) as receiver:
            sending = machine.start_send(state, "--to", address, "--insecure", "--connect-timeout", "5s")
            connection, peer = server.accept()
            receiver.add_connection(connection, peer)
            sent = machine.finish(sending)
        assert sent.code in {4, 7, 10}, sent.err
        assert "Traceback" not in sent.err


def test_a_directory_or_several_files_do_not_go_through_v1(machine: Machine, state: Path) -> None:
    with machine.recv("--allow-v1") as recv:
        for paths in ([state.parent / "tree"], [state, state.parent / "other"]):
            (state.parent / "tree").mkdir(exist_ok=True)
            (state.parent / "tree" / "file").touch()
            (state.parent / "other").touch()
            sent = machine.send(*paths, "--to", recv.address, "--protocol", "v1")
            assert sent.code == 10 and "one file" in sent.err


def test_a_v1_peer_that_stalls_does_not_hold_up_the_others(machine: Machine, state: Path) -> None:
    with machine.recv("--allow-v1") as recv:
        host, _, port = recv.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=WAIT_S) as stalled:
            stalled.sendall(b"\0\0\0")
            assert machine.send(state, "--to", recv.pairing).code == 0
        assert recv.wait_for("received")["verified"] is True


def test_a_fleet_that_goes_back_to_v1_at_once_is_taken(machine: Machine) -> None:
    with machine.recv("--allow-v1") as recv, ExitStack() as stack:
        host, _, port = recv.address.rpartition(":")
        senders = []
        for number in range(1, 21):
            # v1 tells its peers apart by address alone.
            source = (f"127.0.8.{number}", 0)
            sender = socket.create_connection((host, int(port)), WAIT_S, source_address=source)
            stack.enter_context(sender)
            sender.sendall(AMST_HEADER.pack(0, 0, 10, 20) + bytes(10))
            senders.append(sender)
        # Whoever was turned away would be told within a moment, and this takes one.
        assert machine.send(__file__, "--to", recv.address, "--protocol", "v1").code == 0
        for sender in senders:
            sender.setblocking(False)
            with pytest.raises(BlockingIOError):
                sender.recv(1)


def test_the_sender_of_the_library_is_served_too(machine: Machine) -> None:
    with machine.recv("--allow-v1") as recv:
        host, _, port = recv.address.rpartition(":")
        report = send_v1(host, int(port), STATE)
        delivered = recv.wait_for("received")
    assert delivered["xxh3_128"] == report.xxh3_128
    with pytest.raises((errors.DwcpError, OSError)):
        send_v1(host, int(port), STATE)
