"""`dwcp select train`, `evaluate` and `explain`, as a user runs them."""

import json
import random
from pathlib import Path

import pytest

from dwcp_fast.cli.program import run
from dwcp_fast.models import selector_bytes


@pytest.fixture
def table(repository: Path) -> str:
    return str(repository / "data/selector/table.csv.xz")


def test_explain_sends_noise_as_it_is_and_compresses_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise, text = tmp_path / "noise", tmp_path / "text"
    noise.write_bytes(random.Random(1).randbytes(3 << 20))
    text.write_bytes(b"".join(b"line %d of a file that compresses well\n" % n for n in range(60_000)))
    assert run(["select", "explain", str(noise), "--link", "10Gbps"]) == 0
    assert "3 blocks: none" in capsys.readouterr().out
    assert run(["select", "explain", str(text), "--link", "100Mbps", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["blocks"]
    assert {one["action"] for one in told} <= {"zstd:1", "zstd:3", "zstd:6", "zstd:9"}
    assert sum(one["raw_bytes"] for one in told) == text.stat().st_size
    first = told[0]
    assert first["seconds"][first["action"]] == min(first["seconds"].values())
    assert "planes" not in first["seconds"]


def test_explain_offers_byte_planes_where_the_width_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    floats = tmp_path / "floats"
    number = random.Random(2)
    floats.write_bytes(
        b"".join(bytes([number.getrandbits(8), 60 + number.getrandbits(1)]) for _ in range(1 << 19))
    )
    assert run(["select", "explain", str(floats), "--link", "1Gbps", "--width", "2", "--json"]) == 0
    assert "planes" in json.loads(capsys.readouterr().out)["blocks"][0]["seconds"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda data: data[:1000], 6),
        (lambda data: data[:2000] + b"\0" + data[2001:], 6),
        (lambda data: b"\x80\x04" + data, 6),
        (lambda data: data[:4] + b"\x09" + data[5:], 10),
    ],
    ids=["cut", "damaged", "foreign", "newer"],
)
def test_a_model_that_cannot_be_used_ends_the_command_with_its_code(
    tmp_path: Path, table: str, capsys: pytest.CaptureFixture[str], change: object, code: int
) -> None:
    assert callable(change)
    model = tmp_path / "model.dwsm"
    model.write_bytes(change(selector_bytes()))
    assert run(["select", "explain", table, "--link", "1Gbps", "--model", str(model)]) == code
    assert "model" in capsys.readouterr().err
    assert run(["select", "evaluate", "--table", table, "--model", str(model)]) == code


def test_evaluate_tells_every_figure(table: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["select", "evaluate", "--table", table, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    for key in (
        "efficiency_sequential",
        "efficiency_pipelined",
        "worst_link",
        "within_5pct",
        "top1",
        "guard_worst",
        "regret_mean_s_per_gb",
        "regret_p99_s_per_gb",
    ):
        assert isinstance(told[key], float), key
    assert told["split"] == "held-out"
    assert 0.9 < told["noise_ceiling"]["top1"] <= 1
    assert run(["select", "evaluate", "--table", table, "--split", "tomorrow"]) == 2


def test_a_model_trained_twice_is_the_same_and_has_its_card(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightgbm")
    made = []
    for name in ("one.dwsm", "two.dwsm"):
        out = tmp_path / name
        command = ["select", "train", "--table", table, "--trees", "5", "--out", str(out)]
        assert run(command) == 0, capsys.readouterr().err
        made.append(out.read_bytes())
    assert made[0] == made[1]
    card = json.loads((tmp_path / "one.json").read_text("utf-8"))
    assert card["files"]["held-out"] > 100 and card["settings"]["trees"] == 5
    assert 0.8 < card["held_out"]["efficiency_sequential"] < 1
