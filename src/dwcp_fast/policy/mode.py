"""Which mode a session is in, what that means for it, and when another is better.

A mode says what kind of link there is. It is found from samples of the link, by rules with explicit
numbers, in a state machine that knows no clock. What was not measured is unknown, and unknown is no mode:
nothing becomes a datacenter because nothing was heard to the contrary.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from dwcp_fast.errors import ConfigError
from dwcp_fast.options import Mode
from dwcp_fast.policy.choice import Choice
from dwcp_fast.policy.lanes import choose_lanes, lane_range
from dwcp_fast.policy.link import LinkSample
from dwcp_fast.policy.rollout import RolloutFlags

__all__ = [
    "SAMPLE_S",
    "FoundMode",
    "KnownMode",
    "ModeDetector",
    "ModeRules",
    "ModeSwitch",
    "Treatment",
    "choose_mode",
    "detector_for",
    "explain_modes",
    "far_if_forced",
    "mode_shown",
    "treatment_of",
]

KnownMode = Literal["datacenter", "hybrid", "internet"]
FoundMode = Literal["unknown", KnownMode]

SAMPLE_S: Final = 0.2
"""Seconds between two samples."""

DATACENTER, HYBRID, INTERNET = range(3)
NAMES: Final[tuple[KnownMode, ...]] = ("datacenter", "hybrid", "internet")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeRules:
    """The numbers by which a mode is found.

    Attributes:
        near_ms: Milliseconds: round trips below are those of a datacenter.
        far_ms: Milliseconds: round trips above are those of the internet.
        fast_bits_per_s: Bits per second: a link that carries less is one of the internet.
        margin: The share by which a measurement must be beyond a threshold to end a mode.
        alarm: Samples in a row that show a worse mode for it to be taken up at once.
        window: Samples in a row of which none may speak against a better mode, and half must prove it.
        cooldown_s: Seconds after any switch in which no better mode is taken up. Doubled each time that
            a better mode did not last, up to `most_cooldown_s`.
        most_cooldown_s: The most that becomes of it.
        proven_s: Seconds after which a better mode has lasted.
        stale_s: Seconds without a sample after which what was measured is not known any more.
    """

    near_ms: float = 10.0
    far_ms: float = 50.0
    fast_bits_per_s: float = 1e9
    margin: float = 0.1
    alarm: int = 3
    window: int = 10
    cooldown_s: float = 30.0
    most_cooldown_s: float = 480.0
    proven_s: float = 600.0
    stale_s: float = 60.0


RULES: Final = ModeRules()


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """What a mode means for a session.

    Attributes:
        lanes: Fewest, first and most lanes; all the same where their number is fixed.
        far: Whether the path is a long one: then ``congestion="auto"`` is CUBIC, and BBR once losses have
            shown to be random, and the sockets' buffers are as large as the system lets them be. Else all
            of that is the system's own choice, but never BBR.
    """

    lanes: tuple[int, int, int]
    far: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeSwitch:
    """A change of the mode.

    Attributes:
        seconds: When, by the clock of the samples; in a report, from the beginning of the session on.
        before: The mode before.
        mode: The mode from then on.
        rtt_ms: Milliseconds of a round trip that were measured last, the most of the window where the mode
            became better; None if none was.
        carried_bits_per_s: Bits per second that arrived last, None if nothing did.
        limited: Whether the link was what limited that.
    """

    seconds: float
    before: FoundMode
    mode: FoundMode
    rtt_ms: float | None
    carried_bits_per_s: float | None
    limited: bool

    @property
    def why(self) -> str:
        """The measurement, for people."""
        told = [] if self.rtt_ms is None else [f"round trips took {self.rtt_ms:.1f} ms"]
        if self.carried_bits_per_s is not None:
            most = "no more than" if self.limited else "at least"
            told.append(f"the link carried {most} {self.carried_bits_per_s / 1e6:,.0f} Mbps")
        return " and ".join(told) or "nothing was measured lately"


class ModeDetector:
    """Finds the mode from samples of the link.

    What is worse is taken up as soon as `alarm` samples in a row show it, whatever there was before. What is
    better has to be proven for all of a window, and not before the cooldown is over. So a link that sits on a
    threshold is treated as the worse of the two, and stays with that.
    """

    def __init__(self, *, hybrid: bool = True, rules: ModeRules = RULES) -> None:
        """Know nothing yet.

        Args:
            hybrid: Whether hybrid is allowed; what would be is internet, else.
            rules: The numbers to go by.
        """
        self._rules = rules
        self._hybrid = hybrid
        self._mode: FoundMode = "unknown"
        self._window: deque[LinkSample] = deque(maxlen=max(rules.window, rules.alarm))
        self._switched_at_s: float | None = None
        self._improved_at_s: float | None = None
        self._relapses = 0

    @property
    def mode(self) -> FoundMode:
        """The mode at present."""
        return self._mode

    def observe(self, sample: LinkSample) -> ModeSwitch | None:
        """Take a sample.

        Args:
            sample: What was measured; not older than the one before.

        Returns:
            The switch that follows from it, None if none does.
        """
        is_stale = bool(self._window) and sample.at_s - self._window[-1].at_s > self._rules.stale_s
        if is_stale:
            self._window.clear()
        self._window.append(sample)
        if is_stale and self._mode != "unknown":
            return self._switch("unknown", LinkSample(sample.at_s, None, None, False))
        worse = self._worse()
        target = worse or self._better(sample.at_s)
        if target is None:
            return None
        measured = [(told.rtt_ms, told) for told in self._window if told.rtt_ms is not None]
        rtt_ms, shown = measured[-1] if measured else (None, sample)
        if worse is None and measured:
            # All of the window has to speak for it, so the longest round trip says how much better it may be.
            rtt_ms = max(rtt for rtt, _ in measured)
        return self._switch(target, replace(shown, at_s=sample.at_s, rtt_ms=rtt_ms))

    def _worse(self) -> KnownMode | None:
        """The mildest worse mode that the last samples all show, if they do."""
        recent = list(self._window)[-self._rules.alarm :]
        if len(recent) < self._rules.alarm:
            return None
        margin = 0.0 if self._mode == "unknown" else self._rules.margin
        shown = min(self._bounds(sample, margin)[0] for sample in recent)
        return NAMES[shown] if shown > self._rank() else None

    def _better(self, at_s: float) -> KnownMode | None:
        """The better mode that all of the window speaks for, if there is one and it is time."""
        if len(self._window) < self._rules.window or at_s < self._ready_at_s():
            return None
        known = self._mode != "unknown"
        bounds = [self._bounds(sample, -self._rules.margin if known else 0.0) for sample in self._window]
        least = max(low for low, _ in bounds)
        for target in range(least, self._rank() if known else INTERNET):
            if 2 * sum(high <= target for _, high in bounds) >= len(bounds):
                return NAMES[target]
        return None

    def _bounds(self, sample: LinkSample, margin: float) -> tuple[int, int]:
        return bounds_of(sample, self._rules, margin=margin, hybrid=self._hybrid)

    def _rank(self) -> int:
        return DATACENTER if self._mode == "unknown" else NAMES.index(self._mode)

    def _ready_at_s(self) -> float:
        if self._mode == "unknown" or self._switched_at_s is None:
            return float("-inf")
        cooldown_s = min(self._rules.cooldown_s * 2.0**self._relapses, self._rules.most_cooldown_s)
        return self._switched_at_s + cooldown_s

    def _switch(self, mode: FoundMode, sample: LinkSample) -> ModeSwitch:
        before, rank, at_s = self._mode, self._rank(), sample.at_s
        self._mode = mode
        if self._rank() > rank:
            if self._improved_at_s is not None:
                has_lasted = at_s - self._improved_at_s >= self._rules.proven_s
                self._relapses = 0 if has_lasted else self._relapses + 1
            self._improved_at_s = None
        elif self._rank() < rank and mode != "unknown":
            self._improved_at_s = at_s
        self._switched_at_s = at_s
        return ModeSwitch(
            seconds=at_s,
            before=before,
            mode=mode,
            rtt_ms=sample.rtt_ms,
            carried_bits_per_s=sample.carried_bits_per_s,
            limited=sample.limited,
        )


def bounds_of(
    sample: LinkSample, rules: ModeRules, *, margin: float = 0.0, hybrid: bool = True
) -> tuple[int, int]:
    """Give the best and the worst mode that a sample allows, with thresholds made worse by a share."""
    carried = sample.carried_bits_per_s
    fast = carried is not None and carried >= rules.fast_bits_per_s * (1 - margin)
    slow = sample.limited and carried is not None and not fast
    rtt_ms = sample.rtt_ms
    if slow or (rtt_ms is not None and rtt_ms > rules.far_ms * (1 + margin)):
        return INTERNET, INTERNET
    if rtt_ms is None:
        return DATACENTER, INTERNET
    between = HYBRID if hybrid else INTERNET
    least = DATACENTER if rtt_ms < rules.near_ms * (1 + margin) else between
    return least, least if fast else INTERNET


def mode_shown(sample: LinkSample) -> FoundMode:
    """Give the mode that a single sample shows, if it shows one."""
    best, worst = bounds_of(sample, RULES)
    return NAMES[best] if best == worst else "unknown"


def choose_mode(requested: Mode, *, flags: RolloutFlags | None = None) -> Choice[str]:
    """Choose the mode with which a session begins.

    Args:
        requested: What the caller asks for.
        flags: The deployment's rollout flags, None where there are none.

    Returns:
        The mode that was asked for, which it stays in; ``"unknown"`` for ``"auto"``.

    Raises:
        ConfigError: Hybrid was asked for by name while the flags forbid it.
    """
    if requested == "hybrid" and flags is not None and not flags.enableHybridMode:
        raise ConfigError(
            "mode hybrid was asked for, but the flags leave enableHybridMode off",
            hint="set enableHybridMode, or ask for auto",
        )
    if requested != "auto":
        return Choice("mode", requested, "asked for")
    if flags is not None and not flags.enableModeDetection:
        return Choice("mode", "unknown", "the flags leave enableModeDetection off: the handshake decides")
    return Choice("mode", "unknown", "nothing was measured yet")


def detector_for(requested: Mode, *, flags: RolloutFlags | None = None) -> ModeDetector | None:
    """Give what finds the mode of a session, None where nothing is to: a forced mode stays forced."""
    if requested != "auto" or (flags is not None and not flags.enableModeDetection):
        return None
    return ModeDetector(hybrid=flags is None or flags.enableHybridMode)


def treatment_of(mode: KnownMode, streams: int | None, *, polite: bool = False) -> Treatment:
    """Give what a mode means for a session.

    Hybrid and internet mean the same: what tells them apart, lanes and congestion control find out by
    themselves while data flow.

    Args:
        mode: The mode.
        streams: A number of lanes that was asked for, None for a choice by rule.
        polite: Whether others on the link go first.

    Returns:
        The treatment.
    """
    near = choose_lanes(streams, polite=polite).value
    fixed = (near, near, near)
    if mode == "datacenter":
        return Treatment(lanes=fixed, far=False)
    return Treatment(lanes=lane_range(streams, polite=polite) or fixed, far=True)


def far_if_forced(requested: Mode) -> bool | None:
    """Tell whether the peer is to be taken for far; None leaves that to the handshake."""
    return None if requested == "auto" else treatment_of(requested, None).far


def explain_modes(choice: Choice[str], switches: Sequence[ModeSwitch]) -> Choice[str]:
    """Say how the mode was found.

    Args:
        choice: What it was to begin with.
        switches: How it was changed, with times from the beginning of the session on.

    Returns:
        The last mode and how it came to that.
    """
    if not switches:
        return choice
    steps = [f"{choice.value} to begin with"]
    steps += [f"{switch.mode} after {switch.seconds:.1f} s since {switch.why}" for switch in switches]
    return Choice(choice.name, switches[-1].mode, ", ".join(steps))
