"""When a rollout goes on, waits, or is taken back: judged by how transfers of v3 end beside those of v1."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Final, Literal, get_args

from dwcp_fast.errors import ConfigError
from dwcp_fast.policy.choice import Choice
from dwcp_fast.policy.engine import Engine

__all__ = [
    "Baseline",
    "Measured",
    "Move",
    "Outcome",
    "Rollout",
    "RolloutPlan",
    "Status",
    "begin",
    "judge",
    "measure",
    "move",
    "take_back",
]

Status = Literal["running", "done", "rolled-back"]
Move = Literal["wait", "advance", "finish", "rollback"]
LATENCY_QUANTILE: Final = 0.9
MAX_STAGES: Final = 16
INSTANT_S: Final = 1e-9
"""What takes no time takes that long: it is divided by."""
MAX_TIME_S: Final = 1e12
"""Seconds since 1970 that no clock shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPlan:
    """How a rollout goes on.

    Attributes:
        stages: Shares of nodes in percent, each larger than the one before, the last 100.
        hold_s: Least seconds in a stage.
        window_s: Seconds back that transfers count, but never further than the begin of the stage.
        min_transfers: Least transfers of an engine that went well in the window, for its times and rates to
            be judged; no stage ends before.
        min_failures: Least failures of v3 in the window for the error rate to be judged, however many
            transfers there were.
        max_error_rate: Largest share of v3 transfers that may fail.
        max_latency_ratio: Most that the 90th percentile of v3's seconds may be, as a multiple of v1's.
        max_throughput_loss: Most that the median of v3's bytes per second may be less than v1's, as a share.

    Raises:
        ConfigError: A value is out of range; the message names the field.
    """

    stages: tuple[int, ...] = (10, 50, 100)
    hold_s: float = 3600.0
    window_s: float = 600.0
    min_transfers: int = 50
    min_failures: int = 5
    max_error_rate: float = 0.01
    max_latency_ratio: float = 2.0
    max_throughput_loss: float = 0.2

    def __post_init__(self) -> None:
        """Check every field."""
        stages = self.stages
        if not 1 <= len(stages) <= MAX_STAGES:
            raise ConfigError(f"stages are {len(stages)}, which is not in 1 to {MAX_STAGES}")
        if any(type(stage) is not int for stage in stages) or list(stages) != sorted(set(stages)):
            raise ConfigError(f"stages {list(stages)} are not whole numbers that grow")
        if stages[0] < 1 or stages[-1] != 100:
            raise ConfigError(f"stages {list(stages)} do not go from 1 or more to 100 percent")
        check("hold_s", self.hold_s, 0.0, 30 * 86_400.0)
        check("window_s", self.window_s, 0.1, 30 * 86_400.0)
        check("min_transfers", self.min_transfers, 1, 1_000_000)
        check("min_failures", self.min_failures, 1, 1_000_000)
        check("max_error_rate", self.max_error_rate, 0.0, 1.0)
        check("max_latency_ratio", self.max_latency_ratio, 1.0, 1_000.0)
        check("max_throughput_loss", self.max_throughput_loss, 0.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one transfer ended.

    Attributes:
        at_s: When, in seconds since 1970 by the clock of the node.
        node: Name of the node that sent.
        protocol: The engine.
        failure: Code of the error it ended with, None if it went well.
        seconds: How long it took.
        bytes_raw: Length of the state; 0 if it failed.
    """

    at_s: float
    node: str
    protocol: Engine
    failure: str | None
    seconds: float
    bytes_raw: int


@dataclass(frozen=True, slots=True)
class Baseline:
    """What v1 did beside v3, the last time that there was enough of it.

    Attributes:
        latency_s: 90th percentile of its seconds.
        bytes_per_s: Median of its rates.
        transfers: Of how many transfers.
    """

    latency_s: float
    bytes_per_s: float
    transfers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Where a rollout stands.

    Attributes:
        plan: How it goes on.
        stage: Index of the stage.
        since_s: When the stage began, in seconds since 1970.
        status: ``"running"``, ``"done"`` or ``"rolled-back"``.
        why: What led to it.
        baseline: What v1 did, None if there was not enough of it yet. It is kept for the last stage, which
            has no v1 beside it.
    """

    plan: RolloutPlan
    stage: int
    since_s: float
    status: Status = "running"
    why: str = "started"
    baseline: Baseline | None = None

    def __post_init__(self) -> None:
        """Check the stage.

        Raises:
            ConfigError: The plan has no such stage, or there is no such status or time.
        """
        check("stage", self.stage, 0, len(self.plan.stages) - 1)
        check("since_s", self.since_s, 0.0, MAX_TIME_S)
        if self.status not in get_args(Status):
            raise ConfigError(f"status {self.status!r} is not one of {', '.join(get_args(Status))}")

    @property
    def percentage(self) -> int:
        """The share of nodes that use v3, in percent."""
        return 0 if self.status == "rolled-back" else self.plan.stages[self.stage]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the transfers of a window show. None stands for what there are too few of.

    Attributes:
        v3_transfers: Transfers of v3, failed ones included.
        v3_failures: Those that failed.
        v1_transfers: Transfers of v1 that went well.
        latency_s: 90th percentile of v3's seconds.
        bytes_per_s: Median of v3's rates.
        baseline: The same of v1, of this window or of an earlier one.
    """

    v3_transfers: int
    v3_failures: int
    v1_transfers: int
    latency_s: float | None
    bytes_per_s: float | None
    baseline: Baseline | None


def check(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number out of its range."""
    if isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{name} {value} is not in {low} to {high}")


def begin(plan: RolloutPlan, now_s: float) -> Rollout:
    """Begin a rollout with its first stage.

    Args:
        plan: How it goes on.
        now_s: Seconds since 1970.
    """
    return Rollout(plan=plan, stage=0, since_s=now_s)


def measure(rollout: Rollout, outcomes: Iterable[Outcome], now_s: float) -> Measured:
    """Measure what the transfers of the window show.

    Args:
        rollout: Where the rollout stands.
        outcomes: How transfers ended, in any order; those out of the window do not count.
        now_s: Seconds since 1970.
    """
    plan = rollout.plan
    begun = max(rollout.since_s, now_s - plan.window_s)
    window = [outcome for outcome in outcomes if begun <= outcome.at_s <= now_s]
    v3 = [outcome for outcome in window if outcome.protocol == "v3"]
    good = [outcome for outcome in v3 if outcome.failure is None]
    v1 = [outcome for outcome in window if outcome.protocol == "v1" and outcome.failure is None]
    enough = len(good) >= plan.min_transfers
    return Measured(
        v3_transfers=len(v3),
        v3_failures=len(v3) - len(good),
        v1_transfers=len(v1),
        latency_s=latency_of(good) if enough else None,
        bytes_per_s=rate_of(good) if enough else None,
        baseline=Baseline(latency_of(v1), rate_of(v1), len(v1))
        if len(v1) >= plan.min_transfers
        else rollout.baseline,
    )


def latency_of(outcomes: Sequence[Outcome]) -> float:
    """Give the 90th percentile of the seconds."""
    ordered = sorted(outcome.seconds for outcome in outcomes)
    return ordered[ceil(LATENCY_QUANTILE * len(ordered)) - 1]


def rate_of(outcomes: Sequence[Outcome]) -> float:
    """Give the median of the bytes per second."""
    ordered = sorted(outcome.bytes_raw / max(outcome.seconds, INSTANT_S) for outcome in outcomes)
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[~middle]) / 2


def judge(rollout: Rollout, measured: Measured, now_s: float) -> Choice[Move]:
    """Decide what to do now.

    Args:
        rollout: Where the rollout stands.
        measured: What transfers show.
        now_s: Seconds since 1970.

    Returns:
        ``"rollback"`` as soon as v3 is worse than the plan allows, ``"advance"`` to the next stage or
        ``"finish"`` when the stage lasted long enough and showed enough, else ``"wait"``.
    """
    plan = rollout.plan
    if rollout.status != "running":
        return Choice("rollout", "wait", f"it is {rollout.status}: {rollout.why}")
    worse = faults(plan, measured)
    if worse:
        return Choice("rollout", "rollback", f"at {rollout.percentage} %, {', and '.join(worse)}")
    missing = []
    left = rollout.since_s + plan.hold_s - now_s
    if left > 0:
        missing.append(f"the stage lasts {left:.0f} s more")
    if measured.latency_s is None:
        good = measured.v3_transfers - measured.v3_failures
        missing.append(f"v3 has {good} transfers of {plan.min_transfers}")
    if measured.baseline is None:
        missing.append(f"v1 has {measured.v1_transfers} transfers of {plan.min_transfers}")
    if measured.v3_failures and measured.v3_failures > plan.max_error_rate * measured.v3_transfers:
        # Too few for a verdict, and too many to go on with.
        missing.append(f"v3 has {measured.v3_failures} failures")
    if missing:
        return Choice("rollout", "wait", "; ".join(missing))
    last = rollout.stage == len(plan.stages) - 1
    told = f"{measured.v3_transfers} transfers of v3 at {rollout.percentage} % are as good as v1's"
    return Choice("rollout", "finish" if last else "advance", told)


def faults(plan: RolloutPlan, measured: Measured) -> list[str]:
    """Say in what v3 is worse than the plan allows."""
    found = []
    failures, transfers = measured.v3_failures, measured.v3_transfers
    if failures >= plan.min_failures and failures > plan.max_error_rate * transfers:
        found.append(
            f"the error rate is {failures / transfers:.1%} ({failures} of {transfers} transfers), "
            f"over {plan.max_error_rate:.1%}"
        )
    base = measured.baseline
    if base is None or measured.latency_s is None or measured.bytes_per_s is None:
        return found
    if measured.latency_s > plan.max_latency_ratio * base.latency_s:
        found.append(
            f"the latency is {measured.latency_s / max(base.latency_s, INSTANT_S):.2f} times v1's "
            f"({measured.latency_s:.3f} s against {base.latency_s:.3f} s), over {plan.max_latency_ratio:g}"
        )
    if measured.bytes_per_s < (1 - plan.max_throughput_loss) * base.bytes_per_s:
        found.append(
            f"the throughput is {1 - measured.bytes_per_s / base.bytes_per_s:.0%} under v1's "
            f"({measured.bytes_per_s:.0f} B/s against {base.bytes_per_s:.0f} B/s), "
            f"over {plan.max_throughput_loss:.0%}"
        )
    return found


def move(rollout: Rollout, choice: Choice[Move], measured: Measured, now_s: float) -> Rollout:
    """Give where the rollout stands once a decision is carried out.

    Args:
        rollout: Where it stands.
        choice: What was decided.
        measured: What led to it; its baseline is kept.
        now_s: Seconds since 1970.
    """
    kept = replace(rollout, baseline=measured.baseline)
    match choice.value:
        case "wait":
            return kept
        case "advance":
            return replace(kept, stage=rollout.stage + 1, since_s=now_s, why=choice.why)
        case "finish":
            return replace(kept, status="done", why=choice.why)
        case "rollback":
            return take_back(kept, choice.why, now_s)


def take_back(rollout: Rollout, why: str, now_s: float) -> Rollout:
    """Give where a rollout stands that is taken back.

    Args:
        rollout: Where it stands.
        why: The reason, for people.
        now_s: Seconds since 1970.
    """
    return replace(rollout, status="rolled-back", since_s=now_s, why=why)
