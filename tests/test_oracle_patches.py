"""The plain decoder written from docs/format-files.md agrees with the golden patches of the Rust core."""

from functools import partial
from pathlib import Path

import pytest
from zstandard import ZstdError

from dwcp_fast import delta, errors
from dwcp_fast.dictionary import Dictionary
from oracle import blocks, patch
from oracle.wire import WireError

DICTIONARY = b"lane block frame entry digest base of the lane of the block "
GOLDEN = Path(__file__).with_name("golden") / "patches"
STEPS = {
    "full": None,
    "full-lz4": None,
    "full-dictionary": None,
    "step-typed": "full",
    "step": "full",
    "moved": "step",
    "shrunk": "moved",
    "shifted": "full",
}
"""Every golden patch, and the one that makes its base."""


def read(name: str) -> bytes:
    return (GOLDEN / name).with_suffix(".dwcd").read_bytes()


def made_by(name: str | None) -> bytes:
    """Apply a golden patch, and those before it."""
    if name is None:
        return b""
    parsed, rest = patch.parse(read(name))
    assert rest == b""
    return patch.apply(parsed, made_by(STEPS[name]), DICTIONARY)


@pytest.mark.parametrize("name", STEPS)
def test_both_decoders_make_the_same_of_a_golden_patch(name: str) -> None:
    known = Dictionary(DICTIONARY)
    assert delta.apply(read(name), made_by(STEPS[name]), dictionary=known) == made_by(name)


def test_golden_patches_hold_every_kind_of_block_and_both_forms_of_positions() -> None:
    entries = [entry for name in STEPS for entry in patch.parse(read(name))[0].entries]
    assert {entry.kind for entry in entries} == {0, 1, 2, 3, 4, 5, 16, 17, 18}
    assert {entry.codec for entry in entries} == {0, 1, 2, 3}
    assert {entry.payload[0] >> 2 for entry in entries if entry.kind == 4} == {0, 1}


def test_a_golden_patch_tells_runs_by_what_stood_there() -> None:
    (entry,) = [entry for entry in patch.parse(read("shifted"))[0].entries if entry.kind == 5]
    base = made_by("full")[5 << 16 : 6 << 16]
    told = partial(blocks.decode, entry.kind, entry.codec, entry.payload, size=1 << 16)
    assert told(base=base) == made_by("shifted")[5 << 16 : 6 << 16]
    # 4000 bytes differ, most of which are told by others that are there already.
    assert len(told(base=bytes(1 << 16)).replace(b"\0", b"")) < 2_000


def test_a_patch_made_with_a_dictionary_is_applied_with_no_other() -> None:
    made = read("full-dictionary")
    needed = Dictionary(DICTIONARY).digest
    assert delta.info(made).dictionary == needed == patch.parse(made)[0].dictionary.hex()
    assert delta.info(read("full")).dictionary is None
    for other in (None, Dictionary(b"another")):
        with pytest.raises(errors.BaseMismatchError, match=needed):
            delta.apply(made, b"", dictionary=other)
    with pytest.raises(WireError, match="dictionary"):
        patch.apply(patch.parse(made)[0], b"", b"another")


def test_golden_patches_are_a_chain() -> None:
    rest = read("full") + read("step") + read("moved")
    made = b""
    while rest:
        parsed, rest = patch.parse(rest)
        made = patch.apply(parsed, made)
    assert made == delta.apply(read("full") + read("step") + read("moved"), b"")


def test_new_patches_are_read_by_both_decoders() -> None:
    old = made_by("moved")
    new = old[70_000:200_000] + b"between" + old[:300_000]
    for dtype in (None, "bf16", "int64"):
        made = delta.encode(old, new, dtype=dtype, block_bytes=1 << 16)
        parsed, rest = patch.parse(made)
        assert (patch.apply(parsed, old), rest) == (new, b"")


def test_a_damaged_golden_patch_is_refused_or_harmless_in_both_decoders() -> None:
    good, base, target = read("moved"), made_by("step"), made_by("moved")
    refused = 0
    for at in range(0, len(good), 97):
        damaged = bytearray(good)
        damaged[at] ^= 0x40
        try:
            assert patch.apply(patch.parse(bytes(damaged))[0], base) == target
        except (WireError, ZstdError):
            refused += 1
        try:
            assert delta.apply(damaged, base) == target
        except (errors.FormatError, errors.DeltaError, errors.LimitExceededError):
            refused += 1
    assert refused > len(good) // 97
