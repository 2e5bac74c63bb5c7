"""Transfers under faults from a seed: the same seed does the same faults at the same bytes.

    cd tests && python -m network.soak --seed 7 --minutes 60

Ends with 1 at the first state that differs, wait that does not end, or process that grows. One round is one
transfer, of a state that differs in part from that of the round before; `--round N` does it alone, with that
state where the round before would have left it.
"""

import argparse
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Final

from .breaker import Breaker
from .conftest import DWCP, MIB, Machine, Recv

KIB: Final = 1 << 10
BLOCK: Final = 64 * KIB
LANES: Final = 3
INBOX: Final = "inbox"
STATE: Final = "state"
SPACING: Final = (300 * KIB, 1500 * KIB)
"""Bytes between two faults."""

PER_KILL: Final = MIB // 4
"""The most that a kill may cost where all that had come is verified: parts of blocks, and greetings."""

PER_LANE: Final = MIB + MIB // 4
"""The most that the loss of a lane may cost then: the receiver acknowledges 16 blocks or 1 MiB at once."""

HELD_WITHIN_S: Final = 20.0
ENDED_WITHIN_S: Final = 60.0
PAUSE_S: Final = 1.0
VERIFIED_AFTER_S: Final = 0.06
SETTLING: Final = 10
SETTLED_WITHIN_S: Final = 20.0
PER_PAUSE: Final = 4 * MIB
"""The most that waits in the system for a receiver that stands still, and is lost if it is killed then."""

KILL_SENDER, KILL_RECEIVER, PAUSE_RECEIVER = "kill-sender", "kill-receiver", "pause-receiver"
KINDS: Final = (KILL_SENDER, KILL_RECEIVER, "cut-one", "cut-all", "reset-one", "silence-one", "pause-sender",
                "pause-receiver", "flip")  # fmt: skip


class DivergenceError(Exception):
    """Something is not as it has to be."""


@dataclass(frozen=True)
class Fault:
    """What happens, how many bytes after the fault before, and whether what has come is verified before."""

    kind: str
    after: int
    settled: bool = True

    @property
    def cost(self) -> int:
        """The most bytes that pass again for it."""
        killed = self.kind in (KILL_SENDER, KILL_RECEIVER)
        paused = PER_PAUSE if self.kind == PAUSE_RECEIVER else 0
        return paused + (PER_KILL if killed else PER_LANE) + (0 if self.settled else self.after)


@dataclass(frozen=True)
class Footprint:
    """What a process holds."""

    resident: int
    threads: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> "Footprint":
        """Look at a process."""
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return cls(
            int(fields["VmRSS"].split()[0]) * KIB,
            int(fields["Threads"]),
            sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
        )

    def most(self, other: "Footprint") -> "Footprint":
        """The larger of each."""
        return Footprint(
            max(self.resident, other.resident),
            max(self.threads, other.threads),
            max(self.descriptors, other.descriptors),
        )

    def outgrew(self, earlier: "Footprint") -> bool:
        """Whether more was kept than the lanes of the moment explain."""
        return (
            self.resident > earlier.resident + 8 * MIB
            or self.threads > earlier.threads + LANES
            or self.descriptors > earlier.descriptors + 4 * LANES
        )


def wait_until_settled(pid: int, before: Footprint) -> None:
    """Wait until a process has no more threads and descriptors than before its sessions, and two."""
    end = time.monotonic() + SETTLED_WITHIN_S
    while (now := Footprint.of(pid)).threads > before.threads + 2 or now.descriptors > before.descriptors + 2:
        if time.monotonic() > end:
            raise DivergenceError(f"process {pid} grew from {before} to {now}")
        time.sleep(0.1)


def plan(
    rng: random.Random,
    count: int,
    kinds: Sequence[str],
    settled: float = 1.0,
    spacing: tuple[int, int] = SPACING,
) -> list[Fault]:
    """Choose faults; a bit is altered once at most, since the third time has to end a transfer.

    `settled` is how likely each is to wait until all that has come is verified.
    """
    chosen = []
    for _ in range(count):
        kind = rng.choice(kinds)
        if kind == "flip":
            kinds = [other for other in kinds if other != "flip"]
        chosen.append(Fault(kind, rng.randrange(*spacing), rng.random() < settled))
    return chosen


class Trial:
    """One transfer under a plan of faults, between processes that are started again when they are killed."""

    def __init__(self, machine: Machine, state: Path, idle_s: float = 4.0) -> None:
        self.machine = machine
        self.state = state
        self.idle_s = idle_s
        self.footprints: dict[int, list[Footprint]] = {}
        """Of each process that lived, one for each fault."""
        self.log = machine.folder / "sender.err"
        self._timers: list[threading.Timer] = []
        self.receiver = self._receive()
        host, _, port = self.receiver.address.rpartition(":")
        self.breaker = Breaker((host, int(port)))
        self.sender = self._send()

    def _receive(self) -> Recv:
        return self.machine.recv("--idle-timeout", f"{self.idle_s}s", "--no-sync", name=INBOX)

    def _send(self) -> subprocess.Popen[str]:
        target = self.breaker.reroute(self.receiver.pairing)
        options = ["--streams", str(LANES), "--block-size", "64KiB", "--codec", "none", "--reconnect", "40s"]
        # A pipe would fill up.
        with self.log.open("a") as log:
            return subprocess.Popen(
                [*DWCP, "send", str(self.state), "--to", target, "--json", "-v", *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.machine.env("sender"),
            )

    def run(self, faults: Sequence[Fault]) -> int:
        """Do the faults, each at its byte, as long as the transfer lasts; give how many there were."""
        position = self.breaker.passed
        for number, fault in enumerate(faults):
            position += fault.after
            self.breaker.stop_at(position)
            if not self._wait_until_held():
                return number
            if fault.settled:
                self._wait_until_verified()
            for pid in (self.receiver.process.pid, self.sender.pid):
                self.footprints.setdefault(pid, []).append(Footprint.of(pid))
            self._do(fault)
        self.breaker.stop_at(None)
        return len(faults)

    def finish(self) -> dict[str, object]:
        """Wait for the end, and compare what arrived."""
        try:
            out, _ = self.sender.communicate(timeout=ENDED_WITHIN_S)
        except subprocess.TimeoutExpired:
            raise DivergenceError(f"the sender does not end; {self._logs()}") from None
        if self.sender.returncode != 0:
            raise DivergenceError(f"the sender ended with {self.sender.returncode}; {self._logs()}")
        if (self.receiver.into / self.state.name).read_bytes() != self.state.read_bytes():
            raise DivergenceError("what arrived differs from what was sent")
        sent: dict[str, object] = json.loads(out.strip().splitlines()[-1])
        return sent

    def check_growth(self) -> None:
        """Compare what each process held at its last faults with what it held at about its tenth."""
        for pid, seen in self.footprints.items():
            if len(seen) < 2 * SETTLING:
                continue
            early = reduce(Footprint.most, seen[SETTLING // 2 : SETTLING * 3 // 2])
            late = reduce(Footprint.most, seen[-SETTLING:])
            if late.outgrew(early):
                raise DivergenceError(f"process {pid} grew from {early} to {late} over {len(seen)} faults")

    def check_cost(self, faults: Sequence[Fault]) -> None:
        """Compare what passed with what had to."""
        most = self.state.stat().st_size * 101 // 100 + sum(fault.cost for fault in faults)
        if self.breaker.passed > most:
            raise DivergenceError(f"{self.breaker.passed} bytes passed, and {most} were enough")

    def close(self) -> None:
        """End everything that still runs."""
        for timer in self._timers:
            timer.join()
        if self.sender.poll() is None:
            self.sender.kill()
        with contextlib.suppress(ValueError):
            self.sender.communicate(timeout=10)
        self.receiver.end(signal.SIGKILL)
        self.breaker.close()

    def _wait_until_verified(self) -> None:
        """Wait until the ledger does not grow any more."""
        end = time.monotonic() + HELD_WITHIN_S
        last, since = -1, time.monotonic()
        while time.monotonic() - since < VERIFIED_AFTER_S and time.monotonic() < end:
            told = sum(path.stat().st_size for path in self.receiver.into.glob(".dwcp/*/ledger"))
            if told != last:
                last, since = told, time.monotonic()
            time.sleep(VERIFIED_AFTER_S / 5)

    def _wait_until_held(self) -> bool:
        """Wait for the byte of the next fault; false where the transfer ends before."""
        end = time.monotonic() + HELD_WITHIN_S
        while not self.breaker.wait_until_held(0.2):
            if self.sender.poll() is not None:
                return False
            if time.monotonic() > end:
                raise DivergenceError(f"nothing moves after {self.breaker.passed} bytes; {self._logs()}")
        return True

    def _logs(self) -> str:
        ends = (self.log.read_text(errors="replace"), self.receiver.err())
        return "\n".join(["", "-- sender", ends[0][-3000:], "-- receiver", ends[1][-3000:]])

    def _do(self, fault: Fault) -> None:
        lane = self.breaker.carrier
        match fault.kind:
            case "kill-sender":
                self.sender.kill()
                self.sender.communicate(timeout=10)
                # What it had said would count as said by the next one, and the next fault meet its greeting:
                # a sender that was never let in does not dial again, it ends.
                self.breaker.cut()
                self.sender = self._send()
            case "kill-receiver":
                self.receiver.end(signal.SIGKILL)
                self.breaker.cut()
                self.receiver = self._receive()
                host, _, port = self.receiver.address.rpartition(":")
                self.breaker.target = (host, int(port))
            case "cut-one" if lane is not None:
                lane.cut()
            case "reset-one" if lane is not None:
                lane.reset()
            case "silence-one" if lane is not None:
                lane.silent.set()
            case "cut-all":
                self.breaker.cut()
            case "pause-sender" | "pause-receiver":
                process = self.sender if fault.kind == "pause-sender" else self.receiver.process
                process.send_signal(signal.SIGSTOP)
                timer = threading.Timer(PAUSE_S, process.send_signal, [signal.SIGCONT])
                self._timers.append(timer)
                timer.start()
            case "flip":
                self.breaker.flip_next = True


def state_of(rng: random.Random, before: bytes) -> bytes:
    """A state of up to 24 MiB that has something of the one before, where there was one."""
    size = rng.randrange(4 * MIB, 24 * MIB)
    fresh = rng.randbytes(size)
    if not before or rng.random() < 0.3:
        return fresh
    state = bytearray((before + fresh)[:size])
    for _ in range(rng.randrange(1, 40)):
        at = rng.randrange(size)
        piece = rng.randbytes(min(rng.choice([1, 300, 200_000]), size - at))
        state[at : at + len(piece)] = piece
    return bytes(state)


def state_of_round(seed: int, number: int, before: bytes) -> bytes:
    """The state that a round transfers."""
    return state_of(random.Random(f"{seed}/{number}"), before)


def one_round(folder: Path, seed: int, number: int, before: bytes) -> bytes:
    """Do one transfer under faults, and tell what was done."""
    content = state_of_round(seed, number, before)
    # Of their own: how much of another is used up depends on whether there was a state before.
    rng = random.Random(f"{seed}/{number}/faults")
    faults = plan(rng, rng.randrange(1, 25), KINDS, settled=0.5)
    state = folder / STATE
    state.write_bytes(content)
    began = time.monotonic()
    trial = Trial(Machine(folder), state)
    try:
        done = trial.run(faults)
        sent = trial.finish()
        trial.check_cost(faults[:done])
        trial.check_growth()
    finally:
        trial.close()
    told = {
        "round": number,
        "bytes": len(content),
        "passed": trial.breaker.passed,
        "faults": [f"{fault.kind}+{fault.after}" for fault in faults[:done]],
        "sessions": sent["sessions"],
        "lanes_lost": sent["lanes_lost"],
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(told), flush=True)
    return content


def go_to_round(folder: Path, seed: int, number: int) -> bytes:
    """Make the state of the round before, and leave it where that would have: it may be a base."""
    content = b""
    for earlier in range(number):
        content = state_of_round(seed, earlier, content)
    if number:
        (folder / INBOX).mkdir()
        (folder / INBOX / STATE).write_bytes(content)
    return content


def soak(seed: int, minutes: float, only: int | None = None) -> int:
    """Do rounds until the time is over; give how many rounds there were, or raise what was found."""
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="dwcp-soak-") as name:
        folder = Path(name)
        if only is not None:
            one_round(folder, seed, only, go_to_round(folder, seed, only))
            return 1
        number, content = 0, b""
        while number == 0 or time.monotonic() < end:
            content = one_round(folder, seed, number, content)
            number += 1
    return number


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--round", type=int, dest="only")
    options = parser.parse_args()
    try:
        rounds = soak(options.seed, options.minutes, options.only)
    except DivergenceError as error:
        print(f"seed {options.seed}: {error}", file=sys.stderr)
        return 1
    print(f"{rounds} rounds, and nothing was found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
