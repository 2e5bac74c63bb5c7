"""Is a running machine moved faster through the relay than by QEMU itself, in any way that it offers?

The same guest for all, that writes a part of its memory again and again; contenders take turns, round after
round, each with a guest that was just booted, over the same link: two network namespaces and the link lab
between them (docs/link-lab.md), which delays, queues and loses packets; that needs root. Each side's programs
run in its namespace. The time is from the command until the guest runs on the other side, and the whole time
until the commands have ended too; the bytes are those of the packets that arrived there, and the stop is what
is heard of the guest: the longest time between two of its ticks around the change of place. A guest whose
memory is not what it wrote ends the run.
"""

import argparse
import compileall
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import dwcp_fast
import harness
from dwcp_fast.demo.guest import build_initramfs, downtime_s, why_missing
from dwcp_fast.trust import INSECURE
from dwcp_fast.vm import MigrateOptions, Migration
from network.lab import LEFT, RIGHT, Lab, Shape
from network.lab import why_missing as why_no_lab
from vm.moves import Acceptor, Pair, check_guest, until

Sample = dict[str, float]
FAR = "100 Mbps, 200 ms"
LOSSY = "500 Mbps, 100 ms, 0.1 % loss"
NEAR = "no limit"
CASES = {
    FAR: Shape(rate_bps=100e6, delay_ms=100, queue_ms=50),
    LOSSY: Shape(rate_bps=500e6, delay_ms=50, queue_ms=50, loss=0.001),
    NEAR: None,
}
# A run must not profit from what the kernel remembers of the one before.
SYSCTLS = {"net.ipv4.tcp_no_metrics_save": "1"}
PORT = 7443
# What the two sides tell each other before memory is sent is less.
QUIET_BYTES = 50_000
DWCP = [sys.executable, "-m", "dwcp_fast", "vm"]
MAX_DOWNTIME_S = 0.3
WRITTEN_PAGES_PER_S = 200
MOVE_S = 900.0
WAY_BACK = f"{FAR}, the way back"
THERE, BACK = "there", "back"


def main() -> None:
    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--memory-mib", type=int, default=2048, help="of the guest (default %(default)s)")
        parser.add_argument(
            "--case", action="append", choices=[*CASES, WAY_BACK], help="only this one; may be repeated"
        )
        parser.add_argument("--only", action="append", help="only this contender; may be repeated")
        parser.add_argument(
            "--add-to",
            type=Path,
            help="results of an earlier run of the same guest, which these are added to",
        )

    options = harness.arguments(__doc__ or "", repeats=3, extend=extend)
    missing = why_missing()
    if missing is not None:
        sys.exit(missing)
    memory = 256 if options.quick else options.memory_mib
    raw = {} if options.add_to is None else samples_of(options.add_to, memory)
    # As pip does when it installs; else every command compiles what it imports.
    compileall.compile_dir(Path(dwcp_fast.__file__).parent, quiet=1)
    os.environ["DWCP_STATE_DIR"] = tempfile.mkdtemp(prefix="dwcp-bench-")
    with tempfile.TemporaryDirectory(prefix="vm-") as scratch:
        initramfs = build_initramfs(Path(scratch))
        for case in options.case or (*CASES, WAY_BACK):
            if case != NEAR and (reason := why_no_lab()):
                print(f"{case}: not measured: {reason}", file=sys.stderr)
                continue
            kept = raw.setdefault(case, {})
            if case == WAY_BACK:
                for _ in range(options.repeats):
                    there_and_back(memory, initramfs, kept)
                continue
            contenders = contenders_of(CASES[case])
            contenders = {
                name: move for name, move in contenders.items() if name in (options.only or contenders)
            }
            for turn in range(options.repeats):
                for name in harness.in_turn(contenders, turn):
                    sample = run_one(case, contenders[name], memory, initramfs)
                    kept.setdefault(name, []).append(sample)
                    print(f"{case}, {name}: {sample}", file=sys.stderr, flush=True)
    claims = claims_of(raw)
    path = harness.publish("vm", options.out, claims=claims, raw={"memory_mib": memory, "samples": raw})
    harness.show(claims)
    print(f"raw samples: {path}")


def samples_of(path: Path, memory_mib: int) -> dict[str, dict[str, list[Sample]]]:
    """The samples of an earlier run."""
    told = json.loads(path.read_text())["raw"]
    if told["memory_mib"] != memory_mib:
        sys.exit(f"{path} is of guests of {told['memory_mib']} MiB")
    samples: dict[str, dict[str, list[Sample]]] = told["samples"]
    return samples


def run_one(
    case: str, move: Callable[[Pair, Lab | None], float | None], memory_mib: int, initramfs: Path
) -> Sample:
    """Boot a guest, have it moved, and look at it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vm-")))
        shape = CASES[case]
        lab = None if shape is None else stack.enter_context(Lab([shape], sysctls=SYSCTLS))
        pair = stack.enter_context(booted(folder, initramfs, memory_mib, lab))
        return measured(pair, lab, move)


def measured(pair: Pair, lab: Lab | None, move: Callable[[Pair, Lab | None], float | None]) -> Sample:
    """Have a guest moved, and look at it."""
    before = arrived_bytes(lab)
    started = time.monotonic()
    sending = move(pair, lab)
    until(lambda: pair.target.is_running(), "the guest on the other side", MOVE_S)
    whole = time.monotonic() - started
    until(lambda: pair.ran_there_s is not None, "word that the guest runs", MOVE_S)
    assert pair.ran_there_s is not None
    took = pair.ran_there_s - started
    wire = arrived_bytes(lab) - before
    check_guest(pair.target)
    stop = downtime_s(pair.source.console, pair.target.console)
    sample = {
        "seconds": round(took, 3),
        "whole_s": round(whole, 3),
        "stop_s": round(stop, 3),
        "wire_mb": round(wire / 1e6, 2),
    }
    if sending is not None:
        sample["sending_s"] = round(sending, 3)
    return sample


def arrived_bytes(lab: Lab | None) -> float:
    """Bytes of the packets that the link has brought to the right side."""
    return 0.0 if lab is None else lab.stats()["ab"]["delivered_bytes"]


def booted(folder: Path, initramfs: Path, memory_mib: int, lab: Lab | None = None) -> Pair:
    """A guest with five eighths of its memory in use, that writes."""
    runners = ([], []) if lab is None else (lab.command(LEFT, []), lab.command(RIGHT, []))
    pair = Pair(folder, initramfs, memory_mib=memory_mib, writer_mib=memory_mib * 5 // 8, runners=runners)
    pair.source.console.ask(f"w {memory_mib * 8}", "SET")
    pair.source.console.ask(f"r {WRITTEN_PAGES_PER_S}", "RATE")
    return pair


def contenders_of(shape: Shape | None) -> dict[str, Callable[[Pair, Lab | None], float | None]]:
    """Who moves the guest."""
    found: dict[str, Callable[[Pair, Lab | None], float | None]] = {
        "dwcp": by_dwcp,
        "QEMU": partial(by_qemu, {}, {}),
        "QEMU multifd": partial(by_qemu, {"multifd": True}, {"multifd-channels": 4}),
        "QEMU multifd zstd": partial(
            by_qemu, {"multifd": True}, {"multifd-channels": 4, "multifd-compression": "zstd"}
        ),
        "QEMU xbzrle": partial(by_qemu, {"xbzrle": True}, {}),
    }
    if shutil.which("zstd") and shutil.which("socat"):
        found["socat | zstd"] = by_pipe
    if shape is None:
        found["dwcp, plaintext"] = partial(by_dwcp, plaintext=True)
    return found


def by_dwcp(
    pair: Pair,
    lab: Lab | None,
    *,
    plaintext: bool = False,
    base: Path | None = None,
    keep: Path | None = None,
) -> float | None:
    """Through the relay; over a link by the commands, each in its namespace, and give how long that took."""
    if lab is not None:
        return by_commands(pair, lab, base=base, keep=keep)
    trust = INSECURE if plaintext else None
    with Acceptor(pair.target, listen=None, trust=trust) as acceptor:
        to = acceptor.acceptance.pairing or acceptor.address
        options = MigrateOptions(max_downtime_s=MAX_DOWNTIME_S, patience_rounds=50)
        Migration(str(pair.source.monitor), to, trust=trust, options=options).run()
        if acceptor.end() is None:
            raise RuntimeError(f"the guest was not taken: {acceptor.error}")
    return None


def by_commands(pair: Pair, lab: Lab, *, base: Path | None, keep: Path | None) -> float:
    """As they are typed."""
    listen = f"{lab.address(RIGHT)}:{PORT}"
    accept: list[str | Path] = [
        *DWCP,
        "accept",
        "--qmp",
        pair.target.monitor,
        "--listen",
        listen,
        "--json-lines",
    ]
    accept += ["--base", base] if base else []
    taking = lab.start(RIGHT, accept, stdout=subprocess.PIPE, text=True)
    assert taking.stdout is not None
    pairing = json.loads(taking.stdout.readline())["pairing"]
    migrate: list[str | Path] = [*DWCP, "migrate", "--qmp", pair.source.monitor, "--to", pairing, "--json"]
    migrate += ["--max-downtime", f"{MAX_DOWNTIME_S}s", "--patience", "50"]
    migrate += ["--keep", keep] if keep else []
    told = json.loads(lab.run(LEFT, migrate, timeout_s=MOVE_S).stdout)
    taking.communicate(timeout=MOVE_S)
    if taking.returncode:
        raise RuntimeError(f"the guest was not taken: {taking.returncode}")
    quiet = [moment["at_s"] for moment in told["timeline"] if moment["wire_bytes"] < QUIET_BYTES]
    return float(told["stopped_at_s"] - max(quiet, default=0.0))


def by_qemu(capabilities: dict[str, bool], parameters: dict[str, Any], pair: Pair, lab: Lab | None) -> None:
    """By QEMU over TCP."""
    address = f"127.0.0.1:{free_port()}" if lab is None else f"{lab.address(RIGHT)}:{PORT}"
    for machine in (pair.source, pair.target):
        set_up(machine, {"return-path": True, **capabilities}, parameters)
    pair.target.qmp.execute("migrate-incoming", {"uri": f"tcp:{address}"})
    run_migration(pair, f"tcp:{address}")


def by_pipe(pair: Pair, lab: Lab | None) -> None:
    """By QEMU through the programs socat and zstd on either side."""
    host = "127.0.0.1" if lab is None else lab.address(RIGHT)
    port = free_port() if lab is None else PORT
    for machine in (pair.source, pair.target):
        set_up(machine, {}, {})
    listen = f"socat -u -b 262144 TCP-LISTEN:{port},bind={host},reuseaddr -"
    pair.target.qmp.execute("migrate-incoming", {"uri": f"exec:{listen} | zstd -q -d -c"})
    # It takes one connection only, which is not to be used up by looking whether it is there.
    send = f"socat -u -b 262144 - TCP:{host}:{port},retry=100,interval=0.05"
    run_migration(pair, f"exec:zstd -q -1 -c | {send}")


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


def there_and_back(memory_mib: int, initramfs: Path, kept_samples: dict[str, list[Sample]]) -> None:
    """Two moves; before the second a tenth of the pages is written, and the first host has the old memory."""
    shape = CASES[FAR]
    assert shape is not None
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vm-")))
        kept = folder / "kept"
        pair = stack.enter_context(booted(folder, initramfs, memory_mib))
        for name, move in ((THERE, partial(by_dwcp, keep=kept)), (BACK, partial(by_dwcp, base=kept))):
            with Lab([shape], sysctls=SYSCTLS) as lab:
                sample = measured(pair, lab, move)
            kept_samples.setdefault(name, []).append(sample)
            print(f"{WAY_BACK}, {name}: {sample}", file=sys.stderr, flush=True)
            if name == THERE:
                pair.target.console.ask("r 0", "RATE")
                pair.target.console.ask(f"x {memory_mib * 256 // 10}", "WROTE")
                pair.turn(folder, initramfs)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def claims_of(raw: dict[str, dict[str, list[Sample]]]) -> list[dict[str, Any]]:
    """What was aimed at."""

    def median(case: str, name: str, what: str) -> float:
        return statistics.median(sample[what] for sample in raw[case][name])

    found = []
    for case, against, most in (
        (FAR, "QEMU", 0.5),
        (LOSSY, "QEMU multifd zstd", 0.7),
        (NEAR, "QEMU", 1.1),
    ):
        if {"dwcp", against} <= raw.get(case, {}).keys():
            ours, theirs = median(case, "dwcp", "seconds"), median(case, against, "seconds")
            found.append(harness.claim(f"{case}: time", ours / theirs, most, against, lower_is_better=True))
    for case, others in raw.items():
        if case == WAY_BACK:
            share = median(case, BACK, "wire_mb") / median(case, THERE, "wire_mb")
            found.append(harness.claim(f"{case}: bytes", share, 0.25, "the way there", lower_is_better=True))
            continue
        competitors = [name for name in others if "dwcp" not in name]
        if "dwcp" not in others or not competitors:
            continue
        best = min(competitors, key=lambda name: median(case, name, "seconds"))
        share = median(case, "dwcp", "seconds") / median(case, best, "seconds")
        found.append(harness.claim(f"{case}: time, best of all", share, 1.0, best, lower_is_better=True))
    if {"dwcp", "QEMU"} <= raw.get(NEAR, {}).keys():
        stop = median(NEAR, "dwcp", "stop_s")
        found.append(harness.claim("no limit: stop in s", stop, 0.5, "a bound", lower_is_better=True))
        added = stop - median(NEAR, "QEMU", "stop_s")
        found.append(
            harness.claim("no limit: added to the stop, s", added, 0.02, "QEMU", lower_is_better=True)
        )
    if "dwcp" in raw.get(LOSSY, {}):
        shape = CASES[LOSSY]
        assert shape is not None and shape.rate_bps is not None
        shares = [8e6 * one["wire_mb"] / (shape.rate_bps * one["sending_s"]) for one in raw[LOSSY]["dwcp"]]
        found.append(harness.claim(f"{LOSSY}: link used", statistics.median(shares), 0.8, "the link"))
    if "dwcp" in raw.get(FAR, {}):
        seconds = median(FAR, "dwcp", "seconds")
        found.append(harness.claim("100 Mbps, 200 ms: seconds", seconds, 60, "a bound", lower_is_better=True))
    return found


if __name__ == "__main__":
    main()
