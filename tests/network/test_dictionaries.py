"""Dictionaries between two processes: given once, known from a directory, or served."""

import json
from pathlib import Path
from typing import Any

from .conftest import Machine, Recv


def record(number: int) -> bytes:
    """A small file that looks like all the others."""
    fields = {
        "user": f"u{number * 7919 % 10_000:05}",
        "region": f"eu-west-{number % 3}",
        "state": "ok",
        "score": number * 31 % 997,
    }
    return json.dumps(fields).encode()


def make(machine: Machine) -> tuple[Path, Path]:
    """A tree of 100 records, and a dictionary that `dwcp dict train` made of others."""
    samples, tree = machine.folder / "samples", machine.folder / "tree"
    for folder, numbers in ((samples, range(500)), (tree, range(1000, 1100))):
        folder.mkdir()
        for number in numbers:
            (folder / f"{number}.json").write_bytes(record(number))
    known = machine.folder / "known"
    known.mkdir()
    out = known / "records.dict"
    trained = machine.run("dict", "train", samples, "-o", out, "--max-size", "2KiB")
    assert trained.code == 0, trained.err
    return tree, out


def made_with_it(told: dict[str, Any]) -> int:
    return sum(share["blocks"] for share in told["codec_mix"] if share["codec"] == "zstd+dict")


def arrived(folder: Path) -> bool:
    return all((folder / f"{number}.json").read_bytes() == record(number) for number in range(1000, 1100))


def test_a_tree_of_small_files_takes_less_with_a_dictionary(machine: Machine, recv: Recv) -> None:
    tree, common = make(machine)
    alone = machine.send(tree, "--to", recv.pairing, "--json")
    assert alone.code == 0, alone.err
    assert made_with_it(recv.wait_for("received")) == made_with_it(alone.json) == 0
    with machine.recv(name="other") as other:
        sent = machine.send(tree, "--to", other.pairing, "--dict", common, "--json")
        assert sent.code == 0, sent.err
        assert made_with_it(other.wait_for("received")) == made_with_it(sent.json) == 100
    assert arrived(machine.folder / "other" / "tree")
    assert 2 * sent.json["bytes_wire"] < alone.json["bytes_wire"]


def test_a_receiver_that_knows_the_dictionary_is_sent_the_same_blocks(machine: Machine) -> None:
    tree, common = make(machine)
    with machine.recv("--dict-dir", str(common.parent)) as receiving:
        sent = machine.send(tree, "--to", receiving.pairing, "--dict", common, "--json")
        assert sent.code == 0, sent.err
        assert made_with_it(receiving.wait_for("received")) == 100
    assert arrived(machine.folder / "inbox" / "tree")


def test_what_is_pulled_is_made_with_the_dictionary_of_the_server(machine: Machine) -> None:
    tree, common = make(machine)
    with machine.serve(tree, "--dict", str(common)) as serving:
        pulled = machine.pull(serving.pairing, machine.folder / "pulled", "--json")
        assert pulled.code == 0, pulled.err
        assert made_with_it(pulled.json) == 100
    assert arrived(machine.folder / "pulled" / "tree")


def test_a_dictionary_that_is_too_long_is_named_before_anybody_is_dialled(machine: Machine) -> None:
    long = machine.folder / "long.dict"
    long.write_bytes(bytes(1 << 20))
    sent = machine.send(long, "--to", "127.0.0.1:1", "--insecure", "--dict", long)
    assert sent.code == 2 and "1048576 bytes" in sent.err and "1048552" in sent.err
