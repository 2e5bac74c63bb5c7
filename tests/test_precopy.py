"""The model of a move in rounds: what it foretells, and when it gives up."""

import math

import pytest

from dwcp_fast.policy.precopy import Forecast, Round, fit_writing, forecast, seconds_left, why_not_converging

MB = 1e6


def foretell(
    dirty: float, *, working_set: float = 2000 * MB, ratio: float = 1.0, rtt_s: float = 0.0
) -> Forecast:
    return forecast(
        memory_bytes=2000 * MB,
        dirty_bytes_per_s=dirty,
        working_set_bytes=working_set,
        link_bytes_per_s=100 * MB,
        ratio=ratio,
        rtt_s=rtt_s,
        max_downtime_s=0.3,
    )


def test_a_guest_that_writes_nothing_is_sent_once() -> None:
    ahead = foretell(0)
    assert ahead.converges and ahead.seconds == pytest.approx(20) and ahead.wire_bytes == 2000 * MB


def test_more_writing_takes_longer_and_at_last_never_ends() -> None:
    slow, fast, too_fast = foretell(10 * MB), foretell(50 * MB), foretell(200 * MB)
    assert slow.converges and fast.converges and slow.seconds < fast.seconds
    assert not too_fast.converges and too_fast.downtime_s > 0.3 and "200 MB/s" in too_fast.why


def test_a_small_working_set_is_sent_however_fast_it_is_written() -> None:
    assert foretell(1000 * MB, working_set=20 * MB).converges
    assert not foretell(1000 * MB, working_set=200 * MB).converges


def test_a_better_ratio_sends_less_in_less_time() -> None:
    plain, coded = foretell(10 * MB), foretell(10 * MB, ratio=4)
    assert coded.seconds < plain.seconds / 3 and coded.wire_bytes < plain.wire_bytes / 3


def test_a_round_trip_longer_than_the_stop_that_is_allowed_is_the_reason() -> None:
    ahead = foretell(10 * MB, rtt_s=0.4)
    assert not ahead.converges and "one round trip takes 0.4 s" in ahead.why


@pytest.mark.parametrize("rate", [1 * MB, 50 * MB, 300 * MB])
@pytest.mark.parametrize("working_set", [100 * MB, 800 * MB])
def test_two_looks_at_a_guest_tell_how_much_it_writes_again(rate: float, working_set: float) -> None:
    def dirty(seconds: float) -> float:
        return working_set * (1 - math.exp(-rate * seconds / working_set))

    found_rate, found_set = fit_writing(dirty(1), dirty(2), 1, 4000 * MB)
    assert found_rate == pytest.approx(rate, rel=0.1)
    # A set that hardly began to be written again cannot be told from a larger one.
    assert found_set == pytest.approx(working_set, rel=0.1) or rate < working_set / 20


def rounds(*left_mb: float) -> list[Round]:
    return [
        Round(number + 1, number, int(left * MB), 90 * MB, 100 * MB) for number, left in enumerate(left_mb)
    ]


def test_the_end_is_in_sight_only_while_more_is_sent_than_written() -> None:
    assert seconds_left(Round(1, 5.0, int(100 * MB), 60 * MB, 110 * MB)) == pytest.approx(2.0)
    assert seconds_left(Round(1, 5.0, int(100 * MB), 110 * MB, 110 * MB)) is None


@pytest.mark.parametrize(
    ("left", "given_up"),
    [
        ((100, 99, 98, 99), True),
        ((100, 80, 64, 51), False),
        ((100, 99, 98, 20), False),
        ((100, 99, 98), False),
        ((20, 20, 20, 20, 20), False),
    ],
)
def test_a_move_is_given_up_only_after_rounds_without_gain(left: tuple[float, ...], given_up: bool) -> None:
    why = why_not_converging(rounds(*left), max_downtime_s=0.3, patience_rounds=3)
    assert (why is not None) is given_up
