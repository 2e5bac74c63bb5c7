"""Memory of a running guest: boot Linux in QEMU with a service in Python and SQLite, and save its memory.

The processor is emulated (TCG), since a benchmark's machine is often a guest itself and KVM within it may
be missing or fail; an emulated guest does less in a second than a real one.
"""

import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from delta.files import MIB, UnbuildableError, run

KERNEL = "linux-image-cloud-amd64"
PACKAGES = (
    "busybox-static",
    "libbz2-1.0",
    "libc6",
    "libexpat1",
    "liblzma5",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libsqlite3-0",
    "libssl3",
    "python3.11-minimal",
    "zlib1g",
)
MEMORY_MIB = 256
DUMPS = (("vm_a.bin", 0.0), ("vm_2s.bin", 2.0), ("vm_12s.bin", 10.0))
"""File, and seconds of the guest's life since the one before."""
READY = "service is warm"
BOOT_LIMIT_S = 240.0
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs -o size=96m tmp /tmp
exec /usr/bin/python3.11 /service.py
"""
SERVICE = f"""
import collections, glob, json, random, sqlite3, time, zlib
rng = random.Random(1)
texts = [open(path).read() for path in sorted(glob.glob("/usr/lib/python3.11/**/*.py", recursive=True))[:400]]
words = sorted(set(" ".join(texts).split()))
db = sqlite3.connect("/tmp/state.db")
db.execute("create table account (id integer primary key, name text, balance integer, note text, seen real)")
db.execute("create table event (at real, account integer, what text)")
db.executemany("insert into account values (?, ?, ?, ?, 0)", (
    (n, " ".join(rng.choices(words, k=2)), rng.randrange(10**6), " ".join(rng.choices(words, k=8)))
    for n in range(60000)))
db.commit()
cache = collections.OrderedDict()
log = open("/tmp/service.log", "w", buffering=1)
turn = 0
while True:
    turn += 1
    for _ in range(25):
        number = min(int(rng.paretovariate(0.5)), 59999)
        row = db.execute("select * from account where id = ?", (number,)).fetchone()
        db.execute("update account set balance = ?, seen = ? where id = ?", (row[2] + 1, time.time(), number))
        cache[number] = json.loads(json.dumps({{"account": row, "text": rng.choice(words), "turn": turn}}))
        cache.move_to_end(number)
        if len(cache) > 20000:
            cache.popitem(last=False)
    db.execute("insert into event values (?, ?, ?)", (time.time(), number, rng.choice(words)))
    db.commit()
    log.write(f"{{time.time():.6f}} served 25 requests, the last for account {{number}} ({{row[1]}})\\n")
    if turn % 20 == 0:
        kept = zlib.compress(rng.choice(texts).encode())
    if turn == 200:
        open("/dev/console", "w").write("{READY}\\n")
    time.sleep(0.02)
"""


def build_vm(folder: Path) -> None:
    """Boot the guest, let its service run, and save its memory at once, 2 s and 12 s later.

    The guest is stopped while its memory is saved, so that every file is one instant.
    """
    if shutil.which("qemu-system-x86_64") is None:
        raise UnbuildableError("qemu-system-x86_64 is missing")
    with tempfile.TemporaryDirectory() as named:
        root = Path(named)
        kernel, initrd = prepare(folder / "cache" / "packages", root)
        console = root / "console"
        command = ["qemu-system-x86_64", "-accel", "tcg", "-m", str(MEMORY_MIB), "-smp", "1"]
        command += ["-display", "none", "-monitor", "none", "-no-reboot", "-serial", f"file:{console}"]
        command += ["-kernel", str(kernel), "-initrd", str(initrd), "-append", "console=ttyS0 panic=-1 quiet"]
        command += ["-qmp", f"unix:{root}/qmp,server=on,wait=off"]
        with subprocess.Popen(command) as guest:
            try:
                wait_for(console, guest)
                save(root / "qmp", folder)
            finally:
                guest.kill()


def prepare(packages: Path, root: Path) -> tuple[Path, Path]:
    """Make the kernel and the initial file system out of packages."""
    packages.mkdir(parents=True, exist_ok=True)
    tree = root / "tree"
    told = subprocess.run(["apt-cache", "depends", KERNEL], capture_output=True, text=True, check=False)
    found = re.search(r"Depends: (linux-image-\S+)", told.stdout)
    if found is None:
        raise UnbuildableError(f"no package {KERNEL}")
    for name in (found[1], *PACKAGES):
        if not list(packages.glob(f"{name}_*.deb")):
            run(["apt-get", "download", name], cwd=packages)
        target = root / "kernel" if name == found[1] else tree
        run(["dpkg", "-x", str(next(packages.glob(f"{name}_*.deb"))), str(target)])
    shutil.rmtree(tree / "usr/share", ignore_errors=True)
    for name, text in (("init", INIT), ("service.py", SERVICE)):
        (tree / name).write_text(text)
        (tree / name).chmod(0o755)
    (tree / "dev").mkdir(exist_ok=True)
    initrd = root / "initrd"
    with initrd.open("wb") as out:
        names = "\0".join(sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))).encode()
        pack = ["cpio", "--null", "--create", "--format=newc", "--quiet", "--owner=0:0"]
        if shutil.which("cpio") is None:
            raise UnbuildableError("cpio is missing")
        subprocess.run(pack, input=names, stdout=out, cwd=tree, check=True)
    return next((root / "kernel/boot").glob("vmlinuz-*")), initrd


def wait_for(console: Path, guest: "subprocess.Popen[bytes]") -> None:
    """Wait until the service in the guest says that it is warm."""
    deadline = time.monotonic() + BOOT_LIMIT_S
    while True:
        seen = console.read_text(errors="replace") if console.exists() else ""
        if READY in seen:
            return
        if guest.poll() is not None or time.monotonic() > deadline:
            raise UnbuildableError(f"the guest was not ready in {BOOT_LIMIT_S} s: {seen.strip()[-300:]!r}")
        time.sleep(0.1)


def save(path: Path, folder: Path) -> None:
    """Save the memory at the instants of `DUMPS`."""
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.settimeout(60)
        monitor.connect(str(path))
        with monitor.makefile("rw") as lines:
            lines.readline()
            ask(lines, "qmp_capabilities")
            for name, pause_s in DUMPS:
                time.sleep(pause_s)
                ask(lines, "stop")
                part = folder / f"{name}.part"
                ask(lines, "pmemsave", val=0, size=MEMORY_MIB * MIB, filename=str(part.absolute()))
                ask(lines, "cont")
                part.replace(folder / name)


def ask(lines: Any, command: str, **arguments: object) -> None:
    """Give the monitor one command and wait for its answer, past the events that come between."""
    lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    lines.flush()
    while answer := json.loads(lines.readline()):
        if "error" in answer:
            raise UnbuildableError(f"qemu refused {command}: {answer['error']['desc']}")
        if "return" in answer:
            return
