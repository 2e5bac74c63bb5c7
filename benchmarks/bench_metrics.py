"""What do metrics cost, counted and scraped every second, in processor time of a transfer?

A sender and a receiver, each a process, make the same transfers with metrics and without, in turn, and count
the processor time of all their threads. What counting takes is the median of the ratios of neighbours; what
answering a scrape a second takes is added to that. Batches are short, so that neighbours find the machine
alike, and many, for their ratios scatter by several percent. Needs the extra ``prometheus``.
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
from dwcp_fast.metrics.prometheus import MetricsServer

MOST = 0.01
SCRAPE_S = 1.0
TIMEOUT_S = 120.0
SCRAPES = 100
CASES = {"16 MiB": (16 << 20, 4), "1 MiB": (1 << 20, 40), "4 KiB": (4 << 10, 60)}


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
        print(json.dumps({"url": server.url}), flush=True)
        for line in sys.stdin:
            size, count, counted = json.loads(line)
            metrics.set_enabled(counted)
            state = {"state": harness.incompressible(size)}
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(count):
                session.send(state)
            taken = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
            told = {name: value / max(count, 1) for name, value in taken.items()}
            print(json.dumps({**told, "total_cpu_s": time.process_time()}), flush=True)


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
    samples: dict[str, dict[str, list[float]]] = {case: {"on": [], "off": [], "wall": []} for case in CASES}
    with ExitStack() as stack:
        receiver = Worker(stack, "--receive")
        sender = Worker(stack, "--send", receiver.told["target"])
        answers = [answering(sender) for _ in range(3)]
        for turn in range((5 if options.quick else options.repeats) + 1):
            for case, (size, count) in CASES.items():
                for name in harness.in_turn(("on", "off"), turn):
                    found = run(sender, receiver, size, count, counted=name == "on")
                    if turn:
                        samples[case][name].append(found["cpu_s"])
                    if turn and name == "off":
                        samples[case]["wall"].append(found["wall_s"])
    answer, claims, differences = statistics.median(answers), [], {}
    for case, sides in samples.items():
        ratios = [on / off for on, off in zip(sides["on"], sides["off"], strict=True)]
        differences[case] = statistics.quantiles(ratios, n=4)
        scrapes = answer / SCRAPE_S * statistics.median(sides["wall"]) / statistics.median(sides["off"])
        claims.append(
            harness.claim(
                f"more processor time of a transfer of {case} with metrics and a scrape a second",
                differences[case][1] - 1 + scrapes,
                MOST,
                "the same without",
                lower_is_better=True,
            )
        )
    rounded = {
        case: {name: [round(value, 7) for value in values] for name, values in sides.items()}
        for case, sides in samples.items()
    }
    raw = {"seconds": rounded, "seconds to answer a scrape": answers, "on by off, quartiles": differences}
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
