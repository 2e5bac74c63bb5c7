"""What do metrics cost a transfer, counted and scraped every second, against not being counted?

Two receivers in processes of their own, one that counts and answers scrapes and one that does neither, and
a session to each. Transfers alternate between them, so that what else the machine does meets both; the cost
is the median of the ratios of neighbours. Needs the extra ``prometheus``.
"""

import json
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack
from typing import Any

import dwcp_fast
import harness
from dwcp_fast import metrics
from dwcp_fast.metrics.prometheus import MetricsServer

MOST = 1.01
SCRAPE_S = 1.0
TIMEOUT_S = 120.0
CASES = {"16 MiB": (16 << 20, 60), "4 KiB": (4 << 10, 1500)}


def receive(counted: bool) -> None:
    """Worker: receive until the sender says goodbye."""
    metrics.set_enabled(counted)
    with ExitStack() as stack:
        url = stack.enter_context(MetricsServer("127.0.0.1:0")).url if counted else None
        listener = stack.enter_context(dwcp_fast.listen("127.0.0.1:0"))
        print(json.dumps({"target": listener.pairing, "url": url}), flush=True)
        session = listener.accept(TIMEOUT_S)
        assert session is not None
        with session:
            while session.receive(TIMEOUT_S) is not None:
                pass


def start(stack: ExitStack, counted: bool) -> dict[str, Any]:
    """Start a receiver and connect to it."""
    command = [sys.executable, __file__, "--worker", "on" if counted else "off"]
    worker = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    assert worker.stdout is not None
    told: dict[str, Any] = json.loads(worker.stdout.readline())
    metrics.set_enabled(counted)
    options = dwcp_fast.SendOptions(streams=2, codec="none", base="none")
    session = stack.enter_context(dwcp_fast.connect(told["target"], options=options))
    return {"session": session, "url": told["url"]}


def scrape(urls: list[str], ended: threading.Event) -> None:
    """Read the metrics as often as nobody would."""
    while not ended.wait(SCRAPE_S):
        for url in urls:
            urllib.request.urlopen(url, timeout=TIMEOUT_S).read()


def measure(sides: dict[str, dict[str, Any]], size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each transfer, in turn; the first of each warms up."""
    state = {"state": harness.incompressible(size)}
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name in harness.in_turn(sides, turn):
            metrics.set_enabled(name == "on")
            begun = time.perf_counter()
            sides[name]["session"].send(state)
            if turn:
                taken[name].append(time.perf_counter() - begun)
    return taken


def main() -> None:
    options = harness.arguments(__doc__ or "", repeats=3)
    raw: dict[str, Any] = {case: {"on": [], "off": []} for case in CASES}
    with ExitStack() as stack:
        sides = {"on": start(stack, True), "off": start(stack, False)}
        own = stack.enter_context(MetricsServer("127.0.0.1:0"))
        ended = threading.Event()
        scraper = threading.Thread(target=scrape, args=([own.url, sides["on"]["url"]], ended))
        scraper.start()
        try:
            for _ in range(options.repeats):
                for case, (size, rounds) in CASES.items():
                    found = measure(sides, size, rounds // 10 if options.quick else rounds)
                    for name, seconds in found.items():
                        raw[case][name] += seconds
        finally:
            ended.set()
            scraper.join(TIMEOUT_S)
    claims = [
        harness.claim(
            f"time of a transfer of {case} with metrics, scraped every second",
            statistics.median(on / off for on, off in zip(raw[case]["on"], raw[case]["off"], strict=True)),
            MOST,
            "the same without metrics",
            lower_is_better=True,
        )
        for case in CASES
    ]
    path = harness.publish("metrics", options.out, claims=claims, raw=raw)
    harness.show(claims)
    print(f"raw samples: {path}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        receive(sys.argv[2] == "on")
    else:
        main()
