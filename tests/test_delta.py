"""Patches between buffers and between files: exact results, proven bases, nothing half done."""

import doctest
import os
import signal
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwcp_fast import delta, errors, staging

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


def test_the_number_of_threads_changes_nothing() -> None:
    old, new = versions(3_000_000)
    patch = delta.encode(old, new, block_bytes=BLOCK)
    assert delta.encode(old, new, block_bytes=BLOCK, threads=3) == patch
    out = bytearray(len(new))
    for threads in (1, 3):
        assert delta.apply(patch, old, threads=threads) == new
        delta.apply_onto(patch, old, out, threads=threads)
        assert out == new
        out[:] = bytes(len(out))


def test_moved_content_is_found_unless_it_is_not_to_be() -> None:
    rng = np.random.default_rng(3)
    old = rng.bytes(500_000)
    new = old[:100_000] + b"put in" + old[100_000:]
    assert len(delta.encode(old, new, block_bytes=BLOCK)) < 2_000
    assert len(delta.encode(old, new, block_bytes=BLOCK, search=False)) > 300_000


def test_a_chain_is_taken_wherever_a_patch_is() -> None:
    steps = [b"version 1", b"the second version", b"a third", b"version 4"]
    chain = b"".join(delta.encode(old, new) for old, new in pairwise(steps))
    assert delta.apply(chain, steps[0]) == steps[-1]
    out = bytearray(9)
    delta.apply_onto(chain, steps[0], out)
    assert out == steps[-1]
    held = bytearray(steps[0])
    delta.apply_into(chain, held)
    assert held == steps[-1]
    told = delta.info(chain)
    assert (told.patches, told.base_bytes, told.target_bytes, told.blocks) == (3, 9, 9, 3)
    with pytest.raises(errors.BaseMismatchError):
        delta.apply(delta.encode(steps[0], steps[1]) + delta.encode(steps[2], steps[3]), steps[0])


def test_a_chain_that_breaks_at_a_version_it_also_ends_with_is_refused() -> None:
    old, other, new = b"version 1", b"version 2", b"version 3"
    broken = delta.encode(old, new) + delta.encode(other, new)
    out = bytearray(len(new))
    for apply in (lambda: delta.apply(broken, old), lambda: delta.apply_onto(broken, old, out)):
        with pytest.raises(errors.BaseMismatchError):
            apply()


@pytest.mark.parametrize("threads", [1, 3])
def test_applying_a_patch_again_changes_nothing(threads: int, tmp_path: Path) -> None:
    old, new = versions(3_000_000)
    patch = delta.encode(old, new, block_bytes=BLOCK)
    assert delta.apply(patch, new, threads=threads) == new
    out = bytearray(len(new))
    delta.apply_onto(patch, new, out, threads=threads)
    assert out == new
    with pytest.raises(errors.DeltaError, match="target buffer"):
        delta.apply_onto(patch, new, bytearray(len(new) + 1), threads=threads)
    held = bytearray(old)
    same_length = delta.encode(old, new[: len(old)], block_bytes=BLOCK)
    for _ in range(2):
        delta.apply_into(same_length, held, threads=threads)
        assert held == new[: len(old)]
    (tmp_path / "patch").write_bytes(patch)
    (tmp_path / "held").write_bytes(old)
    for _ in range(2):
        told = delta.apply_files(tmp_path / "patch", tmp_path / "held", tmp_path / "held", threads=threads)
        assert (tmp_path / "held").read_bytes() == new and told.target_bytes == len(new)


def test_a_chain_goes_on_from_any_of_its_versions() -> None:
    steps = [b"version 1", b"the second version", b"a third", b"version 4"]
    chain = b"".join(delta.encode(old, new) for old, new in pairwise(steps))
    for held in steps:
        assert delta.apply(chain, held) == steps[-1]
        out = bytearray(9)
        delta.apply_onto(chain, held, out)
        assert out == steps[-1]
    for length, held in ((9, steps[0]), (9, steps[3]), (18, steps[1])):
        buffer = bytearray(held)
        if length == 9:
            delta.apply_into(chain, buffer)
            assert buffer == steps[-1]
        else:
            with pytest.raises(errors.BaseMismatchError, match="18 bytes"):
                delta.apply_into(chain, buffer)
            assert buffer == held
    with pytest.raises(errors.BaseMismatchError):
        delta.apply(chain, b"version 5")


def test_apply_onto_refuses_a_buffer_of_another_length_or_shared_memory() -> None:
    patch = delta.encode(b"version 1", b"version 2")
    with pytest.raises(errors.DeltaError, match="10 bytes, expected 9"):
        delta.apply_onto(patch, b"version 1", bytearray(10))
    held = bytearray(b"version 1")
    with pytest.raises(ValueError, match="share memory"):
        delta.apply_onto(patch, held, held)


def test_encode_into_writes_what_encode_makes_to_the_start_of_the_buffer() -> None:
    old, new = versions()
    noise = np.random.default_rng(3).bytes(17 << 20)
    for before, after, dtype, threads in ((old, new, "fp32", 1), (old, new, None, 3), (new, noise, None, 2)):
        patch = delta.encode(before, after, dtype=dtype)
        out = bytearray(b"\xee") * (delta.max_patch_length(len(after)) + 9)
        length = delta.encode_into(before, after, out, dtype=dtype, threads=threads)
        assert length == len(patch) <= delta.max_patch_length(len(after))
        assert out[:length] == patch and set(out[length:]) <= {0xEE}
        exact = bytearray(length)
        assert delta.encode_into(before, after, exact, dtype=dtype) == length
        assert exact == patch
        with pytest.raises(errors.ConfigError, match=f"{length - 1} bytes is too small"):
            delta.encode_into(before, after, memoryview(exact)[1:], dtype=dtype)


def test_encode_into_refuses_memory_that_is_shared_or_read_only() -> None:
    held = bytearray(1000)
    for old, new in ((held, b"new"), (b"old", held)):
        with pytest.raises(ValueError, match="share memory"):
            delta.encode_into(old, new, held)
    with pytest.raises(BufferError, match="read-only"):
        delta.encode_into(b"old", b"new", bytes(1000))


def test_the_longest_patch_is_bounded_and_no_other_length_asked_for() -> None:
    assert delta.max_patch_length(1 << 20) == (1 << 20) + 480
    with pytest.raises(errors.ConfigError, match="-1"):
        delta.max_patch_length(-1)


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
        except (errors.FormatError, errors.DeltaError, errors.LimitExceededError):
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
    kinds = [count for name, count in told.to_dict().items() if name.startswith("blocks_")]
    assert sum(kinds) == told.blocks == -(-len(new) // BLOCK)
    assert (told.base_bytes, told.target_bytes) == (len(old), len(new))
    assert (told.patches, told.patch_bytes) == (1, len(patch))
    assert told.blocks_fill > 0 and told.blocks_sparse > 0
    assert told.to_dict()["block_bytes"] == BLOCK


@pytest.mark.parametrize(
    ("option", "value"),
    [("dtype", "complex"), ("codec", "brotli"), ("block_bytes", 100_000), ("threads", 0), ("threads", 1000)],
)
def test_an_option_that_cannot_be_used_is_named(option: str, value: object) -> None:
    with pytest.raises(errors.ConfigError, match=str(value)):
        delta.encode(b"old", b"new", **{option: value})  # type: ignore[arg-type]
    with pytest.raises(errors.ConfigError, match=str(value)):
        delta.encode_into(b"old", b"new", bytearray(200), **{option: value})  # type: ignore[arg-type]


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


def test_a_file_is_changed_in_place_and_again_without_harm(tmp_path: Path) -> None:
    old, new = versions(3_000_000)
    held = tmp_path / "held"
    held.write_bytes(old)
    (tmp_path / "patch").write_bytes(delta.encode(old, new))
    number = held.stat().st_ino
    for _ in range(2):
        told = delta.apply_files(tmp_path / "patch", held, in_place=True)
        assert (held.read_bytes(), held.stat().st_ino) == (new, number)
        assert told.target_bytes == len(new)
    assert delta.recover(held) == "nothing"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["held", "patch"]
    held.write_bytes(new + b"!")
    with pytest.raises(errors.BaseMismatchError):
        delta.apply_files(tmp_path / "patch", held, in_place=True)
    with pytest.raises(errors.ConfigError, match="in place"):
        delta.apply_files(tmp_path / "patch", held, held, in_place=True)
    with pytest.raises(errors.ConfigError, match="missing"):
        delta.apply_files(tmp_path / "patch", held)


def test_a_file_with_a_journal_is_not_used_before_it_is_recovered(tmp_path: Path) -> None:
    old, new = versions()
    held = tmp_path / "held"
    held.write_bytes(old)
    (tmp_path / "new").write_bytes(new)
    (tmp_path / ".held.dwcp-journal").write_bytes(b"cut off")
    with pytest.raises(errors.DeltaError, match="journal") as caught:
        delta.diff_files(held, tmp_path / "new", tmp_path / "patch")
    assert caught.value.hint is not None and "recover" in caught.value.hint
    assert delta.recover(held) == "discarded"
    delta.diff_files(held, tmp_path / "new", tmp_path / "patch")
    assert held.read_bytes() == old


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


def test_the_name_of_a_new_file_is_on_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(staging, "sync_directory", synced.append)
    for name in ("old", "new"):
        (tmp_path / name).write_bytes(name.encode())
    delta.diff_files(tmp_path / "old", tmp_path / "new", tmp_path / "patch")
    delta.apply_files(tmp_path / "patch", tmp_path / "old", tmp_path / "made")
    assert synced == [tmp_path, tmp_path]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        delta.diff_files(tmp_path / "nowhere", tmp_path / "nowhere", tmp_path / "patch")
    assert caught.value.filename == str(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_a_snapshot_makes_the_patches_that_encode_makes() -> None:
    old, new = versions(3_000_000)
    sender = delta.Snapshot(old, dtype="fp32", block_bytes=BLOCK)
    receiver = delta.Snapshot(old, block_bytes=BLOCK)
    patch = sender.advance(new, threads=2)
    assert patch == delta.encode(old, new, dtype="fp32", block_bytes=BLOCK)
    receiver.apply(patch)
    assert receiver.view() == sender.view() == new
    assert receiver.digest == sender.digest == delta.info(patch).target_digest
    assert sender.size == len(new)
    receiver.apply(patch)
    assert receiver.view() == new
    with pytest.raises(errors.BaseMismatchError):
        receiver.apply(delta.encode(old, old[:-1] + b"?", block_bytes=BLOCK))
    assert receiver.view() == new


def test_a_view_of_a_snapshot_follows_it_and_holds_its_length() -> None:
    held = delta.Snapshot(b"version 1")
    view = held.view()
    assert view.readonly
    held.advance(b"version 2")
    assert bytes(view) == b"version 2"
    with pytest.raises(BufferError, match="10"):
        held.advance(b"version 10")
    with pytest.raises(BufferError):
        held.apply(delta.encode(b"version 2", b"version 10"))
    view.release()
    held.advance(b"version 10")
    assert bytes(held.view()) == b"version 10"


def test_an_interrupt_ends_long_work() -> None:
    text = b"".join(b"%d bottles of %d kinds " % (number, number * number) for number in range(3_000_000))
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        delta.encode(b"", text, codec="zstd:19", search=False)
    timer.join()


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 49_999), max_size=300), st.booleans(), st.sampled_from([np.uint32, np.int64]))
def test_changes_told_by_mask_or_index_are_those_of_the_whole(
    changed: set[int], backwards: bool, kind: type[np.integer[Any]]
) -> None:
    old = np.random.default_rng(1).integers(0, 1 << 16, 50_000, dtype=np.uint16)
    index = np.array(sorted(changed, reverse=backwards), dtype=kind)
    new, mask = old.copy(), np.zeros(old.size, dtype=bool)
    new[index] += 7
    mask[index] = True
    whole = delta.Snapshot(old, dtype="uint16", block_bytes=BLOCK).advance(new)
    # What the mask does not name is not looked at.
    noise = np.where(mask, new, 9)
    for packed in (False, True):
        held = delta.Snapshot(old, dtype="uint16", block_bytes=BLOCK)
        bits = np.packbits(mask, bitorder="little") if packed else mask
        assert held.advance_masked(noise.astype(np.uint16), bits, packed=packed) == whole
    held = delta.Snapshot(old, dtype="uint16", block_bytes=BLOCK)
    assert held.advance_sparse(index, new[index]) == whole
    assert held.view() == new.tobytes()


def test_an_index_that_is_wrong_is_refused_and_changes_nothing() -> None:
    held = delta.Snapshot(bytes(16), dtype="fp32")
    values = np.ones(2, dtype=np.float32)
    for index, told in (([1, 1], "more than once"), ([0, 4], "beyond"), ([0, -1], "beyond")):
        with pytest.raises(errors.DeltaError, match=told):
            held.advance_sparse(np.array(index), values)
    with pytest.raises(errors.DeltaError, match="index"):
        held.advance_sparse(np.array([0, 1, 2]), values)
    with pytest.raises(errors.DeltaError, match="mask"):
        held.advance_masked(bytes(16), bytes(5))
    assert held.view() == bytes(16)


def test_the_examples_in_the_documentation_hold() -> None:
    outcome = doctest.testmod(delta)
    assert outcome.attempted >= 6 and outcome.failed == 0
