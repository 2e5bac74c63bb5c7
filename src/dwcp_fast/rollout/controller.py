"""A rollout at work: its state in a file beside the flags, and the moves that write both."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from dwcp_fast.errors import ConfigError, ConflictError, LimitExceededError
from dwcp_fast.policy.choice import Choice
from dwcp_fast.policy.rollout import RolloutFlags, enable_all, merge_flags
from dwcp_fast.policy.stages import (
    Baseline,
    Measured,
    Move,
    Rollout,
    RolloutPlan,
    begin,
    judge,
    measure,
    move,
    take_back,
)
from dwcp_fast.rollout.flagfile import change_flags, read_flags
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
    """Moves a rollout on, or takes it back. One at a time should watch a flags file; more do no harm."""

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
        if self._state.exists() and self._load().status == "running":
            raise ConflictError(
                f"a rollout of {self._flags} is running", hint="take it back first: dwcp rollout rollback"
            )
        # What cannot be changed should show before anything is.
        read_flags(self._flags)
        rollout = begin(plan, self._clock())
        self._save(rollout)
        change_flags(self._flags, lambda flags: enable_all(flags, rollout.percentage))
        return rollout

    def look(self) -> Look:
        """Measure and decide, and change nothing.

        Raises:
            ConfigError: There is no rollout, or its state cannot be read.
            OSError: A file cannot be read.
        """
        now = self._clock()
        rollout = self._found()
        since = max(rollout.since_s, now - rollout.plan.window_s)
        measured = measure(rollout, read_outcomes(self._outcomes, since), now)
        return Look(rollout, measured, judge(rollout, measured, now))

    def step(self) -> Look:
        """Measure and decide, and do what was decided.

        Raises:
            ConflictError: Somebody else changed the flags.
            DwcpError: As for :meth:`look`.
            OSError: A file cannot be read or written.
        """
        found = self.look()
        rollout = move(found.rollout, found.choice, found.measured, self._clock())
        self._put(found.rollout, rollout)
        return Look(rollout, found.measured, found.choice)

    def advance(self) -> Look:
        """Go to the next stage whatever transfers show; the last one is done.

        Raises:
            ConfigError: No rollout is running, or its state cannot be read.
            ConflictError: Somebody else changed the flags.
            DwcpError: The flags cannot be changed.
            OSError: A file cannot be read or written.
        """
        found = self.look()
        if found.rollout.status != "running":
            raise ConfigError(f"the rollout of {self._flags} is {found.rollout.status}: nothing to advance")
        last = found.rollout.stage == len(found.rollout.plan.stages) - 1
        choice: Choice[Move] = Choice("rollout", "finish" if last else "advance", "advanced by hand")
        rollout = move(found.rollout, choice, found.measured, self._clock())
        self._put(found.rollout, rollout)
        return Look(rollout, found.measured, choice)

    def rollback(self, why: str) -> Rollout:
        """Take it back: the kill switch on, 0 percent, all other flags as they are. Needs no running rollout.

        Args:
            why: The reason, for people.

        Raises:
            DwcpError: The flags cannot be changed.
            OSError: A file cannot be read or written.
        """
        # The flags first: they are what stops v3.
        self._kill()
        rollout = self._load() if self._state.exists() else begin(RolloutPlan(), self._clock())
        rollout = take_back(rollout, why, self._clock())
        self._save(rollout)
        return rollout

    def _put(self, old: Rollout, new: Rollout) -> None:
        if new == old:
            return
        if new.status == "rolled-back" != old.status:
            LOG.warning("the rollout is taken back: %s", new.why)
            self._kill()
        elif new.percentage != old.percentage:
            LOG.info("the rollout goes to %d %%: %s", new.percentage, new.why)

            def raised(flags: RolloutFlags) -> RolloutFlags:
                self._check(flags, old)
                return merge_flags(flags, {"v3RolloutPercentage": new.percentage})

            change_flags(self._flags, raised)
        self._save(new)

    def _kill(self) -> None:
        # Where there is a rollout its file is a flags file, and that it is broken must not keep v3 on.
        instead = enable_all(RolloutFlags(), 0) if self._state.exists() else None
        change_flags(self._flags, killed, instead=instead)

    def _found(self) -> Rollout:
        """Give where the rollout stands; a kill switch that somebody else turned on ends it."""
        if not self._state.exists():
            raise ConfigError(f"there is no rollout of {self._flags}", hint="dwcp rollout start begins one")
        rollout = self._load()
        if rollout.status == "running" and self._is_killed():
            rollout = take_back(rollout, "somebody else turned forceV1Mode on", self._clock())
            self._save(rollout)
        return rollout

    def _is_killed(self) -> bool:
        try:
            flags = read_flags(self._flags)
        except (ConfigError, LimitExceededError) as exc:
            # The nodes go on with what they read last, and so does this.
            LOG.warning("%s cannot be used: %s", self._flags, exc)
            return False
        return flags is not None and flags.forceV1Mode

    def _check(self, flags: RolloutFlags, rollout: Rollout) -> None:
        if flags.forceV1Mode or flags.v3RolloutPercentage != rollout.percentage:
            raise ConflictError(
                f"{self._flags} says {flags.v3RolloutPercentage} %, forceV1Mode {flags.forceV1Mode}: "
                f"somebody else changed it from {rollout.percentage} %",
                hint="take the rollout back or start it anew",
            )

    def _save(self, rollout: Rollout) -> None:
        replace_file(self._state, [f"{json.dumps(asdict(rollout), indent=2)}\n".encode()])

    def _load(self) -> Rollout:
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
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise ConfigError(
                f"the state of the rollout in {self._state} cannot be read", hint="start it anew"
            ) from exc


def killed(flags: RolloutFlags) -> RolloutFlags:
    """Turn the kill switch on; components and modes stay what they are."""
    return merge_flags(flags, {"v3RolloutPercentage": 0, "forceV1Mode": True})
