"""Faults on purpose, on v3: a lane lost, the receiver killed, a byte flipped on the wire."""

import time
from pathlib import Path

from dwcp_fast.demo.link import Link
from dwcp_fast.demo.methods import TRANSFER_TIMEOUT_S, digest_file, send_v3
from dwcp_fast.demo.record import Claim
from dwcp_fast.demo.v3 import Receiver, Sender, reroute

__all__ = ["flip_one_byte", "kill_receiver_and_resume", "lose_one_lane"]

_POLL_S = 0.002
# Control messages, and the blocks that were verified but whose acknowledgement died with the receiver.
_RESUME_SLACK_BYTES = 1024 * 1024


def lose_one_lane(link: Link, path: Path, into: Path, wire_bytes: int) -> Claim:
    """Reset the busiest connection when ``path`` is 40 % across; the transfer must still complete.

    Args:
        link: the link, otherwise idle.
        path: the file to send.
        into: an empty directory for the receiver.
        wire_bytes: what the file takes on the wire without faults.
    """
    with Receiver(into) as receiver:
        pairing, address = reroute(receiver.pairing, link.port)
        link.retarget(*address)
        with Sender([path], pairing, None) as sender:
            struck = _wait_for_bytes(link, sender, int(wire_bytes * 0.4))
            killed = link.kill_one() if struck else 0
            outcome = sender.finish(TRANSFER_TIMEOUT_S)
        if outcome.exit_code == 0:
            receiver.wait()
    same = digest_file(into / path.name) == digest_file(path)
    return Claim(
        "a connection reset in mid-transfer costs nothing but time",
        killed == 1 and outcome.exit_code == 0 and same,
        f"{killed} connection reset after 40 %, exit code {outcome.exit_code}, "
        f"{outcome.lanes_replaced} lanes replaced, digest {'equal' if same else 'NOT equal'}"
        + _failure(outcome.exit_code, outcome.message),
    )


def kill_receiver_and_resume(link: Link, path: Path, into: Path, wire_bytes: int) -> list[Claim]:
    """Kill the receiver with SIGKILL at 50 %, start both sides again, and count what is sent again."""
    target = into / path.name
    with Receiver(into) as receiver:
        pairing, address = reroute(receiver.pairing, link.port)
        link.retarget(*address)
        with Sender([path], pairing, None) as sender:
            struck = _wait_for_bytes(link, sender, int(wire_bytes * 0.5))
            receiver.kill()
            first = sender.finish(TRANSFER_TIMEOUT_S)
    visible = target.exists()
    died = Claim(
        "when the receiver is killed the sender ends with an error, and nothing half-written is visible",
        struck and first.exit_code not in (0, 1, 2) and not visible,
        f"receiver killed after 50 %, sender exit code {first.exit_code} after {first.wall_s:.1f} s, "
        f"target {'VISIBLE' if visible else 'absent'}" + _failure(0 if struck else 1, first.message),
    )

    before = link.stats().bytes_up
    second = send_v3(link, path, None, into)
    again = link.stats().bytes_up - before
    same = digest_file(target) == digest_file(path)
    blocks = second.blocks_sent + second.blocks_skipped
    skipped = second.blocks_skipped / blocks if blocks else 0.0
    allowed = int(wire_bytes * (1 - skipped) * 1.05) + _RESUME_SLACK_BYTES
    resumed = Claim(
        "after a restart of both sides the transfer resumes; verified blocks are not sent again",
        second.exit_code == 0 and same and skipped > 0 and again <= min(allowed, wire_bytes),
        f"{second.blocks_skipped} of {blocks} blocks kept, {again} bytes sent against {wire_bytes} for the "
        f"whole, digest {'equal' if same else 'NOT equal'}" + _failure(second.exit_code, second.message),
    )
    return [died, resumed]


def flip_one_byte(link: Link, old: Path, new: Path, into: Path, wire_bytes: int) -> Claim:
    """Flip one bit on the wire at 40 % while ``new`` is sent over ``old``.

    Either the transfer is refused and the target still holds ``old``, or the damaged lane alone is
    refused, replaced, and the target holds exactly ``new``. Anything else fails the claim.
    """
    target = into / new.name
    target.write_bytes(old.read_bytes())
    flipped_before = link.stats().flipped
    link.flip_byte(int(wire_bytes * 0.4))
    outcome = send_v3(link, new, None, into)
    flipped = link.stats().flipped - flipped_before
    digest = digest_file(target)
    refused = outcome.exit_code != 0 and digest == digest_file(old)
    repaired = outcome.exit_code == 0 and outcome.lanes_replaced > 0 and digest == digest_file(new)
    how = (
        "transfer refused, target untouched"
        if refused
        else "damaged lane refused and replaced, target exact"
        if repaired
        else f"NOT refused: exit code {outcome.exit_code}, {outcome.lanes_replaced} lanes replaced"
    )
    return Claim(
        "a byte changed on the wire is refused; no damaged byte reaches the target",
        flipped == 1 and (refused or repaired),
        f"{flipped} bit flipped, {how}" + _failure(outcome.exit_code, outcome.message),
    )


def _wait_for_bytes(link: Link, sender: Sender, wanted: int) -> bool:
    """Wait until the link has taken ``wanted`` more bytes; False when the sender ended before."""
    start = link.stats().bytes_up
    deadline = time.monotonic() + TRANSFER_TIMEOUT_S
    while link.stats().bytes_up - start < wanted:
        if not sender.running() or time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _failure(exit_code: int, message: str) -> str:
    """The last line of standard error, when there was a failure to explain."""
    lines = message.splitlines()
    return f" ({lines[-1][:200]})" if exit_code != 0 and lines else ""
