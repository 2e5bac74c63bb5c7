"""`dwcp serve` and `dwcp pull`: the side that dials receives, whatever happens to either process."""

import json
import signal
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .conftest import DWCP, MIB, WAIT_S, Machine, relay_to, wait_until_held, wait_until_staged
from .test_trees import facts, make_tree


def test_a_tree_is_pulled_as_it_is_at_the_time(machine: Machine) -> None:
    tree, into = machine.folder / "tree", machine.folder / "mine"
    make_tree(tree)
    with machine.serve(tree) as server:
        pulled = machine.pull(server.pairing, into, "--json")
        assert pulled.code == 0, pulled.err
        assert facts(into / "tree") == facts(tree)
        assert pulled.json["type"] == "received" and pulled.json["verified"] is True
        sent = server.wait_for("sent")
        assert sent["transfer_digest"] == pulled.json["transfer_digest"] and sent["entries"] == 12
        (tree / "text").write_text("another state\n" * 100_000)
        again = machine.pull(server.pairing, into, "--json")
        assert again.code == 0, again.err
        assert facts(into / "tree") == facts(tree)
        # What did not change did not come again.
        assert again.json["bytes_same"] > 64 * MIB and again.json["bytes_wire"] < MIB


def test_a_killed_server_is_resumed_by_the_waiting_puller(machine: Machine, state: Path) -> None:
    into = machine.folder / "mine"
    with machine.serve(state) as first, relay_to(first) as relay:
        relay.hold_after = 12 * MIB
        pulling = machine.start_pull(relay.reroute(first.pairing), into, "--json")
        wait_until_held(relay)
        wait_until_staged(into, 4)
        first.end(signal.SIGKILL)
        assert not (into / "state").exists()
        relay.cut()
        relay.hold.set()
        with machine.serve(state) as second:
            # The same string works again, although any port would have done.
            assert second.pairing == first.pairing
            pulled = machine.finish(pulling)
    assert pulled.code == 0, pulled.err
    assert (into / "state").read_bytes() == state.read_bytes()
    assert pulled.json["bytes_held"] >= 4 * MIB
    assert pulled.json["bytes_held"] + pulled.json["bytes_received_raw"] == 24 * MIB


def test_a_killed_puller_goes_on_where_it_was(machine: Machine, state: Path) -> None:
    into = machine.folder / "mine"
    with machine.serve(state) as server:
        with relay_to(server) as relay:
            relay.hold_after = 12 * MIB
            pulling = machine.start_pull(relay.reroute(server.pairing), into)
            wait_until_held(relay)
            wait_until_staged(into, 4)
            pulling.kill()
            pulling.communicate(timeout=WAIT_S)
        assert not (into / "state").exists()
        pulled = machine.pull(server.pairing, into, "--json")
        assert pulled.code == 0, pulled.err
        assert pulled.json["bytes_held"] >= 4 * MIB
        assert (into / "state").read_bytes() == state.read_bytes()


def test_lanes_that_are_cut_are_dialled_again(machine: Machine, state: Path) -> None:
    into = machine.folder / "mine"
    with machine.serve(state) as server, relay_to(server) as relay:
        relay.hold_after = 8 * MIB
        pulling = machine.start_pull(relay.reroute(server.pairing), into, "--json")
        wait_until_held(relay)
        relay.cut()
        relay.hold.set()
        pulled = machine.finish(pulling)
    assert pulled.code == 0, pulled.err
    assert pulled.json["lanes_lost"] > 0
    assert (into / "state").read_bytes() == state.read_bytes()


def test_a_byte_altered_on_the_way_never_reaches_the_state(machine: Machine, state: Path) -> None:
    into = machine.folder / "mine"
    with machine.serve(state) as server, relay_to(server) as relay:
        relay.flip_after = 5 * MIB
        pulled = machine.pull(relay.reroute(server.pairing), into, "--json")
    assert relay.flip_after is None
    assert pulled.code == 0, pulled.err
    assert pulled.json["integrity_failures"] > 0
    assert (into / "state").read_bytes() == state.read_bytes()


def test_a_server_that_stalls_or_is_gone_leaves_the_pull_resumable(machine: Machine, state: Path) -> None:
    into = machine.folder / "mine"
    with machine.serve(state) as server, relay_to(server) as relay:
        relay.hold_after = 5 * MIB
        stalled = machine.pull(relay.reroute(server.pairing), into, "--timeout", "2s", "--json")
        assert stalled.code == 12 and stalled.json["code"] == "deadline", stalled.err
        relay.hold.set()
        relay.held.clear()
        relay.hold_after = relay.forwarded + 5 * MIB
        pulling = machine.start_pull(relay.reroute(server.pairing), into, "--reconnect", "1s", "--json")
        wait_until_held(relay)
        server.end(signal.SIGKILL)
        relay.close()
        gone = machine.finish(pulling)
    assert gone.code == 12 and gone.json["resumable"] is True, gone.err
    assert "run the same command again" in gone.err


def test_many_pull_at_once_and_one_that_stands_still_holds_nobody_up(machine: Machine, state: Path) -> None:
    clients = 6
    with machine.serve(state, "--clients", str(clients + 1)) as server, relay_to(server) as relay:
        relay.hold_after = 5 * MIB
        slow = machine.start_pull(relay.reroute(server.pairing), machine.folder / "slow", user="slow")
        wait_until_held(relay)

        def pull(number: int) -> int:
            into = machine.folder / f"mine-{number}"
            code = machine.pull(server.pairing, into, user=f"user-{number}").code
            assert (into / "state").read_bytes() == state.read_bytes()
            return code

        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(pull, range(clients))) == [0] * clients
        assert slow.poll() is None
        # One more than it is good for.
        assert machine.pull(server.pairing, machine.folder / "more", user="stranger").code == 5
        relay.hold.set()
        assert machine.finish(slow).code == 0
    assert (machine.folder / "slow" / "state").read_bytes() == state.read_bytes()


def test_exit_codes_tell_what_was_wrong(machine: Machine, state: Path) -> None:
    into = machine.folder / "mine"
    with machine.serve(state) as server:
        address, _, secrets = server.pairing.partition("#")
        fingerprint, _, token = secrets.partition(".")
        with socket.create_server(("127.0.0.1", 0)) as free:
            nobody = f"127.0.0.1:{free.getsockname()[1]}"
        wrong: dict[int, list[str | Path]] = {
            4: [nobody, into, "--insecure"],
            5: [f"{address}#{fingerprint}.{'A' * 43}", into],
            2: [server.address, into, "--streams", "0"],
        }
        for code, arguments in wrong.items():
            pulled = machine.pull(*arguments, "--json")
            assert pulled.code == code, (code, pulled.err)
            assert token not in pulled.out + pulled.err
        assert not into.exists()
        # A sender has nothing to do here.
        assert machine.send(state, "--to", server.pairing, user="puller").code == 1
        assert machine.pull(server.pairing, into).code == 0
        (into / "state").write_text("old")
        refused = machine.pull(server.pairing, into, "--no-overwrite", "--json")
        assert refused.code == 1 and "exists" in refused.err
        assert (into / "state").read_text() == "old"


def test_a_tree_that_cannot_be_sent_is_told_without_saying_why(machine: Machine) -> None:
    (machine.folder / "tree").mkdir()
    with socket.socket(socket.AF_UNIX) as special, machine.serve(machine.folder / "tree") as server:
        special.bind(str(machine.folder / "tree" / "special"))
        pulled = machine.pull(server.pairing, machine.folder / "mine")
        assert pulled.code == 1 and "cannot be read" in pulled.err and "special" not in pulled.err
        assert "socket" in server.wait_for("error")["message"]
        (machine.folder / "tree" / "special").unlink()
        assert machine.pull(server.pairing, machine.folder / "mine").code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_server_ends_in_order(machine: Machine, number: signal.Signals, code: int, state: Path) -> None:
    into = machine.folder / "mine"
    with machine.serve(state) as server, relay_to(server) as relay:
        relay.hold_after = 8 * MIB
        pulling = machine.start_pull(relay.reroute(server.pairing), into, "--json")
        wait_until_held(relay)
        ending = threading.Timer(0.5, relay.hold.set)
        ending.start()
        assert server.end(number) == code
        ending.join()
        assert "Traceback" not in server.err()
        with machine.serve(state) as again:
            assert again.pairing == server.pairing
            pulled = machine.finish(pulling)
        assert pulled.code == 0, pulled.err
        assert (into / "state").read_bytes() == state.read_bytes()


def test_an_interrupted_puller_says_so_and_a_new_pairing_voids_the_old(machine: Machine, state: Path) -> None:
    into = machine.folder / "mine"
    with machine.serve(state, "--once") as server, relay_to(server) as relay:
        relay.hold_after = 4 * MIB
        pulling = machine.start_pull(relay.reroute(server.pairing), into)
        wait_until_held(relay)
        pulling.send_signal(signal.SIGINT)
        ended = machine.finish(pulling)
        assert ended.code == 130 and "interrupted" in ended.err and "Traceback" not in ended.err
        old = server.pairing
        # What was interrupted can go on, so the server waits for it.
        assert machine.pull(server.pairing, into).code == 0
        assert server.process.wait(WAIT_S) == 0
    with machine.serve(state, "--new-pairing", "--insecure") as plain:
        assert plain.pairing is None
        assert machine.pull(plain.address, into, "--insecure").code == 0
    with machine.serve(state) as server:
        assert server.pairing.rpartition("#")[2] != old.rpartition("#")[2]


def test_the_pairing_string_is_told_whatever_is_kept_quiet(machine: Machine, state: Path) -> None:
    command = ["serve", str(state), "--listen=127.0.0.1:0", "--once", "--json", "--quiet"]
    with subprocess.Popen(
        [*DWCP, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=machine.env("server"),
    ) as server:
        ending = threading.Timer(WAIT_S, server.kill)
        ending.start()
        assert server.stderr is not None
        told = server.stderr.readline() + server.stderr.readline()
        pairing = told.partition("'")[2].partition("'")[0]
        assert machine.pull(pairing, machine.folder / "mine").code == 0, told
        out, err = server.communicate(timeout=WAIT_S)
        ending.cancel()
    assert json.loads(out)["type"] == "sent" and err == ""
