"""Patches of files take the memory that is stated, however long the files are."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dwcp_fast import delta

PEAK_MIB = 128
"""Less than the 192 MiB of `docs/performance.md`: what is looked up in a base of 1 GiB takes less."""

SIZE = 1 << 30
ISLAND = 24 << 20

WORKER = """
import sys
from pathlib import Path
from dwcp_fast import delta

step, folder = sys.argv[1], Path(sys.argv[2])
if step == "diff":
    delta.diff_files(folder / "old", folder / "new", folder / "patch")
elif step == "apply":
    delta.apply_files(folder / "patch", folder / "old", folder / "made")
else:
    delta.apply_files(folder / "patch", folder / "old", in_place=True)
status = Path("/proc/self/status").read_text()
print(next(int(row.split()[1]) // 1024 for row in status.splitlines() if row.startswith("VmHWM")))
"""


def data_of(path: Path) -> list[tuple[int, bytes]]:
    """Give what is in a sparse file that is not zero, by MiB."""
    found = []
    with path.open("rb") as file:
        for at in range(0, SIZE, 1 << 20):
            part = file.read(1 << 20)
            if part.count(0) != len(part):
                found.append((at, part))
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak where Linux tells it")
def test_patches_of_long_files_stay_within_the_stated_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    with (tmp_path / "old").open("wb") as old, (tmp_path / "new").open("wb") as new:
        old.truncate(SIZE)
        new.truncate(SIZE)
        for number in range(4):
            data = bytearray(rng.bytes(ISLAND))
            at = number * (SIZE // 4) + 8192
            old.seek(at)
            old.write(data)
            for page in range(0, ISLAND, 37 * 4096):
                data[page : page + 16] = rng.bytes(16)
            # Every other one is moved, by no multiple of anything.
            new.seek(at + 4113 * (number % 2))
            new.write(data)
    expected = data_of(tmp_path / "new")
    for step in ("diff", "apply", "in place"):
        command = [sys.executable, "-c", WORKER, step, str(tmp_path)]
        told = subprocess.run(command, check=True, capture_output=True, timeout=300)
        assert int(told.stdout) <= PEAK_MIB, step
    assert data_of(tmp_path / "made") == expected
    assert data_of(tmp_path / "old") == expected
    # What moved was found, and holes stay holes.
    assert delta.info((tmp_path / "patch").read_bytes()).patch_bytes < ISLAND // 8
    assert (tmp_path / "made").stat().st_blocks * 512 < 8 * ISLAND
