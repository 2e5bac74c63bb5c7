"""The kill switch over real processes, in the middle of a transfer."""

import json
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from .conftest import MIB, Ended, Machine, relay_to, wait_until_held, wait_until_staged

REACH_S = 5.0
ALL = {"enableV3Transport": True, "v3RolloutPercentage": 100}


@pytest.fixture
def flags(tmp_path: Path) -> Callable[[bool], Path]:
    """Writes the flags file, with the kill switch on or off."""

    def write(killed: bool) -> Path:
        path = tmp_path / "flags.json"
        staged = tmp_path / "flags.json.new"
        staged.write_text(json.dumps({**ALL, "forceV1Mode": killed}))
        staged.replace(path)
        return path

    return write


def ended_s(ended: Ended) -> float:
    """When a command said how it ended, in seconds since 1970; its process may take longer to end."""
    return datetime.fromisoformat(ended.json["ts"]).timestamp()


def test_a_rollback_in_the_middle_of_a_transfer_ends_byte_exact_in_v1(
    machine: Machine, state: Path, flags: Callable[[bool], Path]
) -> None:
    sender = Machine(machine.folder, DWCP_FLAGS_FILE=str(flags(False)))
    with machine.recv("--allow-v1") as recv, relay_to(recv) as relay:
        relay.hold_after = 8 * MIB
        target = relay.reroute(recv.pairing)
        sending = sender.start_send(state, "--to", target, "--codec", "none", "--json-lines")
        wait_until_held(relay)
        wait_until_staged(recv.into, 2)
        flags(True)
        # What v1 sends may pass; v3 would end well now, if it were not stopped within what is promised.
        time.sleep(REACH_S)
        relay.hold.set()
        ended = sender.finish(sending)
        assert ended.code == 0, ended.err
        assert (ended.json["protocol"], ended.json["verified"]) == ("v1", False)
        assert "forceV1Mode" in ended.json["why"]["protocol"]
        assert any(json.loads(line)["type"] == "switched" for line in ended.out.splitlines())
        delivered = recv.wait_for("received")
        assert Path(delivered["path"]).read_bytes() == state.read_bytes()
        assert list(recv.into.glob(".dwcp/*/ledger")), "what v3 brought stays staged"
        # The switch is off again: what is staged is continued.
        flags(False)
        ended = sender.send(state, "--to", target, "--codec", "none", "--json")
        assert ended.code == 0, ended.err
        assert ended.json["protocol"] == "v3" and ended.json["bytes_held"] > 0
        assert (recv.into / "state").read_bytes() == state.read_bytes()


def test_a_tree_under_way_is_stopped_within_what_is_promised_and_continued_later(
    machine: Machine, state: Path, flags: Callable[[bool], Path]
) -> None:
    sender = Machine(machine.folder, DWCP_FLAGS_FILE=str(flags(False)))
    tree = machine.folder / "tree"
    tree.mkdir()
    state.rename(tree / "state")
    (tree / "other").write_bytes(b"other")
    with machine.recv("--allow-v1") as recv, relay_to(recv) as relay:
        relay.hold_after = 8 * MIB
        target = relay.reroute(recv.pairing)
        sending = sender.start_send(tree, "--to", target, "--codec", "none", "--json-lines")
        wait_until_held(relay)
        wait_until_staged(recv.into, 2)
        began_s = time.time()
        flags(True)
        ended = sender.finish(sending)
        assert ended_s(ended) - began_s < REACH_S
        assert ended.code == 12 and (ended.json["code"], ended.json["resumable"]) == ("v3-stopped", True)
        assert "one file" in ended.err and "kill switch" in ended.err
        relay.hold.set()
        flags(False)
        ended = sender.send(tree, "--to", target, "--codec", "none", "--json")
        assert ended.code == 0 and ended.json["bytes_held"] > 0, ended.err
        assert (recv.into / "tree" / "state").read_bytes() == (tree / "state").read_bytes()


def test_a_service_under_the_switch_stops_what_runs_and_goes_on_serving_v1(
    machine: Machine, state: Path, flags: Callable[[bool], Path]
) -> None:
    receiver = Machine(machine.folder, DWCP_FLAGS_FILE=str(flags(False)))
    with receiver.recv("--allow-v1") as recv:
        slowly = ["--bwlimit", "8Mbps", "--codec", "none", "--block-size", "64KiB"]
        sending = machine.start_send(state, "--to", recv.pairing, *slowly, "--json-lines")
        wait_until_staged(recv.into, 2)
        began_s = time.time()
        flags(True)
        ended = machine.finish(sending)
        assert ended_s(ended) - began_s < REACH_S
        assert ended.code == 12 and "kill switch" in ended.err, ended.err
        assert recv.wait_for("error")["code"] == "v3-stopped"
        assert machine.send(state, "--to", recv.pairing, "--json").code in {1, 12}, "no v3 is let in"
        sent = machine.send(state, "--to", recv.address, "--protocol", "v1", "--json")
        assert sent.code == 0, sent.err
        delivered = recv.wait_for("received")
        assert Path(delivered["path"]).read_bytes() == state.read_bytes()
        flags(False)
        sent = machine.send(state, "--to", recv.pairing, "--block-size", "64KiB", "--json")
        assert sent.code == 0 and sent.json["bytes_held"] > 0, sent.err


def test_a_pull_is_stopped_on_the_side_that_is_switched(
    machine: Machine, state: Path, flags: Callable[[bool], Path]
) -> None:
    puller = Machine(machine.folder, DWCP_FLAGS_FILE=str(flags(False)))
    with machine.serve(state, "--bwlimit", "8Mbps", "--codec", "none") as serve:
        pulling = puller.start_pull(serve.pairing, machine.folder / "into", "--json")
        wait_until_staged(machine.folder / "into", 1)
        flags(True)
        ended = puller.finish(pulling)
        assert ended.code == 12 and ended.json["code"] == "v3-stopped", ended.err
        ended = puller.pull(serve.pairing, machine.folder / "into", "--json")
        assert ended.code == 10 and "forceV1Mode" in ended.err
        assert serve.process.poll() is None
