"""A guest to move: a Debian kernel, one static program as init, and QEMU processes that run it.

The program, ``writer.c.txt``, writes memory and checks itself. Wheels hold no C that anybody would take for
theirs to build, hence its name.
"""

import bisect
import contextlib
import functools
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from dwcp_fast.vm.qmp import Qmp

__all__ = [
    "QEMU",
    "Console",
    "Machine",
    "add_to",
    "build_initramfs",
    "downtime_s",
    "kernel",
    "longest_gap_s",
    "newest",
    "why_missing",
]

PROGRAM: Final = Path(__file__).resolve().with_name("writer.c.txt")
QEMU: Final = "qemu-system-x86_64"
MODULES: Final = (
    "virtio/virtio",
    "virtio/virtio_ring",
    "virtio/virtio_pci_legacy_dev",
    "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci",
    "block/virtio_blk",
)
ODD_KIB: Final = 8
"""More memory than a whole number of 256 KiB. Without KVM, QEMU 7.2 loses writes of a running guest from the
second round on: it looks for written pages 64 at a time, from which the odd length keeps it."""
PROGRAMS: Final = {QEMU: "qemu-system-x86", "gcc": "gcc libc6-dev"}
"""What is needed beside the kernel, and the package of Debian that has it."""
ANSWER_S: Final = 60.0
READ_BYTES: Final = 1 << 16


def kernel_cache() -> Path:
    """Give the folder in which the unpacked kernel package is kept between runs."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dwcp-test-kernel"
    return Path(os.environ.get("VM_TEST_KERNEL", default))


@functools.cache
def why_missing() -> str | None:
    """Say why there can be no guest here, and what to install; None if there can be one."""
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            return f"{program} is not installed: apt-get install {package}"
    try:
        kernel()
    except (OSError, subprocess.SubprocessError, LookupError) as error:
        return (
            f"no kernel for the guest: apt-get install linux-image-cloud-amd64, or let apt fetch it: {error}"
        )
    return None


def found(program: str) -> str:
    """Give the path of a program of this machine."""
    path = shutil.which(program)
    if path is None:
        raise LookupError(f"{program} is not installed")
    return path


def newest(package: str) -> str:
    """Give the kernel that a package of Debian stands for at present."""
    told = subprocess.run(
        [found("apt-cache"), "depends", package], capture_output=True, text=True, timeout=60, check=True
    )
    named = re.search(r"Depends: (linux-image-\S+)", told.stdout)
    if named is None:
        raise LookupError(f"apt knows of no {package}")
    return named[1]


@functools.cache
def kernel() -> tuple[Path, Path]:
    """Give a kernel and the folder of its drivers.

    It is the one that was fetched before, or that of this machine if its drivers lie there as they are; else
    Debian's cloud kernel is fetched by apt, and installed nowhere.
    """
    cache = kernel_cache()
    if not list(cache.glob("boot/vmlinuz-*")):
        for image in sorted(Path("/boot").glob("vmlinuz-*"), reverse=True):
            drivers = Path("/lib/modules", image.name.removeprefix("vmlinuz-"), "kernel/drivers")
            if os.access(image, os.R_OK) and all((drivers / f"{name}.ko").exists() for name in MODULES):
                return image, drivers
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [found("apt-get"), "download", "-qq", newest("linux-image-cloud-amd64")],
            cwd=cache,
            capture_output=True,
            timeout=120,
            check=True,
        )
        package = next(cache.glob("*.deb"))
        subprocess.run([found("dpkg-deb"), "-x", package, cache], timeout=120, check=True)
        package.unlink()
    image = next(iter(cache.glob("boot/vmlinuz-*")))
    return image, next(iter(cache.glob("lib/modules/*/kernel/drivers")))


def build_initramfs(into: Path) -> Path:
    """Compile the writer and pack it with the drivers of the disk.

    Args:
        into: An existing folder.

    Returns:
        The archive.

    Raises:
        SubprocessError: It cannot be compiled.
    """
    program = into / "init"
    subprocess.run(
        [found("gcc"), "-O2", "-static", "-pthread", "-o", program, "-x", "c", PROGRAM],
        check=True,
        timeout=120,
    )
    drivers = kernel()[1]
    archive = bytearray()
    add_to(archive, "dev", 0o040755)
    add_to(archive, "dev/console", 0o020600, device=(5, 1))
    add_to(archive, "init", 0o100755, program.read_bytes())
    add_to(archive, "modules", 0o040755)
    for name in MODULES:
        add_to(archive, f"modules/{Path(name).name}.ko", 0o100644, (drivers / f"{name}.ko").read_bytes())
    add_to(archive, "TRAILER!!!", 0)
    made = into / "initramfs"
    made.write_bytes(archive)
    return made


def add_to(
    archive: bytearray, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
) -> None:
    """Add a file to an archive in the kernel's ``newc`` format."""
    fields = (len(archive), mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0)
    archive += b"070701" + b"".join(b"%08X" % value for value in fields) + name.encode() + b"\0"
    archive += bytes(-len(archive) % 4) + data
    archive += bytes(-len(archive) % 4)


@dataclass
class Console:
    """What a guest said on its serial line, with the host's time of every tick."""

    path: Path
    lines: list[str] = field(default_factory=list)
    ticks: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Connect and read along."""
        self._said = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        deadline = time.monotonic() + 10
        while True:
            try:
                self._socket.connect(str(self.path))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        rest = b""
        while True:
            try:
                got = self._socket.recv(READ_BYTES)
            except OSError:
                return
            if not got:
                return
            now = time.monotonic()
            *lines, rest = (rest + got).split(b"\n")
            with self._said:
                for line in lines:
                    text = line.decode("latin-1").strip()
                    if text.startswith("t ") and text[2:].isdigit():
                        self.ticks.append((now, int(text[2:])))
                    elif text:
                        self.lines.append(text)
                self._said.notify_all()

    def send(self, command: str) -> None:
        """Give the guest a command."""
        self._socket.sendall(command.encode() + b"\n")

    def ask(self, command: str, answer: str, timeout_s: float = ANSWER_S) -> str:
        """Give a command and wait for the line that begins with `answer`."""
        with self._said:
            seen = len(self.lines)
        self.send(command)
        return self.wait_for(answer, timeout_s, seen)

    def wait_for(self, beginning: str, timeout_s: float, seen: int = 0) -> str:
        """Wait for a line that begins so, after the first `seen`."""
        deadline = time.monotonic() + timeout_s
        with self._said:
            while True:
                for line in self.lines[seen:]:
                    if line.startswith(beginning):
                        return line
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"no {beginning!r} in {timeout_s:g} s; last said: {self.lines[-5:]}")
                self._said.wait(left)

    def wait_for_ticks(self, more: int = 5, timeout_s: float = 20.0) -> None:
        """Wait until the guest has counted on."""
        deadline = time.monotonic() + timeout_s
        with self._said:
            until = len(self.ticks) + more
            while len(self.ticks) < until:
                if time.monotonic() > deadline:
                    raise TimeoutError("the guest does not count")
                self._said.wait(0.2)

    def close(self) -> None:
        """Read no longer."""
        with_shutdown(self._socket)
        self._thread.join(5)

    def complaints(self) -> list[str]:
        """Tell what the guest found wrong, or its kernel."""
        return [
            line for line in self.lines if line.startswith("BAD") or "Kernel panic" in line or "BUG:" in line
        ]


def with_shutdown(connection: socket.socket) -> None:
    """End a connection so that a thread that reads from it ends too."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


class Machine:
    """A QEMU process."""

    def __init__(
        self,
        folder: Path,
        name: str,
        initramfs: Path,
        *,
        memory_mib: int = 192,
        append: str = "",
        incoming: str | None = None,
        disk: Path | None = None,
        runner: Sequence[str] = (),
    ) -> None:
        """Start it.

        Args:
            folder: For its sockets.
            name: Of its sockets.
            initramfs: What it boots.
            memory_mib: Memory of the guest.
            append: More for the kernel's command line.
            incoming: As QEMU's option of that name.
            disk: Raw image.
            runner: What runs it, such as the command that enters a network namespace.
        """
        self.name = name
        self.monitor = folder / f"{name}.qmp"
        self.watch = folder / f"{name}.watch"
        states = folder / f"{name}.states"
        serial = folder / f"{name}.serial"
        log = (folder / f"{name}.log").open("wb")
        command = [
            *runner,
            QEMU,
            "-accel",
            "tcg,thread=multi",
            "-machine",
            "pc",
            "-cpu",
            "qemu64",
            "-m",
            f"{(memory_mib << 10) + ODD_KIB}K",
        ]
        command += ["-nodefaults", "-display", "none", "-no-reboot"]
        command += ["-kernel", str(kernel()[0]), "-initrd", str(initramfs)]
        command += [
            "-append",
            f"console=ttyS0 quiet panic=-1 nokaslr mitigations=off random.trust_cpu=on {append}",
        ]
        for socket_path, id_ in ((self.monitor, "qmp"), (self.watch, "watch"), (states, "states")):
            command += ["-chardev", f"socket,id={id_},path={socket_path},server=on,wait=off"]
            command += ["-mon", f"chardev={id_},mode=control"]
        command += [
            "-chardev",
            f"socket,id=serial,path={serial},server=on,wait=off",
            "-serial",
            "chardev:serial",
        ]
        if disk is not None:
            command += ["-blockdev", f"driver=file,node-name=disk0-file,filename={disk}"]
            command += ["-blockdev", "driver=raw,node-name=disk0,file=disk0-file"]
            command += ["-device", "virtio-blk-pci,drive=disk0,id=vda"]
        if incoming is not None:
            command += ["-incoming", incoming]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        self.log = folder / f"{name}.log"
        try:
            self.console = Console(serial)
            self.qmp = Qmp(str(self.watch))
            # Two threads ask what the guest does.
            self._states, self._asking = Qmp(str(states)), threading.Lock()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def status(self) -> str:
        """Give QEMU's word for the state of the guest, or ``gone``."""
        try:
            with self._asking:
                told: str = self._states.execute("query-status")["status"]
        except OSError:
            return "gone"
        return told

    def is_running(self) -> bool:
        """Whether the guest's processor runs."""
        return self.status() == "running"

    def close(self) -> None:
        """End the process."""
        self.qmp.close()
        self._states.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self.console.close()

    def __enter__(self) -> Self:
        """Use it in a ``with`` statement."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()


def downtime_s(source: Console, target: Console) -> float:
    """Find the longest time between two ticks around the change of place, as who reads both consoles sees it.

    Args:
        source: Of the QEMU that the guest left.
        target: Of the one that it came to.

    Returns:
        Seconds.

    Raises:
        ValueError: The guest never counted.
    """
    if not source.ticks or not target.ticks:
        raise ValueError("a guest that never counted has no downtime")
    numbers = [number for _, number in source.ticks]
    first_at, first = target.ticks[0]
    before = source.ticks[bisect.bisect_left(numbers, first) - 1]
    return first_at - before[0]


def longest_gap_s(console: Console, since: float = 0.0) -> float:
    """Find the longest time between two ticks on one console."""
    times = [at for at, _ in console.ticks if at >= since]
    return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)
