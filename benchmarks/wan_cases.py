"""What is measured over the link lab, case by case; `bench_wan.py` runs them in turn and judges."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import dwcp_fast
import harness
import wan_states
from network.lab import LEFT, RIGHT, Lab, Shape, wait_for_port
from wan_ends import IPERF_PORT, PAYLOAD_SHARE, Sample, Transfer, dwcp, iperf3, line

MBPS = 1e6
RATE_BPS = 500 * MBPS
QUEUE_MS = 50.0
RTTS_MS = (50, 100, 200)
LOSSES = (0.0, 0.0001, 0.001, 0.01)
STREAMS = (1, 8, 16, 64)
SESSIONS = (1, 16, 256)
# Some lanes for each, so that a lane has a packet or two under way: one that loses them waits for seconds.
CROWD = 32
CROWD_BPS = 50 * MBPS
CROWD_BYTES = 8 << 20
# A run must not profit from what the kernel remembers of the one before.
SYSCTLS = {"net.ipv4.tcp_no_metrics_save": "1"}
FIRST_PATIENCE_S = 60.0
PATIENCE = 3.0
STEP_MBPS = (100, 900, 100)
STEP_SHARE = 0.8
SAMPLE_S = 0.1
WINDOW_S = 0.5
LEAD_S = 4.0
OPTIONS = {field.name for field in fields(dwcp_fast.SendOptions)}
POLITE = ["dwcp, polite"] if "polite" in OPTIONS else []

Samples = dict[str, list[dict[str, Any]]]


def path(rtt_ms: float, rate_bps: float, loss: float = 0.0, seed: int = 1) -> Shape:
    """A bottleneck with the usual queue; each way loses `loss`."""
    return Shape(rate_bps=rate_bps, delay_ms=rtt_ms / 2, queue_ms=QUEUE_MS, loss=loss, seed=seed)


@dataclass(frozen=True)
class Round:
    """One time through the contenders.

    Attributes:
        turn: Its number, from 0; another contender is first each time, and other packets are lost.
        size: Bytes of a transfer.
        phase_s: How long a rate lasts.
    """

    turn: int
    size: int
    phase_s: float


@dataclass(frozen=True)
class Case:
    """A link and what runs over it.

    Attributes:
        name: Of the case.
        measure: Run every contender once, and append to the samples so far.
        why_not: Why it cannot be measured here.
    """

    name: str
    measure: Callable[[Samples, Round], None]
    why_not: str | None = None


# --- one sender, one link


def goodputs(samples: Samples, prefix: str) -> dict[str, float]:
    """The median of every contender with this prefix that never failed."""
    found = {}
    for name, runs in samples.items():
        rates = [run["goodput_mbps"] for run in runs]
        if name.startswith(prefix) and rates and None not in rates:
            found[name] = statistics.median(rates)
    return found


def patience_s(samples: Samples, family: str, size: int) -> float:
    best = max(goodputs(samples, family).values(), default=0.0)
    return min(FIRST_PATIENCE_S, PATIENCE * 8e-6 * size / best + 5) if best else FIRST_PATIENCE_S


def is_hopeless(samples: Samples, name: str, family: str) -> bool:
    """Whether its first run says that it cannot be the best of its family."""
    runs = samples.get(name, [])
    best = max(goodputs(samples, family).values(), default=0.0)
    return bool(runs) and (runs[0]["goodput_mbps"] or 0.0) < best / 2


def measure_cell(rtt_ms: int, loss: float, samples: Samples, this: Round) -> None:
    """The cell of the table: iperf3 in its ways, and dwcp with and without a choice of congestion control."""
    names = [f"bbr x{streams}" for streams in (8, 16, 1, 64)]
    names += [f"cubic x{streams}" for streams in (64, 16, 8, 1)] + ["dwcp", "dwcp, only cubic"]
    with Lab([path(rtt_ms, RATE_BPS, loss, seed=1 + 2 * this.turn)], sysctls=SYSCTLS) as lab:
        for name in harness.in_turn(names, this.turn):
            if name.startswith("dwcp"):
                sample = with_congestion(lab, name, this.size, FIRST_PATIENCE_S)
            else:
                congestion, _, streams = name.partition(" x")
                if is_hopeless(samples, name, congestion):
                    continue
                patience = patience_s(samples, congestion, this.size)
                sample = iperf3(lab, congestion, int(streams), this.size, patience)
            samples.setdefault(name, []).append(asdict(sample))
        note_link(samples, lab)


def with_congestion(lab: Lab, name: str, size: int, patience: float) -> Sample:
    lab.lock_congestion("cubic" if name.endswith("only cubic") else None)
    try:
        arguments = ["--polite"] if name.endswith("polite") else []
        return dwcp(lab, size, patience_s=patience, arguments=arguments)
    finally:
        lab.lock_congestion(None)


def note_link(samples: Samples, lab: Lab) -> None:
    """Keep what the link says of itself: what it dropped, and how well it kept time."""
    told: dict[str, Any] = {"stats": lab.stats(), "device_drops": lab.device_drops()}
    samples.setdefault("link", []).append(told | {"goodput_mbps": None})


# --- a link that changes


def measure_steps(samples: Samples, this: Round) -> None:
    """How soon is a new rate used, and does anything collapse when the link gets slower?"""
    size = int(sum(STEP_MBPS) * MBPS / 8 * this.phase_s * 1.1)
    contenders = ["bbr x8", "cubic x16", "dwcp", "dwcp, only cubic"]
    for name in harness.in_turn(contenders, this.turn):
        with Lab([path(300, STEP_MBPS[0] * MBPS)], sysctls=SYSCTLS) as lab:
            if name.startswith("dwcp"):
                lab.lock_congestion("cubic" if name.endswith("only cubic") else None)
                with Transfer(lab, size):
                    curve = follow(lab, this.phase_s)
            else:
                congestion, _, streams = name.partition(" x")
                lab.start(RIGHT, ["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
                wait_for_port(lab, RIGHT, IPERF_PORT)
                command = ["iperf3", "-c", lab.address(RIGHT), "-C", congestion, "-P", streams, "-t", "600"]
                lab.start(LEFT, command, stdout=subprocess.DEVNULL)
                curve = follow(lab, this.phase_s)
        samples.setdefault(name, []).append({"goodput_mbps": None, "curve": curve, "phase_s": this.phase_s})


def follow(lab: Lab, phase_s: float) -> list[tuple[float, float]]:
    """Change the rate step by step once the link is in use; the bytes that had arrived at each time."""
    deadline = time.monotonic() + FIRST_PATIENCE_S
    wanted = STEP_MBPS[0] * MBPS / 8 * WINDOW_S / 2
    before = lab.stats()["ab"]["delivered_bytes"]
    while time.monotonic() < deadline:
        time.sleep(WINDOW_S)
        now_there = lab.stats()["ab"]["delivered_bytes"]
        if now_there - before >= wanted:
            break
        before = now_there
    start = time.monotonic()
    curve = []
    for number, rate in enumerate(STEP_MBPS):
        lab.change(rate_bps=rate * MBPS)
        while (now := time.monotonic() - start) < (number + 1) * phase_s:
            curve.append((now, lab.stats()["ab"]["delivered_bytes"]))
            time.sleep(SAMPLE_S)
    return curve


def rate_mbps(curve: list[tuple[float, float]], start_s: float, end_s: float) -> float:
    """Mean rate on the line between two times."""
    inside = [point for point in curve if start_s <= point[0] <= end_s]
    (from_s, before), (to_s, after) = inside[0], inside[-1]
    return 8e-6 * (after - before) / max(to_s - from_s, SAMPLE_S)


def rise_s(run: Mapping[str, Any]) -> float:
    """Seconds from the step up until STEP_SHARE of the new rate arrives; the whole phase if never."""
    step: float = run["phase_s"]
    curve = run["curve"]
    for now, _ in curve:
        is_due = step + WINDOW_S <= now < 2 * step
        if is_due and rate_mbps(curve, now - WINDOW_S, now) >= STEP_SHARE * STEP_MBPS[1]:
            return float(now - step)
    return step


def least_after_fall(run: Mapping[str, Any]) -> float:
    """The least share of the new rate in any second from two seconds after the step down."""
    step: float = run["phase_s"]
    curve = run["curve"]
    starts = [now for now, _ in curve if 2 * step + 2 <= now <= curve[-1][0] - 1]
    return min(rate_mbps(curve, now, now + 1) for now in starts) / STEP_MBPS[2]


# --- two paths


def measure_paths(dying: int, samples: Samples, this: Round) -> None:
    """400 and 100 Mbps side by side; one dies when half has arrived."""
    rates = (400 * MBPS, 100 * MBPS)
    bound_s = this.size / 2 * 8 / PAYLOAD_SHARE * (1 / sum(rates) + 1 / rates[1 - dying])
    shapes = [path(50, rate, seed=1 + 2 * this.turn + 10 * number) for number, rate in enumerate(rates)]
    with Lab(shapes, sysctls=SYSCTLS) as lab:
        addresses = [f"--local-address={lab.address(LEFT, number)}" for number in range(2)]
        start = time.monotonic()
        with Transfer(lab, this.size, arguments=addresses) as transfer:
            arrived = [0.0, 0.0]
            while transfer.sender.poll() is None and time.monotonic() < start + FIRST_PATIENCE_S:
                arrived = [lab.stats(path=number)["ab"]["delivered_bytes"] for number in range(2)]
                if sum(arrived) * PAYLOAD_SHARE >= this.size / 2:
                    lab.cut(path=dying)
                    break
                time.sleep(0.02)
            try:
                out, _ = transfer.sender.communicate(timeout=PATIENCE * bound_s + FIRST_PATIENCE_S)
                facts: dict[str, Any] = json.loads(out.splitlines()[-1]) if out else {"error": "failed"}
            except subprocess.TimeoutExpired:
                facts = {"error": "stopped"}
    sent_s = facts.get("send_s")
    run = {
        "goodput_mbps": 8e-6 * this.size / sent_s if sent_s else None,
        "of_bound": bound_s / sent_s if sent_s else None,
        "bound_s": bound_s,
        "cut_at_bytes": arrived,
        "facts": facts,
    }
    samples.setdefault("dwcp", []).append(run)


# --- beside others


def measure_fairness(samples: Samples, this: Round) -> None:
    """What does one cubic flow keep beside a transfer, and what beside one flow of iperf3 with BBR?"""
    for name in harness.in_turn(["dwcp", "dwcp, only cubic", *POLITE, "bbr x1"], this.turn):
        with Lab([path(50, RATE_BPS, seed=1 + 2 * this.turn)], sysctls=SYSCTLS) as lab:
            lab.start(RIGHT, ["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
            wait_for_port(lab, RIGHT, IPERF_PORT)
            command = ["iperf3", "-c", lab.address(RIGHT), "-C", "cubic", "-t", "600", "-i", "0.5", "-J"]
            began = time.monotonic()
            flow = lab.start(LEFT, command, stdout=subprocess.PIPE, text=True)
            time.sleep(LEAD_S)
            if name == "bbr x1":
                sample = iperf3(lab, "bbr", 1, this.size, FIRST_PATIENCE_S, port=IPERF_PORT + 1)
            else:
                sample = with_congestion(lab, name, this.size, FIRST_PATIENCE_S)
            end_s = time.monotonic() - began
            # `ip netns exec` has become iperf3, which tells what it has when interrupted.
            os.kill(flow.pid, signal.SIGINT)
            told = json.loads(flow.communicate(timeout=FIRST_PATIENCE_S)[0])
        samples.setdefault(name, []).append(asdict(sample) | shares(sample, told, end_s))


def shares(sample: Sample, told: Mapping[str, Any], end_s: float) -> dict[str, float | None]:
    """What a flow kept of the link beside a transfer that ended then, and what the transfer carried.

    Both are None where the transfer failed or was stopped: nobody gave way to it, or it to nobody.
    """
    found: dict[str, float | None] = {"kept": None, "carried": None}
    found["alone_mbps"] = flow_mbps(told, 1, LEAD_S - 1)
    if sample.goodput_mbps is not None and not sample.is_stopped:
        beside = flow_mbps(told, end_s - sample.seconds + 1, end_s - 1)
        found["kept"] = beside * MBPS / (RATE_BPS * PAYLOAD_SHARE)
        found["carried"] = sample.goodput_mbps * MBPS / (RATE_BPS * PAYLOAD_SHARE)
    return found


def flow_mbps(told: Mapping[str, Any], start_s: float, end_s: float) -> float:
    """What iperf3 sent between two times, of which there is at least one interval."""
    sums = [interval["sum"] for interval in told["intervals"]]
    inside = [one for one in sums if start_s <= one["start"] < max(end_s, start_s + 1)]
    return statistics.mean(float(one["bits_per_second"]) for one in inside) / MBPS


def measure_sessions(samples: Samples, this: Round) -> None:
    """The same bytes in one session, in 16 and in 256 at once."""
    with Lab([path(50, RATE_BPS, seed=1 + 2 * this.turn)], sysctls=SYSCTLS) as lab:
        for sessions in SESSIONS:
            sample = dwcp(lab, this.size, sessions=sessions, patience_s=FIRST_PATIENCE_S)
            samples.setdefault(f"{sessions} sessions", []).append(asdict(sample) | {"size": this.size})
        note_link(samples, lab)


def measure_crowd(samples: Samples, this: Round) -> None:
    """Sessions with more lanes than the link has room for packets."""
    with Lab([path(50, CROWD_BPS, seed=1 + 2 * this.turn)], sysctls=SYSCTLS) as lab:
        sample = dwcp(lab, CROWD * CROWD_BYTES, sessions=CROWD, patience_s=5 * FIRST_PATIENCE_S)
        # What a run that is stopped has carried may be the same bytes over and over.
        rate = 0.0 if sample.is_stopped else sample.goodput_mbps or 0.0
        of_link = rate * MBPS / (CROWD_BPS * PAYLOAD_SHARE)
        samples.setdefault("dwcp", []).append(asdict(sample) | {"of_link": of_link})
        note_link(samples, lab)


def measure_states(samples: Samples, this: Round) -> None:
    """States of 4 KiB one after the other, beside messages of 4 KiB that are answered by a byte."""
    with Lab([path(100, RATE_BPS, seed=1 + 2 * this.turn)], sysctls=SYSCTLS) as lab:
        worker, address = [sys.executable, wan_states.__file__], lab.address(RIGHT)
        pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True}
        receiver = lab.start(RIGHT, [*worker, "receive", address], **pipe)
        told = line(receiver.stdout)
        sender = lab.start(LEFT, [*worker, "send", told["pairing"], address, str(told["port"])], **pipe)
        for name, seconds in line(sender.stdout)["seconds"].items():
            run = {"goodput_mbps": None, "seconds": statistics.median(seconds), "each_s": seconds}
            samples.setdefault(name, []).append(run)


def percent(share: float) -> str:
    return f"{100 * share:g} %"


def cell_name(rtt_ms: int, loss: float) -> str:
    return f"{rtt_ms} ms, {percent(loss)}"


def cell(rtt_ms: int, loss: float) -> Case:
    return Case(
        cell_name(rtt_ms, loss),
        lambda samples, this: measure_cell(rtt_ms, loss, samples, this),
    )


def paths_case(dying: int) -> Case:
    return Case(
        f"two paths, {(400, 100)[dying]} Mbps dies",
        lambda samples, this: measure_paths(dying, samples, this),
        None if "local_addresses" in OPTIONS else "this version cannot use several local addresses",
    )


CASES = [
    *(cell(rtt_ms, loss) for rtt_ms in RTTS_MS for loss in LOSSES),
    Case("steps", measure_steps),
    paths_case(0),
    paths_case(1),
    Case("fairness", measure_fairness),
    Case("sessions", measure_sessions),
    Case("crowd", measure_crowd),
    Case("states", measure_states),
]
