"""The mode of a session: found from what was measured, in virtual time."""

from collections.abc import Iterable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwcp_fast.errors import ConfigError
from dwcp_fast.policy.choice import Choice
from dwcp_fast.policy.link import LinkCounts, LinkSample, sample_between
from dwcp_fast.policy.mode import (
    SAMPLE_S,
    ModeDetector,
    ModeSwitch,
    choose_mode,
    detector_for,
    explain_modes,
    treatment_of,
)
from dwcp_fast.policy.rollout import RolloutFlags

GBPS = 1e9
Shown = tuple[float | None, float | None, bool]
NEAR: Shown = (1.0, 8 * GBPS, False)
FAR: Shown = (80.0, 0.2 * GBPS, True)


def follow(
    detector: ModeDetector, shown: Iterable[Shown], from_s: float = 0.0
) -> tuple[list[ModeSwitch], float]:
    """Show a detector a sample each 0.2 s; gives the switches and the time at the end."""
    switches, at_s = [], from_s
    for rtt_ms, carried, limited in shown:
        at_s += SAMPLE_S
        switch = detector.observe(LinkSample(at_s, rtt_ms, carried, limited))
        switches += [switch] if switch else []
    return switches, at_s


@pytest.mark.parametrize(
    ("shown", "mode"),
    [
        (NEAR, "datacenter"),
        ((9.9, GBPS, True), "datacenter"),
        ((10.0, GBPS, False), "hybrid"),
        ((50.0, GBPS, False), "hybrid"),
        ((50.1, 9 * GBPS, False), "internet"),
        ((1.0, 0.9 * GBPS, True), "internet"),
        ((30.0, 0.9 * GBPS, True), "internet"),
        # What an application leaves of a link says nothing of the link.
        ((1.0, 0.9 * GBPS, False), "unknown"),
        ((1.0, None, False), "unknown"),
        ((None, 8 * GBPS, False), "unknown"),
        ((30.0, 0.1 * GBPS, False), "hybrid"),
    ],
)
def test_each_kind_of_link_has_its_mode_and_what_is_not_known_has_none(shown: Shown, mode: str) -> None:
    detector = ModeDetector()
    follow(detector, [shown] * 50)
    assert detector.mode == mode


def test_a_better_mode_is_told_with_the_longest_round_trip_of_its_window() -> None:
    fast: Shown = (5.0, 2 * GBPS, False)
    detector = ModeDetector()
    follow(detector, [FAR] * 10)
    # Ten more windows, so that the cooldown is over before a round trip was long for once.
    switches, _ = follow(detector, [FAR] * 150 + [fast] * 3 + [(20.0, None, False)] + [fast] * 6, from_s=2.0)
    assert [(switch.mode, switch.rtt_ms) for switch in switches] == [("hybrid", 20.0)]
    assert switches[0].carried_bits_per_s == fast[1] and "20.0 ms" in switches[0].why


@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.floats(0.01, 500)),
            st.one_of(st.none(), st.floats(0, 0.999 * GBPS)),
            st.booleans(),
        ),
        max_size=400,
    )
)
def test_nothing_is_a_datacenter_that_has_not_carried_what_one_carries(shown: list[Shown]) -> None:
    detector = ModeDetector()
    switches, _ = follow(detector, shown)
    assert "datacenter" not in {switch.mode for switch in switches} | {detector.mode}


@given(st.integers(0, 10_000), st.integers(0, 9), st.sampled_from([FAR, (30.0, 2 * GBPS, False)]))
def test_what_gets_worse_is_acted_on_within_2_s_whatever_was_before(
    seed: int, noisy: int, worse: Shown
) -> None:
    noise = Random(seed)
    detector = ModeDetector()
    before = [(1 + noise.random(), (2 + noise.random()) * GBPS, noise.random() < 0.5) for _ in range(100)]
    _, at_s = follow(detector, before)
    assert detector.mode == "datacenter"
    # Back at the better link for a moment, and just after another switch, the cooldown is no hindrance.
    _, changed_s = follow(detector, [worse, worse, *[NEAR] * noisy], at_s)
    switches, _ = follow(detector, [worse] * 20, changed_s)
    assert switches and switches[0].seconds - changed_s < 2
    assert switches[0].mode == detector.mode == ("internet" if worse == FAR else "hybrid")


def test_a_better_mode_waits_for_the_cooldown_and_for_a_whole_window() -> None:
    detector = ModeDetector()
    _, fell_s = follow(detector, [FAR] * 10)
    early, at_s = follow(detector, [NEAR] * 120, fell_s)
    assert not early
    # One sample that speaks against it puts it off until the window is past it.
    switches, _ = follow(detector, [*[NEAR] * 20, FAR, *[NEAR] * 30], at_s)
    assert [switch.mode for switch in switches] == ["datacenter"]
    assert switches[0].seconds - at_s > 21 * SAMPLE_S + 9 * SAMPLE_S - 1e-6


@given(
    st.integers(0, 10_000),
    st.sampled_from([("rtt", 10.0), ("rtt", 50.0), ("rate", GBPS)]),
    st.sampled_from([0.0, 0.02, 0.09, 0.2, 0.5]),
)
def test_a_link_that_sits_on_a_threshold_for_10_minutes_does_not_flap(
    seed: int, threshold: tuple[str, float], spread: float
) -> None:
    noise = Random(seed)
    what, level = threshold

    def sample() -> Shown:
        value = level * (1 + spread * (2 * noise.random() - 1))
        return (value, 2 * GBPS, False) if what == "rtt" else (1.0, value, True)

    detector = ModeDetector()
    switches, _ = follow(detector, (sample() for _ in range(round(600 / SAMPLE_S))))
    # It is found, and is the worse of the two for good after that; only where round trips are half or one
    # and a half times what they are may ten of them in a row happen to look better.
    ranks = ["unknown", "datacenter", "hybrid", "internet"]
    better = sum(ranks.index(switch.before) > ranks.index(switch.mode) for switch in switches)
    assert better <= (1 if spread > 0.2 else 0)
    assert len(switches) <= 2 + 2 * better


@given(st.floats(3, 200), st.floats(3, 200))
def test_a_link_that_alternates_for_an_hour_is_followed_ever_more_rarely(good_s: float, bad_s: float) -> None:
    detector = ModeDetector()
    period = good_s + bad_s
    shown = (NEAR if index * SAMPLE_S % period < good_s else FAR for index in range(18_000))
    switches, _ = follow(detector, shown)
    # The cooldown doubles from 30 to 480 s.
    assert sum(switch.mode == "datacenter" for switch in switches) <= 2 + 4 + (3600 - 450) / 480


def test_a_switch_tells_a_round_trip_even_where_the_last_sample_has_none() -> None:
    detector = ModeDetector()
    _, at_s = follow(detector, [FAR] * 10)
    _, at_s = follow(detector, [NEAR] * 9, at_s + 40)
    switches, _ = follow(detector, [(None, 8 * GBPS, False)], at_s)
    assert [(switch.mode, switch.rtt_ms) for switch in switches] == [("datacenter", 1.0)]


def test_what_was_measured_a_minute_ago_is_not_known_any_more() -> None:
    detector = ModeDetector()
    _, at_s = follow(detector, [NEAR] * 20)
    switches, _ = follow(detector, [NEAR], at_s + 61)
    assert [(switch.before, switch.mode) for switch in switches] == [("datacenter", "unknown")]
    assert switches[0].why == "nothing was measured lately"


def test_without_hybrid_what_would_be_hybrid_is_internet() -> None:
    detector = ModeDetector(hybrid=False)
    follow(detector, [(30.0, 8 * GBPS, False)] * 40)
    assert detector.mode == "internet"


def test_a_forced_mode_and_the_flags_leave_nothing_to_detect() -> None:
    off = RolloutFlags(enableModeDetection=False)
    assert detector_for("auto") is not None
    assert detector_for("internet") is None and detector_for("auto", flags=off) is None
    assert choose_mode("internet", flags=off).value == "internet"
    assert "enableModeDetection" in choose_mode("auto", flags=off).why
    assert choose_mode("auto").value == "unknown"
    with pytest.raises(ConfigError, match="enableHybridMode"):
        choose_mode("hybrid", flags=RolloutFlags(enableHybridMode=False))


def test_each_mode_says_what_it_means_in_numbers() -> None:
    datacenter, internet = treatment_of("datacenter", None), treatment_of("internet", None)
    assert (datacenter.lanes, datacenter.far) == ((4, 4, 4), False)
    assert (internet.lanes, internet.far) == ((3, 16, 64), True)
    assert treatment_of("hybrid", None) == internet
    fixed = treatment_of("internet", 7)
    assert fixed.lanes == (7, 7, 7) and fixed.far


def test_switches_are_explained_by_their_measurements() -> None:
    choice = Choice("mode", "unknown", "nothing was measured yet")
    assert explain_modes(choice, ()) == choice
    switches = (
        ModeSwitch(
            seconds=2.0,
            before="unknown",
            mode="datacenter",
            rtt_ms=0.4,
            carried_bits_per_s=3e9,
            limited=False,
        ),
        ModeSwitch(
            seconds=10.0,
            before="datacenter",
            mode="internet",
            rtt_ms=83.0,
            carried_bits_per_s=1.9e8,
            limited=True,
        ),
    )
    assert explain_modes(choice, switches) == Choice(
        "mode",
        "internet",
        "unknown to begin with, datacenter after 2.0 s since round trips took 0.4 ms and the link carried "
        "at least 3,000 Mbps, internet after 10.0 s since round trips took 83.0 ms and the link carried no "
        "more than 190 Mbps",
    )


BUSY = LinkCounts(
    lane_seconds=8.0,
    cwnd_seconds=7.0,
    waiting_seconds=7.0,
    queued_seconds=7.0,
    arrived_bytes=50_000_000,
    lost_segments=3,
    rtt_ms=40.0,
)
IDLE = LinkCounts(
    lane_seconds=0.0,
    cwnd_seconds=0.0,
    waiting_seconds=0.0,
    queued_seconds=0.0,
    arrived_bytes=0,
    lost_segments=3,
    rtt_ms=None,
)


@pytest.mark.parametrize(
    ("after", "limited"),
    [
        (BUSY, True),
        # The receiver, the application or a cap, and a connection that still grows.
        (replace(BUSY, cwnd_seconds=3.0), False),
        (replace(BUSY, waiting_seconds=3.0), False),
        (replace(BUSY, queued_seconds=3.0), False),
        (replace(BUSY, queued_seconds=3.0, lost_segments=4), True),
        # It stands still.
        (replace(BUSY, rtt_ms=None), False),
    ],
)
def test_a_link_counts_as_the_limit_only_if_nothing_else_was(after: LinkCounts, limited: bool) -> None:
    sample = sample_between(IDLE, after, seconds=2.0, at_s=9.0)
    assert sample == LinkSample(9.0, after.rtt_ms, 200e6, limited)


def test_counts_of_two_transfers_or_of_nothing_are_no_sample() -> None:
    assert sample_between(BUSY, IDLE, seconds=2.0, at_s=9.0) is None
    silent = replace(BUSY, rtt_ms=None, lane_seconds=9.0)
    assert sample_between(BUSY, silent, seconds=2.0, at_s=9.0) is None
