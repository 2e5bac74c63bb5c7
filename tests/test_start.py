"""What is imported before a command does anything: a second of it is a second of every short transfer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from two_ends import WAIT_S

LATE = {"asyncio", "email", "importlib.metadata", "matplotlib", "numpy", "obstore", "rich", "tomllib"}
"""Libraries that only some uses need, and that take long to import."""


def imported_by(program: str, folder: Path) -> set[str]:
    """Run a program in a process of its own, and give what it imported."""
    told = "import json, sys\nsys.__stdout__.write('\\n' + json.dumps(sorted(set(sys.modules) - before)))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DWCP_")}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nbefore = set(sys.modules)\n{program}\n{told}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        cwd=folder,
        env=environment | {"XDG_CONFIG_HOME": str(folder), "DWCP_STATE_DIR": str(folder)},
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_package_alone_imports_little(tmp_path: Path) -> None:
    found = imported_by("import dwcp_fast", tmp_path)
    assert "dwcp_fast.session" in found
    assert found.isdisjoint(LATE | {"click", "dwcp_fast.delta", "dwcp_fast.snap", "dwcp_fast.versions"})


def test_what_is_imported_late_is_there_all_the_same(tmp_path: Path) -> None:
    program = "import dwcp_fast\nfrom dwcp_fast import *\ndwcp_fast.__version__, dwcp_fast.snap.pack, delta"
    assert imported_by(program, tmp_path) >= {"numpy", "importlib.metadata", "dwcp_fast.versions"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["accept", "--qmp", "none.qmp", "--listen", "127.0.0.1:0"],
        ["migrate", "--qmp", "none.qmp", "--to", "127.0.0.1:1", "--insecure"],
        ["estimate", "--qmp", "none.qmp", "--link", "1Gbps"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_imports_nothing_of_the_others(arguments: list[str], tmp_path: Path) -> None:
    found = imported_by(
        f"from dwcp_fast.cli.program import run\nassert run({['vm', *arguments]}) == 3", tmp_path
    )
    assert found.isdisjoint(LATE)
    commands = {name for name in found if name.startswith("dwcp_fast.cli.")} - {"dwcp_fast.cli.vm"}
    assert "dwcp_fast.cli.vm" in found
    shared = {"files", "grouping", "output", "program", "security", "settings", "transfer", "units"}
    assert commands <= {f"dwcp_fast.cli.{name}" for name in shared}


def test_a_setting_of_the_environment_is_still_looked_at(tmp_path: Path) -> None:
    program = (
        "import os\nfrom dwcp_fast.cli.program import run\n"
        "os.environ['DWCP_SEND_NONSENSE'] = '1'\n"
        "assert run(['vm', 'estimate', '--qmp', 'none.qmp', '--link', '1Gbps']) == 2"
    )
    assert "dwcp_fast.cli.send" in imported_by(program, tmp_path)
