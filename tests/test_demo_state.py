"""The demo's changing state: repeatable by seed, and its stated facts are those of its bytes."""

from collections.abc import Callable

import numpy as np
import pytest
import zstandard

from dwcp_fast.demo.state import (
    ChangingState,
    build_bf16_weights,
    build_disk_image,
    build_memory_image,
    measure_facts,
)

SIZE = 2 * 1024 * 1024
Builder = Callable[[int, int], ChangingState]
BUILDERS = [build_memory_image, build_bf16_weights, build_disk_image]


@pytest.mark.parametrize("build", BUILDERS)
def test_a_seed_gives_the_same_state_and_another_seed_another(build: Builder) -> None:
    assert build(5, SIZE) == build(5, SIZE)
    assert build(5, SIZE).version_0 != build(6, SIZE).version_0


@pytest.mark.parametrize("build", BUILDERS)
def test_a_change_is_small_but_there(build: Builder) -> None:
    state = build(5, SIZE)
    facts = measure_facts(state)
    assert abs(facts.bytes_0 - SIZE) <= 4096
    assert 0.0005 < facts.changed_byte_share < 0.05


@pytest.mark.parametrize("build", BUILDERS)
def test_facts_equal_what_a_plain_count_over_the_bytes_gives(build: Builder) -> None:
    state = build(5, SIZE // 8)
    old, new = state.version_0, state.version_1
    differs = [at >= len(old) or old[at] != new[at] for at in range(len(new))]
    facts = measure_facts(state)
    assert facts.changed_byte_share == sum(differs) / len(new)
    pages = [any(differs[at : at + 4096]) for at in range(0, len(new), 4096)]
    assert facts.changed_page_share == sum(pages) / len(pages)
    pairs = [any(differs[at : at + 2]) for at in range(0, len(new), 2)]
    assert facts.changed_pair_share == sum(pairs) / len(pairs)
    assert facts.zero_share == old.count(0) / len(old)
    assert facts.zstd1_ratio_0 == len(old) / len(zstandard.compress(old, 1))


def test_bytes_beyond_the_old_end_count_as_changed() -> None:
    facts = measure_facts(ChangingState("x", "", b"abcd", b"abcdef"))
    assert facts.changed_byte_share == 2 / 6


def test_one_step_changes_between_one_and_two_percent_of_the_weights() -> None:
    state = build_bf16_weights(5, SIZE)
    facts = measure_facts(state)
    assert 0.01 < facts.changed_pair_share < 0.02
    values = np.frombuffer(state.version_0, "<u2").astype("<u4") << 16
    assert values.view("<f4").std() == pytest.approx(0.02, rel=0.02)
