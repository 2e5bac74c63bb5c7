"""The two ends of a fast link on one host: `dwcp` as a sending and a receiving process, and its rivals.

The processes stay for the whole benchmark and do what they are told in lines of JSON, so that every contender
moves the same memory into the same memory, which is there already when time is taken.
"""

import contextlib
import json
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

import dwcp_fast
import harness
from dwcp_fast.delta import Snapshot

TIMEOUT_S = 120.0
IPERF_PORT = 5399
RSYNC_PORT = 5398
RCLONE_PORT = 5397
MESSAGE_BYTES = 4096
CHANGED_SHARE = 0.01
PARTS = 16
"""A version is made, sent and applied in so many parts, so that one is applied while the next is made."""


def cpu_s() -> float:
    """Processor time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def changed(data: np.ndarray[Any, np.dtype[np.uint16]]) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """The same with one element in a hundred changed, as a step of training does it."""
    chance = np.random.default_rng(7)
    other = data.copy()
    where = chance.integers(0, len(data), int(len(data) * CHANGED_SHARE))
    other[where] ^= chance.integers(1, 8, len(where), dtype=np.uint16)
    return other


class Receiver:
    """The commands of the receiving process."""

    def __init__(self, size: int) -> None:
        self._target = bytearray(size)
        self._base: list[Snapshot] = []

    def transfers(self, *, plain: bool) -> Iterator[dict[str, Any]]:
        """Receive into the same memory until the sender says goodbye."""
        with listening(plain) as listener:
            yield {"target": listener.pairing or listener.address}
            before, facts = cpu_s(), []
            with listener.accept(TIMEOUT_S) as session:  # type: ignore[union-attr]
                while (
                    report := session.receive_into({"bytes": self._target}, timeout_s=TIMEOUT_S)
                ) is not None:
                    now = cpu_s()
                    facts.append({"cpu_s": now - before, "transport": report.transport})
                    before = now
            yield {"facts": facts}

    def messages(self, *, plain: bool) -> Iterator[dict[str, Any]]:
        """Receive small states one after the other."""
        with listening(plain) as listener:
            yield {"target": listener.pairing or listener.address}
            small = bytearray(MESSAGE_BYTES)
            with listener.accept(TIMEOUT_S) as session:  # type: ignore[union-attr]
                while session.receive_into({"message": small}, timeout_s=TIMEOUT_S) is not None:
                    pass
            yield {}

    def raw_messages(self) -> Iterator[dict[str, Any]]:
        """Answer each message on a socket with a byte."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield {"target": f"127.0.0.1:{server.getsockname()[1]}"}
            harness.answer_messages(server, MESSAGE_BYTES)
            yield {}

    def versions(self, *, base: str) -> Iterator[dict[str, Any]]:
        """Apply patches to the base that both sides hold; tells when each was in place."""
        with listening(True) as listener:
            self._base = snapshots(np.load(base))
            yield {"target": listener.address}
            with listener.accept(TIMEOUT_S) as session:  # type: ignore[union-attr]
                while (got := session.receive(timeout_s=TIMEOUT_S)) is not None:
                    ((name, patch),) = got.items()
                    self._base[int(name)].apply(patch)
                    if int(name) == PARTS - 1:
                        digests = [part.digest for part in self._base]
                        yield {"applied_at": time.monotonic(), "digests": digests}
            self._base = []
            yield {}


class Sender:
    """The commands of the sending process."""

    def __init__(self, size: int) -> None:
        self._data = np.frombuffer(harness.incompressible(size), np.uint16)

    def transfers(
        self, *, plain: bool, target: str, lanes: int, link: str, rounds: int
    ) -> Iterator[dict[str, Any]]:
        """Send the same memory so many times; the first time warms up."""
        options = dwcp_fast.SendOptions(streams=lanes, codec="none", base="none", **linked(link))
        with dwcp_fast.connect(target, trust=trust(plain), options=options) as session:
            facts = []
            for _ in range(rounds + 1):
                before, start = cpu_s(), time.perf_counter()
                report = session.send({"bytes": self._data})
                taken = time.perf_counter() - start
                assert report.verified and report.bytes_raw == self._data.nbytes
                facts.append({"seconds": taken, "cpu_s": cpu_s() - before, "transport": report.transport})
        yield {"facts": facts}

    def messages(self, *, plain: bool, target: str, link: str, count: int) -> Iterator[dict[str, Any]]:
        """Send small states one after the other."""
        options = dwcp_fast.SendOptions(streams=1, codec="none", base="none", **linked(link))
        message = self._data[: MESSAGE_BYTES // 2]
        with dwcp_fast.connect(target, trust=trust(plain), options=options) as session:
            yield {"p50_us": median_us(lambda: session.send({"message": message}), count)}

    def raw_messages(self, *, target: str, count: int) -> Iterator[dict[str, Any]]:
        """Send messages on a socket, each when the last was answered."""
        host, port = target.split(":")
        message = memoryview(self._data[: MESSAGE_BYTES // 2]).cast("B")
        with harness.asking((host, int(port)), message) as ask:
            yield {"p50_us": median_us(ask, count)}

    def make_base(self, *, base: str) -> Iterator[dict[str, Any]]:
        """Keep the first version where the receiver finds it."""
        np.save(base, self._data)
        yield {}

    def versions(self, *, target: str, rounds: int) -> Iterator[dict[str, Any]]:
        """Send the patches to one version and back to the other, by turns."""
        versions = (self._data, changed(self._data))
        held = snapshots(versions[0])
        alone = Snapshot(versions[0], dtype="bf16")
        copy = np.empty_like(self._data)
        with dwcp_fast.connect(target, trust=dwcp_fast.INSECURE, options=versioned()) as session:
            for turn in range(1, rounds + 2):
                version = versions[turn % 2]
                copied = harness.seconds(lambda version=version: np.copyto(copy, version))  # type: ignore[misc]
                encoded = harness.seconds(lambda version=version: alone.advance(version))  # type: ignore[misc]
                began, patch_bytes = time.monotonic(), 0
                for number, part in enumerate(np.split(version, PARTS)):
                    patch = held[number].advance(part)
                    patch_bytes += len(patch)
                    session.send({str(number): patch})
                yield {
                    "began_at": began,
                    "sent_at": time.monotonic(),
                    "copy_s": copied,
                    "encode_s": encoded,
                    "patch_bytes": patch_bytes,
                    "digests": [part.digest for part in held],
                }
        yield {}

    def copy(self) -> Iterator[dict[str, Any]]:
        """Copy the memory on one thread into memory that is there."""
        into = np.zeros_like(self._data)
        yield {"seconds": [harness.seconds(lambda: np.copyto(into, self._data)) for _ in range(3)]}


def snapshots(version: np.ndarray[Any, np.dtype[np.uint16]]) -> list[Snapshot]:
    """Hold each part of a version."""
    return [Snapshot(part, dtype="bf16") for part in np.split(version, PARTS)]


def linked(link: str) -> dict[str, Any]:
    return {"link": link}


def versioned() -> dwcp_fast.SendOptions:
    return dwcp_fast.SendOptions(codec="none", base="none", **linked("tcp"))


def trust(plain: bool) -> Any:
    return dwcp_fast.INSECURE if plain else None


@contextlib.contextmanager
def listening(plain: bool) -> Iterator[dwcp_fast.Listener]:
    with dwcp_fast.listen("127.0.0.1:0", trust=trust(plain)) as listener:
        yield listener


def median_us(action: Any, count: int) -> float:
    for _ in range(count // 4):
        action()
    return 1e6 * statistics.median(harness.seconds(action) for _ in range(count))


class End:
    """One of the two processes, seen from the benchmark."""

    def __init__(self, role: str, size: int) -> None:
        self._role = role
        command = [sys.executable, __file__, role, str(size)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, command: str, **facts: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **facts}) + "\n")
        self._process.stdin.flush()

    def told(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {self._role} has ended with {self._process.wait(TIMEOUT_S)}")
        facts: dict[str, Any] = json.loads(line)
        return facts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(TIMEOUT_S)


def iperf3(size: int, streams: int) -> dict[str, float]:
    """Seconds for `size` bytes, all streams together and once warm, and the processor time of both ends."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(["iperf3", "-s", "-1", "-p", str(IPERF_PORT)], stdout=quiet) as server:
        wait_for_port(IPERF_PORT, listen_only=True)
        command = ["iperf3", "-c", "127.0.0.1", "-p", str(IPERF_PORT), "-P", str(streams)]
        command += ["-n", str(size), "-O", "1", "-J", *harness.unpaced()]
        out = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        server.wait(TIMEOUT_S)
    received, used = out["end"]["sum_received"], out["end"]["cpu_utilization_percent"]
    seconds = size / (received["bits_per_second"] / 8)
    return {
        "seconds": seconds,
        "sender_cpu_s": seconds * used["host_total"] / 100,
        "receiver_cpu_s": seconds * used["remote_total"] / 100,
    }


def wait_for_port(port: int, *, listen_only: bool = False) -> None:
    """Wait until somebody listens; without connecting, where that would use the server up."""
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        if listen_only:
            wanted = f":{port:04X} "
            tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
            rows = [row for table in tables if table.exists() for row in table.read_text().splitlines()]
            if any(wanted in row and " 0A " in row for row in rows):
                return
        else:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
        time.sleep(0.02)
    raise RuntimeError(f"nobody listens on port {port}")


def files(size: int, folder: Path) -> Path:
    source = folder / "source"
    source.mkdir()
    (source / "state").write_bytes(harness.incompressible(size))
    (folder / "into").mkdir()
    return source / "state"


def rsync(size: int) -> float | None:
    """Seconds for a new file to an rsync daemon, on tmpfs; None without rsync."""
    if shutil.which("rsync") is None:
        return None
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        source = files(size, folder)
        rules = folder / "rsyncd.conf"
        rules.write_text(
            f"use chroot = no\nuid = root\ngid = root\n[into]\npath = {folder / 'into'}\nread only = no\n"
        )
        daemon = ["rsync", "--daemon", "--no-detach", f"--config={rules}", f"--port={RSYNC_PORT}"]
        with subprocess.Popen([*daemon, "--address=127.0.0.1"], stderr=subprocess.DEVNULL) as server:
            try:
                wait_for_port(RSYNC_PORT)
                push = ["rsync", "--whole-file", "--inplace", str(source)]
                push += [f"rsync://127.0.0.1:{RSYNC_PORT}/into/"]
                return harness.seconds(lambda: subprocess.run(push, check=True))
            finally:
                server.terminate()


def rclone(size: int) -> float | None:
    """Seconds for a new file from `rclone serve http`, on tmpfs; None without rclone."""
    if shutil.which("rclone") is None:
        return None
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        source = files(size, folder)
        serve = [
            "rclone",
            "serve",
            "http",
            "--config=",
            f"--addr=127.0.0.1:{RCLONE_PORT}",
            str(source.parent),
        ]
        with subprocess.Popen(serve, stderr=subprocess.DEVNULL) as server:
            try:
                wait_for_port(RCLONE_PORT)
                url = f"http://127.0.0.1:{RCLONE_PORT}/state"
                pull = ["rclone", "copyurl", "--config=", url, str(folder / "into" / "state")]
                return harness.seconds(lambda: subprocess.run(pull, check=True))
            finally:
                server.terminate()


def main() -> None:
    role, size = sys.argv[1:]
    end: Any = Receiver(int(size)) if role == "receive" else Sender(int(size))
    for line in sys.stdin:
        facts = json.loads(line)
        for told in getattr(end, facts.pop("command"))(**facts):
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
