"""When a rollout goes on and when it is taken back, in virtual time."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwcp_fast.errors import ConfigError
from dwcp_fast.policy.choice import Choice
from dwcp_fast.policy.stages import (
    Move,
    Outcome,
    Rollout,
    RolloutPlan,
    begin,
    judge,
    measure,
    move,
)

PLAN = RolloutPlan(hold_s=100.0, window_s=60.0, min_transfers=20, min_failures=5)


def outcomes(
    protocol: str,
    count: int,
    *,
    at_s: float = 50.0,
    seconds: float = 1.0,
    failures: int = 0,
    size: int = 1000,
) -> list[Outcome]:
    """Transfers of an engine, the first `failures` of which failed."""
    return [
        Outcome(
            at_s=at_s,
            node="node",
            protocol="v3" if protocol == "v3" else "v1",
            failure="transport" if number < failures else None,
            seconds=seconds,
            bytes_raw=0 if number < failures else size,
        )
        for number in range(count)
    ]


def decide(rollout: Rollout, found: list[Outcome], now_s: float) -> tuple[Choice[Move], Rollout]:
    """Measure, judge and move."""
    measured = measure(rollout, found, now_s)
    choice = judge(rollout, measured, now_s)
    return choice, move(rollout, choice, measured, now_s)


def test_a_good_v3_goes_through_all_stages_and_no_sooner_than_the_plan_says() -> None:
    rollout = begin(PLAN, 0.0)
    told: list[tuple[float, int, str]] = []
    for second in range(0, 400, 10):
        now = float(second)
        # The last stage has no v1 beside it.
        v1 = [] if rollout.percentage == 100 else outcomes("v1", 5, at_s=now)
        found = [*outcomes("v3", 5, at_s=now), *v1]
        seen = [one for at in range(0, second + 1, 10) for one in (replace(o, at_s=float(at)) for o in found)]
        choice, rollout = decide(rollout, seen, now)
        if choice.value != "wait":
            told.append((now, rollout.percentage, choice.value))
    assert told == [(100.0, 50, "advance"), (200.0, 100, "advance"), (300.0, 100, "finish")]
    assert rollout.status == "done"


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (outcomes("v3", 5, failures=5), "error rate is 100.0% (5 of 5 transfers), over 1.0%"),
        (outcomes("v3", 499, failures=5), "error rate is 1.0%"),
        ([*outcomes("v3", 20, seconds=2.1, size=2100), *outcomes("v1", 20)], "latency is 2.10 times v1's"),
        ([*outcomes("v3", 17), *outcomes("v3", 3, seconds=2.1), *outcomes("v1", 20)], "latency is 2.10"),
        ([*outcomes("v3", 20, size=790), *outcomes("v1", 20)], "throughput is 21% under v1's"),
        ([*outcomes("v3", 20, size=0), *outcomes("v1", 20, seconds=0.0)], "latency is 1000000000.00 times"),
    ],
)
def test_a_bad_v3_is_taken_back_at_once_with_the_reason(found: list[Outcome], reason: str) -> None:
    choice, rollout = decide(begin(PLAN, 0.0), found, 55.0)
    assert choice.value == "rollback" and reason in choice.why
    assert (rollout.status, rollout.percentage) == ("rolled-back", 0)
    assert decide(rollout, found, 56.0)[0].value == "wait"


@pytest.mark.parametrize(
    ("found", "missing"),
    [
        (outcomes("v3", 4, failures=4), "4 failures"),
        (outcomes("v3", 500, failures=5), "v1 has 0"),
        ([*outcomes("v3", 19, seconds=9.0), *outcomes("v1", 20)], "v3 has 19 transfers of 20"),
        ([*outcomes("v3", 20, seconds=9.0), *outcomes("v1", 19)], "v1 has 19 transfers of 20"),
        ([*outcomes("v3", 20, seconds=2.0, size=2000), *outcomes("v1", 20)], "the stage lasts"),
        ([*outcomes("v3", 20, size=800), *outcomes("v1", 20)], "the stage lasts"),
        ([*outcomes("v3", 18), *outcomes("v3", 2, seconds=9.0), *outcomes("v1", 20)], "the stage lasts"),
        ([*outcomes("v3", 20), *outcomes("v1", 20, failures=20), *outcomes("v1", 20)], "the stage lasts"),
    ],
)
def test_what_is_too_little_or_just_allowed_takes_nothing_back(found: list[Outcome], missing: str) -> None:
    choice, rollout = decide(begin(PLAN, 0.0), found, 55.0)
    assert choice.value == "wait" and missing in choice.why
    assert rollout.status == "running"


def test_only_the_window_of_the_stage_counts() -> None:
    bad = outcomes("v3", 100, at_s=10.0, failures=50)
    good = [*outcomes("v3", 20, at_s=95.0), *outcomes("v1", 20, at_s=95.0)]
    assert decide(begin(PLAN, 0.0), [*bad, *good], 20.0)[0].value == "rollback"
    assert decide(begin(PLAN, 11.0), [*bad, *good], 115.0)[0].value == "advance", "before the stage"
    assert decide(begin(PLAN, 0.0), [*bad, *good], 115.0)[0].value == "advance", "before the window"
    later = outcomes("v3", 100, at_s=200.0, failures=50)
    assert decide(begin(PLAN, 0.0), [*good, *later], 115.0)[0].value == "advance", "after now"


def test_the_last_stage_is_held_against_the_last_v1_there_was() -> None:
    rollout = replace(begin(PLAN, 0.0), stage=1)
    choice, rollout = decide(rollout, [*outcomes("v3", 20, at_s=95.0), *outcomes("v1", 20, at_s=95.0)], 100.0)
    assert choice.value == "advance" and rollout.percentage == 100
    choice, rollout = decide(rollout, outcomes("v3", 20, at_s=150.0, seconds=3.0), 155.0)
    assert choice.value == "rollback" and "latency is 3.00 times" in choice.why


@given(
    st.lists(
        st.builds(
            Outcome,
            at_s=st.floats(0, 200),
            node=st.just("node"),
            protocol=st.sampled_from(["v1", "v3"]),
            failure=st.sampled_from([None, None, None, "transport"]),
            seconds=st.floats(0, 100),
            bytes_raw=st.integers(0, 10**9),
        ),
        max_size=80,
    ),
    st.floats(0, 300),
)
def test_whatever_happens_a_stage_is_never_skipped_and_never_ends_early(
    found: list[Outcome], now_s: float
) -> None:
    before = begin(replace(PLAN, min_transfers=3), 0.0)
    choice, after = decide(before, found, now_s)
    if choice.value == "advance":
        assert after.stage == 1 and now_s >= PLAN.hold_s and after.since_s == now_s
    else:
        assert after.stage == 0
    assert (after.status == "rolled-back") is (choice.value == "rollback")
    assert choice.why


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"stages": ()}, "stages"),
        ({"stages": (10, 50)}, "100"),
        ({"stages": (0, 100)}, "stages"),
        ({"stages": (50, 10, 100)}, "grow"),
        ({"stages": (10, 10, 100)}, "grow"),
        ({"stages": (10.0, 100)}, "whole"),
        ({"stages": tuple(range(84, 101))}, "16"),
        ({"hold_s": -1.0}, "hold_s"),
        ({"hold_s": float("nan")}, "hold_s"),
        ({"window_s": 0.0}, "window_s"),
        ({"min_transfers": 0}, "min_transfers"),
        ({"min_failures": 0}, "min_failures"),
        ({"max_error_rate": 1.1}, "max_error_rate"),
        ({"max_latency_ratio": 0.9}, "max_latency_ratio"),
        ({"max_throughput_loss": -0.1}, "max_throughput_loss"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        RolloutPlan(**changes)
