"""Say what is missing to build, in one go, before a long build finds out.

Runs on any Python 3.6 or newer, also one too old to build with: that is one of the things it reports.
"""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Iterator, Tuple

OLDEST_PYTHON = (3, 11)


def main() -> int:
    """Print every problem found.

    Returns:
        0 where nothing is missing, else 1.
    """
    missing = list(python_problems()) + list(rust_problems()) + list(c_problems())
    for problem in missing:
        print(f"missing: {problem}", file=sys.stderr)
    return 1 if missing else 0


def python_problems() -> Iterator[str]:
    if sys.version_info < OLDEST_PYTHON:
        oldest, found = ".".join(map(str, OLDEST_PYTHON)), sys.version.split()[0]
        yield f"Python {oldest} or newer; {sys.executable} is {found} (say which: make PYTHON=/path/python3)"
        return
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        yield f"the venv module of {sys.executable} ({error}); on Debian: apt-get install python3-venv"
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        yield f"{header}; on Debian: apt-get install python3-dev"


def rust_problems() -> Iterator[str]:
    needed = oldest_rust()
    try:
        told = subprocess.check_output(["cargo", "--version"]).decode()
    except (OSError, subprocess.CalledProcessError):
        yield f"a Rust toolchain, {needed} or newer, with cargo on PATH"
        return
    found = re.search(r"(\d+)\.(\d+)", told)
    if found is None or numbers(found.group()) < numbers(needed):
        yield f"Rust {needed} or newer; cargo says {told.strip()}"


def c_problems() -> Iterator[str]:
    # What Python was built with is often not what is installed: `cc` from any compiler will do.
    for compiler in (os.environ.get("CC"), (sysconfig.get_config_var("CC") or "").split(" ")[0], "cc"):
        if compiler and answers(compiler.split(" ")[0]):
            return
    yield "a C compiler; on Debian: apt-get install gcc libc6-dev"


def answers(command: str) -> bool:
    try:
        nowhere = subprocess.DEVNULL
        return subprocess.call([command, "--version"], stdout=nowhere, stderr=nowhere) == 0
    except OSError:
        return False


def oldest_rust() -> str:
    manifest = Path(__file__).resolve().parent.parent / "Cargo.toml"
    found = re.search(r'^rust-version = "([0-9.]+)"', manifest.read_text(), flags=re.MULTILINE)
    if found is None:
        raise SystemExit("Cargo.toml does not say rust-version")
    return found.group(1)


def numbers(version: str) -> Tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


if __name__ == "__main__":
    sys.exit(main())
