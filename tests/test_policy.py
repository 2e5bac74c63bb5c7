"""Decisions and their reasons."""

import pytest

from dwcp_fast.errors import NegotiationError
from dwcp_fast.policy.codec import RAW_ABOVE_MBPS, choose_codec
from dwcp_fast.policy.engine import choose_engine
from dwcp_fast.policy.lanes import choose_lanes
from dwcp_fast.policy.rollout import RolloutFlags

ALL = RolloutFlags(enableV3Transport=True, v3RolloutPercentage=100)
NONE = RolloutFlags(enableV3Transport=True, v3RolloutPercentage=0)
OFF = RolloutFlags(v3RolloutPercentage=100)
KILLED = RolloutFlags(enableV3Transport=True, v3RolloutPercentage=100, forceV1Mode=True)


def test_what_was_asked_for_is_chosen() -> None:
    assert choose_codec("lz4").value == "lz4"
    assert choose_lanes(7).value == 7
    assert {choose_codec("lz4").why, choose_lanes(7).why} == {"asked for"}


def test_auto_is_always_resolved() -> None:
    assert choose_codec("auto").value == "zstd:1"
    assert choose_codec("auto", link_mbps=100).value == "zstd:1"
    assert choose_codec("auto", link_mbps=RAW_ABOVE_MBPS).value == "none"
    assert choose_lanes(None).value == 4


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
