"""Decisions and their reasons."""

import pytest

from dwcp_fast.errors import NegotiationError
from dwcp_fast.policy.blocks import BLOCK_BYTES, choose_block_bytes
from dwcp_fast.policy.codec import choose_codec
from dwcp_fast.policy.engine import choose_engine
from dwcp_fast.policy.lanes import LaneChange, choose_congestion, choose_lanes, explain_lanes, lane_range
from dwcp_fast.policy.rollout import RolloutFlags
from dwcp_fast.policy.selection import ActionShare, Selection

ALL = RolloutFlags(enableV3Transport=True, v3RolloutPercentage=100)
NONE = RolloutFlags(enableV3Transport=True, v3RolloutPercentage=0)
OFF = RolloutFlags(v3RolloutPercentage=100)
KILLED = RolloutFlags(enableV3Transport=True, v3RolloutPercentage=100, forceV1Mode=True)


def test_what_was_asked_for_is_chosen() -> None:
    assert choose_codec("lz4").value == "lz4"
    assert choose_lanes(7).value == 7
    assert {choose_codec("lz4").why, choose_lanes(7).why} == {"asked for"}


def test_the_number_of_lanes_is_chosen_by_rule() -> None:
    assert choose_lanes(None).value == 4
    assert lane_range(7) is None and choose_lanes(7, polite=True).value == 7
    fewest, first, most = lane_range(None) or (0, 0, 0)
    assert 1 <= fewest <= first <= most <= 64
    assert (lane_range(None, polite=True) or (9, 9, 9)) < (fewest, first, most)


def test_blocks_are_shorter_where_the_end_would_be_waited_for() -> None:
    assert choose_block_bytes(65_536, far=True, total_bytes=1).value == 65_536
    assert choose_block_bytes(None, far=False, total_bytes=1 << 20).value == BLOCK_BYTES
    assert choose_block_bytes(None, far=True, total_bytes=1 << 29).value < BLOCK_BYTES
    assert choose_block_bytes(None, far=True, total_bytes=1 << 40).value == BLOCK_BYTES
    fewest_bytes = choose_block_bytes(None, far=True, total_bytes=1 << 21).value
    assert fewest_bytes == BLOCK_BYTES, "each block may have a lane of its own"


def test_the_polite_ask_for_no_congestion_control_that_does_not_give_way() -> None:
    assert choose_congestion("auto") == "auto"
    assert choose_congestion("auto", polite=True) == "yielding"
    assert choose_congestion("bbr", polite=True) == "bbr"


def test_what_was_found_of_the_lanes_is_told_with_its_reasons() -> None:
    assert explain_lanes(()) is None
    changes = (
        LaneChange(0.0, 8, 0.0, "to begin with"),
        LaneChange(1.25, 16, 2.5e6, "the link had room"),
        LaneChange(2.5, 8, 2.5e6, "the link was full"),
    )
    told = explain_lanes(changes)
    assert told is not None and (told.name, told.value) == ("streams", 8)
    assert told.why == (
        "8 to begin with, 16 after 1.2 s since the link had room at 20 Mbps, "
        "8 after 2.5 s since the link was full at 20 Mbps"
    )


def test_auto_tells_what_it_chose_and_which_measurements_led_to_it() -> None:
    assert choose_codec("auto").value == "auto"
    selection = Selection(
        has_model=True,
        actions=(ActionShare("none", 1, 1_000, 1_000, 0.0), ActionShare("zstd:3", 3, 3_000, 900, 0.1)),
        reasons={"start": 1, "model": 3},
        price=0.25,
        link_bytes_per_s=25e6,
        link_was_limit=True,
        known_bytes_per_s=20e6,
        processors=1.5,
        blocked_share=0.4,
        trials=2,
        guard_trips=1,
    )
    choice = choose_codec("auto", selection=selection)
    assert choice.value == "auto"
    link = "200 Mbps (by an earlier session 160)"
    for part in ("zstd:3 75%, none 25%", link, "40%", "1.5 processors", "0.25", "75% by the model"):
        assert part in choice.why
    assert choose_codec("lz4", selection=selection).why == "asked for"


@pytest.mark.parametrize(
    ("requested", "forced", "flags", "expected"),
    [
        ("auto", False, None, "v3"),
        ("auto", True, None, "v1"),
        ("auto", False, ALL, "v3"),
        ("auto", False, NONE, "v1"),
        ("auto", False, OFF, "v1"),
        ("auto", False, KILLED, "v1"),
        ("auto", True, ALL, "v1"),
        ("v1", False, ALL, "v1"),
        ("v3", False, NONE, "v3"),
    ],
)
def test_the_engine_follows_switch_flags_and_request(
    requested: str, forced: bool, flags: RolloutFlags | None, expected: str
) -> None:
    choice = choose_engine(requested, forced_v1=forced, flags=flags, node="node-1")  # type: ignore[arg-type]
    assert choice.value == expected and choice.why


@pytest.mark.parametrize(("forced", "flags"), [(True, None), (False, KILLED)])
def test_a_kill_switch_is_not_overruled_by_asking_for_v3(forced: bool, flags: RolloutFlags | None) -> None:
    with pytest.raises(NegotiationError, match=r"force"):
        choose_engine("v3", forced_v1=forced, flags=flags, node="node-1")
