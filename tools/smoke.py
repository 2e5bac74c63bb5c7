"""Prove an installation in seconds: both extensions load and answer, and the command runs.

Uses no test package, so that it runs in an environment that holds the wheel and its dependencies alone.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import dwcp_fast
from dwcp_fast import _core
from dwcp_fast.v1 import _v1engine


def main() -> int:
    """Run the checks; an exception ends the program with its traceback.

    Returns:
        0 where everything held.
    """
    state = b"changing state " * 10_000
    packed = dwcp_fast.compress(state)
    assert dwcp_fast.decompress(packed) == state
    assert len(packed) < len(state)
    command = Path(sysconfig.get_path("scripts")) / "dwcp"
    for run in ([os.fspath(command), "--help"], [sys.executable, "-m", "dwcp_fast", "--help"]):
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    print(f"dwcp_fast {dwcp_fast.__version__} under Python {sys.version.split()[0]}")
    for module in (_core, _v1engine):
        print(f"  {module.__file__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
