"""Contenders that are programs: timed by the processor time of the child, with its peak memory."""

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from delta.measuring import Contender, Decode, Pair
from delta.runner import runner

Step = Callable[[], None]
OURS_FILES = "dwcp_fast files"
PASSWORD = {"RESTIC_PASSWORD": "benchmark", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}


class Shelf:
    """Both versions as files, and room for what the programs write."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        self.pair, self.folder = pair, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.old, self.new = folder / "old" / "state", folder / "new" / "state"
        for path, data in ((self.old, pair.old), (self.new, pair.new)):
            path.parent.mkdir(exist_ok=True)
            data.tofile(path)
        self.patch, self.made = folder / "patch", folder / "made"
        self.home = folder / "home"

    def run(self, command: Sequence[str], notes: dict[str, Any], step: str) -> None:
        """Run a child, and keep the most memory that it had."""
        environment = os.environ | PASSWORD | {"HOME": str(self.home), "XDG_CACHE_HOME": str(self.home)}
        used = runner().run(command, environment)
        key = f"peak_bytes {step}"
        notes[key] = max(notes.get(key, 0), used.peak_bytes)


def patcher(
    shelf: Shelf, encode: Sequence[Sequence[str]], decode: Sequence[Sequence[str]], rounds: int = 1
) -> Contender:
    """A program that writes a patch to a file; `{old}`, `{new}`, `{patch}` and `{made}` stand for paths."""
    notes: dict[str, Any] = {}
    names = {"old": shelf.old, "new": shelf.new, "patch": shelf.patch, "made": shelf.made}

    def run(commands: Sequence[Sequence[str]], step: str) -> None:
        for command in commands:
            shelf.run([part.format(**names) for part in command], notes, step)

    def make() -> int:
        run(encode, "encode")
        return shelf.patch.stat().st_size

    def apply(_size: int) -> Path:
        run(decode, "decode")
        return shelf.made

    def clean() -> None:
        shelf.patch.unlink(missing_ok=True)
        Path(f"{shelf.patch}.signature").unlink(missing_ok=True)

    return Contender(
        make,
        {"file": Decode(apply, lambda: shelf.made.unlink(missing_ok=True))},
        int,
        clean,
        rounds,
        notes,
    )


def ours_files(shelf: Shelf) -> Contender:
    """Ours over files, in a process of its own; the interpreter's start counts."""
    call = "import sys; from dwcp_fast import delta; delta.{}(*sys.argv[1:])"
    return patcher(
        shelf,
        [[sys.executable, "-c", call.format("diff_files"), "{old}", "{new}", "{patch}"]],
        [[sys.executable, "-c", call.format("apply_files"), "{patch}", "{old}", "{made}"]],
        rounds=3,
    )


def patch_from(shelf: Shelf, level: int) -> Contender:
    options = ["zstd", "-q", "-f", f"-{level}", "--long=31"]
    return patcher(
        shelf,
        [[*options, "--patch-from={old}", "{new}", "-o", "{patch}"]],
        [["zstd", "-q", "-f", "-d", "--long=31", "--patch-from={old}", "{patch}", "-o", "{made}"]],
    )


def xdelta(shelf: Shelf, level: int) -> Contender:
    return patcher(
        shelf,
        [["xdelta3", "-e", "-f", f"-{level}", "-S", "none", "-s", "{old}", "{new}", "{patch}"]],
        [["xdelta3", "-d", "-f", "-s", "{old}", "{patch}", "{made}"]],
    )


def rdiff(shelf: Shelf) -> Contender:
    return patcher(
        shelf,
        [
            ["rdiff", "-f", "signature", "{old}", "{patch}.signature"],
            ["rdiff", "-f", "delta", "{patch}.signature", "{new}", "{patch}"],
        ],
        [["rdiff", "-f", "patch", "{old}", "{patch}", "{made}"]],
    )


def store(shelf: Shelf, name: str, setup: Step, add: Callable[[str], None], restore: Step) -> Contender:
    """A deduplicating store: holds the old version, and is given the new one. Its size counts by growth."""
    repository = shelf.folder / name

    def prepare() -> None:
        shutil.rmtree(repository, ignore_errors=True)
        shutil.rmtree(shelf.home, ignore_errors=True)
        shelf.home.mkdir()
        setup()
        add("old")

    def make() -> int:
        before = stored(repository)
        add("new")
        return stored(repository) - before

    def apply(_size: int) -> Path:
        restore()
        return next(path for path in (shelf.folder / "restored").rglob("state"))

    def clean() -> None:
        shutil.rmtree(shelf.folder / "restored", ignore_errors=True)
        (shelf.folder / "restored").mkdir()

    return Contender(make, {"file": Decode(apply, clean)}, int, prepare, 1)


def stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def casync(shelf: Shelf) -> Contender:
    repository = shelf.folder / "casync"
    common = ["casync", f"--store={repository}/chunks"]

    def add(version: str) -> None:
        path = str(shelf.folder / version / "state")
        shelf.run([*common, "make", f"{repository}/{version}.caibx", path], {}, "")

    def restore() -> None:
        target = str(shelf.folder / "restored" / "state")
        shelf.run([*common, "extract", f"{repository}/new.caibx", target], {}, "")

    return store(shelf, "casync", repository.mkdir, add, restore)


def restic(shelf: Shelf) -> Contender:
    common = ["restic", "--quiet", "--repo", str(shelf.folder / "restic")]

    def add(version: str) -> None:
        shelf.run([*common, "backup", str(shelf.folder / version)], {}, "")

    def restore() -> None:
        target = str(shelf.folder / "restored")
        shelf.run([*common, "restore", "latest", "--target", target], {}, "")

    return store(
        shelf,
        "restic",
        lambda: shelf.run([*common, "init", "--repository-version", "2"], {}, ""),
        add,
        restore,
    )


def borg(shelf: Shelf) -> Contender:
    repository = str(shelf.folder / "borg")

    def add(version: str) -> None:
        path = str(shelf.folder / version)
        shelf.run(["borg", "create", "--compression", "zstd,1", f"{repository}::{version}", path], {}, "")

    def restore() -> None:
        # It extracts into the folder it is run in, and has no option for another.
        move = ["sh", "-c", 'cd "$1" && exec borg extract "$2"', "sh", str(shelf.folder / "restored")]
        shelf.run([*move, f"{repository}::new"], {}, "")

    return store(
        shelf,
        "borg",
        lambda: shelf.run(["borg", "init", "--encryption=none", repository], {}, ""),
        add,
        restore,
    )


PROGRAMS: Mapping[str, tuple[str, Callable[[Shelf], Contender]]] = {
    OURS_FILES: (sys.executable, ours_files),
    "zstd -1 --patch-from": ("zstd", lambda shelf: patch_from(shelf, 1)),
    "zstd -3 --patch-from": ("zstd", lambda shelf: patch_from(shelf, 3)),
    "xdelta3 -1": ("xdelta3", lambda shelf: xdelta(shelf, 1)),
    "xdelta3 -6": ("xdelta3", lambda shelf: xdelta(shelf, 6)),
    "rdiff": ("rdiff", rdiff),
    "casync": ("casync", casync),
    "restic": ("restic", restic),
    "borg": ("borg", borg),
}


def programs(
    pair: Pair, folder: Path, only: tuple[str, ...] | None, missing: dict[str, str]
) -> dict[str, Contender]:
    """The programs that are installed here, or those of them in `only`, over the files of one pair."""
    ready, shelf = {}, Shelf(pair, folder)
    for name, (program, make) in PROGRAMS.items():
        if only is not None and name not in only:
            continue
        if shutil.which(program) is None:
            missing[name] = f"{program} is not installed"
            continue
        ready[name] = make(shelf)
    return ready
