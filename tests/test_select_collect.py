"""The measured table of the selector: what is collected, that a killed run goes on, what is refused."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dwcp_fast import _core
from dwcp_fast.errors import ConfigError, FormatError, LimitExceededError, UnsupportedFormatError
from dwcp_fast.train.selector import table as tables
from dwcp_fast.train.selector.collect import CollectOptions, CollectReport, Step, collect, extents_of
from dwcp_fast.train.selector.content import Deadline
from dwcp_fast.train.selector.corpus import (
    Source,
    family_of,
    parse_source,
    source_candidates,
    split_by_group,
    system_candidates,
)
from dwcp_fast.train.selector.heap import Program, memory_of
from dwcp_fast.train.selector.recipes import made_candidates
from dwcp_fast.train.selector.table import (
    CostTable,
    Row,
    read_manifest,
    read_table,
    write_manifest,
    write_table,
)

KIB, MIB = 1 << 10, 1 << 20
WAIT_S = 60.0


def words(length: int, seed: int = 1) -> bytes:
    rng = random.Random(seed)
    text = " ".join(rng.choices(["alpha", "beta", "gamma", "delta", str(seed)], k=length // 4))
    return text.encode()[:length]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.txt").write_bytes(words(100 * KIB))
    (folder / "same.txt").write_bytes(words(100 * KIB))
    (folder / "inner/long.log").write_bytes(words(3 * MIB, 2))
    (folder / "noise.gz").write_bytes(random.Random(1).randbytes(64 * KIB))
    np.save(folder / "values.npy", np.linspace(0, 1, 20_000, dtype=np.float32))
    return folder


def run(out: Path, *sources: Source, **options: Any) -> tuple[CollectReport, list[Step]]:
    steps: list[Step] = []
    candidates = [one for source in sources for one in source_candidates(source, 0, 100)]
    return collect(candidates, out, CollectOptions(repeats=1, **options), steps.append), steps


# --- collecting


def test_collected_table_has_every_block_of_every_file_with_its_costs(corpus: Path, tmp_path: Path) -> None:
    report, steps = run(tmp_path / "out", Source(name="mine", path=str(corpus)), blocks=2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "table.csv.xz"]
    table = read_table(tmp_path / "out/table.csv.xz")
    manifest = read_manifest(tmp_path / "out/manifest.json")

    assert report.families == {"compressed": 1, "log": 1, "telemetry": 1, "text": 1}
    # One of two files with the same bytes is measured, and the other named.
    (skipped,) = report.skipped.items()
    assert {skipped[0], *skipped[1].split()[-1:]} == {"mine/a.txt", "mine/same.txt"}
    assert [step.done for step in steps] == list(range(1, 6)) and steps[-1].rows == len(table) == report.rows
    long = table.files == "mine/inner/long.log"
    assert list(table.raw_bytes[long]) == [MIB, MIB, 256 * KIB, 64 * KIB]
    assert list(table.blocks[long]) == [0, 1, 2, 3]
    array = table.files == "mine/values.npy"
    assert list(table.widths[array]) == [0, 4]

    planes = table.actions.index("planes")
    assert table.actions == tuple(_core.select_actions())
    assert table.feature_names == tuple(_core.select_feature_names())
    assert np.array_equal(np.isnan(table.sizes[:, planes]), table.widths == 0)
    others = np.delete(table.sizes, planes, axis=1)
    assert (others <= table.raw_bytes[:, None]).all() and (others > 0).all()
    assert (table.sizes[table.families == "log", table.actions.index("zstd:1")] < 256 * KIB).all()
    assert np.nanmin(table.compress_ns) >= 1 and np.nanmin(table.again_ns) >= 1
    whole = (corpus / "values.npy").read_bytes()
    assert np.array_equal(table.features[array][1], np.array(_core.select_features(whole, 4), np.float32))

    entry = next(entry for entry in manifest["files"] if entry["id"] == "mine/inner/long.log")
    assert entry["bytes"] == 3 * MIB and entry["blocks"] == 4 and entry["split"] in tables.SPLITS
    assert set(manifest["calibration_ns_per_byte"]) == set(table.actions)
    assert str(tmp_path) not in (tmp_path / "out/manifest.json").read_text()
    with pytest.raises(ConfigError, match="is complete"):
        run(tmp_path / "out", Source(name="mine", path=str(corpus)))


KILLED = """
import sys
from pathlib import Path
from dwcp_fast.train.selector.collect import CollectOptions, collect
from dwcp_fast.train.selector.corpus import Source, source_candidates
made = source_candidates(Source(name="mine", path=sys.argv[1]), 0, 100)
collect(made, Path(sys.argv[2]), CollectOptions(repeats=1), lambda step: print(step.file, flush=True))
"""


def test_killed_run_goes_on_and_takes_no_partial_row(tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    for number in range(12):
        (corpus / f"{number}.txt").write_bytes(words(2 * MIB, number))
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(corpus), str(out)], stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdout is not None
        for _ in range(3):
            assert killed.stdout.readline()
        killed.send_signal(signal.SIGKILL)
        killed.wait(WAIT_S)
    assert not (out / "table.csv.xz").exists()
    journal = out / "unfinished.jsonl"
    done = [json.loads(line) for line in journal.read_bytes().splitlines()[1:]]
    assert 3 <= len(done) < 12
    # As if the kill had come while a line was written: whole JSON, but no end of line.
    with journal.open("ab") as torn:
        torn.write(json.dumps({**done[0], "id": "mine/never.txt"}).encode())

    source = Source(name="mine", path=str(corpus))
    with pytest.raises(ConfigError, match="begun with other blocks"):
        run(out, source, blocks=3)
    report, steps = run(out, source)
    assert report.kept == len(done) and len(steps) == 12 - len(done)
    assert not journal.exists()
    table = read_table(out / "table.csv.xz")
    assert set(table.files) == {f"mine/{number}.txt" for number in range(12)}
    assert len(table) == 12 * 4
    # What was measured before the kill is what is in the table.
    first = table.files == done[0]["id"]
    place = table.actions.index("zstd:9")
    assert list(table.compress_ns[first, place]) == [row["costs"]["zstd:9"][1] for row in done[0]["rows"]]


def test_file_that_cannot_be_read_is_skipped_and_named(corpus: Path, tmp_path: Path) -> None:
    source = Source(name="mine", path=str(corpus))
    candidates = source_candidates(source, 0, 100)
    (corpus / "a.txt").unlink()
    (corpus / "noise.gz").unlink()
    os.mkfifo(corpus / "noise.gz")
    report = collect(candidates, tmp_path / "out", CollectOptions(repeats=1), lambda _step: None)
    assert report.skipped == {
        "mine/a.txt": "no such file or directory",
        "mine/noise.gz": "is no regular file",
    }
    assert read_manifest(tmp_path / "out/manifest.json")["skipped"] == report.skipped


def test_file_whose_name_is_no_text_is_measured_under_one_that_is(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in (b"\xfe.txt", b"\xff.txt"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(words(30 * KIB, name[0]))
    run(tmp_path / "out", Source(name="mine", path=str(folder)))
    table = read_table(tmp_path / "out/table.csv.xz")
    assert set(table.files) == {"mine/\\xfe.txt", "mine/\\xff.txt"}


def test_blocks_are_spread_over_a_file_and_never_beyond_it() -> None:
    for length in (1, MIB - 1, MIB, MIB + 1, 7 * MIB + 5, 300 * MIB):
        for most in (1, 6, 64):
            extents = list(extents_of(length, most, "x", 0))
            assert all(at >= 0 and at + size <= length and size for at, size in extents)
            whole = [at for at, size in extents if size == MIB]
            assert len(whole) == min(most, length // MIB)
            assert whole == sorted(set(whole)) and all(at % MIB == 0 for at in whole)
    assert [at // MIB for at, size in extents_of(300 * MIB, 3, "x", 0) if size == MIB] == [50, 150, 250]


def test_group_is_never_divided_and_every_large_family_has_all_splits() -> None:
    files = [("log", f"log/{n}") for n in range(20)] + [("guest", "vm"), ("guest", "vm"), ("disk", "vm")]
    splits = split_by_group(files, 7)
    assert splits == split_by_group(reversed(files), 7) and set(splits) == {group for _, group in files}
    counted = [sum(splits[f"log/{n}"] == split for n in range(20)) for split in tables.SPLITS]
    assert counted == [12, 3, 5]
    assert splits != split_by_group(files, 8)


# --- what is measured


def test_memory_of_a_process_holds_what_it_loaded() -> None:
    text = "import sys; held = [b'needle%06d' % n for n in range(50000)]; print('ready', flush=True); input()"
    program = Program("a test", (sys.executable, "-c", text))
    with memory_of(program, Path("/"), Deadline.after(WAIT_S)) as content:
        data = content.read(0, content.length)
    assert data.count(b"needle") > 40_000


def test_system_and_what_is_made_of_it_are_found(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/share/texts").mkdir(parents=True)
    (root / "usr/share/packed").mkdir()
    (root / "usr/bin/tool").write_bytes(b"\x7fELF" + bytes(100 * KIB))
    (root / "usr/bin/script").write_bytes(words(50 * KIB))
    for number in range(6):
        (root / f"usr/share/texts/{number}.txt").write_bytes(words(40 * KIB, number))
        (root / f"usr/share/packed/{number}.txt").write_bytes(words(40 * KIB, number + 10))
    found = system_candidates(root, 0, 3, [root / "usr/share/packed"])
    assert [one.id for one in found if one.family == "elf"] == ["system/usr/bin/tool"]
    assert len(found) == 4 and all("packed" not in one.id for one in found)
    assert family_of(root / "usr/bin/tool") == "elf"
    (root / "tutor.pt").write_bytes(words(40 * KIB))
    assert family_of(root / "tutor.pt") is None

    made = {
        one.id: one for one in made_candidates(root, 0, [root / "usr/share/texts", root / "usr/share/packed"])
    }
    with made["made/tar/usr-share-packed"].open(Deadline.after(WAIT_S)) as archive:
        packed = io.BytesIO(archive.read(0, archive.length))
    with tarfile.open(fileobj=packed) as opened:
        assert opened.getnames() == [f"{number}.txt" for number in range(6)]
    with (
        made["made/random/bytes-2"].open(Deadline.after(1)) as one,
        made["made/random/bytes-2"].open(Deadline.after(1)) as again,
    ):
        assert one.length == MIB and one.read(0, 64) == again.read(0, 64)
    disk = made.get("made/disk/usr-share-texts")
    if disk is not None:
        with disk.open(Deadline.after(WAIT_S)) as image:
            assert image.read(0x438, 2) == b"\x53\xef" and words(4 * KIB, 5) in image.read(0, image.length)


def test_difference_of_two_files_is_measured_and_their_group_is_kept(tmp_path: Path) -> None:
    base, new = tmp_path / "base.bin", tmp_path / "new.bin"
    base.write_bytes(words(70 * KIB))
    new.write_bytes(bytes(byte ^ 3 for byte in base.read_bytes()) + b"more")
    (one,) = source_candidates(parse_source(f"steps={new},family=delta,width=2,group=run,xor={base}"), 0, 5)
    with one.open(Deadline.after(1)) as content:
        assert content.read(0, content.length) == b"\3" * 70 * KIB
    assert (one.id, one.family, one.width, one.group) == ("steps/new.bin", "delta", 2, "run")


@pytest.mark.parametrize(
    "text", ["x", "=path", "a/b=c", "a=b,width=3", "a=b,blocks=0", "a=b,blocks=1,blocks=2", "a=b,colour=red"]
)
def test_source_that_says_nothing_clear_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"source|none of|must be"):
        parse_source(text)


def test_source_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no file"):
        source_candidates(Source(name="mine", path=str(tmp_path / "*.bin")), 0, 5)


# --- measuring one action


def test_action_gives_the_size_of_a_container_less_its_header() -> None:
    block = words(MIB)
    size, compress_ns, decompress_ns = _core.measure_action(block, "zstd:3", None, 2)
    assert 0 < size < MIB // 3 and compress_ns > decompress_ns > 0
    assert _core.measure_action(block, "none", None, 1)[0] == MIB
    assert _core.measure_action(bytes(MIB), "lz4", None, 1)[0] == 1
    floats = np.linspace(1, 2, 1 << 18, dtype=np.float32).tobytes()
    assert _core.measure_action(floats, "planes", 4, 1)[0] < _core.measure_action(floats, "lz4", 4, 1)[0]


@pytest.mark.parametrize(
    ("action", "width", "match"),
    [("zstd:2", None, "unknown action"), ("planes", None, "2, 4 or 8"), ("lz4", 3, "elements of 3 bytes")],
)
def test_action_that_cannot_be_done_is_refused(action: str, width: int | None, match: str) -> None:
    with pytest.raises((ConfigError, FormatError), match=match):
        _core.measure_action(b"some bytes" * 100, action, width, 1)


# --- the table


FEATURES, ACTIONS = ("entropy", "share"), ("none", "planes")
ROWS = [
    Row(0, 4096, None, (0.1, -2.5e-8), {"none": (4096, 5, 6, 7)}),
    Row(0, 4096, 4, (1 / 3, 7.0), {"none": (4096, 5, 6, 7), "planes": (1000, 50, 60, 70)}),
]


def written(path: Path) -> Path:
    assert write_table(path, FEATURES, ACTIONS, [("a/b,c", "weights", ROWS)]) == 2
    return path


@pytest.mark.parametrize("name", ["table.csv", "table.csv.xz"])
def test_table_is_read_back_as_it_was_written(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name)
    table = read_table(path)
    assert (table.feature_names, table.actions, len(table)) == (FEATURES, ACTIONS, 2)
    assert list(table.files) == ["a/b,c"] * 2 and list(table.widths) == [0, 4]
    assert np.array_equal(table.features, np.array([row.features for row in ROWS], np.float32))
    assert np.array_equal(table.sizes, np.array([[4096, np.nan], [4096, 1000]]), equal_nan=True)
    assert np.array_equal(table.again_ns, np.array([[7, np.nan], [7, 70]]), equal_nan=True)
    assert isinstance(table, CostTable)
    before = path.read_bytes()
    assert written(path).read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("size.none,", "", "column size.none is missing"),
        ("again_ns.planes", "again.planes", "column again_ns.planes is missing"),
        ("feature.share", "feature.entropy", "column feature.entropy is there twice"),
        (",weights,0,4096,4,", ",weights,0,4096,nan,", "column width is 'nan' in row 2"),
        (",weights,0,4096,4,", ",weights,0,0,4,", "column raw_bytes is '0' in row 2, less than 1"),
        ("0.33333334", "NaN", "column feature.entropy is 'NaN' in row 2"),
        (",5,50,6,60,", ",5,-50,6,60,", "column compress_ns.planes is '-50' in row 2"),
        (",5,50,6,60,", ",5,inf,6,60,", "column compress_ns.planes is 'inf' in row 2"),
        (",5,50,6,60,", ",5,,6,60,", "row 2 has no compress_ns.planes"),
        (",5,,6,,", ",,,6,,", "row 1 has no compress_ns.none"),
        (",5,,6,,", ",5,9,6,,", "row 1 has no size.planes"),
        (",7,70\n", ",7\n", "row 2 has .* cells"),
    ],
)
def test_table_with_a_bad_cell_is_refused_by_name(tmp_path: Path, old: str, new: str, match: str) -> None:
    path = written(tmp_path / "table.csv")
    text = path.read_text()
    assert text.count(old) >= 1
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(FormatError, match=match):
        read_table(path)


def test_what_is_no_table_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "table.csv.xz")
    whole = path.read_bytes()
    for bad in (b"", whole[:-20], b"junk" * 20):
        path.write_bytes(bad)
        with pytest.raises(FormatError):
            read_table(path)
    path.write_bytes(whole)
    monkeypatch.setattr(tables, "MOST_TEXT_BYTES", 100)
    with pytest.raises(LimitExceededError, match="100"):
        read_table(path)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(FormatError, match="no column"):
        read_table(tmp_path / "empty.csv")


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ([{"id": "a", "family": "x"}], "without split"),
        ([{"id": "a", "family": "x", "split": "test"}], "none of"),
        ([{"id": "a", "family": "x", "split": "train"}] * 2, "twice"),
    ],
)
def test_manifest_that_says_no_split_is_refused(tmp_path: Path, files: list[Any], match: str) -> None:
    write_manifest(tmp_path / "m.json", {"files": files})
    with pytest.raises(FormatError, match=match):
        read_manifest(tmp_path / "m.json")
    (tmp_path / "m.json").write_text('{"version": 9, "files": []}')
    with pytest.raises(UnsupportedFormatError, match="version 9"):
        read_manifest(tmp_path / "m.json")


def test_table_of_the_repository_holds_what_its_manifest_says(repository: Path) -> None:
    table = read_table(repository / "data/selector/table.csv.xz")
    manifest = read_manifest(repository / "data/selector/manifest.json")
    files = {entry["id"]: entry for entry in manifest["files"]}
    assert len(files) >= 300 and len(manifest["families"]) >= 12
    names, counts = np.unique(table.files, return_counts=True)
    assert dict(zip(names, counts, strict=True)) == {name: entry["rows"] for name, entry in files.items()}
    assert all(
        files[name]["family"] == family for name, family in zip(table.files, table.families, strict=True)
    )
    assert table.feature_names == tuple(_core.select_feature_names())
    assert table.actions == tuple(_core.select_actions())
    # No two files of a group are on different sides, and none of them names a place of the machine.
    sides: dict[str, set[str]] = {}
    for entry in manifest["files"]:
        sides.setdefault(entry["group"], set()).add(entry["split"])
        assert not entry["id"].startswith("/") and ".." not in entry["id"].split("/")
    assert all(len(splits) == 1 for splits in sides.values())


def test_command_collects_and_tells_a_program(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "dwcp_fast",
        "select",
        "collect",
        "--no-system",
        "--repeats",
        "1",
        "--json",
    ]
    told = subprocess.run(
        [*command, "--out", str(out), "--source", f"mine={corpus}"],
        capture_output=True,
        check=True,
        text=True,
        timeout=WAIT_S,
    )
    said = json.loads(told.stdout)
    assert said["files"] == 4 and said["rows"] == len(read_table(out / "table.csv.xz"))
    assert "5 of 5 files" in told.stderr and "skipped mine/" in told.stderr
