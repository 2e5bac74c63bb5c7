"""The run as a whole: it says so when v3 cannot do what it claims, and the real v3 can."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dwcp_fast.cli.demo import demo
from dwcp_fast.demo import run, v3
from dwcp_fast.demo.drills import Watch
from dwcp_fast.demo.record import Cell, Claim, LinkFacts, RunRecord

# Sends whole files by the zstd-1 rival: exact when nothing goes wrong, but without lanes, resuming,
# staging or bases.
STAND_IN = """
import datetime, json, socket, sys
from pathlib import Path
from dwcp_fast.demo.baselines import _ZstdBody, receive_object, send_object

command, *rest = sys.argv[1:]
options = dict(item[2:].split("=", 1) for item in rest if "=" in item)
if command == "recv":
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pairing = f"dwcp://127.0.0.1:{listener.getsockname()[1]}#ab.cd"
        print(json.dumps({"type": "listening", "pairing": pairing}), flush=True)
        receive_object(_ZstdBody(), listener.accept()[0], Path(options["into"]))
        print(json.dumps({"type": "received", "integrity_failures": 0}), flush=True)
else:
    host, port = options["to"].removeprefix("dwcp://").split("#")[0].split(":")
    try:
        send_object(_ZstdBody(), (host, int(port)), Path(rest[0]))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    now = datetime.datetime.now(datetime.UTC).isoformat()
    print(json.dumps({"type": "committed", "ts": now}))
    print(json.dumps({"type": "sent", "blocks_sent": 9, "bytes_held": 0, "bytes_raw": 9, "sessions": 1}))
"""


def test_claims_fail_for_a_v3_that_keeps_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(STAND_IN)
    monkeypatch.setattr(v3, "_DWCP", [sys.executable, str(stand_in)])
    links = (LinkFacts("test link", 50.0, 5.0),)
    monkeypatch.setattr(run, "LINKS", links)
    monkeypatch.setattr(run, "QUICK_LINKS", links)
    monkeypatch.setattr(run, "_QUICK_SIZE_BYTES", 1 << 20)
    monkeypatch.setattr(run, "_QUICK_DRILL_SIZE_BYTES", 1 << 20)
    said: list[str] = []
    out = tmp_path / "out"
    result = run.run_demo(out, 7, quick=True, say=said.append)

    assert not result.ok
    assert [claim.held for claim in result.record.claims] == [True, True, False, False, False, False]
    assert len(result.record.cells) == 3 * 4 + 3 * 5
    assert RunRecord.from_dict(json.loads((out / "run.json").read_text())) == result.record
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in result.files)
    assert not any(line.startswith("failed") for line in said)


def test_a_watch_remembers_a_content_that_was_there_only_for_a_while(tmp_path: Path) -> None:
    target, staged = tmp_path / "target", tmp_path / "staged"
    with Watch(target) as watch:
        for content in (b"old", b"damaged", b"new"):
            staged.write_bytes(content)
            staged.replace(target)
            watch.wait_for_look()
        seen = watch.end()
    # The first look may have come before the first content.
    assert len(seen - {"absent"}) == 3


@pytest.mark.parametrize(("verified", "held", "code"), [(True, True, 0), (True, False, 1), (False, False, 6)])
def test_the_exit_code_tells_wrong_bytes_from_another_failed_claim(
    verified: bool, held: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = LinkFacts("test link", 50.0, 5.0)
    cell = Cell(link.name, "a state", "version 0", "v3", 1.0, 9, 9, "00ff", verified)
    claim = Claim("bytes are equal", held, "none")
    record = RunRecord(7, True, "2026-01-01T00:00:00+00:00", 1.0, {}, {}, [link], [], [cell], [claim])
    monkeypatch.setattr(run, "run_demo", lambda *_: run.DemoResult(record, []))
    assert demo.main(["--quiet"], standalone_mode=False) == code


@pytest.mark.slow
def test_every_claim_holds_for_the_real_v3(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dwcp_fast", "demo", "--quick", "--json", f"--out={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "DWCP_STATE_DIR": str(tmp_path / "not-this-one")},
    )
    assert done.stdout, done.stderr
    record = RunRecord.from_dict(json.loads(done.stdout))
    assert [claim for claim in record.claims if not claim.held] == []
    assert (done.returncode, record.ok, len(record.claims)) == (0, True, 6)
    assert json.loads((tmp_path / "run.json").read_text()) == json.loads(done.stdout)
    made = {"report.html", "run.json", "seconds.png", "wire.png"}
    assert {path.name for path in tmp_path.iterdir()} == made
