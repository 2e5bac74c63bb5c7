"""What do metrics cost, counted and scraped every second, in processor time of a transfer?

A sender and a receiver, each a process, make transfers, and turn metrics on and off every few milliseconds.
Both add up the processor time of all their threads with metrics and without, so that whatever else the
machine does meanwhile falls on both alike. What counting takes is the median of the ratios of many such runs;
what answering a scrape a second takes is added to that. Needs the extra ``prometheus``.
"""

import functools
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
TURNS = 20
CASES = {"16 MiB": (16 << 20, 1), "1 MiB": (1 << 20, 5), "4 KiB": (4 << 10, 10)}
"""Bytes of a transfer, and how many there are from one turn to the next."""


class Turns:
    """Turns metrics on and off, and adds up the processor time of this process in between."""

    def __init__(self, each: int, *, on: bool) -> None:
        """Begin with metrics on or off; the other follows after `each` transfers."""
        self._each = each
        self._on = on
        self._transfers = 0
        self._spent = {True: 0.0, False: 0.0}
        self._done = threading.Event()
        metrics.set_enabled(on)
        self._since = time.process_time()

    def transfer_ended(self) -> None:
        """Count a transfer."""
        self._transfers += 1
        if self._transfers % self._each == 0 and not self._done.is_set():
            self._spent[self._on] += time.process_time() - self._since
            self._on = not self._on
            metrics.set_enabled(self._on)
            if self._transfers == TURNS * self._each:
                self._done.set()
            self._since = time.process_time()

    def told(self) -> dict[str, float]:
        """Seconds of processor time of a transfer, once all have ended."""
        if not self._done.wait(TIMEOUT_S):
            raise TimeoutError("not all transfers have come")
        most = TURNS * self._each / 2
        return {"on": self._spent[True] / most, "off": self._spent[False] / most}


def receive_on_demand() -> None:
    """Worker: take what comes; for each line begin with turns, or tell what they took."""
    turns: list[Turns] = []
    with ExitStack() as stack:
        listener = stack.enter_context(dwcp_fast.listen("127.0.0.1:0"))

        def receive() -> None:
            # A sender that sent a block twice at the end comes back with another session.
            with suppress(dwcp_fast.ClosedError):
                while (session := listener.accept()) is not None:
                    with session:
                        while session.receive() is not None:
                            turns[-1].transfer_ended()

        receiving = threading.Thread(target=receive)
        receiving.start()
        stack.callback(receiving.join)
        stack.callback(listener.close)
        print(json.dumps({"target": listener.pairing}), flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            if asked is None:
                print(json.dumps(turns[-1].told()), flush=True)
            else:
                turns[:] = [Turns(asked["each"], on=asked["on"])]
                print(json.dumps({}), flush=True)


def send_on_demand(target: str) -> None:
    """Worker: for each line make transfers in turns and tell what they took, or only the time until now."""
    sends = dwcp_fast.SendOptions(streams=2, codec="none", base="none")
    with (
        MetricsServer("127.0.0.1:0") as server,
        dwcp_fast.connect(target, options=sends) as session,
    ):
        print(json.dumps({"url": server.url}), flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            if asked is None:
                print(json.dumps({"total_cpu_s": time.process_time()}), flush=True)
                continue
            state = {"state": content(asked["bytes"])}
            transfers = TURNS * asked["each"]
            began, turns = time.perf_counter(), Turns(asked["each"], on=asked["on"])
            for _ in range(transfers):
                session.send(state)
                turns.transfer_ended()
            wall_s = (time.perf_counter() - began) / transfers
            print(json.dumps({**turns.told(), "wall": wall_s}), flush=True)


@functools.cache
def content(size: int) -> bytes:
    """Bytes to send, made once."""
    return harness.incompressible(size)


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


def run(sender: Worker, receiver: Worker, size: int, each: int, *, on: bool) -> dict[str, float]:
    """Have transfers made, and give what one took with metrics and without, at both ends together."""
    asked = {"bytes": size, "each": each, "on": on}
    receiver.tell(asked)
    sent = sender.tell(asked)
    received = receiver.tell(None)
    return {"on": sent["on"] + received["on"], "off": sent["off"] + received["off"], "wall": sent["wall"]}


def answering(sender: Worker) -> float:
    """Processor time that it takes to answer a scrape."""
    idle, before = (sender.tell(None)["total_cpu_s"] for _ in range(2))
    for _ in range(SCRAPES):
        urllib.request.urlopen(sender.told["url"], timeout=TIMEOUT_S).read()
    # What telling takes by itself is the same before.
    return (sender.tell(None)["total_cpu_s"] - before - (before - idle)) / SCRAPES


def main() -> None:
    options = harness.arguments(__doc__ or "", repeats=24)
    samples: dict[str, dict[str, list[float]]] = {case: {"on": [], "off": [], "wall": []} for case in CASES}
    with ExitStack() as stack:
        receiver = Worker(stack, "--receive")
        sender = Worker(stack, "--send", receiver.told["target"])
        answers = [answering(sender) for _ in range(3)]
        for turn in range((5 if options.quick else options.repeats) + 1):
            for case, (size, each) in CASES.items():
                found = run(sender, receiver, size, each, on=turn % 2 == 0)
                # The first one warms up.
                for name, value in found.items() if turn else ():
                    samples[case][name].append(value)
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
