"""Pages in one call: they come back to their places, and a wrong number writes nothing."""

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dwcp_fast as dwcp
from dwcp_fast import errors, pages

MEMORY = np.random.default_rng(3).integers(0, 40, 64 * 4096 + 100, dtype=np.uint8)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 63), max_size=80),
    st.sampled_from(["auto", "none", "lz4", "zstd:1"]),
    st.booleans(),
)
def test_pages_come_back_to_their_places(numbers: list[int], codec: str, checksum: bool) -> None:
    wanted = np.array(numbers, dtype=np.uint64)
    packed = dwcp.compress_pages(MEMORY, wanted, codec=codec, checksum=checksum)
    expected = np.zeros_like(MEMORY)
    for number in numbers:
        expected[number * 4096 :][:4096] = MEMORY[number * 4096 :][:4096]
    held = np.zeros_like(MEMORY)
    dwcp.decompress_pages_into(packed, held, wanted)
    assert np.array_equal(held, expected)
    assert dwcp.decompress(packed) == b"".join(MEMORY[n * 4096 :][:4096].tobytes() for n in numbers)


def test_wrong_numbers_are_refused_and_nothing_is_written() -> None:
    good = np.array([1, 2], dtype=np.int64)
    packed = dwcp.compress_pages(MEMORY, good)
    held = np.zeros_like(MEMORY)
    for wrong in ([1, 64], [1, -1]):
        numbers = np.array(wrong, dtype=np.int64)
        with pytest.raises(errors.ConfigError, match="there is no page"):
            dwcp.compress_pages(MEMORY, numbers)
        with pytest.raises(errors.ConfigError, match="there is no page"):
            dwcp.decompress_pages_into(packed, held, numbers)
    with pytest.raises(errors.ConfigError, match="items of 4 bytes"):
        dwcp.compress_pages(MEMORY, good.astype(np.int32))
    with pytest.raises(errors.ConfigError, match="page_bytes is 0"):
        dwcp.compress_pages(MEMORY, good, page_bytes=0)
    with pytest.raises(errors.FormatError):
        dwcp.decompress_pages_into(packed, held, good[:1])
    assert not held.any()


def test_damaged_pages_are_refused_and_nothing_is_written() -> None:
    numbers = np.arange(60, dtype=np.uint64)
    packed = bytearray(dwcp.compress_pages(MEMORY, numbers, codec="zstd:1", checksum=True))
    packed[len(packed) // 2] ^= 1
    held = np.zeros_like(MEMORY)
    with pytest.raises(errors.FormatError):
        dwcp.decompress_pages_into(packed, held, numbers)
    assert not held.any()


def test_more_than_the_limit_is_refused_before_memory_is_taken() -> None:
    many = np.zeros(pages.MAX_BATCH_BYTES // 4096 + 1, dtype=np.uint64)
    with pytest.raises(errors.LimitExceededError, match="over the limit of 67108864"):
        dwcp.compress_pages(MEMORY, many)


def test_examples_of_the_module_hold() -> None:
    assert doctest.testmod(pages).failed == 0
