"""Content that no file holds: memory of processes, images and archives of real folders, what programs say."""

import bz2
import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from base64 import b64encode
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from dwcp_fast.train.selector.content import BytesContent, Deadline, FileContent, Opener, file_content
from dwcp_fast.train.selector.corpus import Candidate, rank, system_candidates, walk
from dwcp_fast.train.selector.heap import PROGRAMS, Program, memory_of

__all__ = ["system_corpus"]

MIB: Final = 1 << 20
FOLDERS: Final = ("usr/share", "usr/lib", "usr/libexec", "usr/local", "var/lib", "opt", "usr/include", "etc")
SMALLEST_FOLDER: Final = 4 * MIB
LARGEST_FOLDER: Final = 160 * MIB
MOST_FOLDERS: Final = 20
MOST_SAID: Final = 12 * MIB
SAMPLING_S: Final = 4.0
SAMPLE_EVERY_S: Final = 0.002
COUNTERS: Final = ("stat", "vmstat", "meminfo", "interrupts", "softirqs", "net/dev", "diskstats", "schedstat")
TRACED: Final = "import ast, json, pathlib; ast.dump(ast.parse(pathlib.Path(json.__file__).read_text()))"
SAYING: Final[dict[str, tuple[str, ...]]] = {
    "listing-of-files": ("find", "/usr", "-xdev", "-ls"),
    "packages-installed": (
        "dpkg-query",
        "--show",
        "--showformat=${Package}\t${Version}\t${Installed-Size}\t${Status}\n",
    ),
    "packages-described": ("dpkg-query", "--status"),
    "packages-known": ("apt-cache", "dumpavail"),
    "program-traced": (sys.executable, "-m", "trace", "--trace", "/dev/stdin"),
    "imports-told": (
        sys.executable,
        "-v",
        "-c",
        "import asyncio, email, unittest, xml.dom, sqlite3, http.server",
    ),
    "symbols-told": ("readelf", "--all", "--wide", "/proc/self/exe"),
    "instructions-told": ("objdump", "--disassemble", "/proc/self/exe"),
    "journal": ("journalctl", "--no-pager", "--boot", "--output=short-precise"),
    "journal-as-json": ("journalctl", "--no-pager", "--boot", "--output=json"),
    "kernel-messages": ("dmesg",),
    "processes": ("ps", "-eLo", "pid,tid,ppid,user,stat,pcpu,rss,vsz,lstart,time,wchan,args"),
}
"""What programs say at length, as they would to a log."""


def system_corpus(root: Path, seed: int, most: int, excluded: Iterable[Path] = ()) -> list[Candidate]:
    """Give what there is to measure on a system: its files, and what is made of them and by its programs.

    Args:
        root: Where the system's root is.
        seed: What the choice depends on.
        most: Files of a family.
        excluded: Folders of which nothing is taken.
    """
    excluded = set(excluded)
    folders = folders_of(root, seed, excluded)
    # What is in an image or an archive is not measured a second time as a file.
    return [
        *made_candidates(root, seed, folders),
        *system_candidates(root, seed, most, [*folders, *excluded]),
    ]


def folders_of(root: Path, seed: int, excluded: Container[Path]) -> list[Path]:
    """Choose folders of a system to make images and archives of.

    Args:
        root: Where the system's root is.
        seed: What the choice depends on.
        excluded: Folders that are not to be taken.
    """
    found = []
    for top in FOLDERS:
        try:
            with os.scandir(root / top) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError:
            continue
        for name in names:
            folder = root / top / name
            if (
                folder not in excluded
                and SMALLEST_FOLDER <= sum(path.stat().st_size for path in walk(folder)) <= LARGEST_FOLDER
            ):
                found.append(folder)
    found.sort(key=lambda folder: rank(seed, f"folder:{folder.relative_to(root)}"))
    return found[:MOST_FOLDERS]


def made_candidates(root: Path, seed: int, folders: Iterable[Path]) -> Iterator[Candidate]:
    """Give all that is made: of a system's folders, by running programs, and at random.

    Args:
        root: Where the system's root is.
        seed: What random content depends on.
        folders: What to make images and archives of: every other one an image.
    """

    def candidate(
        family: str,
        name: str,
        source: str,
        make: Opener,
        width: int | None = None,
    ) -> Candidate:
        said = f"made/{family}/{name}"
        return Candidate(id=said, family=family, group=said, source=source, open=make, width=width)

    for place, folder in enumerate(folders):
        name = str(folder.relative_to(root)).replace("/", "-")
        if place % 2:
            yield candidate("tar", name, "tar of a folder of the system", tar_maker(folder))
        elif shutil.which("mke2fs"):
            yield candidate(
                "disk", name, "ext4 image of a folder of the system (mke2fs -d)", disk_maker(folder)
            )
    for name, program in PROGRAMS.items():
        yield candidate(
            "heap", name, f"memory of a live process: {program.told}", memory_maker(program, root)
        )
    for name, command in SAYING.items():
        if shutil.which(command[0]):
            yield candidate("log", name, f"what {Path(command[0]).name} says", saying_maker(command))
    for name, (width, told, record) in TELEMETRY.items():
        yield candidate("telemetry", name, told, bytes_maker(record), width)
    for name, (told, pack) in PACKERS.items():
        yield candidate("compressed", name, told, packing_maker(root, seed, pack))
    for name, (told, length, draw) in RANDOM.items():
        yield candidate("random", name, told, random_maker(f"{seed}:{name}", length, draw))


def bytes_maker(make: Callable[[Deadline], bytes]) -> Opener:
    """Make what gives bytes that are made when they are wanted."""
    return lambda deadline: nullcontext(BytesContent(make(deadline)))


def memory_maker(program: Program, root: Path) -> Opener:
    """Make what gives the memory of a process."""
    return lambda deadline: memory_of(program, root, deadline)


def random_maker(seed: str, length: int, draw: Callable[[Random, int], bytes]) -> Opener:
    """Make what gives random bytes, the same each time."""
    return bytes_maker(lambda _deadline: draw(Random(seed), length))


def tar_maker(folder: Path) -> Opener:
    """Make what gives an archive of a folder."""

    @contextmanager
    def make(deadline: Deadline) -> Iterator[FileContent]:
        with tempfile.NamedTemporaryFile(prefix="dwcp-", suffix=".tar") as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                for path in walk_all(folder):
                    deadline.check()
                    archive.add(path, str(path.relative_to(folder)), recursive=False)
            file.flush()
            with file_content(Path(file.name)) as content:
                yield content

    return make


def walk_all(top: Path) -> Iterator[Path]:
    """Give everything below a folder, in order."""
    for folder, folders, files in os.walk(top):
        folders.sort()
        yield from (Path(folder, name) for name in sorted([*folders, *files]))


def disk_maker(folder: Path) -> Opener:
    """Make what gives a file system with what a folder holds."""

    @contextmanager
    def make(deadline: Deadline) -> Iterator[FileContent]:
        sizes = [path.lstat().st_size for path in walk_all(folder)]
        # A block for each file's end and inode, a fifth free, and what the file system needs itself.
        kib = (sum(sizes) * 6 // 5 >> 10) + 5 * len(sizes) + 16 * 1024
        with tempfile.NamedTemporaryFile(prefix="dwcp-", suffix=".img") as file:
            command = ["mke2fs", "-q", "-F", "-t", "ext4", "-N", str(len(sizes) + 64), "-d", str(folder)]
            said = subprocess.run(
                [*command, file.name, f"{kib}k"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=deadline.remaining_s,
                check=False,
            )
            if said.returncode:
                raise OSError(0, f"mke2fs failed: {said.stderr.decode(errors='replace').strip()[-200:]}")
            with file_content(Path(file.name)) as content:
                yield content

    return make


def saying_maker(command: tuple[str, ...]) -> Opener:
    """Make what gives what a program says."""

    def make(deadline: Deadline) -> bytes:
        with (
            tempfile.TemporaryFile(prefix="dwcp-") as said,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=said, stderr=subprocess.STDOUT
            ) as process,
        ):
            try:
                # Most of them read nothing, and may be gone by now.
                with (
                    suppress(BrokenPipeError),
                    process.stdin or nullcontext() as source,
                ):
                    if source is not None:
                        source.write(TRACED.encode())
                # Some would not come to an end.
                while process.poll() is None and os.fstat(said.fileno()).st_size < MOST_SAID:
                    deadline.check()
                    time.sleep(0.02)
            finally:
                process.kill()
            said.seek(0)
            return said.read(MOST_SAID)

    return bytes_maker(make)


def counters(deadline: Deadline) -> NDArray[np.float64]:
    """Record every number that the kernel counts, again and again: a row for each time, a column for each."""
    paths = (Path("/proc", name) for name in COUNTERS)
    rows = []
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb", buffering=0)) for path in paths if path.exists()]
        end = time.monotonic() + min(SAMPLING_S, deadline.remaining_s / 2)
        while time.monotonic() < end:
            words: list[bytes] = []
            for file in files:
                file.seek(0)
                words += file.read(MIB).replace(b":", b" ").split()
            rows.append([float(word) for word in words if word.isdigit()])
            time.sleep(SAMPLE_EVERY_S)
    width = min(map(len, rows))
    return np.array([row[:width] for row in rows])


def delays(_deadline: Deadline) -> NDArray[np.float64]:
    """Record how long the same small call takes, in microseconds, as a probe of latencies would."""
    count = 500_000
    times = np.empty(count + 1, np.int64)
    with Path("/proc/self/stat").open("rb", buffering=0) as file:
        for place in range(count + 1):
            if place % 64 == 0:
                file.seek(0)
                file.read(64)
            times[place] = time.perf_counter_ns()
    return np.diff(times) / 1e3


def rates(deadline: Deadline) -> NDArray[np.float64]:
    """Turn counters into rates, as a monitor shows them."""
    counted = counters(deadline)
    changing = counted[:, np.ptp(counted, axis=0) > 0]
    window = 20
    return (changing[window:] - changing[:-window]) / window


TELEMETRY: Final[dict[str, tuple[int, str, Callable[[Deadline], bytes]]]] = {
    "counters-f64-by-time": (8, "kernel counters, float64, by time", lambda end: counters(end).tobytes()),
    "counters-f64-by-name": (8, "kernel counters, float64, by name", lambda end: counters(end).T.tobytes()),
    "counters-i64-by-name": (
        8,
        "kernel counters, int64, by name",
        lambda end: counters(end).T.astype("<i8").tobytes(),
    ),
    "rates-f32-by-time": (
        4,
        "rates of kernel counters, float32, by time",
        lambda end: rates(end).astype("<f4").tobytes(),
    ),
    "rates-f32-by-name": (
        4,
        "rates of kernel counters, float32, by name",
        lambda end: rates(end).T.astype("<f4").tobytes(),
    ),
    "rates-f64-by-name": (
        8,
        "rates of kernel counters, float64, by name",
        lambda end: rates(end).T.tobytes(),
    ),
    "delays-f32": (
        4,
        "times of small system calls, float32",
        lambda end: delays(end).astype("<f4").tobytes(),
    ),
    "delays-f64": (8, "times of small system calls, float64", lambda end: delays(end).tobytes()),
}
"""Width of an element, description, and how it is recorded."""


def packing_maker(root: Path, seed: int, pack: Callable[[bytes], bytes]) -> Opener:
    """Make what gives real files, compressed."""

    def make(deadline: Deadline) -> bytes:
        paths = sorted(
            walk(root / "usr/share"), key=lambda path: rank(seed, f"packed:{path.relative_to(root)}")
        )
        gathered = io.BytesIO()
        for path in paths:
            if gathered.tell() >= 6 * MIB:
                break
            deadline.check()
            try:
                with file_content(path) as content:
                    gathered.write(content.read(0, 512 << 10))
            except OSError:
                continue
        return pack(gathered.getvalue())

    return bytes_maker(make)


PACKERS: Final[dict[str, tuple[str, Callable[[bytes], bytes]]]] = {
    "zlib-6": ("files of the system, zlib", lambda data: zlib.compress(data, 6)),
    "bzip2-9": ("files of the system, bzip2", lambda data: bz2.compress(data, 9)),
    "xz-3": ("files of the system, xz", lambda data: lzma.compress(data, preset=3)),
    "zstd-3": ("files of the system, zstd", lambda data: zstandard.compress(data, 3)),
    "zlib-6-base64": ("files of the system, zlib, as base64", lambda data: b64encode(zlib.compress(data, 6))),
}

RANDOM: Final[dict[str, tuple[str, int, Callable[[Random, int], bytes]]]] = {
    "bytes-1": ("random bytes", 4 * MIB, Random.randbytes),
    "bytes-2": ("random bytes", MIB, Random.randbytes),
    "bytes-3": ("random bytes", 64 << 10, Random.randbytes),
    "hex": (
        "random bytes, as hexadecimal digits",
        MIB,
        lambda random, length: random.randbytes(length).hex().encode(),
    ),
    "base64": ("random bytes, as base64", MIB, lambda random, length: b64encode(random.randbytes(length))),
    "halves": (
        "random bytes and zeros, 4 KiB of each in turn",
        4 * MIB,
        lambda random, length: b"".join(random.randbytes(4096) + bytes(4096) for _ in range(length >> 13)),
    ),
}
"""Description, length, and how it is made."""
