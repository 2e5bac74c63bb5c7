"""Trees between two processes: everything arrives as it was, and only what changed is sent again."""

import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import MIB, Machine, Recv


def make_tree(root: Path) -> None:
    """A tree with everything that a transfer carries."""
    (root / "deep" / "er").mkdir(parents=True)
    (root / "empty-dir").mkdir(mode=0o750)
    (root / "data").write_bytes(np.random.default_rng(1).bytes(3 * MIB + 17))
    (root / "text").write_text("the state of the machine\n" * 50_000)
    (root / "empty").touch(0o600)
    (root / "deep" / "er" / "script").write_text("#!/bin/sh\n")
    (root / "deep" / "er" / "script").chmod(0o755)
    (root / "link").symlink_to("deep/er/script")
    (root / "dangling").symlink_to("nowhere")
    (root / os.fsdecode(b"not-\xff-utf8")).write_bytes(b"bytes")
    with (root / "sparse").open("wb") as file:
        file.seek(64 * MIB)
        file.write(b"end")
    os.utime(root / "text", ns=(1_000_000_000_123_456_789, 1_000_000_000_123_456_789))
    os.utime(root / "deep", ns=(2_000_000_000_000_000_000, 2_000_000_000_000_000_000))


def facts(root: Path) -> dict[bytes, tuple[object, ...]]:
    """What must be equal on both sides."""
    told: dict[bytes, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(folder) / name
            info = path.lstat()
            key = os.fsencode(path.relative_to(root))
            if stat.S_ISLNK(info.st_mode):
                told[key] = ("link", path.readlink())
            elif stat.S_ISDIR(info.st_mode):
                told[key] = ("dir", info.st_mode, info.st_mtime_ns)
            else:
                told[key] = ("file", info.st_mode, info.st_mtime_ns, path.read_bytes())
    return told


def test_a_tree_arrives_as_it_was(machine: Machine, recv: Recv) -> None:
    make_tree(machine.folder / "tree")
    sent = machine.send(machine.folder / "tree", "--to", recv.pairing, "--json")
    assert sent.code == 0, sent.err
    received = recv.wait_for("received")
    assert facts(recv.into / "tree") == facts(machine.folder / "tree")
    assert (recv.into / "tree" / "sparse").stat().st_blocks * 512 < MIB
    assert sent.json["verified"] is True and sent.json["protocol"] == "v3"
    assert sent.json["transfer_digest"] == received["transfer_digest"]
    # Holes and constant blocks cost a byte each.
    assert sent.json["bytes_wire"] < 4 * MIB < 64 * MIB < sent.json["bytes_raw"]
    # Nothing stays staged; the pairing is kept while the receiver runs.
    left = {path.name for path in (recv.into / ".dwcp").iterdir()}
    assert left == {"index", "pairing.json"}
    assert recv.end() == 0 and not (recv.into / ".dwcp" / "pairing.json").exists()


def sent_once(report: dict[str, Any]) -> int:
    """Blocks of a MiB that went as they are; an idle lane may have sent the last ones a second time."""
    assert report["bytes_wire"] == report["blocks_sent"] * MIB
    return int(report["blocks_sent"] - report["blocks_helped"])


def test_what_the_receiver_has_is_not_sent_again(machine: Machine, recv: Recv) -> None:
    state = machine.folder / "state"
    content = bytearray(np.random.default_rng(2).bytes(8 * MIB))
    state.write_bytes(content)
    first = machine.send(state, "--to", recv.pairing, "--json")
    assert first.code == 0 and sent_once(first.json) == 8
    content[5 * MIB] ^= 1
    state.write_bytes(content)
    second = machine.send(state, "--to", recv.pairing, "--json")
    assert second.code == 0, second.err
    assert (second.json["blocks_same"], sent_once(second.json)) == (7, 1)
    assert (recv.into / "state").read_bytes() == content
    none = machine.send(state, "--to", recv.pairing, "--json", "--base", "none")
    assert sent_once(none.json) == 8


def test_a_base_by_path_turns_changed_blocks_into_differences(machine: Machine, recv: Recv) -> None:
    old, new = machine.folder / "old" / "state", machine.folder / "new" / "state"
    content = np.random.default_rng(3).integers(0, 256, 8 * MIB, dtype=np.uint8)
    for path in (old, new):
        path.parent.mkdir()
    old.write_bytes(content.tobytes())
    assert machine.send(old, "--to", recv.pairing).code == 0
    # A few bytes in every block: without the base, every block would be sent whole.
    content[::50_000] ^= 1
    new.write_bytes(content.tobytes())
    sent = machine.send(new, "--to", recv.pairing, "--json", "--base", old)
    assert sent.code == 0, sent.err
    assert sent.json["bytes_wire"] < MIB // 10
    assert {share["kind"] for share in sent.json["codec_mix"]} <= {"difference", "sparse", "runs"}
    assert (recv.into / "state").read_bytes() == content.tobytes()


def test_a_base_that_changed_at_the_receiver_costs_only_time(machine: Machine, recv: Recv) -> None:
    state = machine.folder / "state"
    content = bytearray(np.random.default_rng(4).bytes(4 * MIB))
    state.write_bytes(content)
    assert machine.send(state, "--to", recv.pairing).code == 0
    (recv.into / "state").write_bytes(b"somebody else's")
    content[0] ^= 1
    state.write_bytes(content)
    assert machine.send(state, "--to", recv.pairing).code == 0
    assert (recv.into / "state").read_bytes() == content


def test_several_paths_arrive_side_by_side(machine: Machine, recv: Recv) -> None:
    for name in ("one", "two"):
        (machine.folder / name).write_text(name)
    assert machine.send(machine.folder / "one", machine.folder / "two", "--to", recv.pairing).code == 0
    assert (recv.into / "one").read_text() == "one" and (recv.into / "two").read_text() == "two"


def test_links_are_refused_where_they_are_not_wanted(machine: Machine) -> None:
    (machine.folder / "tree").mkdir()
    (machine.folder / "tree" / "link").symlink_to("target")
    with machine.recv("--symlinks=refuse") as strict:
        refused = machine.send(machine.folder / "tree", "--to", strict.pairing, "--symlinks=refuse")
        assert refused.code == 1 and "symbolic link" in refused.err
        refused = machine.send(machine.folder / "tree", "--to", strict.pairing)
        assert refused.code == 1 and "symbolic link" in refused.err
        assert not (strict.into / "tree").exists()


def test_a_link_out_of_the_target_is_refused(machine: Machine, recv: Recv) -> None:
    (machine.folder / "tree").mkdir()
    (machine.folder / "tree" / "link").symlink_to("../../outside")
    refused = machine.send(machine.folder / "tree", "--to", recv.pairing)
    assert refused.code == 1 and "leads out" in refused.err
    assert not (recv.into / "tree").exists()


def test_a_socket_in_the_tree_is_named(machine: Machine, recv: Recv) -> None:
    (machine.folder / "tree").mkdir()
    with socket.socket(socket.AF_UNIX) as special:
        special.bind(str(machine.folder / "tree" / "special"))
        refused = machine.send(machine.folder / "tree", "--to", recv.pairing)
    assert refused.code == 1 and "special" in refused.err and "socket" in refused.err


def test_an_existing_target_is_kept_if_asked_for(machine: Machine) -> None:
    (machine.folder / "state").write_text("new")
    with machine.recv("--no-overwrite") as careful:
        (careful.into / "state").write_text("old")
        refused = machine.send(machine.folder / "state", "--to", careful.pairing, "--json")
        assert refused.code == 1 and "exists" in refused.err
        assert refused.json["type"] == "error" and refused.json["exit_code"] == 1
        assert (careful.into / "state").read_text() == "old"


def test_once_ends_after_one_transfer_and_prints_one_object(machine: Machine) -> None:
    (machine.folder / "state").write_text("content")
    with machine.recv("--once") as once:
        assert machine.send(machine.folder / "state", "--to", once.pairing, "--quiet").code == 0
        received = once.wait_for("received")
        assert once.process.wait(60) == 0
    assert received["entries"] == 1 and received["verified"] is True
    assert [event["seq"] for event in once.events] == list(range(len(once.events)))
    assert all({"type", "ts", "seq"} <= event.keys() for event in once.events)


def test_events_of_a_sender_are_lines_of_json(machine: Machine, recv: Recv) -> None:
    (machine.folder / "state").write_text("content")
    sent = machine.send(machine.folder / "state", "--to", recv.pairing, "--json-lines")
    lines = [json.loads(line) for line in sent.out.splitlines()]
    assert [line["seq"] for line in lines] == list(range(len(lines)))
    assert lines[0]["type"] == "session-opened" and lines[-1]["type"] == "sent"
    assert sent.err == ""


@pytest.mark.parametrize("security", ["insecure", "ipv6"])
def test_other_ways_to_reach_a_receiver(machine: Machine, security: str) -> None:
    (machine.folder / "state").write_text("content")
    if security == "insecure":
        with machine.recv("--insecure") as plain:
            assert plain.pairing is None
            assert machine.send(machine.folder / "state", "--to", plain.address, "--insecure").code == 0
            assert (plain.into / "state").read_text() == "content"
        return
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with machine.recv(listen="[::1]:0") as six:
        assert six.pairing.startswith("dwcp://[::1]:")
        assert machine.send(machine.folder / "state", "--to", six.pairing).code == 0
