"""What goes wrong between two processes ends in order: resumed, or refused with the documented exit code."""

import errno
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from .conftest import MIB, WAIT_S, Machine, Recv, relay_to, wait_until_held, wait_until_staged


def test_a_killed_receiver_is_resumed_by_the_waiting_sender(machine: Machine, state: Path) -> None:
    with machine.recv() as first, relay_to(first) as relay:
        relay.hold_after = 12 * MIB
        sending = machine.start_send(state, "--to", relay.reroute(first.pairing), "--json")
        wait_until_held(relay)
        wait_until_staged(first.into, 4)
        pairing = first.pairing
        first.end(signal.SIGKILL)
        assert not (first.into / "state").exists()
        relay.cut()
        relay.hold.set()
        with machine.recv() as second:
            # The same string works again, although any port would have done.
            assert second.pairing == pairing
            sent = machine.finish(sending)
            assert sent.code == 0, sent.err
            assert (second.into / "state").read_bytes() == state.read_bytes()
    assert sent.json["sessions"] == 2 and sent.json["blocks_held"] > 0
    # Blocks that were verified were not sent a second time: only what was under way was.
    assert relay.forwarded < 24 * MIB + 12 * MIB


def test_a_killed_sender_is_resumed_by_the_next(machine: Machine, recv: Recv, state: Path) -> None:
    with relay_to(recv) as relay:
        relay.hold_after = 12 * MIB
        sending = machine.start_send(state, "--to", relay.reroute(recv.pairing))
        wait_until_held(relay)
        wait_until_staged(recv.into, 4)
        sending.kill()
        sending.communicate(timeout=WAIT_S)
    assert not (recv.into / "state").exists()
    sent = machine.send(state, "--to", recv.pairing, "--json")
    assert sent.code == 0, sent.err
    assert sent.json["blocks_held"] > 0
    assert sent.json["blocks_sent"] + sent.json["blocks_held"] == 24
    assert (recv.into / "state").read_bytes() == state.read_bytes()


def test_lanes_that_are_cut_are_replaced(machine: Machine, recv: Recv, state: Path) -> None:
    with relay_to(recv) as relay:
        relay.hold_after = 8 * MIB
        sending = machine.start_send(state, "--to", relay.reroute(recv.pairing), "--json")
        wait_until_held(relay)
        relay.cut()
        relay.hold.set()
        sent = machine.finish(sending)
    assert sent.code == 0, sent.err
    assert sent.json["lanes_lost"] > 0
    assert (recv.into / "state").read_bytes() == state.read_bytes()


@pytest.mark.parametrize("security", ["tls", "plain"])
def test_a_byte_altered_on_the_way_never_reaches_the_state(
    machine: Machine, state: Path, security: str
) -> None:
    options = ["--insecure"] if security == "plain" else []
    with machine.recv(*options) as recv, relay_to(recv) as relay:
        relay.flip_after = 5 * MIB
        target = relay.reroute(recv.pairing) if security == "tls" else f"127.0.0.1:{relay.port}"
        sent = machine.send(state, "--to", target, "--json", *options)
        assert relay.flip_after is None
        assert sent.code in {0, 6}, sent.err
        if sent.code == 0:
            assert sent.json["lanes_lost"] > 0
            assert (recv.into / "state").read_bytes() == state.read_bytes()
        else:
            assert not (recv.into / "state").exists()
        events = "".join(str(event) for event in recv.events)
        recv.wait_for("integrity-failure" if "integrity-failure" not in events else "lane-down")


def test_a_peer_that_stalls_is_given_up_at_the_deadline(machine: Machine, recv: Recv, state: Path) -> None:
    with relay_to(recv) as relay:
        relay.hold_after = 5 * MIB
        sent = machine.send(state, "--to", relay.reroute(recv.pairing), "--timeout", "2s", "--json")
    assert sent.code == 12, sent.err
    assert sent.json["code"] == "deadline" and sent.json["resumable"] is True
    assert "run the same command again" in sent.err


def test_a_receiver_that_does_not_come_back_leaves_the_transfer_resumable(
    machine: Machine, state: Path
) -> None:
    with machine.recv() as recv, relay_to(recv) as relay:
        relay.hold_after = 5 * MIB
        sending = machine.start_send(
            state, "--to", relay.reroute(recv.pairing), "--reconnect", "1s", "--json"
        )
        wait_until_held(relay)
        recv.end(signal.SIGKILL)
        relay.close()
        sent = machine.finish(sending)
    assert sent.code == 12, sent.err
    assert sent.json["resumable"] is True


def test_exit_codes_tell_what_was_wrong(machine: Machine, recv: Recv, state: Path) -> None:
    address, _, secrets = recv.pairing.partition("#")
    fingerprint, _, token = secrets.partition(".")
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    wrong: dict[int, list[str | Path]] = {
        3: [state.with_name("missing"), "--to", recv.pairing],
        4: [state, "--to", nobody, "--insecure"],
        5: [state, "--to", f"{address}#{fingerprint}.{'A' * 43}"],
        2: [state, "--to", recv.pairing, "--streams", "0"],
        10: [state, state.parent, "--to", recv.address, "--protocol", "v1"],
    }
    for code, arguments in wrong.items():
        sent = machine.send(*arguments, "--json")
        assert sent.code == code, (code, sent.err)
        assert token not in sent.out + sent.err
    sent = machine.send(state, "--to", f"{address}#{'A' * 43}.{token}")
    assert sent.code == 5 and "fingerprint" in sent.err
    # After all that the receiver still works.
    assert machine.send(state, "--to", recv.pairing).code == 0


def test_a_token_is_refused_to_a_second_user(machine: Machine, recv: Recv, state: Path) -> None:
    assert machine.send(state, "--to", recv.pairing).code == 0
    assert machine.send(state, "--to", recv.pairing, user="stranger").code == 5
    assert machine.send(state, "--to", recv.pairing).code == 0


def test_strangers_on_the_port_do_not_disturb_a_transfer(machine: Machine, recv: Recv, state: Path) -> None:
    host, _, port = recv.address.rpartition(":")
    with relay_to(recv) as relay:
        relay.hold_after = 8 * MIB
        sending = machine.start_send(state, "--to", relay.reroute(recv.pairing))
        wait_until_held(relay)
        noise = np.random.default_rng(6).bytes(4096)
        for greeting in (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            noise,
            b"\x16\x03\x01" + noise,
            b"DWCP3\n\x03\x03",
            b"",
        ):
            with socket.create_connection((host, int(port)), timeout=WAIT_S) as stranger:
                try:
                    stranger.sendall(greeting)
                    stranger.shutdown(socket.SHUT_WR)
                    while stranger.recv(4096):
                        pass
                except OSError as error:
                    # It may be turned away before it has said all, but not be kept waiting.
                    if error.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN):
                        raise
        relay.hold.set()
        sent = machine.finish(sending)
    assert sent.code == 0, sent.err
    assert (recv.into / "state").read_bytes() == state.read_bytes()


def test_an_interrupted_sender_says_so(machine: Machine, recv: Recv, state: Path) -> None:
    with relay_to(recv) as relay:
        relay.hold_after = 4 * MIB
        sending = machine.start_send(state, "--to", relay.reroute(recv.pairing))
        wait_until_held(relay)
        sending.send_signal(signal.SIGINT)
        sent = machine.finish(sending)
    assert sent.code == 130 and "interrupted" in sent.err
    assert "Traceback" not in sent.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_receiver_ends_in_order(machine: Machine, number: signal.Signals, code: int, state: Path) -> None:
    with machine.recv() as recv, relay_to(recv) as relay:
        relay.hold_after = 8 * MIB
        sending = machine.start_send(
            state, "--to", relay.reroute(recv.pairing), "--reconnect", "20s", "--json"
        )
        wait_until_held(relay)
        assert recv.end(number) == code
        assert "Traceback" not in recv.err()
        relay.cut()
        relay.hold.set()
        with machine.recv() as again:
            sent = machine.finish(sending)
            assert sent.code == 0, sent.err
            assert (again.into / "state").read_bytes() == state.read_bytes()


@contextmanager
def mounted(path: Path, options: str) -> Iterator[None]:
    """A small file system of its own."""
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        yield
    finally:
        for _ in range(50):
            if subprocess.run(["umount", path], check=False, capture_output=True).returncode == 0:
                break
            time.sleep(0.1)


@pytest.mark.privileged
def test_a_full_disk_is_told_before_anything_is_sent(machine: Machine, state: Path) -> None:
    with mounted(machine.folder / "small", "size=8m"), machine.recv(name="small/inbox") as recv:
        sent = machine.send(state, "--to", recv.pairing, "--json")
        assert sent.code in {1, 12}, sent.err
        assert "disk" in sent.err or "space" in sent.err
        assert not (recv.into / "state").exists()
        failed = recv.wait_for("error")
        assert "28" in failed["message"] or "space" in failed["message"] or "free" in failed["message"]


@pytest.mark.privileged
def test_a_target_with_a_file_system_mounted_in_it_is_refused_before_anything_is_sent(
    machine: Machine, recv: Recv, state: Path
) -> None:
    tree = machine.folder / "tree"
    (tree / "inner").mkdir(parents=True)
    state.rename(tree / "inner" / "state")
    (recv.into / "tree").mkdir()
    with mounted(recv.into / "tree" / "inner", "size=64m"):
        sent = machine.send(tree, "--to", recv.pairing, "--json")
        assert sent.code != 0 and "another file system" in sent.err
        assert not list((recv.into / "tree" / "inner").iterdir())


@pytest.mark.privileged
def test_a_read_only_target_is_told(machine: Machine, state: Path) -> None:
    with mounted(machine.folder / "fixed", "size=64m"):
        subprocess.run(["mount", "-o", "remount,ro", machine.folder / "fixed"], check=True)
        ended = machine.run("recv", "--listen", "127.0.0.1:0", "--into", machine.folder / "fixed" / "inbox")
        assert ended.code == 1 and "Read-only" in ended.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_target_without_permission_is_told(machine: Machine, state: Path) -> None:
    (machine.folder / "closed").mkdir(mode=0o500)
    ended = machine.run("recv", "--listen", "127.0.0.1:0", "--into", machine.folder / "closed" / "inbox")
    assert ended.code == 1 and "Permission denied" in ended.err
