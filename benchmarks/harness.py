"""What every benchmark here shares: real data, interleaved repeats, medians, and result files.

Machines are shared and noisy, so contenders are run in turn, round after round, and only
ratios of medians within one run are claims. Every result file keeps the raw samples.
"""

import argparse
import hashlib
import json
import os
import platform
import shlex
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).with_name("results")
# For the link lab, which the tests have too.
sys.path.append(str(RESULTS.parents[1] / "tests"))
Samples = dict[str, list[float]]


def arguments(
    description: str, repeats: int, extend: Callable[[argparse.ArgumentParser], object] | None = None
) -> argparse.Namespace:
    """Parse the options every benchmark has, and those that `extend` adds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--repeats", type=int, default=repeats, help="interleaved rounds (default %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="smaller data, for a look; do not publish")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    if extend is not None:
        extend(parser)
    return parser.parse_args()


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def in_turn(names: Iterable[str], turn: int) -> list[str]:
    """The order of one round: each round another contender is first."""
    order = list(names)
    first = turn % len(order)
    return order[first:] + order[:first]


def interleave(
    contenders: Mapping[str, Callable[[], object]],
    repeats: int,
    timer: Callable[[Callable[[], object]], float] = seconds,
) -> Samples:
    """Time each contender once a round; the first round warms up and is dropped."""
    samples: Samples = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name in in_turn(contenders, turn):
            taken = timer(contenders[name])
            if turn:
                samples[name].append(taken)
    return samples


def together(jobs: Iterable[Callable[[], object]]) -> Callable[[], None]:
    """An action that runs each job on a thread of its own and waits for all."""
    jobs = list(jobs)

    def run() -> None:
        threads = [threading.Thread(target=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run


def interleave_on_two_cores(contenders: Mapping[str, Callable[[], object]], repeats: int) -> Samples:
    """Like `interleave`, counting only rounds in which the machine had two cores to give.

    A virtual machine on a shared host may lack its second core for any stretch of time, which says
    nothing about what runs on it. So before and after every round two threads hash 20 MiB each, out of the
    cache and sharing nothing, against one: a round counts if they did nearly twice as much on both sides
    of it. What is measured has no say in which rounds count. After twenty times `repeats` rounds
    there may be fewer of them than `repeats`, or none; "rounds taken" tells how many there were.
    """
    nearly_twice, patience = 1.9, 20
    block = bytes(1 << 16)

    def hashing() -> None:
        for _ in range(320):
            hashlib.sha256(block).digest()

    both = together([hashing, hashing])

    def has_two_cores() -> bool:
        return 2 * seconds(hashing) / seconds(both) >= nearly_twice

    samples: Samples = {name: [] for name in contenders} | {"rounds taken": [0]}
    interleave(contenders, 0)
    for turn in range(patience * repeats):
        if len(next(iter(samples.values()))) == repeats:
            break
        samples["rounds taken"] = [turn + 1]
        if not has_two_cores():
            continue
        taken = {name: seconds(contenders[name]) for name in in_turn(contenders, turn)}
        if has_two_cores():
            for name, value in taken.items():
                samples[name].append(value)
    return samples


def gain_of_two(samples: Samples, two: str, one: str, work: int = 1) -> float:
    """How much more two threads do, with `work` times the work of one; nothing, if no round counted."""
    return work * ratio(samples, two, one) if samples[one] else 0.0


def ratio(samples: Samples, name: str, against: str) -> float:
    """How many times as fast as `against` the contender `name` is: a ratio of medians."""
    return statistics.median(samples[against]) / statistics.median(samples[name])


def unpaced() -> list[str]:
    """Have iperf3 use CUBIC, as `dwcp` does on fast links: BBR, some systems' default, halves it there."""
    offered = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
    return ["-C", "cubic"] if offered.exists() and "cubic" in offered.read_text().split() else []


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=RESULTS.parent,
        check=False,
    )
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"],
        capture_output=True,
        text=True,
        cwd=RESULTS.parent,
        check=False,
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() + ("+changes" if dirty.stdout.strip() else ""),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("dwcp-fast", "zstandard", "lz4", "xxhash", "numpy")},
    }


def publish(name: str, out: Path, *, claims: list[dict[str, Any]], raw: Any) -> Path:
    """Write `<out>/<name>.json`: machine, claims with the missed ones first, raw samples."""
    out.mkdir(parents=True, exist_ok=True)
    ordered = sorted(claims, key=lambda claim: (claim["met"], claim["case"]))
    path = out / f"{name}.json"
    told = [part for part in sys.argv if part not in ("--out", str(out))]
    body = {"benchmark": name, "command": shlex.join(["python", *told]), "machine": machine()}
    path.write_text(json.dumps(body | {"claims": ordered, "raw": raw}, indent=1) + "\n")
    return path


def claim(
    case: str, measured: float, target: float, against: str, *, lower_is_better: bool = False
) -> dict[str, Any]:
    """One line of a result: what was aimed at and what came out."""
    met = measured <= target if lower_is_better else measured >= target
    return {"case": case, "measured": round(measured, 3), "target": target, "against": against, "met": met}


def show(claims: list[dict[str, Any]]) -> None:
    """Print the claims, the missed ones first."""
    for item in sorted(claims, key=lambda entry: (entry["met"], entry["case"])):
        mark = "met   " if item["met"] else "MISSED"
        figures = f"{item['measured']:.3f} (target {item['target']})"
        print(f"{mark} {item['case']}: {figures} against {item['against']}")


def real_files(size: int) -> bytes:
    """Real bytes of this machine: the interpreter's own libraries and sources, joined and cut to `size`."""
    library = Path(os.__file__).parent
    pieces, total = [], 0
    for path in sorted(
        [*library.glob("*.py"), *Path(sys.base_prefix, "lib").glob("*.so*"), *library.glob("*/*.py")]
    ):
        if path.is_file():
            pieces.append(path.read_bytes())
            total += len(pieces[-1])
    joined = b"".join(pieces)
    return (joined * (size // total + 1))[:size]


def answer_messages(server: socket.socket, length: int) -> None:
    """Answer each message of so many bytes on the first connection with a byte, until that ends."""
    connection, _ = server.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        message = bytearray(length)
        while connection.recv_into(message, length, socket.MSG_WAITALL):
            connection.sendall(b"\1")


@contextmanager
def asking(address: tuple[str, int], message: memoryview) -> Iterator[Callable[[], None]]:
    """Connect to who answers messages; gives what sends one and waits for its answer."""
    with socket.create_connection(address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ask() -> None:
            connection.sendall(message)
            assert connection.recv(1)

        yield ask


def incompressible(size: int, seed: int = 1) -> bytes:
    """Random bytes."""
    return np.random.default_rng(seed).bytes(size)
