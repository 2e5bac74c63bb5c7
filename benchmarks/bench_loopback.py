"""How much of what one host can move through its loopback interface does a verified transfer reach?

iperf3 moves bytes that nobody reads, writes or checks; here every byte is hashed on both sides.
Memory to memory is the like case; file to file on tmpfs adds what a file costs, which `cp` shows.
iperf3 has to be installed.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import dwcp_fast
import harness

LANES = 4
IPERF_WARM_UP_S = 1
PEAK_MIB = 256
TIMEOUT_S = 120.0


def peak_mib() -> float:
    """Peak resident memory of this process; ru_maxrss would start from that of the process that forked it."""
    status = Path("/proc/self/status").read_text()
    return next(int(row.split()[1]) / 1024 for row in status.splitlines() if row.startswith("VmHWM"))


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def receive(kind: str, transport: str, size: int, folder: str) -> None:
    """Worker: receive until the sender says goodbye."""
    trust = dwcp_fast.INSECURE if transport == "plaintext" else None
    options = dwcp_fast.ReceiveOptions(sync=False)
    target = bytearray(size) if kind == "memory" else None
    with dwcp_fast.listen("127.0.0.1:0", trust=trust, options=options) as listener:
        tell(target=listener.pairing or listener.address)
        with listener.accept(timeout_s=TIMEOUT_S) as session:  # type: ignore[union-attr]
            while True:
                if target is None:
                    got = session.receive_tree(folder, timeout_s=TIMEOUT_S)
                else:
                    got = session.receive_into({"bytes": target}, timeout_s=TIMEOUT_S)
                if got is None:
                    break
    tell(peak_mib=peak_mib())


def send(kind: str, transport: str, size: int, folder: str, target: str, rounds: int) -> None:
    """Worker: send the same bytes so many times; the first time warms up."""
    trust = dwcp_fast.INSECURE if transport == "plaintext" else None
    options = dwcp_fast.SendOptions(streams=LANES, codec="none", base="none", link="tcp")
    with dwcp_fast.connect(target, trust=trust, options=options) as session:
        data = harness.incompressible(size) if kind == "memory" else b""
        for turn in range(rounds):
            start = time.perf_counter()
            if kind == "memory":
                report = session.send({"bytes": data})
            else:
                report = session.send_paths([Path(folder) / f"state-{turn}"])
            taken = time.perf_counter() - start
            assert report.verified and report.bytes_raw == size
            tell(seconds=taken)
    tell(peak_mib=peak_mib())


def line(stream: IO[str] | None) -> dict[str, Any]:
    assert stream is not None
    facts: dict[str, Any] = json.loads(stream.readline())
    return facts


def transfer(kind: str, transport: str, size: int, rounds: int) -> dict[str, Any]:
    """Run both workers; seconds of each round but the first, and the peak memory of both."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        source, into = Path(folder, "source"), Path(folder, "into")
        source.mkdir()
        into.mkdir()
        if kind == "file":
            for turn in range(rounds):
                (source / f"state-{turn}").write_bytes(harness.incompressible(size, seed=turn))
        command = [sys.executable, __file__, "--worker"]
        facts = [kind, transport, str(size)]
        receiver = subprocess.Popen(
            [*command, "receive", *facts, str(into)], stdout=subprocess.PIPE, text=True
        )
        target = line(receiver.stdout)["target"]
        sender = subprocess.Popen(
            [*command, "send", *facts, str(source), target, str(rounds)], stdout=subprocess.PIPE, text=True
        )
        seconds = [line(sender.stdout)["seconds"] for _ in range(rounds)][1:]
        peaks = {"sender": line(sender.stdout)["peak_mib"], "receiver": line(receiver.stdout)["peak_mib"]}
        assert sender.wait(TIMEOUT_S) == 0 and receiver.wait(TIMEOUT_S) == 0
    return {"seconds": seconds, "peak_mib": peaks}


def copy(size: int) -> float:
    """Seconds that `cp` takes for a new file of `size` bytes on tmpfs: what files alone cost."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        source = Path(folder, "source")
        source.write_bytes(harness.incompressible(size))
        command = ["cp", "--reflink=never", str(source), str(Path(folder, "copy"))]
        return harness.seconds(lambda: subprocess.run(command, check=True))


def iperf3(size: int) -> float:
    """Seconds that `iperf3 -P LANES` takes for `size` bytes, once it has warmed up, as the transfers have."""
    with subprocess.Popen(["iperf3", "-s", "-1", "-p", "5399"], stdout=subprocess.DEVNULL) as server:
        time.sleep(0.3)
        command = [
            "iperf3",
            "-c",
            "127.0.0.1",
            "-p",
            "5399",
            "-P",
            str(LANES),
            # Of all connections together.
            "-n",
            str(size),
            "-O",
            str(IPERF_WARM_UP_S),
            "-J",
            *harness.unpaced(),
        ]
        out = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        server.wait(TIMEOUT_S)
    received = out["end"]["sum_received"]
    return float(size / (received["bits_per_second"] / 8))


def main() -> None:
    options = harness.arguments(__doc__ or "", repeats=7)
    if shutil.which("iperf3") is None:
        raise SystemExit("iperf3 is not installed; it is what this is measured against")
    size = (256 if options.quick else 1024) << 20
    file_size = (128 if options.quick else 512) << 20
    cases = {
        "memory to memory, plaintext": ("memory", "plaintext", size, 0.9),
        "memory to memory, TLS": ("memory", "tls", size, 0.6),
        "file to file on tmpfs, plaintext": ("file", "plaintext", file_size, 0.9),
        "file to file on tmpfs, TLS": ("file", "tls", file_size, 0.6),
    }
    raw: dict[str, Any] = {name: {"seconds_per_gib": []} for name in ("iperf3", "cp")} | {
        case: {"seconds_per_gib": [], "peak_mib": []} for case in cases
    }
    for _ in range(options.repeats):
        raw["iperf3"]["seconds_per_gib"].append(iperf3(size) * (1 << 30) / size)
        raw["cp"]["seconds_per_gib"].append(copy(file_size) * (1 << 30) / file_size)
        for case, (kind, transport, length, _) in cases.items():
            result = transfer(kind, transport, length, rounds=2)
            raw[case]["seconds_per_gib"] += [value * (1 << 30) / length for value in result["seconds"]]
            raw[case]["peak_mib"].append(result["peak_mib"])
    reference = statistics.median(raw["iperf3"]["seconds_per_gib"])
    claims = []
    for case, (kind, _, length, target) in cases.items():
        measured = reference / statistics.median(raw[case]["seconds_per_gib"])
        claims.append(harness.claim(case, measured, target, f"iperf3 -P {LANES}"))
        if kind == "file":
            for side in ("sender", "receiver"):
                peak = max(peaks[side] for peaks in raw[case]["peak_mib"])
                what = f"peak MiB of the {side}, {case}, {length >> 20} MiB file"
                claims.append(harness.claim(what, peak, PEAK_MIB, "the stated bound", lower_is_better=True))
    path = harness.publish("loopback", options.out, claims=claims, raw=raw)
    harness.show(claims)
    copied = statistics.median(raw["cp"]["seconds_per_gib"])
    print(f"iperf3: {8 * 1.073741824 / reference:.1f} Gbps; cp: {reference / copied:.2f} of it")
    print(f"raw samples: {path}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        os.environ.pop("DWCP_FLAGS_FILE", None)
        role, kind, transport, size, *rest = sys.argv[2:]
        if role == "receive":
            receive(kind, transport, int(size), rest[0])
        else:
            send(kind, transport, int(size), rest[0], rest[1], int(rest[2]))
    else:
        main()
