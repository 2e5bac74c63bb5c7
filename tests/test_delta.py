"""Patches between buffers and between files: exact results, proven bases, nothing half done."""

import doctest
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp_fast import delta, errors

BLOCK = 64 << 10


def versions(length: int = 400_000) -> tuple[bytes, bytes]:
    """Two versions that differ in some elements, one run of zero bytes and the tail."""
    rng = np.random.default_rng(7)
    old = rng.normal(0, 0.02, length // 4).astype(np.float32)
    new = old.copy()
    new[rng.integers(0, new.size, 500)] += 1e-4
    new[20_000:60_000] = 0
    return old.tobytes(), new.tobytes() + b"tail"


@pytest.mark.parametrize("dtype", [None, "int8", "bf16", "fp32", "int64"])
@pytest.mark.parametrize("codec", ["zstd:1", "lz4", "none"])
def test_a_patch_makes_exactly_the_new_version(dtype: str | None, codec: str) -> None:
    old, new = versions()
    patch = delta.encode(old, new, dtype=dtype, codec=codec, block_bytes=BLOCK)
    assert delta.apply(patch, old) == new


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.binary(max_size=400))
def test_any_two_versions_have_a_patch(old: bytes, new: bytes) -> None:
    assert delta.apply(delta.encode(old, new), old) == new


def test_what_did_not_change_costs_nearly_nothing() -> None:
    old, _ = versions()
    patch = delta.encode(old, old[:-1] + b"!", block_bytes=BLOCK)
    assert len(patch) < 1000


def test_apply_into_changes_the_buffer_in_place() -> None:
    old, new = versions()
    held = np.frombuffer(old, dtype=np.float32).copy()
    delta.apply_into(delta.encode(old, new[: len(old)], dtype="fp32"), held)
    assert held.tobytes() == new[: len(old)]


def test_another_base_is_refused_and_left_as_it_was() -> None:
    old, new = versions()
    patch = delta.encode(old, new[: len(old)])
    other = bytearray(old)
    other[123] ^= 1
    before = bytes(other)
    with pytest.raises(errors.BaseMismatchError) as caught:
        delta.apply_into(patch, other)
    assert bytes(other) == before
    assert (caught.value.code, caught.value.exit_code) == ("base-mismatch", 6)
    with pytest.raises(errors.BaseMismatchError):
        delta.apply(patch, before)


def test_a_patch_that_changes_the_length_is_not_applied_in_place() -> None:
    held = bytearray(b"version 1")
    with pytest.raises(errors.DeltaError, match="9 to 10 bytes"):
        delta.apply_into(delta.encode(b"version 1", b"version 10"), held)
    assert held == b"version 1"


def test_a_damaged_patch_is_refused_or_harmless_wherever_the_damage_is() -> None:
    old, new = versions(8000)
    patch = delta.encode(old, new)
    for position in range(len(patch)):
        damaged = bytearray(patch)
        damaged[position] ^= 0x10
        try:
            assert delta.apply(damaged, old) == new
        except (errors.FormatError, errors.DeltaError):
            continue


def test_a_truncated_patch_is_refused_at_every_length() -> None:
    old, new = versions(8000)
    patch = delta.encode(old, new)
    for length in range(len(patch)):
        with pytest.raises(errors.FormatError):
            delta.info(patch[:length])


def test_a_huge_target_is_not_allocated_for_a_wrong_base() -> None:
    patch = delta.encode(b"small", b"x" * 10_000_000)
    with pytest.raises(errors.BaseMismatchError):
        delta.apply(patch, b"other")


def test_info_counts_every_block_once() -> None:
    old, new = versions()
    patch = delta.encode(old, new, dtype="fp32", block_bytes=BLOCK)
    told = delta.info(patch)
    kinds = told.blocks_same + told.blocks_fill + told.blocks_xor + told.blocks_plain
    assert kinds == told.blocks == -(-len(new) // BLOCK)
    assert (told.base_bytes, told.target_bytes) == (len(old), len(new))
    assert (told.element_bytes, told.patch_bytes) == (4, len(patch))
    assert told.blocks_fill > 0 and told.blocks_xor > 0
    assert told.to_dict()["block_bytes"] == BLOCK


@pytest.mark.parametrize(
    ("option", "value"), [("dtype", "complex"), ("codec", "brotli"), ("block_bytes", 100_000)]
)
def test_an_option_that_cannot_be_used_is_named(option: str, value: object) -> None:
    with pytest.raises(errors.ConfigError, match=str(value)):
        delta.encode(b"old", b"new", **{option: value})  # type: ignore[arg-type]


def test_files_are_patched_as_buffers_are(tmp_path: Path) -> None:
    old, new = versions(3_000_000)
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "new").write_bytes(new)
    told = delta.diff_files(tmp_path / "old", tmp_path / "new", tmp_path / "patch", dtype="fp32")
    assert (tmp_path / "patch").read_bytes() == delta.encode(old, new, dtype="fp32")
    assert told.patch_bytes == (tmp_path / "patch").stat().st_size
    assert delta.apply_files(tmp_path / "patch", tmp_path / "old", tmp_path / "made") == told
    assert (tmp_path / "made").read_bytes() == new
    (tmp_path / "old").chmod(0o640)
    delta.apply_files(tmp_path / "patch", tmp_path / "old", tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == new
    assert (tmp_path / "old").stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "new", "old", "patch"]


def test_empty_files_are_patched_too(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "full").write_bytes(b"state")
    for old, new in (("empty", "full"), ("full", "empty"), ("empty", "empty")):
        delta.diff_files(tmp_path / old, tmp_path / new, tmp_path / "patch")
        delta.apply_files(tmp_path / "patch", tmp_path / old, tmp_path / "made")
        assert (tmp_path / "made").read_bytes() == (tmp_path / new).read_bytes()


def test_a_failed_apply_leaves_the_target_as_it_was(tmp_path: Path) -> None:
    old, new = versions()
    for name, content in (
        ("patch", delta.encode(old, new)),
        ("other", old[:-1] + b"?"),
        ("target", b"precious"),
    ):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(errors.BaseMismatchError):
        delta.apply_files(tmp_path / "patch", tmp_path / "other", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "patch", "target"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        delta.diff_files(tmp_path / "nowhere", tmp_path / "nowhere", tmp_path / "patch")
    assert caught.value.filename == str(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_the_examples_in_the_documentation_hold() -> None:
    outcome = doctest.testmod(delta)
    assert outcome.attempted >= 6 and outcome.failed == 0
