"""Is a running machine moved faster through the relay than by QEMU itself, in any way that it offers?

The same guest for all, that writes a part of its memory again and again; contenders take turns, round after
round, each with a guest that was just booted, over the same link: one of user space that ends TCP on either
side (`dwcp_fast.demo.link`), which flatters whoever uses one connection, and loses no packets. The time is
from the command until the guest runs on the other side, the bytes are those on the link, and the stop is
what is heard of the guest: the longest time between two of its ticks around the change of place.
A guest whose memory is not what it wrote ends the run.
"""

import argparse
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import harness
from dwcp_fast.demo.link import Link, LinkShape
from dwcp_fast.trust import INSECURE
from dwcp_fast.vm import AcceptOptions, MigrateOptions, Migration
from vm.guest import build_initramfs, downtime_s, why_missing
from vm.moves import Acceptor, Pair, check_guest, until

Sample = dict[str, float]
# From another address than its own, a peer counts as another machine.
LINK_HOST = "127.0.0.2"
CASES = {
    "100 Mbps, 200 ms": LinkShape(rate_bps=100e6, delay_s=0.1),
    "500 Mbps, 100 ms": LinkShape(rate_bps=500e6, delay_s=0.05),
    "no limit": None,
}
MAX_DOWNTIME_S = 0.3
WRITTEN_PAGES_PER_S = 200
MOVE_S = 900.0
WAY_BACK = "100 Mbps, 200 ms, the way back"


def main() -> None:
    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--memory-mib", type=int, default=2048, help="of the guest (default %(default)s)")
        parser.add_argument(
            "--case", action="append", choices=list(CASES), help="only this one; may be repeated"
        )

    options = harness.arguments(__doc__ or "", repeats=3, extend=extend)
    missing = why_missing()
    if missing is not None:
        sys.exit(missing)
    memory = 256 if options.quick else options.memory_mib
    raw: dict[str, dict[str, list[Sample]]] = {}
    os.environ["DWCP_STATE_DIR"] = tempfile.mkdtemp(prefix="dwcp-bench-")
    with tempfile.TemporaryDirectory(prefix="vm-") as scratch:
        initramfs = build_initramfs(Path(scratch))
        for case in options.case or CASES:
            contenders = contenders_of(CASES[case])
            raw[case] = {name: [] for name in contenders}
            for turn in range(options.repeats):
                for name in harness.in_turn(contenders, turn):
                    sample = run_one(case, contenders[name], memory, initramfs)
                    raw[case][name].append(sample)
                    print(f"{case}, {name}: {sample}", file=sys.stderr, flush=True)
        if "100 Mbps, 200 ms" in raw:
            shape = CASES["100 Mbps, 200 ms"]
            back = [there_and_back(shape, memory, initramfs) for _ in range(options.repeats)]
            raw[WAY_BACK] = {"there": [one[0] for one in back], "back": [one[1] for one in back]}
    claims = claims_of(raw)
    path = harness.publish("vm", options.out, claims=claims, raw={"memory_mib": memory, "samples": raw})
    harness.show(claims)
    print(f"raw samples: {path}")


def run_one(case: str, move: Callable[[Pair, Link | None], None], memory_mib: int, initramfs: Path) -> Sample:
    """Boot a guest, have it moved, and look at it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vm-")))
        shape = CASES[case]
        link = None if shape is None else stack.enter_context(Link(shape, LINK_HOST))
        pair = stack.enter_context(booted(folder, initramfs, memory_mib))
        started = time.monotonic()
        move(pair, link)
        until(lambda: pair.target.is_running(), "the guest on the other side", MOVE_S)
        took = time.monotonic() - started
        check_guest(pair.target)
        wire = 0 if link is None else link.stats().bytes_up
        stop = downtime_s(pair.source.console, pair.target.console)
        return {"seconds": round(took, 3), "stop_s": round(stop, 3), "wire_mb": round(wire / 1e6, 2)}


def booted(folder: Path, initramfs: Path, memory_mib: int) -> Pair:
    """A guest with five eighths of its memory in use, that writes."""
    pair = Pair(folder, initramfs, memory_mib=memory_mib, writer_mib=memory_mib * 5 // 8)
    pair.source.console.ask(f"w {memory_mib * 8}", "SET")
    pair.source.console.ask(f"r {WRITTEN_PAGES_PER_S}", "RATE")
    return pair


def contenders_of(shape: LinkShape | None) -> dict[str, Callable[[Pair, Link | None], None]]:
    """Who moves the guest."""
    found: dict[str, Callable[[Pair, Link | None], None]] = {
        "dwcp": by_dwcp,
        "QEMU": partial(by_qemu, {}, {}),
        "QEMU multifd": partial(by_qemu, {"multifd": True}, {"multifd-channels": 4}),
        "QEMU multifd zstd": partial(
            by_qemu, {"multifd": True}, {"multifd-channels": 4, "multifd-compression": "zstd"}
        ),
        "QEMU xbzrle": partial(by_qemu, {"xbzrle": True}, {}),
    }
    if shape is not None and shutil.which("zstd") and shutil.which("bash"):
        found["QEMU through zstd -1"] = by_pipe
    if shape is None:
        found["dwcp, plaintext"] = partial(by_dwcp, plaintext=True)
    return found


def through(link: Link | None, port: int) -> int:
    """The port to connect to."""
    if link is None:
        return port
    link.retarget("127.0.0.1", port)
    return link.port


def by_dwcp(
    pair: Pair,
    link: Link | None,
    *,
    plaintext: bool = False,
    accept: AcceptOptions | None = None,
    keep: Path | None = None,
) -> None:
    """Through the relay."""
    trust = INSECURE if plaintext else None
    with Acceptor(pair.target, listen=None, trust=trust, options=accept) as acceptor:
        to = acceptor.acceptance.pairing or acceptor.address
        port = through(link, int(acceptor.address.rpartition(":")[2]))
        if link is not None:
            to = to.replace(acceptor.address, f"{LINK_HOST}:{port}")
        options = MigrateOptions(max_downtime_s=MAX_DOWNTIME_S, keep=keep, patience_rounds=50)
        Migration(str(pair.source.monitor), to, trust=trust, options=options).run()
        if acceptor.end() is None:
            raise RuntimeError(f"the guest was not taken: {acceptor.error}")


def by_qemu(capabilities: dict[str, bool], parameters: dict[str, Any], pair: Pair, link: Link | None) -> None:
    """By QEMU over TCP."""
    port = free_port()
    for machine in (pair.source, pair.target):
        set_up(machine, {"return-path": True, **capabilities}, parameters)
    pair.target.qmp.execute("migrate-incoming", {"uri": f"tcp:127.0.0.1:{port}"})
    host = "127.0.0.1" if link is None else LINK_HOST
    run_migration(pair, f"tcp:{host}:{through(link, port)}")


def by_pipe(pair: Pair, link: Link | None) -> None:
    """By QEMU through the program zstd on either side."""
    port = free_port()
    for machine in (pair.source, pair.target):
        set_up(machine, {}, {})
    listen = (
        "import socket, shutil, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); "
        "shutil.copyfileobj(s.accept()[0].makefile('rb'), sys.stdout.buffer, 65536)"
    )
    taking = f'exec:{sys.executable} -c "{listen}" {port} | zstd -q -d -c'
    pair.target.qmp.execute("migrate-incoming", {"uri": taking})
    until(lambda: is_open(port), "the pipe")
    run_migration(pair, f'exec:bash -c "zstd -q -1 -c > /dev/tcp/{LINK_HOST}/{through(link, port)}"')


def set_up(machine: Any, capabilities: dict[str, bool], parameters: dict[str, Any]) -> None:
    told = [{"capability": name, "state": state} for name, state in capabilities.items()]
    if told:
        machine.qmp.execute("migrate-set-capabilities", {"capabilities": told})
    limits = {"downtime-limit": round(MAX_DOWNTIME_S * 1000), "max-bandwidth": 1 << 50}
    machine.qmp.execute("migrate-set-parameters", {**limits, **parameters})


def run_migration(pair: Pair, uri: str) -> None:
    pair.source.qmp.execute("migrate", {"uri": uri})

    def is_over() -> bool:
        told = pair.source.qmp.execute("query-migrate")
        if told["status"] in {"failed", "cancelled"}:
            raise RuntimeError(f"QEMU gave up: {told}")
        return bool(told["status"] == "completed")

    until(is_over, "the end of the move", MOVE_S)


def there_and_back(shape: LinkShape | None, memory_mib: int, initramfs: Path) -> tuple[Sample, Sample]:
    """Two moves; before the second a tenth of the pages is written, and the first host has the old memory."""
    assert shape is not None
    samples = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vm-")))
        kept = folder / "kept"
        pair = stack.enter_context(booted(folder, initramfs, memory_mib))
        for way in ("there", "back"):
            with Link(shape, LINK_HOST) as link:
                started = time.monotonic()
                if way == "there":
                    by_dwcp(pair, link, keep=kept)
                else:
                    by_dwcp(pair, link, accept=AcceptOptions(base=kept))
                took = time.monotonic() - started
                stop = downtime_s(pair.source.console, pair.target.console)
                wire = link.stats().bytes_up / 1e6
            samples.append({"seconds": round(took, 3), "stop_s": round(stop, 3), "wire_mb": round(wire, 2)})
            check_guest(pair.target)
            if way == "there":
                pair.target.console.ask("r 0", "RATE")
                pair.target.console.ask(f"x {memory_mib * 256 // 10}", "WROTE")
                pair.turn(folder, initramfs)
    return samples[0], samples[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def is_open(port: int) -> bool:
    """Whether something listens, without connecting to it."""
    return f":{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text(encoding="ascii")


def claims_of(raw: dict[str, dict[str, list[Sample]]]) -> list[dict[str, Any]]:
    """What was aimed at."""

    def median(case: str, name: str, what: str) -> float:
        return statistics.median(sample[what] for sample in raw[case][name])

    found = []
    for case, against, most in (
        ("100 Mbps, 200 ms", "QEMU", 0.5),
        ("500 Mbps, 100 ms", "QEMU multifd zstd", 0.7),
        ("no limit", "QEMU", 1.1),
    ):
        if case in raw:
            ours, theirs = median(case, "dwcp", "seconds"), median(case, against, "seconds")
            found.append(harness.claim(f"{case}: time", ours / theirs, most, against, lower_is_better=True))
    for case, others in raw.items():
        if case == WAY_BACK:
            share = median(case, "back", "wire_mb") / median(case, "there", "wire_mb")
            found.append(harness.claim(f"{case}: bytes", share, 0.25, "the way there", lower_is_better=True))
            continue
        best = min(
            (name for name in others if "dwcp" not in name), key=lambda name: median(case, name, "seconds")
        )
        share = median(case, "dwcp", "seconds") / median(case, best, "seconds")
        found.append(harness.claim(f"{case}: time, best of all", share, 1.0, best, lower_is_better=True))
    if "no limit" in raw:
        stop = median("no limit", "dwcp", "stop_s")
        found.append(harness.claim("no limit: stop in s", stop, 0.5, "a bound", lower_is_better=True))
        added = stop - median("no limit", "QEMU", "stop_s")
        found.append(
            harness.claim("no limit: added to the stop, s", added, 0.02, "QEMU", lower_is_better=True)
        )
    if "100 Mbps, 200 ms" in raw:
        seconds = median("100 Mbps, 200 ms", "dwcp", "seconds")
        found.append(harness.claim("100 Mbps, 200 ms: seconds", seconds, 60, "a bound", lower_is_better=True))
    return found


if __name__ == "__main__":
    main()
