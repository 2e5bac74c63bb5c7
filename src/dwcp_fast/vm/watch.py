"""How a move goes on: what QEMU and the relay say, looked at again and again."""

import time
from collections.abc import Callable
from typing import Any, Final

from dwcp_fast.errors import DeadlineError, QmpError
from dwcp_fast.policy.precopy import Round, seconds_left
from dwcp_fast.vm.carrying import Carrier
from dwcp_fast.vm.machine import Machine, MigrationState
from dwcp_fast.vm.relay_stats import RelayStats
from dwcp_fast.vm.report import MigrationReport, Moment

__all__ = ["Watch"]

MOMENT_S: Final = 0.25
MAX_MOMENTS: Final = 20_000


class Watch:
    """The memory of a move, on the side that the guest leaves."""

    def __init__(
        self, machine: Machine, relay: Carrier | None, events: Callable[[dict[str, Any]], None]
    ) -> None:
        """Begin.

        Args:
            machine: The QEMU that the guest leaves.
            relay: What carries it; None where it has left before.
            events: Called with a dictionary for each round.
        """
        self._machine = machine
        self._relay = relay
        self._tell = events
        self._started = time.monotonic()
        self._stopped_at: float | None = None
        self._running_at: float | None = None
        self._last_moment = -MOMENT_S
        self._state = MigrationState("none")
        self._last_change: tuple[float, object] = (0.0, None)
        self._round_began: tuple[float, int] = (0.0, 0)
        self.disk_bytes = 0
        self._timeline: list[Moment] = []
        self._events: list[dict[str, Any]] = []
        self.rounds: list[Round] = []

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def look(self) -> MigrationState:
        """Ask QEMU where the migration stands."""
        state, now = self._machine.migration(), self.seconds()
        # QEMU counts the first round when it begins.
        if state.round > self._state.round and state.round > 1:
            self._note_round(state, now)
        elif state.round != self._state.round:
            self._round_began = (now, state.sent_bytes)
        self._note_change(now, (state.status, state.round, state.sent_bytes))
        changed = state.status != self._state.status
        self._state = state
        if changed or now - self._last_moment >= MOMENT_S:
            self._note_moment(state, now)
        return state

    def wait(self, timeout_s: float) -> None:
        """Wait for the next event of QEMU, but not long."""
        event = self._machine.qmp.next_event(timeout_s)
        while event is not None:
            self._events.append(event)
            if event["event"] == "STOP" and self._stopped_at is None:
                self._stopped_at = self.seconds() - age_of(event)
            event = self._machine.qmp.next_event(0)

    def seen(self) -> list[dict[str, Any]]:
        """Give every event of QEMU so far, those too that came while it was asked something."""
        self.wait(0)
        return self._events

    def check_relay(self) -> RelayStats | None:
        """Raise what the relay failed by, if it did, and if there is nothing for it to do better.

        Returns:
            Where it stands; None where there is none.
        """
        if self._relay is None:
            return None
        stats = self._relay.present()
        if stats.state == "failed":
            self._relay.wait(0.1)
        if stats.compressed_by_qemu:
            raise QmpError(
                "QEMU compresses pages itself: they cannot be looked into, and would be compressed twice",
                hint="have nobody else set its capabilities xbzrle, compress and multifd during the move",
            )
        return stats

    def check_progress(self, limit_s: float) -> None:
        """Raise if nothing went on for so many seconds, whatever is to blame."""
        since_s = self.seconds() - self._last_change[0]
        if since_s > limit_s:
            raise DeadlineError(f"nothing went on for {since_s:.0f} s: the most is {limit_s:g} s")

    def note_disks(self, copied: int, total: int) -> None:
        """Note how far the disks are; what is written meanwhile counts too."""
        now = self.seconds()
        self._note_change(now, copied)
        if now - self._last_moment >= MOMENT_S:
            self._note_moment(MigrationState("disks", remaining_bytes=total - copied, sent_bytes=copied), now)
            self._tell({"type": "disks", "copied_bytes": copied, "total_bytes": total})

    def note_running(self) -> None:
        """Note that the guest runs on the other side."""
        self._running_at = self.seconds()
        self.wait(0)
        self._state = self._machine.migration()
        self._note_moment(self._state, self._running_at)

    def report(self, *, settled: bool) -> MigrationReport:
        """Tell what was done."""
        ended = self.seconds() if self._running_at is None else self._running_at
        stopped = ended if self._stopped_at is None else self._stopped_at
        stats = None if self._relay is None else self._relay.present()
        return MigrationReport(
            seconds=ended,
            downtime_s=ended - stopped,
            qemu_downtime_s=self._state.downtime_s,
            memory_bytes=self._state.total_bytes,
            sent_bytes=self._state.sent_bytes,
            disk_bytes=self.disk_bytes,
            wire_bytes=stats.wire_bytes if stats else 0,
            rounds=tuple(self.rounds),
            pages=stats.pages if stats else {},
            opaque=stats.opaque if stats else None,
            lanes=stats.lanes if stats else 0,
            lanes_lost=stats.lanes_lost if stats else 0,
            rtt_ms=stats.rtt_ms if stats else None,
            stopped_at_s=stopped,
            settled=settled,
            timeline=tuple(self._timeline),
        )

    def _note_change(self, now: float, seen: object) -> None:
        if seen != self._last_change[1]:
            self._last_change = (now, seen)

    def _note_round(self, state: MigrationState, now: float) -> None:
        began, sent = self._round_began
        took = max(now - began, 1e-3)
        ended = Round(
            number=state.round - 1,
            at_s=now,
            remaining_bytes=state.remaining_bytes,
            dirty_bytes_per_s=state.dirty_bytes_per_s,
            bytes_per_s=(state.sent_bytes - sent) / took,
        )
        self._round_began = (now, state.sent_bytes)
        self.rounds.append(ended)
        wire_bytes = self._relay.present().wire_bytes if self._relay else 0
        left_s = seconds_left(ended)
        self._tell(
            {
                "type": "round",
                "round": ended.number,
                "at_s": round(ended.at_s, 3),
                "remaining_bytes": ended.remaining_bytes,
                "dirty_bytes_per_s": round(ended.dirty_bytes_per_s),
                "bytes_per_s": round(ended.bytes_per_s),
                "wire_bytes": wire_bytes,
                "ratio": round(state.sent_bytes / wire_bytes, 2) if wire_bytes else None,
                "expected_end_s": None if left_s is None else round(now + left_s, 1),
            }
        )

    def _note_moment(self, state: MigrationState, now: float) -> None:
        self._last_moment = now
        if len(self._timeline) >= MAX_MOMENTS:
            del self._timeline[1::2]
        stats = None if self._relay is None else self._relay.present()
        self._timeline.append(
            Moment(
                at_s=now,
                phase=state.status,
                round=state.round,
                remaining_bytes=state.remaining_bytes,
                sent_bytes=state.sent_bytes,
                wire_bytes=stats.wire_bytes if stats else 0,
                dirty_bytes_per_s=state.dirty_bytes_per_s,
                lanes=stats.lanes if stats else 0,
                backlog_bytes=stats.unacknowledged_bytes if stats else 0,
            )
        )


def age_of(event: dict[str, Any]) -> float:
    """Seconds since QEMU made an event, by the clock of this machine; 0 where its clock is another one."""
    stamp = event.get("timestamp", {})
    age = time.time() - float(stamp.get("seconds", 0)) - float(stamp.get("microseconds", 0)) / 1e6
    return age if 0 <= age < 5 else 0.0
