"""Rollout flags: strict reading, merging, and the kill switch."""

import json

import pytest

from dwcp_fast.errors import ConfigError
from dwcp_fast.policy.rollout import (
    RolloutFlags,
    disable_all,
    enable_all,
    format_flags,
    merge_flags,
    parse_flags,
    uses_v3,
)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"v3RolloutPercentage": 101}', "v3RolloutPercentage"),
        ('{"v3RolloutPercentage": -1}', "v3RolloutPercentage"),
        ('{"v3RolloutPercentage": 10.0}', "v3RolloutPercentage"),
        ('{"v3RolloutPercentage": true}', "v3RolloutPercentage"),
        ('{"v3RolloutPercentage": null}', "v3RolloutPercentage"),
        ('{"forceV1Mode": 1}', "forceV1Mode"),
        ('{"forceV1Mode": "true"}', "forceV1Mode"),
        ('{"forceV1mode": true}', "forceV1mode"),
        ('{"forceV1Mode": true, "forceV1Mode": false}', "forceV1Mode"),
        ("[]", "object"),
        ("{", "JSON"),
        (b"\xff", "JSON"),
        ("[" * 100_000, "JSON"),
        ('{"v3RolloutPercentage": ' + "1" * 5_000 + "}", "JSON"),
    ],
)
def test_a_flag_file_that_is_not_exact_is_refused_by_name(text: str | bytes, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse_flags(text)


def test_names_a_file_leaves_out_take_their_defaults() -> None:
    assert parse_flags("{}") == RolloutFlags()
    assert parse_flags('{"enableHybridMode": false}') == RolloutFlags(enableHybridMode=False)


def test_a_partial_change_keeps_every_other_flag() -> None:
    flags = enable_all(RolloutFlags(), 25)
    changed = merge_flags(flags, {"enableV3Consensus": False})
    before, after = json.loads(format_flags(flags)), json.loads(format_flags(changed))
    assert after.pop("enableV3Consensus") is False
    assert before.pop("enableV3Consensus") is True
    assert before == after


def test_the_kill_switch_wins_over_every_percentage() -> None:
    flags = merge_flags(enable_all(RolloutFlags(), 100), {"forceV1Mode": True})
    assert not any(uses_v3(flags, f"node-{index}") for index in range(500))
    assert uses_v3(enable_all(disable_all(flags), 100), "node-1")


def test_a_larger_share_keeps_every_node_that_had_v3() -> None:
    nodes = [f"node-{index}" for index in range(2000)]
    chosen: set[str] = set()
    for percentage in (0, 1, 10, 50, 99, 100):
        now = {node for node in nodes if uses_v3(enable_all(RolloutFlags(), percentage), node)}
        assert chosen <= now
        assert abs(len(now) / len(nodes) * 100 - percentage) < 5
        chosen = now
