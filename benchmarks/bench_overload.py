"""Does goodput level off, or collapse, when more peers come than a listener has places?

A listener in a process of its own has four places. Four peers, and then four and eight times as many, each a
thread, send states one after the other, a session for each. Who is turned away comes again after a random
while, which may be twice as long each time in a row up to `MOST_S`, as lanes do that look for a lost peer.
Goodput is the bytes of states that arrive within three seconds of that, by that time. The loads take turns.
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
LIGHT = "as many peers as places"
LOADS = {LIGHT: PLACES, "four times as many": 4 * PLACES, "eight times as many": 8 * PLACES}
LEAST = 0.8
FIRST_S, MOST_S = 0.1, 1.6
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


def send(target: str, state: bytes, end: float, seed: int) -> tuple[int, int]:
    """Send states until the end; give how many arrived by then, and how often there was no place."""
    chance, arrived, refused, in_a_row = random.Random(seed), 0, 0, 0
    options = dwcp_fast.SendOptions(streams=1, codec="none", base="none")
    while (left := end - time.monotonic()) > 0:
        try:
            with dwcp_fast.connect(target, options=options) as session:
                session.send({"state": state})
                arrived, in_a_row = arrived + (time.monotonic() <= end), 0
        except (dwcp_fast.PeerError, dwcp_fast.PeerClosedError) as error:
            if not error.retryable:
                raise
            time.sleep(min(left, chance.random() * min(FIRST_S * 2**in_a_row, MOST_S)))
            refused, in_a_row = refused + 1, in_a_row + 1
    return arrived, refused


def run(target: str, state: bytes, peers: int, seconds: float) -> dict[str, float]:
    """Have so many peers send for so long."""
    with ThreadPoolExecutor(peers) as pool:
        end = time.monotonic() + seconds
        work = [pool.submit(send, target, state, end, seed) for seed in range(peers)]
        told = [job.result(TIMEOUT_S) for job in work]
    arrived = sum(states for states, _ in told)
    return {"bytes_per_s": arrived * len(state) / seconds, "refused": sum(times for _, times in told)}


def main() -> None:
    options = harness.arguments(__doc__ or "", repeats=4)
    state, lasts_s = harness.incompressible(STATE_BYTES), 1.0 if options.quick else 3.0
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
                    found = run(target, state, LOADS[load], lasts_s)
                    if turn:
                        raw[load].append(found)
        finally:
            worker.kill()
    goodput = {load: statistics.median(found["bytes_per_s"] for found in raw[load]) for load in LOADS}
    claims = [
        harness.claim(f"goodput at {load}", goodput[load] / goodput[LIGHT], LEAST, LIGHT)
        for load in LOADS
        if load != LIGHT
    ]
    path = harness.publish("overload", options.out, claims=claims, raw=raw)
    harness.show(claims)
    print(f"raw samples: {path}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        receive()
    else:
        main()
