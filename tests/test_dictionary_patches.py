"""Patches with a dictionary: smaller, applied in every way with the one they name, and with no other."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import dwcp_fast as dwcp
from dwcp_fast import delta, errors
from dwcp_fast.cli.program import run
from messages import MESSAGES

OLD = b"something else, as long as it takes"
NEW = b"\n".join(MESSAGES[500:503])


def applied_onto(patch: bytes, old: bytes, dictionary: dwcp.Dictionary | None) -> bytes:
    out = bytearray(delta.info(patch).target_bytes)
    delta.apply_onto(patch, old, out, dictionary=dictionary)
    return bytes(out)


def applied_into(patch: bytes, old: bytes, dictionary: dwcp.Dictionary | None) -> bytes:
    held = bytearray(old)
    try:
        delta.apply_into(patch, held, dictionary=dictionary)
    except errors.DwcpError:
        assert held == old
        raise
    return bytes(held)


def applied_new(patch: bytes, old: bytes, dictionary: dwcp.Dictionary | None) -> bytes:
    return delta.apply(patch, old, dictionary=dictionary)


@pytest.mark.parametrize("apply", [applied_new, applied_onto, applied_into])
def test_a_patch_is_applied_with_the_dictionary_that_it_names_only(
    common: dwcp.Dictionary, apply: Callable[[bytes, bytes, dwcp.Dictionary | None], bytes]
) -> None:
    old = OLD.ljust(len(NEW)) if apply is applied_into else OLD
    patch = delta.encode(old, NEW, dictionary=common)
    assert len(patch) + 40 < len(delta.encode(old, NEW))
    assert delta.info(patch).dictionary == common.digest
    assert apply(patch, old, common) == NEW
    with pytest.raises(errors.BaseMismatchError, match=f"needs dictionary {common.digest}$"):
        apply(patch, old, None)
    other = dwcp.Dictionary(b"another")
    with pytest.raises(errors.BaseMismatchError, match=f"{common.digest}, not {other.digest}"):
        apply(patch, old, other)


def test_a_chain_needs_the_dictionary_of_each_of_its_patches(common: dwcp.Dictionary) -> None:
    chain = delta.encode(b"", OLD) + delta.encode(OLD, NEW, dictionary=common)
    assert delta.apply(chain, b"", dictionary=common) == NEW
    other = dwcp.Dictionary(MESSAGES[0])
    chain += delta.encode(NEW, MESSAGES[0] + b"!", dictionary=other)
    with pytest.raises(errors.BaseMismatchError, match=other.digest):
        delta.apply(chain, b"", dictionary=common)


def test_files_are_patched_with_a_dictionary_on_the_command_line(
    common: dwcp.Dictionary,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old").write_bytes(OLD)
    Path("new").write_bytes(NEW)
    Path("common.dict").write_bytes(common.to_bytes())
    assert run(["delta", "diff", "old", "new", "-o", "patch", "--dict", "common.dict", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dictionary"] == common.digest
    assert (
        run(["delta", "apply", "patch", "--base", "old", "-o", "made"]) == errors.BaseMismatchError.exit_code
    )
    assert common.digest in capsys.readouterr().err
    assert run(["delta", "apply", "patch", "--base", "old", "-o", "made", "--dict", "common.dict"]) == 0
    assert run(["delta", "apply", "patch", "--base", "old", "--in-place", "--dict", "common.dict"]) == 0
    assert Path("made").read_bytes() == Path("old").read_bytes() == NEW
