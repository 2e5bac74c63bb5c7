"""What do metrics cost, counted and scraped every second, in processor time of a transfer?

A sender and a receiver, each a process, make the same transfers with metrics and without, in turn, and count
the processor time of all their threads. What the calls that count take, and what answering a scrape takes, is
held against the processor time of a transfer without. What a transfer with metrics took more is told too, as
the median of the ratios of neighbours with its quartiles. Needs the extra ``prometheus``.
"""

import json
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack, suppress
from typing import Any

import dwcp_fast
import harness
from dwcp_fast import metrics
from dwcp_fast.metrics.meter import Meter
from dwcp_fast.metrics.prometheus import MetricsServer
from dwcp_fast.reports import Progress, SendReport

MOST = 0.01
SCRAPE_S = 1.0
TIMEOUT_S = 120.0
CALLS = 2_000
SCRAPES = 100
CASES = {"16 MiB": (16 << 20, 8), "1 MiB": (1 << 20, 80), "4 KiB": (4 << 10, 200)}


def receive_on_demand() -> None:
    """Worker: take what comes; for each line count or do not, and tell the processor time so far."""
    with ExitStack() as stack:
        listener = stack.enter_context(dwcp_fast.listen("127.0.0.1:0"))

        def receive() -> None:
            # A sender that sent a block twice at the end comes back with another session.
            with suppress(dwcp_fast.ClosedError):
                while (session := listener.accept()) is not None:
                    with session:
                        while session.receive() is not None:
                            pass

        receiving = threading.Thread(target=receive)
        receiving.start()
        stack.callback(receiving.join)
        stack.callback(listener.close)
        print(json.dumps({"target": listener.pairing}), flush=True)
        for line in sys.stdin:
            metrics.set_enabled(json.loads(line))
            print(json.dumps({"total_cpu_s": time.process_time()}), flush=True)


def send_on_demand(target: str) -> None:
    """Worker: make as many transfers of as many bytes as each line says, and tell what they took."""
    sends = dwcp_fast.SendOptions(streams=2, codec="none", base="none")
    with (
        MetricsServer("127.0.0.1:0") as server,
        dwcp_fast.connect(target, options=sends) as session,
    ):
        report = session.send({"state": b"to have one"})
        print(json.dumps({"url": server.url}), flush=True)
        for line in sys.stdin:
            size, count, counted = json.loads(line)
            metrics.set_enabled(counted)
            state = {"state": harness.incompressible(size)}
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(count):
                report = session.send(state)
            taken = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
            told = {name: value / max(count, 1) for name, value in taken.items()}
            total = {"total_cpu_s": time.process_time(), "counting_s": counting(report)}
            print(json.dumps({**told, **total}), flush=True)


def counting(report: SendReport) -> float:
    """Processor time that counting a transfer takes at both ends, with nothing else at work."""
    meter, still = Meter(), Progress(1, 1, 1, 2, 0)
    before = time.process_time()
    for _ in range(CALLS):
        meter.measure("sent", "v3", lambda: still, lambda: report)
        meter.measure("received", "v3", lambda: still, lambda: report)
    return (time.process_time() - before) / CALLS


def scrape(url: str) -> None:
    """Read all metrics."""
    urllib.request.urlopen(url, timeout=TIMEOUT_S).read()


class Worker:
    """A process that does what it is told."""

    def __init__(self, stack: ExitStack, *what: str) -> None:
        command = [sys.executable, __file__, *what]
        self._process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        # Without more to read it ends.
        assert self._process.stdin is not None
        stack.callback(self._process.stdin.close)
        self.told: dict[str, Any] = self._answer()

    def tell(self, what: Any) -> dict[str, float]:
        """Have it do something."""
        assert self._process.stdin is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told


def run(sender: Worker, receiver: Worker, size: int, count: int, *, counted: bool) -> dict[str, float]:
    """Have transfers made, and give what one took, at both ends together."""
    before = receiver.tell(counted)["total_cpu_s"]
    told = sender.tell([size, count, counted])
    received = receiver.tell(counted)["total_cpu_s"] - before
    return {**told, "cpu_s": told["cpu_s"] + received / count}


def answering(sender: Worker) -> float:
    """Processor time that it takes to answer a scrape."""
    idle, before = (sender.tell([0, 0, True])["total_cpu_s"] for _ in range(2))
    for _ in range(SCRAPES):
        urllib.request.urlopen(sender.told["url"], timeout=TIMEOUT_S).read()
    # What telling takes by itself is the same before.
    return (sender.tell([0, 0, True])["total_cpu_s"] - before - (before - idle)) / SCRAPES


def main() -> None:
    options = harness.arguments(__doc__ or "", repeats=24)
    samples: dict[str, dict[str, list[dict[str, float]]]] = {case: {"on": [], "off": []} for case in CASES}
    with ExitStack() as stack:
        receiver = Worker(stack, "--receive")
        sender = Worker(stack, "--send", receiver.told["target"])
        answers = [answering(sender) for _ in range(3)]
        for turn in range((5 if options.quick else options.repeats) + 1):
            for case, (size, count) in CASES.items():
                for name in harness.in_turn(("on", "off"), turn):
                    found = run(sender, receiver, size, count, counted=name == "on")
                    if turn:
                        samples[case][name].append(found)
    answer, claims, differences = statistics.median(answers), [], {}
    for case, sides in samples.items():
        pairs = list(zip(sides["on"], sides["off"], strict=True))
        differences[case] = statistics.quantiles([on["cpu_s"] / off["cpu_s"] for on, off in pairs], n=4)
        claims.append(
            harness.claim(
                f"more processor time of a transfer of {case} with metrics",
                differences[case][1] - 1,
                MOST,
                "the same without",
                lower_is_better=True,
            )
        )
        shares = [(off["counting_s"] + answer * off["wall_s"] / SCRAPE_S) / off["cpu_s"] for _, off in pairs]
        claims.append(
            harness.claim(
                f"counting a transfer of {case} at both ends, and a scrape a second",
                statistics.median(shares),
                MOST,
                "the processor time of the transfer without",
                lower_is_better=True,
            )
        )
    raw = {"samples": samples, "seconds to answer a scrape": answers, "on by off, quartiles": differences}
    path = harness.publish("metrics", options.out, claims=claims, raw=raw)
    harness.show(claims)
    for case, (low, middle, high) in differences.items():
        print(f"{case}: processor time with metrics by that without {middle:.3f} ({low:.3f} to {high:.3f})")
    print(f"raw samples: {path}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--receive"]:
        receive_on_demand()
    elif sys.argv[1:2] == ["--send"]:
        send_on_demand(sys.argv[2])
    else:
        main()
