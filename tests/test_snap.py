"""Packs of snapshots: whole, relative, portable, and harmless whatever they contain."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import dwcp_fast as dwcp
from dwcp_fast import errors
from dwcp_fast.cli.program import program
from dwcp_fast.snap import manifest

PAGE = 4096


def memory(seed: int, pages: int = 300) -> bytearray:
    """Pages of a guest: some zero, some text, some noise."""
    rng = np.random.default_rng(seed)
    kinds = [bytes(PAGE), (b"the state of the machine, page by page; " * 103)[:PAGE]]
    return bytearray().join(kinds[i % 3] if i % 3 < 2 else rng.bytes(PAGE) for i in range(pages))


@pytest.fixture
def snapshots(tmp_path: Path) -> tuple[Path, Path]:
    """Two snapshots of one machine, the second a little later."""
    first, second = tmp_path / "snap-1", tmp_path / "snap-2"
    (first / "disks").mkdir(parents=True)
    (second / "disks").mkdir(parents=True)
    held = memory(1)
    (first / "memory").write_bytes(held)
    for page in (5, 77, 200):
        held[page * PAGE + 100 : page * PAGE + 164] = os.urandom(64)
    (second / "memory").write_bytes(held)
    for folder, state in ((first, b"registers 1"), (second, b"registers 2, and one more")):
        (folder / "state").write_bytes(state)
        (folder / "disks" / "root.img").write_bytes(memory(2))
        (folder / "empty").write_bytes(b"")
    return first, second


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def invoke(*arguments: object) -> Any:
    result = CliRunner().invoke(program, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_snapshot_comes_back_whole_and_then_by_its_difference(
    snapshots: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = snapshots
    whole, step = tmp_path / "1.dwcs", tmp_path / "2.dwcs"
    assert invoke("snap", "pack", first, "-o", whole)["snapshot_bytes"] == sum(
        map(len, files(first).values())
    )
    told = invoke("snap", "pack", second, "--base", first, "-o", step)
    assert told["pack_bytes"] < 6000 < whole.stat().st_size // 10
    assert invoke("snap", "info", step)["digest"] == told["digest"]
    # Elsewhere, under other names: only the content of the bases counts.
    there = tmp_path / "there"
    invoke("snap", "unpack", whole, "--into", there)
    assert files(there) == files(first)
    there.rename(tmp_path / "moved")
    (tmp_path / "moved" / "memory").rename(tmp_path / "moved" / "renamed")
    invoke("snap", "unpack", step, "--into", tmp_path / "later", "--base", tmp_path / "moved")
    assert files(tmp_path / "later") == files(second)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_equal_snapshots_make_equal_packs(snapshots: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = snapshots
    packs = []
    for name in ("a", "b"):
        parts = {inner: second / inner for inner in sorted(files(second), reverse=name == "b")}
        dwcp.snap.pack(tmp_path / name, parts, bases={"memory": first / "memory"})
        packs.append((tmp_path / name).read_bytes())
    assert packs[0] == packs[1]


def test_missing_base_is_named_and_nothing_appears(snapshots: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = snapshots
    step = tmp_path / "2.dwcs"
    dwcp.snap.pack(step, {"memory": second / "memory"}, bases={"memory": first / "memory"})
    wrong = tmp_path / "wrong"
    wrong.write_bytes(memory(9))
    needed = dwcp.snap.info(step).parts[0].base.digest
    for bases in ([], [wrong]):
        with pytest.raises(errors.BaseMismatchError, match=needed):
            dwcp.snap.unpack(step, tmp_path / "out", bases=bases)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))
    # What the pack makes serves as well.
    dwcp.snap.unpack(step, tmp_path / "out", bases=[second])
    assert (tmp_path / "out" / "memory").read_bytes() == (second / "memory").read_bytes()


def test_what_exists_is_not_touched_and_the_limit_holds(snapshots: tuple[Path, Path], tmp_path: Path) -> None:
    first, _ = snapshots
    path = tmp_path / "1.dwcs"
    dwcp.snap.pack(path, {"memory": first / "memory"})
    with pytest.raises(FileExistsError):
        dwcp.snap.unpack(path, first)
    with pytest.raises(errors.LimitExceededError, match="over the limit of 1000"):
        dwcp.snap.unpack(path, tmp_path / "out", max_bytes=1000)
    with pytest.raises(errors.ConfigError, match="belongs to no part"):
        dwcp.snap.pack(path, {"memory": first / "memory"}, bases={"disk": first / "memory"})


@pytest.mark.parametrize(
    "name", ["", "..", "a/../b", "/a", "a//b", "a/", "./a", "a\0b", "a\\b", "x" * 256, "\ud800"]
)
def test_names_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(errors.ConfigError, match="no name of a part"):
        dwcp.snap.pack(tmp_path / "pack", {name: tmp_path / "file"})


def forged(pack: bytes, change: Any) -> bytes:
    """A pack with another manifest and the right digest for it."""
    length = int.from_bytes(pack[8:12], "little")
    told = json.loads(pack[32 : 32 + length])
    change(told)
    body = json.dumps(told).encode()
    head = pack[:8] + len(body).to_bytes(4, "little") + bytes(4)
    return head + dwcp.digest(head + body) + body + pack[32 + length :]


LIES: dict[str, Any] = {
    "leads out": lambda told: told["parts"][0].update(name="../memory"),
    "absolute": lambda told: told["parts"][0].update(name="/memory"),
    "no text": lambda told: told["parts"][0].update(name=7),
    "another size": lambda told: told["parts"][0]["target"].update(size_bytes=3),
    "a negative size": lambda told: told["parts"][0]["target"].update(size_bytes=-1),
    "another digest": lambda told: told["parts"][0]["target"].update(digest="0" * 32),
    "no digest": lambda told: told["parts"][0]["target"].update(digest="zz"),
    "another base": lambda told: told["parts"][0]["base"].update(size_bytes=5),
    "a gap": lambda told: told["parts"][0].update(offset_bytes=1),
    "a longer patch": lambda told: told["parts"][0].update(patch_bytes=1 << 62),
    "a shorter patch": lambda told: told["parts"][0].update(patch_bytes=10),
    "true for a number": lambda told: told["parts"][0].update(offset_bytes=False),
    "twice": lambda told: told["parts"].append(told["parts"][0]),
    "one more field": lambda told: told["parts"][0].update(more=1),
    "no list": lambda told: told.update(parts={}),
    "no parts": lambda told: told.update(parts=[]),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_manifest_is_refused_and_nothing_appears(lie: str, tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(memory(3, 40))
    dwcp.snap.pack(tmp_path / "pack", {"memory": tmp_path / "memory"})
    (tmp_path / "forged").write_bytes(forged((tmp_path / "pack").read_bytes(), LIES[lie]))
    with pytest.raises(errors.FormatError):
        dwcp.snap.unpack(tmp_path / "forged", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forged", "memory", "pack"]


def test_every_truncation_and_flip_of_a_small_pack_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"registers " * 30)
    dwcp.snap.pack(tmp_path / "pack", {"state": tmp_path / "state"})
    good = (tmp_path / "pack").read_bytes()
    bad = tmp_path / "bad"
    for at in range(len(good)):
        for damaged in (good[:at], good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]):
            bad.write_bytes(damaged)
            with pytest.raises((errors.FormatError, errors.LimitExceededError)):
                dwcp.snap.unpack(bad, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_manifests_are_refused_with_a_typed_error(body: bytes) -> None:
    head = b"DWCS\x01\0\0\0" + len(body).to_bytes(4, "little") + bytes(4)
    pack = head + dwcp.digest(head + body) + body
    with pytest.raises((errors.FormatError, errors.LimitExceededError)):
        manifest.read(io.BytesIO(pack), len(pack))


def test_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(errors.FormatError, match="no regular file"):
        dwcp.snap.info(pipe)
    with pytest.raises(OSError, match="not a regular file"):
        dwcp.snap.pack(tmp_path / "pack", {"memory": pipe})


@pytest.mark.parametrize("names", [["a", "a/b"], ["a", "a.b", "a/b/c"], ["a/b", "a/b/c/d"]])
def test_part_within_another_part_is_refused_by_both_sides(names: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(errors.ConfigError, match=f"part {names[-1]!r} lies within part {names[0]!r}"):
        dwcp.snap.pack(tmp_path / "pack", dict.fromkeys(names, tmp_path / "file"))
    apart = [name.replace("/", "_") for name in names]
    dwcp.snap.pack(tmp_path / "pack", dict.fromkeys(apart, tmp_path / "file"))

    def rename(told: Any) -> None:
        for part, name in zip(told["parts"], names, strict=True):
            part["name"] = name

    (tmp_path / "forged").write_bytes(forged((tmp_path / "pack").read_bytes(), rename))
    with pytest.raises(errors.FormatError, match=f"part {names[-1]!r} lies within part {names[0]!r}"):
        dwcp.snap.info(tmp_path / "forged")
