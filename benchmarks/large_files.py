"""How much memory do patches of files take that are longer than the memory of the machine?

Usage: python benchmarks/large_files.py GIB FOLDER FILE...

Makes two sparse files of GIB GiB in FOLDER with the FILEs as islands in them, in the new one with changed
pages and every other island moved; then the patch, the new version as a file of its own, and in place. Every
step runs in a process of its own, which tells its peak resident memory (Linux).
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dwcp_fast import delta

PEAK_MIB = 192
CHUNK = 8 << 20
PAGE = 4096


def peak_mib() -> float:
    """Peak resident memory of this process; ru_maxrss would start from that of the process that forked it."""
    status = Path("/proc/self/status").read_text()
    return next(int(row.split()[1]) / 1024 for row in status.splitlines() if row.startswith("VmHWM"))


def make(folder: Path, size: int, islands: list[Path]) -> None:
    """Write the two versions."""
    step = size // len(islands) // PAGE * PAGE
    with (folder / "old").open("wb") as old, (folder / "new").open("wb") as new:
        old.truncate(size)
        new.truncate(size)
        for number, island in enumerate(islands):
            data = bytearray(island.read_bytes()[: step - 4 * PAGE])
            old.seek(number * step + 2 * PAGE)
            old.write(data)
            for at in range(0, len(data) - 64, 37 * PAGE):
                data[at : at + 64] = os.urandom(64)
            new.seek(number * step + 2 * PAGE + (PAGE + 17) * (number % 2))
            new.write(data)


def work(step: str, folder: Path) -> None:
    """Worker: one step, and what it took."""
    began = time.perf_counter()
    old, new, patch = folder / "old", folder / "new", folder / "patch"
    if step == "diff":
        told = delta.diff_files(old, new, patch)
    elif step == "apply":
        told = delta.apply_files(patch, old, folder / "made")
    else:
        told = delta.apply_files(patch, old, in_place=True)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak_mib": peak_mib(), "patch_bytes": told.patch_bytes}))


def run(step: str, folder: Path) -> dict[str, Any]:
    """Run a step in a process of its own."""
    command = [sys.executable, __file__, "--worker", step, str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)  # type: ignore[no-any-return]


def are_equal(one: Path, other: Path) -> bool:
    """Compare two files byte by byte."""
    with one.open("rb") as first, other.open("rb") as second:
        while True:
            parts = (first.read(CHUNK), second.read(CHUNK))
            if parts[0] != parts[1]:
                return False
            if not parts[0]:
                return True


def main(gib: float, folder: Path, islands: list[Path]) -> int:
    """Run all steps; 1 if one is wrong, or takes more than it may."""
    make(folder, int(gib * (1 << 30)), islands)
    data = sum(island.stat().st_size for island in islands)
    print(f"{gib:g} GiB with {data >> 20} MiB of data in {len(islands)} islands; bound: {PEAK_MIB} MiB")
    is_good = True
    for step, made in (("diff", None), ("apply", "made"), ("in place", "old")):
        told = run(step, folder)
        is_right = made is None or are_equal(folder / made, folder / "new")
        is_good &= is_right and told["peak_mib"] <= PEAK_MIB
        print(
            f"{step:<9} {told['seconds']:7.1f} s  peak {told['peak_mib']:5.0f} MiB"
            f"  patch {told['patch_bytes'] / 2**20:.1f} MiB  {'right' if is_right else 'WRONG'}",
            flush=True,
        )
        if made == "made":
            (folder / made).unlink()
    return 0 if is_good else 1


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        work(sys.argv[2], Path(sys.argv[3]))
    else:
        sys.exit(main(float(sys.argv[1]), Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]]))
