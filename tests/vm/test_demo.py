"""``dwcp demo vm``: a guest moves in front of whoever wants to see it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from dwcp_fast.cli.program import program, run
from dwcp_fast.demo import guest, move


@pytest.mark.timeout(240)
def test_a_guest_is_moved_and_finds_its_memory_right(initramfs: Path, tmp_path: Path) -> None:
    assert initramfs.exists()
    out = tmp_path / "out"
    command = [sys.executable, "-m", "dwcp_fast", "demo", "vm", f"--out={out}", "--json", "--memory=128"]
    done = subprocess.run([*command, "--link=200Mbps"], capture_output=True, text=True, timeout=220)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [claim["held"] for claim in told["claims"]] == [True] * 3
    assert " bad=0 " in told["told"] and told["report"]["rounds"] and told["guest_downtime_s"] > 0
    # Not always the first: one that ends between two looks at QEMU is in neither.
    for ended in told["report"]["rounds"]:
        assert f"round {ended['number']}:" in done.stderr
    assert "<svg" in (out / "move.html").read_text(encoding="utf-8")
    assert json.loads((out / "move.json").read_text(encoding="utf-8")) == told


def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(guest, "QEMU", "qemu-of-another-world")
    monkeypatch.setattr(guest, "PROGRAMS", {"qemu-of-another-world": "qemu-system-x86"})
    guest.why_missing.cache_clear()
    try:
        assert run(["demo", "vm"]) == 2
    finally:
        guest.why_missing.cache_clear()
    assert (
        "qemu-of-another-world is not installed: apt-get install qemu-system-x86" in capsys.readouterr().err
    )


def test_claims_fail_for_a_guest_that_found_something(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")

    class Console:
        def complaints(self) -> list[str]:
            return ["BAD page=7"]

    class Machine:
        console = Console()

        def __init__(self, state: str) -> None:
            self.state = state

        def status(self) -> str:
            return self.state

    class Report:
        wire_bytes, sent_bytes = 10, 9

    good = "VERIFIED pages=9 bad=0 sum=1 total=1 ever_bad=0"
    both, here = (Machine("running"), Machine("running")), (Machine("running"), Machine("inmigrate"))
    for machines in (both, here):
        claims = move.judge(*machines, good, Report())  # type: ignore[arg-type]
        assert [claim.held for claim in claims] == [False, False, False]


def test_the_demonstration_without_a_guest_is_still_the_command_itself() -> None:
    told = CliRunner().invoke(program, ["demo", "-h"])
    assert told.exit_code == 0 and "--seed" in told.stdout and "vm" in told.stdout
