"""Snapshots laid out as Firecracker, Cloud Hypervisor and CRIU do it: packed, pushed, unpacked, exact."""

import json
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from dwcp_fast import snap

PAGE: Final = 4096
DWCP: Final = [sys.executable, "-m", "dwcp_fast"]
WAIT_S: Final = 60.0
PAGES: Final = 1500
CHANGED: Final = 40
# What a change costs: its page in full would be 4,096 bytes, and here only 64 bytes of each differ.
MOST_BYTES: Final = CHANGED * 300 + 8_000


def pages(seed: int, count: int = PAGES) -> list[bytes]:
    """Memory as guests have it: a fifth zero, some text, some that does not compress."""
    chance = random.Random(seed)
    text = b"GET /index user id=0000 127.0.0.1 INFO null, true, class return "
    kinds: list[Callable[[int], bytes]] = [
        lambda _: bytes(PAGE),
        lambda at: (text * 64)[at % 60 :][: PAGE - 8].ljust(PAGE - 8) + at.to_bytes(8, "little"),
        lambda _: chance.randbytes(PAGE),
        lambda _: chance.randbytes(16) * (PAGE // 16),
        lambda _: chance.randbytes(PAGE),
    ]
    return [kinds[at % 5](at) for at in range(count)]


def later(before: list[bytes]) -> list[bytes]:
    """The same memory a little later."""
    chance = random.Random(7)
    after = list(before)
    for at in chance.sample(range(len(after)), CHANGED):
        where = chance.randrange(PAGE - 64)
        after[at] = after[at][:where] + chance.randbytes(64) + after[at][where + 64 :]
    return after


def state(step: int) -> bytes:
    registers = {f"r{number}": number * step for number in range(16)}
    return json.dumps({"version": "1.0", "vcpus": [registers] * 2, "step": step}).encode()


def firecracker(folder: Path, memory: list[bytes], step: int) -> None:
    """The memory in one raw file, the state beside it."""
    (folder / "mem").write_bytes(b"".join(memory))
    (folder / "vmstate").write_bytes(b"\x07" * 16 + state(step))


def cloud_hypervisor(folder: Path, memory: list[bytes], step: int) -> None:
    """One directory: configuration, state, and the ranges of memory one behind the other."""
    (folder / "config.json").write_text(json.dumps({"cpus": {"boot_vcpus": 2}, "memory": {"size": 1 << 27}}))
    (folder / "state.json").write_bytes(state(step))
    (folder / "memory-ranges").write_bytes(b"".join(memory))


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def criu(folder: Path, memory: list[bytes], step: int) -> None:
    """An image directory: pages that are not zero one behind the other, and a map of where they belong.

    A page that is new moves all that come behind it.
    """
    kept = [(at, page) for at, page in enumerate(memory) if any(page)]
    kept.insert(step * 100, (len(memory) + step, random.Random(step).randbytes(PAGE)))
    entries = [b"\x08\x01"]
    for at, _ in kept:
        entries.append(b"\x08" + varint(0x7F00_0000_0000 + at * PAGE) + b"\x10\x01\x20\x04")
    told = b"".join(struct.pack("<I", len(entry)) + entry for entry in entries)
    (folder / "pagemap-1.img").write_bytes(struct.pack("<II", 0x54564319, 0x56084025) + told)
    (folder / "pages-1.img").write_bytes(b"".join(page for _, page in kept))
    (folder / "core-1.img").write_bytes(struct.pack("<II", 0x54564319, 0x55053847) + state(step))
    (folder / "stats-dump").write_bytes(step.to_bytes(8, "little"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def push(pack: Path, into: Path) -> None:
    """Have two processes carry a pack."""
    command = [*DWCP, "recv", "--listen", "127.0.0.1:0", "--into", str(into), "--json-lines"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as taking:
        try:
            assert taking.stdout is not None
            pairing = json.loads(taking.stdout.readline())["pairing"]
            sending = [*DWCP, "snap", "push", str(pack), "--to", pairing, "--json"]
            subprocess.run(sending, check=True, capture_output=True, timeout=WAIT_S)
        finally:
            # What was committed is in place; it would wait for more.
            taking.terminate()
            taking.communicate(timeout=WAIT_S)


@pytest.mark.parametrize("layout", [firecracker, cloud_hypervisor, criu])
def test_a_snapshot_goes_over_by_what_changed_since_the_last_and_comes_out_exactly(
    layout: Callable[[Path, list[bytes], int], None], tmp_path: Path
) -> None:
    first, second = tmp_path / "snap-1", tmp_path / "snap-2"
    memory = pages(1)
    for folder, content, step in ((first, memory, 1), (second, later(memory), 2)):
        folder.mkdir()
        layout(folder, content, step)
    for folder, base in ((first, None), (second, first)):
        pack = tmp_path / f"{folder.name}.dwcs"
        told = snap.pack(
            pack,
            {name: folder / name for name in files(folder)},
            bases={} if base is None else {name: base / name for name in files(base)},
        )
        if base is not None:
            assert told.pack_bytes < MOST_BYTES, told.pack_bytes
            assert told.snapshot_bytes > 100 * told.pack_bytes
        push(pack, tmp_path / "packs")
        # There, earlier snapshots have other names.
        there = tmp_path / "there" / f"{folder.name}-unpacked"
        there.parent.mkdir(exist_ok=True)
        known = [] if base is None else [tmp_path / "there" / "snap-1-unpacked"]
        snap.unpack(tmp_path / "packs" / pack.name, there, bases=known)
        assert files(there) == files(folder)
