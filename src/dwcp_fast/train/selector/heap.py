"""Memory of live processes that have real data loaded."""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from dwcp_fast.errors import DwcpError
from dwcp_fast.train.selector.content import BytesContent, Deadline

__all__ = ["PROGRAMS", "Program", "memory_of"]

MOST_BYTES: Final = 48 << 20
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
PRESENT: Final = np.uint64(1 << 63)
READY: Final = b"ready"
SETTLING_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Program:
    """A process to look into.

    Attributes:
        told: What it does, in words.
        command: What is run; ``{root}`` stands for the root of the system's files.
        text: What it is given to read.
        says_ready: Whether it says that its data is loaded. What does not is stopped after a second's work.
    """

    told: str
    command: tuple[str, ...]
    text: str = ""
    says_ready: bool = True


GATHER: Final = """
import json, os, random, sys
root, rng = sys.argv[1], random.Random(1)
def files(folder, ending, most, below=4 << 20):
    found = [os.path.join(at, name) for at, _, names in os.walk(root + folder) for name in names]
    found = sorted(path for path in found if path.endswith(ending) and os.path.isfile(path))
    rng.shuffle(found)
    return [path for path in found if os.path.getsize(path) < below][:most]
def read(paths):
    return [open(path, errors="replace").read() for path in paths]
"""
STAY: Final = """
print("ready", flush=True)
sys.stdin.read()
"""
PYTHON: Final = {
    "json": (
        "Python with parsed JSON",
        """
held = []
for path in files("usr", ".json", 400):
    try: held.append(json.load(open(path)))
    except ValueError: pass
""",
    ),
    "syntax": (
        "Python with syntax trees",
        """
import ast
held = []
for text in read(files("usr/lib", ".py", 60, 1 << 18)):
    try: held.append(ast.parse(text))
    except (SyntaxError, ValueError): pass
""",
    ),
    "sqlite": (
        "Python with a database in memory",
        """
import sqlite3
texts = read(files("usr/share", ".txt", 60) + files("usr/lib", ".py", 60))
words = sorted(set(" ".join(texts).split()))
held = sqlite3.connect(":memory:")
held.execute("create table account (id integer primary key, name text, sum integer, note text, seen real)")
held.executemany("insert into account values (?, ?, ?, ?, ?)", (
    (n, " ".join(rng.choices(words, k=2)), n * 7919 % 10**6, " ".join(rng.choices(words, k=8)), rng.random())
    for n in range(60000)))
held.execute("create index by_name on account (name)")
""",
    ),
    "index": (
        "Python with an index of words",
        """
import collections
held, texts = collections.defaultdict(list), read(files("usr/lib", ".py", 150, 1 << 18))
for number, text in enumerate(texts):
    for at, word in enumerate(text.split()): held[word].append((number, at))
""",
    ),
    "arrays": (
        "numpy with series of measurements",
        """
import numpy as np
r = np.random.default_rng(1)
walks = r.normal(0, 1, (40, 40000)).cumsum(1)
held = [walks, walks.astype("f4"), np.sort(walks, axis=1), (walks * 100).astype("i4"), np.round(walks, 2),
        np.fft.rfft(walks).astype("c8"), r.integers(0, 200, 1 << 21, dtype="u1"), np.zeros(1 << 21)]
""",
    ),
    "objects": (
        "Python with many small objects",
        """
import dataclasses, datetime, decimal, uuid
@dataclasses.dataclass
class Order:
    id: object; at: object; price: object; parts: list; open: bool
begin, second = datetime.datetime(2024, 1, 1), datetime.timedelta(seconds=1)
held = [Order(uuid.UUID(int=rng.getrandbits(128)), begin + n * second,
              decimal.Decimal(rng.randrange(10**7)) / 100, [rng.randrange(500) for _ in range(5)], n % 3 == 0)
        for n in range(60000)]
""",
    ),
    "cache": (
        "Python with compressed and plain pages of a cache",
        """
import zlib
paths = files("usr", ".html", 120) + files("usr/share/doc", "", 300)
held = {path: zlib.compress(text.encode()) for path, text in zip(paths, read(paths))}
plain = {path: open(path, "rb").read() for path in paths[::3]}
""",
    ),
    "trees": (
        "Python with parsed XML",
        """
import xml.etree.ElementTree as et
held = []
for path in files("usr", ".xml", 300) + files("usr/share", ".svg", 300):
    try: held.append(et.parse(path))
    except (et.ParseError, ValueError): pass
texts = read(files("etc", "", 300, 1 << 18))
rows = [dict(zip("abcdefgh", line.split())) for text in texts for line in text.splitlines()]
""",
    ),
    "code": (
        "Python with many modules",
        """
import importlib, pkgutil, warnings
warnings.simplefilter("ignore")
for module in ("asyncio", "email", "unittest", "http", "xml", "sqlite3", "concurrent", "ctypes", "logging"):
    for inner in pkgutil.walk_packages(importlib.import_module(module).__path__, module + "."):
        if "test" not in inner.name and "__main__" not in inner.name:
            try: importlib.import_module(inner.name)
            except Exception: pass
held = [compile(text, "x", "exec") for text in read(files("usr/lib", ".py", 60, 1 << 18))]
""",
    ),
}
NODE: Final = """
const fs = require("fs"), path = require("path"), root = process.argv[1], held = [], texts = [];
const look = (folder, depth) => { for (const entry of fs.readdirSync(folder, { withFileTypes: true })) {
  const at = path.join(folder, entry.name);
  if (entry.isDirectory() && depth) look(at, depth - 1);
  else if (entry.isFile() && entry.name.endsWith(".json") && held.length < 400) {
    try {
      const text = fs.readFileSync(at, "utf8");
      texts.push(text.slice(0, 20000));
      held.push(JSON.parse(text));
    } catch {} } } };
try { look(path.join(root, "usr/share"), 7); look(path.join(root, "usr/lib"), 4); } catch {}
const index = new Map();
const add = (word, number) => index.set(word, [...(index.get(word) || []).slice(-20), number]);
texts.forEach((text, number) => text.split(/\\W+/).forEach(word => add(word, number)));
console.log("ready"); process.stdin.resume();
"""
PERL: Final = """
my ($root, %count, @lines) = @ARGV;
for my $path (glob("$root/usr/share/perl/*/*.pm $root/usr/share/perl/*/*/*.pm $root/usr/include/*.h")) {
  open(my $in, "<", $path) or next;
  while (<$in>) { push @lines, [split /\\s+/]; $count{$_}++ for split /\\W+/; }
}
$| = 1; print "ready\\n"; <STDIN>;
"""
COMPILED: Final = """
#include <algorithm>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <random>
#include <regex>
#include <thread>
int main() {
  std::regex r("a|b*"); std::map<std::string, std::regex> m; m["x"] = r;
  std::cout << std::filesystem::current_path() << m.size(); return 0;
}
"""
PROGRAMS: Final = {
    f"python-{name}": Program(told, (sys.executable, "-c", GATHER + text + STAY, "{root}"))
    for name, (told, text) in PYTHON.items()
} | {
    "node-json": Program("Node.js with parsed JSON", ("node", "-e", NODE, "{root}")),
    "perl-words": Program("Perl with words of files", ("perl", "-e", PERL, "{root}")),
    "compiler": Program(
        "a C++ compiler at work",
        ("g++", "-std=c++20", "-O2", "-pipe", "-x", "c++", "-S", "-o", "/dev/null", "-"),
        COMPILED,
        says_ready=False,
    ),
    "sort": Program(
        "sort with the names of all files",
        ("sh", "-c", "exec find {root}usr {root}usr {root}usr -ls | sort --buffer-size=64M"),
        says_ready=False,
    ),
}


@contextmanager
def memory_of(program: Program, root: Path, deadline: Deadline) -> Iterator[BytesContent]:
    """Run a program, and give the pages it has written to while the block runs.

    Raises:
        DeadlineError: It did not load its data in time.
        DwcpError: It is not there, or ended.
        OSError: Its memory cannot be read.
    """
    if shutil.which(program.command[0]) is None:
        raise DwcpError(f"{program.command[0]} is not installed")
    top = f"{str(root).rstrip('/')}/"
    command = [part.replace("{root}", top) for part in program.command]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            if process.stdin is not None and program.text:
                process.stdin.write(program.text.encode())
                process.stdin.close()
            if program.says_ready:
                wait_until_ready(process, deadline)
            else:
                time.sleep(SETTLING_S)
            os.killpg(process.pid, signal.SIGSTOP)
            # Of a family of processes the one that holds most.
            data = max((written_pages(pid) for pid in members(process.pid)), key=len, default=b"")
        finally:
            # The session is its own, and its leader has not been waited for: the number is still its.
            os.killpg(process.pid, signal.SIGKILL)
    if not data:
        raise DwcpError(f"{program.command[0]} ended before its memory could be read")
    yield BytesContent(data)


def wait_until_ready(process: "subprocess.Popen[bytes]", deadline: Deadline) -> None:
    """Wait until a process says that its data is loaded."""
    stream = process.stdout
    if stream is None:
        return
    while deadline.remaining_s:
        if select.select([stream], [], [], min(0.1, deadline.remaining_s))[0]:
            if READY not in os.read(stream.fileno(), 4096):
                raise DwcpError(f"{process.args!s:.40} ended before its data was loaded")
            return
    deadline.check()


def members(leader: int) -> Iterator[int]:
    """Give the processes of a session."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == leader:
                    yield int(entry.name)
            except OSError:
                continue


def written_pages(pid: int) -> bytes:
    """Give what a process holds in private writable memory: only pages that are there, in order."""
    parts: list[bytes] = []
    length = 0
    process = Path(f"/proc/{pid}")
    with (
        (process / "mem").open("rb", buffering=0) as memory,
        (process / "pagemap").open("rb", buffering=0) as map_,
    ):
        for line in (process / "maps").read_text(errors="replace").splitlines():
            extent, rights, *rest = line.split(None, 5)
            name = rest[3] if len(rest) > 3 else ""
            if not rights.startswith("rw-p") or name.startswith(("[v", "/")):
                continue
            start, end = (int(part, 16) for part in extent.split("-"))
            map_.seek(start // PAGE_BYTES * 8)
            pages = np.frombuffer(map_.read((end - start) // PAGE_BYTES * 8), dtype="<u8")
            there = np.flatnonzero(pages & PRESENT)
            for run in np.split(there, np.flatnonzero(np.diff(there) > 1) + 1):
                if len(run) and length < MOST_BYTES:
                    memory.seek(start + int(run[0]) * PAGE_BYTES)
                    part = memory.read(min(len(run) * PAGE_BYTES, MOST_BYTES - length))
                    parts.append(part)
                    length += len(part)
    return b"".join(parts)
