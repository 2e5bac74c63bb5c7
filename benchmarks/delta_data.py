"""Build the data that `bench_delta.py` measures on: `python benchmarks/delta_data.py [--data DIR] [SET ...]`.

Every set is made by a program that really did the thing: a model trained, a guest booted, packages
installed. A set that is there is kept; one that cannot be built says why.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from delta.files import UnbuildableError, build_disk, build_logs, build_synthetic, build_text
from delta.guest import build_vm
from delta.weights import build_weights

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dwcp-fast" / "bench-delta"
SETS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "text": (build_text, ("text_a.tar", "text_b.tar", "text_minor_a.tar", "text_minor_b.tar")),
    "weights": (
        build_weights,
        tuple(
            f"{kind}_{name}.bin"
            for kind in ("bf16", "fp32", "adam_m", "adam_v")
            for name in ("base", "lr1e-6", "lr1e-5", "lr2e-4", "lr1e-5_10")
        ),
    ),
    "synthetic": (
        build_synthetic,
        ("noise_a.bin", "noise_b.bin", "insert_b.bin", "sparse_a.bin", "sparse_b.bin"),
    ),
    "logs": (build_logs, ("logs_a", "logs_b")),
    "disk": (build_disk, ("disk_a.img", "disk_b.img")),
    "vm": (build_vm, ("vm_a.bin", "vm_2s.bin", "vm_12s.bin")),
}
"""For each set: how to build it, and the files that it is made of."""


def build(folder: Path, names: list[str]) -> dict[str, str]:
    """Have the named sets (all, if none is named) in `folder`; give what could not be built, and why."""
    failed = {}
    for name in names or list(SETS):
        action, files = SETS[name]
        if all((folder / file).exists() for file in files):
            continue
        folder.mkdir(parents=True, exist_ok=True)
        try:
            action(folder)
        except UnbuildableError as error:
            failed[name] = str(error)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=CACHE, help="folder of the data (default %(default)s)")
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)}; all by default")
    options = parser.parse_args()
    if unknown := set(options.sets) - set(SETS):
        parser.error(f"no such set: {', '.join(sorted(unknown))}")
    failed = build(options.data, options.sets)
    for name, reason in failed.items():
        print(f"not built: {name}: {reason}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
