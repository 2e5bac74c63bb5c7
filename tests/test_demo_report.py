"""What the demo reports: losses first and computed, a run record that is checked when read."""

import copy
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dwcp_fast.demo.record import Cell, Claim, LinkFacts, RunRecord, find_losses
from dwcp_fast.demo.report import render_html, render_text, write_report
from dwcp_fast.demo.run import run_demo
from dwcp_fast.demo.state import build_bf16_weights, measure_facts
from dwcp_fast.errors import ConfigError, FormatError

LINKS = [LinkFacts("slow link", 100.0, 50.0), LinkFacts("fast link", 2000.0, 1.0)]


def cell(link: str, version: str, method: str, seconds: float, wire_bytes: int) -> Cell:
    return Cell(link, "weights.bf16", version, method, seconds, 1000, wire_bytes, "00ff", True)


def make_record(**changes: Any) -> RunRecord:
    cells = []
    for link in LINKS:
        for version in ("version 0", "change"):
            for place, method in enumerate(("raw", "zstd-1", "v1", "v3")):
                cells.append(cell(link.name, version, method, 4.0 - place, 4000 - 1000 * place))
    cells.append(cell("fast link", "change", "xor-zstd-1", 2.0, 2500))
    # Two losses: 1.5 times the best other method in seconds, and 1.1 times in bytes.
    cells[3] = cell("slow link", "version 0", "v3", 3.0, 2200)
    record = RunRecord(
        seed=7,
        quick=False,
        started="2026-01-01T00:00:00+00:00",
        duration_s=1.5,
        machine={"system": "test"},
        versions={"python": "3"},
        links=LINKS,
        states=[measure_facts(build_bf16_weights(7, 65536))],
        cells=cells,
        claims=[Claim("bytes are equal", True, "16 of 16"), Claim("<nothing> breaks", True, "none")],
    )
    return dataclasses.replace(record, **changes)


def test_losses_are_every_case_another_method_won_with_the_worst_first() -> None:
    losses = find_losses(make_record().cells)
    assert [(loss.measure, loss.winner, round(loss.ratio, 3)) for loss in losses] == [
        ("seconds", "v1", 1.5),
        ("wire bytes", "v1", 1.1),
    ]
    assert {(loss.link, loss.version) for loss in losses} == {("slow link", "version 0")}


def test_a_tie_is_no_loss() -> None:
    assert find_losses([cell("l", "change", "raw", 1.0, 9), cell("l", "change", "v3", 1.0, 9)]) == []


@pytest.mark.parametrize("width", [80, 140])
def test_text_names_the_losses_before_any_table_and_fits_its_width(width: int) -> None:
    text = render_text(make_record(), width, colour=False)
    assert text.startswith("What v3 did not win (2 cases, the worst first)")
    assert text.index("1.50×") < text.index("1.10×") < text.index("v3 against") < text.index("Seconds")
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text


def test_text_says_which_claims_failed() -> None:
    text = render_text(make_record(claims=[Claim("all is well", False, "[bold] 1 of 2")]), 120, colour=False)
    assert re.search(r"FAILED all is well *\n +\[bold\] 1 of 2", text)


def test_losses_in_bytes_of_all_links_share_a_line() -> None:
    heavy = [
        dataclasses.replace(cell, wire_bytes=5000) if cell.method == "v3" else cell
        for cell in make_record().cells
        if cell.version == "version 0"
    ]
    text = render_text(make_record(cells=heavy), 120, colour=False)
    assert "(3 cases" in text and len(re.findall(r"2 links .* 2\.50×", text)) == 1


def test_the_comparison_gives_the_geometric_mean_over_the_cases() -> None:
    # Against raw, v3 took 3/4 and 1/4 of the seconds for version 0, and twice 1/4 for the change.
    text = render_text(make_record(), 120, colour=False)
    assert re.search(r"raw +0\.43× +0\.25× ", text)


def test_page_lists_losses_first_escapes_text_and_refers_to_nothing_outside() -> None:
    page = render_html(make_record(), {"weights.bf16": "what <it> is"}, ["<svg>1</svg>", "<svg>2</svg>"])
    assert page.index("What v3 did not win") < page.index("What was claimed") < page.index("<svg>1</svg>")
    assert "&lt;nothing&gt; breaks" in page and "what &lt;it&gt; is" in page
    assert re.findall(r"(?:src|href)\s*=|@import|url\(", page) == []


def test_written_files_are_whole_and_the_record_reads_back_equal(tmp_path: Path) -> None:
    record = make_record()
    files = write_report(tmp_path, record, {})
    assert [path.name for path in files] == ["report.html", "run.json", "seconds.png", "wire.png"]
    assert files[0].read_text().count("<svg") == 2
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files[2:])
    data = json.loads(files[1].read_text())
    assert data["ok"] is True and data["losses"][0]["ratio"] == 1.5
    assert RunRecord.from_dict(data) == record


def set_path(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (set_path("schema", to="dwcp-demo-run/0"), "schema"),
        (set_path("cells", 0, "seconds", to="1"), r"run\.cells\[0\]\.seconds is str, not float"),
        (set_path("cells", 0, "method", to="v4"), "unknown method 'v4'"),
        (set_path("cells", 0, "extra", to=1), r"run\.cells\[0\] holds"),
        (set_path("claims", to={}), r"run\.claims is dict"),
        (set_path("claims", 0, "held", to=False), "'ok' does not follow"),
        (set_path("losses", to=[]), "'losses' does not follow"),
        (set_path("seed", to=True), r"run\.seed is bool"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(change: Callable[[Any], None], complaint: str) -> None:
    data = copy.deepcopy(make_record().to_dict())
    change(data)
    with pytest.raises(FormatError, match=complaint):
        RunRecord.from_dict(data)


def test_without_matplotlib_the_run_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said: list[str] = []
    with pytest.raises(ConfigError) as caught:
        run_demo(tmp_path / "out", 7, quick=True, say=said.append)
    assert caught.value.hint == "pip install 'dwcp-fast[demo]'"
    assert said == [] and not (tmp_path / "out").exists()
