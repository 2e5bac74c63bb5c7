"""Does goodput level off, or collapse, when four times as many peers come as a listener has places?

A listener in a process of its own has four places. Four peers, and then sixteen, each a thread, send states
one after the other, a session for each; who is turned away comes again after a random while. Goodput is the
bytes of states that arrived, by the time from the first to the last. Light and heavy load alternate.
"""

import json
import random
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dwcp_fast
import harness

PLACES = 4
LOADS = {"as many peers as places": PLACES, "four times as many": 4 * PLACES}
LEAST = 0.8
STATE_BYTES = 4 << 20
TIMEOUT_S = 120.0


def receive() -> None:
    """Worker: serve whoever comes until the process is ended."""
    options = dwcp_fast.ReceiveOptions(max_sessions=PLACES)

    def attend(session: dwcp_fast.IncomingSession) -> None:
        with session:
            while session.receive(TIMEOUT_S) is not None:
                pass

    with (
        dwcp_fast.listen("127.0.0.1:0", options=options, clients=None) as listener,
        ThreadPoolExecutor(2 * PLACES) as pool,
    ):
        print(json.dumps({"target": listener.pairing}), flush=True)
        while True:
            session = listener.accept()
            if session is not None:
                pool.submit(attend, session)


def send(target: str, state: bytes, states: int, seed: int) -> int:
    """Send so many states, and give how often there was no place."""
    chance, refused = random.Random(seed), 0
    options = dwcp_fast.SendOptions(streams=1, codec="none", base="none")
    while states:
        try:
            with dwcp_fast.connect(target, options=options) as session:
                session.send({"state": state})
                states -= 1
        except dwcp_fast.PeerError as error:
            if not error.retryable:
                raise
            refused += 1
            time.sleep(chance.random() * 0.1)
    return refused


def run(target: str, state: bytes, peers: int, states: int) -> dict[str, float]:
    """Have so many peers send `states` states together."""
    with ThreadPoolExecutor(peers) as pool:
        begun = time.perf_counter()
        work = [pool.submit(send, target, state, states // peers, seed) for seed in range(peers)]
        refused = sum(job.result(TIMEOUT_S) for job in work)
        taken = time.perf_counter() - begun
    return {"bytes_per_s": states * len(state) / taken, "refused": refused}


def main() -> None:
    options = harness.arguments(__doc__ or "", repeats=7)
    state, states = harness.incompressible(STATE_BYTES), 32 if options.quick else 96
    raw: dict[str, list[dict[str, Any]]] = {load: [] for load in LOADS}
    command = [sys.executable, __file__, "--worker"]
    # It says of each peer that it has no place for it.
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=quiet, text=True) as worker:
        assert worker.stdout is not None
        target = json.loads(worker.stdout.readline())["target"]
        try:
            for turn in range(options.repeats + 1):
                for load in harness.in_turn(LOADS, turn):
                    found = run(target, state, LOADS[load], states)
                    if turn:
                        raw[load].append(found)
        finally:
            worker.kill()
    light, heavy = (statistics.median(found["bytes_per_s"] for found in raw[load]) for load in LOADS)
    claims = [
        harness.claim("goodput at four times the load", heavy / light, LEAST, "at as many peers as places")
    ]
    path = harness.publish("overload", options.out, claims=claims, raw=raw)
    harness.show(claims)
    print(f"raw samples: {path}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        receive()
    else:
        main()
