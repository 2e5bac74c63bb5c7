"""The run as a whole, against a stand-in for v3 that cannot do what v3 claims: the run must say so."""

import json
import sys
from pathlib import Path

import pytest

from dwcp_fast.demo import run, v3
from dwcp_fast.demo.record import LinkFacts, RunRecord

# Sends whole files by the zstd-1 rival: exact when nothing goes wrong, but without lanes, resuming,
# staging or bases.
STAND_IN = """
import json, socket, sys
from pathlib import Path
from dwcp_fast.demo.baselines import _ZstdBody, receive_object, send_object

command, *rest = sys.argv[1:]
options = dict(item[2:].split("=", 1) for item in rest if "=" in item)
if command == "recv":
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pairing = f"dwcp://127.0.0.1:{listener.getsockname()[1]}#ab.cd"
        print(json.dumps({"type": "listening", "pairing": pairing}), flush=True)
        receive_object(_ZstdBody(), listener.accept()[0], Path(options["into"]))
else:
    host, port = options["to"].removeprefix("dwcp://").split("#")[0].split(":")
    try:
        sent = send_object(_ZstdBody(), (host, int(port)), Path(rest[0]))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(json.dumps({**sent, "blocks_sent": 9, "blocks_skipped": 0}))
"""


def test_claims_fail_for_a_v3_that_keeps_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(STAND_IN)
    monkeypatch.setattr(v3, "_DWCP", [sys.executable, str(stand_in)])
    monkeypatch.setattr(run, "LINKS", (LinkFacts("test link", 50.0, 5.0),))
    monkeypatch.setattr(run, "_QUICK_SIZE_BYTES", 1 << 20)
    said: list[str] = []
    out = tmp_path / "out"
    result = run.run_demo(out, 7, quick=True, say=said.append)

    assert not result.ok
    assert [claim.held for claim in result.record.claims] == [True, True, False, False, False, False, False]
    assert len(result.record.cells) == 1 * 2 * 3 * 4
    assert RunRecord.from_dict(json.loads((out / "run.json").read_text())) == result.record
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in result.files)
    assert not any(line.startswith("failed") for line in said)
