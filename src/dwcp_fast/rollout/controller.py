"""A rollout at work: its state in a file beside the flags, and the moves that write both."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from dwcp_fast.errors import ConfigError, ConflictError, LimitExceededError
from dwcp_fast.policy.choice import Choice
from dwcp_fast.policy.rollout import RolloutFlags, enable_all, merge_flags
from dwcp_fast.policy.stages import (
    Baseline,
    Measured,
    Move,
    Outcome,
    Rollout,
    RolloutPlan,
    begin,
    judge,
    measure,
    move,
    take_back,
)
from dwcp_fast.rollout.flagfile import change_held, held, read_flags
from dwcp_fast.rollout.history import read_outcomes
from dwcp_fast.staging import replace_file

__all__ = ["Controller", "Look"]

LOG: Final = logging.getLogger(__name__)
MAX_STATE_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a rollout found.

    Attributes:
        rollout: Where it stands, after what was decided.
        measured: What transfers show.
        choice: What was decided, and why.
    """

    rollout: Rollout
    measured: Measured
    choice: Choice[Move]

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as a dictionary of plain values."""
        return {
            "status": self.rollout.status,
            "percentage": self.rollout.percentage,
            "since_s": self.rollout.since_s,
            "move": self.choice.value,
            "why": self.choice.why if self.rollout.status == "running" else self.rollout.why,
            "measured": asdict(self.measured),
            "plan": asdict(self.rollout.plan),
        }


class Controller:
    """Moves a rollout on, or takes it back. One at a time should watch a flags file; more do no harm.

    Whoever changes flags or state reads both anew first, with the lock of the flags file held.
    """

    def __init__(
        self, flags: Path, outcomes: tuple[Path, ...] = (), *, clock: Callable[[], float] = time.time
    ) -> None:
        """Note the files.

        Args:
            flags: The flags file that the nodes read.
            outcomes: Files and directories of what the nodes write.
            clock: Tells the seconds since 1970.
        """
        self._flags = flags
        self._state = flags.with_name(f"{flags.name}.rollout")
        self._outcomes = outcomes
        self._clock = clock

    def start(self, plan: RolloutPlan) -> Rollout:
        """Begin with the first stage, every component on and the kill switch off.

        Raises:
            ConflictError: A rollout is running.
            DwcpError: The flags cannot be changed.
            OSError: A file cannot be read or written.
        """
        with held(self._flags):
            old = self._load_if_any()
            if old is not None and old.status == "running":
                raise ConflictError(
                    f"a rollout of {self._flags} is running", hint="take it back first: dwcp rollout rollback"
                )
            # What cannot be changed should show before anything is.
            read_flags(self._flags)
            rollout = begin(plan, self._clock())
            self._save(rollout)
            change_held(self._flags, lambda flags: enable_all(flags, rollout.percentage))
        return rollout

    def look(self) -> Look:
        """Measure and decide, and change nothing.

        Raises:
            ConfigError: There is no rollout, or its state cannot be read.
            OSError: A file cannot be read.
        """
        now, outcomes = self._read()
        return self._judge(self._load(), outcomes, now)

    def step(self) -> Look:
        """Measure and decide, and do what was decided.

        Raises:
            ConflictError: Somebody else changed the flags.
            DwcpError: As for :meth:`look`; or somebody else keeps the flags for over 10 s.
            OSError: A file cannot be read or written.
        """
        # Files of a whole fleet take their time, and whoever takes the rollout back must not wait for that.
        now, outcomes = self._read()
        with held(self._flags):
            saved = self._load()
            found = self._judge(saved, outcomes, now)
            return self._carry_out(saved, found)

    def advance(self) -> Look:
        """Go to the next stage whatever transfers show; the last one is done.

        Raises:
            ConfigError: No rollout is running, or its state cannot be read.
            ConflictError: Somebody else changed the flags.
            DwcpError: The flags cannot be changed.
            OSError: A file cannot be read or written.
        """
        now, outcomes = self._read()
        with held(self._flags):
            saved = self._load()
            found = self._judge(saved, outcomes, now)
            status = found.rollout.status
            if status != "running":
                raise ConfigError(f"the rollout of {self._flags} is {status}: nothing to advance")
            last = found.rollout.stage == len(found.rollout.plan.stages) - 1
            choice: Choice[Move] = Choice("rollout", "finish" if last else "advance", "advanced by hand")
            return self._carry_out(saved, replace(found, choice=choice))

    def rollback(self, why: str) -> Rollout:
        """Take it back: the kill switch on, 0 percent, all other flags as they are. Needs no running rollout.

        Args:
            why: The reason, for people.

        Raises:
            DwcpError: The flags cannot be changed.
            OSError: A file cannot be read or written.
        """
        with held(self._flags):
            # The flags first: they are what stops v3.
            self._kill()
            rollout = self._load_if_any() or begin(RolloutPlan(), self._clock())
            rollout = take_back(rollout, why, self._clock())
            self._save(rollout)
        return rollout

    def _read(self) -> tuple[float, list[Outcome]]:
        """Read the outcomes that count now."""
        now, rollout = self._clock(), self._load()
        return now, read_outcomes(self._outcomes, max(rollout.since_s, now - rollout.plan.window_s))

    def _judge(self, rollout: Rollout, outcomes: list[Outcome], now_s: float) -> Look:
        """Measure and decide; a kill switch that somebody else turned on ends the rollout."""
        if rollout.status == "running" and self._is_killed():
            rollout = take_back(rollout, "somebody else turned forceV1Mode on", now_s)
        measured = measure(rollout, outcomes, now_s)
        return Look(rollout, measured, judge(rollout, measured, now_s))

    def _carry_out(self, saved: Rollout, found: Look) -> Look:
        """Do what was decided, with the flags held."""
        old, new = found.rollout, move(found.rollout, found.choice, found.measured, self._clock())
        if new.status == "rolled-back" != old.status:
            LOG.warning("the rollout is taken back: %s", new.why)
            self._kill()
        elif new.percentage != old.percentage:
            LOG.info("the rollout goes to %d %%: %s", new.percentage, new.why)
            change_held(self._flags, lambda flags: self._raised(flags, old, new))
        if new != saved:
            self._save(new)
        return replace(found, rollout=new)

    def _kill(self) -> None:
        # Where there is a rollout its file is a flags file, and that it is broken must not keep v3 on.
        instead = enable_all(RolloutFlags(), 0) if self._state.exists() else None
        change_held(self._flags, killed, instead=instead)

    def _is_killed(self) -> bool:
        try:
            flags = read_flags(self._flags)
        except (ConfigError, LimitExceededError) as exc:
            # The nodes go on with what they read last, and so does this.
            LOG.warning("%s cannot be used: %s", self._flags, exc)
            return False
        return flags is not None and flags.forceV1Mode

    def _raised(self, flags: RolloutFlags, old: Rollout, new: Rollout) -> RolloutFlags:
        # At the new percentage already: whoever raised it ended before that was noted in the state.
        if flags.forceV1Mode or flags.v3RolloutPercentage not in {old.percentage, new.percentage}:
            raise ConflictError(
                f"{self._flags} says {flags.v3RolloutPercentage} %, forceV1Mode {flags.forceV1Mode}: "
                f"somebody else changed it from {old.percentage} %",
                hint="take the rollout back or start it anew",
            )
        return merge_flags(flags, {"v3RolloutPercentage": new.percentage})

    def _save(self, rollout: Rollout) -> None:
        replace_file(self._state, [f"{json.dumps(asdict(rollout), indent=2)}\n".encode()])

    def _load_if_any(self) -> Rollout | None:
        """Read where the rollout stands; what cannot be read is no reason not to begin anew, or to end it."""
        if not self._state.exists():
            return None
        try:
            return self._load()
        except ConfigError as exc:
            LOG.warning("%s", exc)
            return None

    def _load(self) -> Rollout:
        if not self._state.exists():
            raise ConfigError(f"there is no rollout of {self._flags}", hint="dwcp rollout start begins one")
        try:
            with self._state.open("rb") as file:
                told = json.loads(file.read(MAX_STATE_BYTES))
            plan = {**told["plan"], "stages": tuple(told["plan"]["stages"])}
            baseline = told["baseline"]
            return Rollout(
                **{
                    **told,
                    "plan": RolloutPlan(**plan),
                    "baseline": None if baseline is None else Baseline(**baseline),
                }
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
            raise ConfigError(
                f"the state of the rollout in {self._state} cannot be read", hint="start it anew"
            ) from exc


def killed(flags: RolloutFlags) -> RolloutFlags:
    """Turn the kill switch on; components and modes stay what they are."""
    return merge_flags(flags, {"v3RolloutPercentage": 0, "forceV1Mode": True})
