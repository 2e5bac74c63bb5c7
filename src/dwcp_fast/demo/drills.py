"""Faults on purpose, on v3: a lane lost, the receiver killed, a bit flipped on the wire."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dwcp_fast.demo.link import Link
from dwcp_fast.demo.methods import TRANSFER_TIMEOUT_S, digest_file, send_v3
from dwcp_fast.demo.record import Claim
from dwcp_fast.demo.v3 import Receiver, Sender, SendOutcome, reroute
from dwcp_fast.errors import TransportError

__all__ = ["Drill", "Watch", "flip_one_bit", "kill_receiver", "lose_one_lane", "measure_undisturbed"]

_POLL_S = 0.002
_LOOK_TIMEOUT_S = 10.0
_ABSENT = "absent"
# Handshakes of new lanes and control messages.
_SLACK_BYTES = 128 * 1024
_BLOCK_BYTES = 1 << 20
# Two sends of a file are compared by their bytes, which no choice by the moment may change.
_CODEC = "zstd:1"


@dataclass(frozen=True)
class Drill:
    """What a drill works with.

    Attributes:
        link: the link, otherwise idle.
        path: the file to send.
        into: a directory of its own for the receiver, empty.
        state: directory for what the commands keep.
        wire_bytes: what the file takes on the wire, sender to receiver, when nothing goes wrong.
    """

    link: Link
    path: Path
    into: Path
    state: Path
    wire_bytes: int = 0

    @property
    def target(self) -> Path:
        """Where the receiver puts the file."""
        return self.into / self.path.name


class Watch:
    """Looks at a file again and again while others work, and remembers each content it ever had."""

    def __init__(self, path: Path) -> None:
        """Begin to watch."""
        self._path = path
        self._ended = threading.Event()
        self._identity: object = None
        self._seen: set[str] = set()
        self._looked = threading.Condition()
        self._looks = 0
        self._thread = threading.Thread(target=self._look_until_end, name="dwcp-demo-watch", daemon=True)
        self._thread.start()

    def wait_for_look(self) -> None:
        """Wait until a look that began after this call is over, so that what is there now is seen."""
        with self._looked:
            # The one under way may have begun before.
            wanted = self._looks + 2
            self._looked.wait_for(lambda: self._looks >= wanted, _LOOK_TIMEOUT_S)

    def end(self) -> set[str]:
        """Look a last time; the digests of all contents seen, ``absent`` for no file."""
        self._ended.set()
        self._thread.join()
        self._look()
        return self._seen

    def __enter__(self) -> Self:
        """Hand out the watch itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self.end()

    def _look_until_end(self) -> None:
        while not self._ended.wait(_POLL_S):
            self._look()
            with self._looked:
                self._looks += 1
                self._looked.notify_all()

    def _look(self) -> None:
        try:
            facts = self._path.stat()
            identity: object = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
        except FileNotFoundError:
            identity = _ABSENT
        if identity != self._identity:
            self._identity = identity
            self._seen.add(digest_file(self._path))


def measure_undisturbed(drill: Drill) -> int:
    """Send the file without any fault; the bytes it takes on the wire, sender to receiver.

    Raises:
        TransportError: even that failed.
    """
    before = drill.link.stats().bytes_up
    outcome, _ = send_v3(drill.link, drill.path, drill.into, drill.state, _CODEC)
    if outcome.exit_code != 0:
        raise TransportError(f"dwcp send exited with {outcome.exit_code}: {outcome.message}")
    return drill.link.stats().bytes_up - before


def lose_one_lane(drill: Drill) -> Claim:
    """Reset the busiest connection when the file is 40 % across; only what it carried may be sent again."""
    link = drill.link
    with Watch(drill.target) as watch, Receiver(drill.into, drill.state) as receiver:
        pairing, address = reroute(receiver.pairing, link.port)
        link.retarget(*address)
        with Sender(drill.path, pairing, drill.state, _CODEC) as sender:
            struck = _wait_for_bytes(link, sender, int(drill.wire_bytes * 0.4))
            killed = link.kill_one() if struck else 0
            outcome = sender.finish(TRANSFER_TIMEOUT_S)
        exact, verdict = _judge(drill, outcome, watch.end(), {_ABSENT})
    stats = link.stats()
    twice = stats.bytes_up - drill.wire_bytes
    return Claim(
        "one connection reset in mid-transfer: the others carry on, nothing is sent again but what it had "
        "carried, and the file is exact",
        killed == 1
        and exact
        and (outcome.lanes_lost, outcome.sessions) == (1, 1)
        and twice <= stats.killed_bytes_up + outcome.blocks_helped * _BLOCK_BYTES + _SLACK_BYTES,
        f"{killed} connection reset after 40 %, {outcome.lanes_lost} lane lost; it had carried "
        f"{_mb(stats.killed_bytes_up)}, and {_mb(max(0, twice))} went over the wire again "
        f"(blocks sent again: {outcome.blocks_resent}, to help: {outcome.blocks_helped}); {verdict}",
    )


def kill_receiver(drill: Drill) -> Claim:
    """Kill the receiver with SIGKILL at 60 %, start it again the same way, and count what is sent again.

    The sender is left alone: it has to find the receiver again by itself, with the pairing that it knows.
    """
    link = drill.link
    with Watch(drill.target) as watch, Receiver(drill.into, drill.state) as first:
        pairing, address = reroute(first.pairing, link.port)
        link.retarget(*address)
        with Sender(drill.path, pairing, drill.state, _CODEC) as sender:
            struck = _wait_for_bytes(link, sender, int(drill.wire_bytes * 0.6))
            first.kill()
            link.kill_all()
            with Receiver(drill.into, drill.state) as second:
                before = link.stats().bytes_up
                same_pairing, address = reroute(second.pairing, link.port)
                link.retarget(*address)
                outcome = sender.finish(TRANSFER_TIMEOUT_S)
        exact, verdict = _judge(drill, outcome, watch.end(), {_ABSENT})
    again = link.stats().bytes_up - before
    # Blocks compress to different lengths, hence the 5 %.
    left = int(drill.wire_bytes * (1 - outcome.held_share) * 1.05)
    allowed = left + outcome.blocks_helped * _BLOCK_BYTES + _SLACK_BYTES
    return Claim(
        "the receiver killed with SIGKILL in mid-transfer and started again: the sender finds it, blocks it "
        "had verified are not sent again, and the file is exact",
        struck
        and same_pairing == pairing
        and exact
        and outcome.sessions == 2
        and outcome.blocks_held > 0
        and again <= allowed,
        f"killed after 60 %; {outcome.blocks_held} blocks, {outcome.held_share:.0%} of the file, were kept; "
        f"{_mb(again)} on the wire after the restart (blocks sent again to help slow lanes: "
        f"{outcome.blocks_helped}), {_mb(drill.wire_bytes)} for the whole; {verdict}",
    )


def flip_one_bit(drill: Drill, old: Path) -> Claim:
    """Flip one bit on the wire at 40 % while the file is sent over ``old``, which the receiver holds.

    The damage must be noticed, only ``old`` or the whole file may ever be seen at the target, and the
    transfer must complete on a new lane.
    """
    link = drill.link
    drill.target.write_bytes(old.read_bytes())
    with Watch(drill.target) as watch:
        link.flip_byte(int(drill.wire_bytes * 0.4))
        outcome, received = send_v3(link, drill.path, drill.into, drill.state, _CODEC)
        exact, verdict = _judge(drill, outcome, watch.end(), {digest_file(old)})
    flipped = link.stats().flipped
    noticed = int(received.get("integrity_failures", 0))
    return Claim(
        "one bit flipped on the wire: it is refused, nothing wrong is ever in place, and the transfer "
        "completes on a new lane",
        flipped == 1 and exact and noticed >= 1 and outcome.lanes_lost >= 1,
        f"{flipped} bit flipped after 40 %; refused {noticed} time, {outcome.lanes_lost} lane replaced, "
        f"blocks sent again: {outcome.blocks_resent}; {verdict}",
    )


def _judge(drill: Drill, outcome: SendOutcome, seen: set[str], before: set[str]) -> tuple[bool, str]:
    """Whether the transfer succeeded, left the file exact, and showed nothing but it and what was before."""
    new = digest_file(drill.path)
    arrived = digest_file(drill.target) == new
    wrong = len(seen - before - {new})
    verdict = f"digest {'equal' if arrived else 'NOT equal'}, wrong contents seen at the target: {wrong}"
    if outcome.exit_code != 0:
        last = (outcome.message.splitlines() or ["no message"])[-1]
        verdict += f"; sender exit code {outcome.exit_code}: {last[:200]}"
    return outcome.exit_code == 0 and arrived and not wrong, verdict


def _wait_for_bytes(link: Link, sender: Sender, wanted: int) -> bool:
    """Wait until the link has taken ``wanted`` more bytes; False when the sender ended before."""
    start = link.stats().bytes_up
    deadline = time.monotonic() + TRANSFER_TIMEOUT_S
    while link.stats().bytes_up - start < wanted:
        if not sender.running() or time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _mb(count: int) -> str:
    return f"{count / 1e6:.2f} MB"
