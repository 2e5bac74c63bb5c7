"""Dictionaries: what they save, that the right one is always asked for, and training on the command line."""

import doctest
import json
import pickle
from pathlib import Path

import pytest
from click.testing import CliRunner

import dwcp_fast as dwcp
from dwcp_fast import dictionary, errors
from dwcp_fast.cli.program import program
from messages import MESSAGES


@pytest.mark.parametrize("codec", ["auto", "zstd", "zstd:19", "zstd:-3"])
@pytest.mark.parametrize("checksum", [False, True])
def test_unseen_messages_shrink_and_come_back(common: dwcp.Dictionary, codec: str, checksum: bool) -> None:
    with_it = without = 0
    for message in MESSAGES[500:]:
        packed = dwcp.compress(message, codec, checksum=checksum, dictionary=common)
        assert dwcp.decompress(packed, dictionary=common) == message
        out = bytearray(len(message))
        assert dwcp.decompress_into(packed, out, dictionary=common) == len(message)
        assert out == message
        room = bytearray(dwcp.max_compressed_length(len(message)))
        length = dwcp.compress_into(message, room, codec, checksum=checksum, dictionary=common)
        assert room[:length] == packed
        with_it += len(packed)
        without += len(dwcp.compress(message, codec, checksum=checksum))
    assert with_it < 0.8 * without


def test_only_the_dictionary_it_was_made_with_is_taken(common: dwcp.Dictionary) -> None:
    packed = dwcp.compress(MESSAGES[0], "zstd", dictionary=common)
    other = dwcp.Dictionary(b"another dictionary, of content alone")
    assert dwcp.needed_dictionary(packed) == common.digest
    assert dwcp.needed_dictionary(dwcp.compress(MESSAGES[0])) is None
    with pytest.raises(errors.BaseMismatchError, match=common.digest):
        dwcp.decompress(packed)
    with pytest.raises(errors.BaseMismatchError, match=f"{common.digest}, not {other.digest}"):
        dwcp.decompress(packed, dictionary=other)
    with pytest.raises(errors.ConfigError, match="lz4 takes no dictionary"):
        dwcp.compress(MESSAGES[0], "lz4", dictionary=common)


def test_dictionary_is_its_bytes(common: dwcp.Dictionary) -> None:
    again = dwcp.Dictionary(common.to_bytes())
    assert again == common
    assert hash(again) == hash(common)
    assert pickle.loads(pickle.dumps(common)) == common
    assert common.digest == dwcp.digest(common.to_bytes()).hex()
    assert common == dwcp.Dictionary.train(MESSAGES[:500], max_bytes=4096)
    for junk in (b"", common.to_bytes()[:40]):
        with pytest.raises(errors.FormatError):
            dwcp.Dictionary(junk)


@pytest.mark.parametrize("samples", [[], MESSAGES[:7], [b""] * 50])
def test_too_little_to_train_on_is_refused(samples: list[bytes]) -> None:
    with pytest.raises(errors.ConfigError, match="cannot train a dictionary"):
        dwcp.Dictionary.train(samples)


def test_command_trains_on_files_and_on_lines(tmp_path: Path) -> None:
    folder = tmp_path / "messages"
    folder.mkdir()
    for index, message in enumerate(MESSAGES[:500]):
        (folder / f"{index:03}.json").write_bytes(message + b"\n")
    lines = tmp_path / "messages.jsonl"
    lines.write_bytes(b"".join(message + b"\n" for message in MESSAGES[:500]))
    digests = []
    for arguments in ([str(folder)], [str(lines), "--lines"]):
        out = tmp_path / "common.dict"
        result = CliRunner().invoke(
            program, ["dict", "train", *arguments, "-o", str(out), "--max-size", "4KiB", "--json"]
        )
        assert result.exit_code == 0, result.output
        told = json.loads(result.stdout)
        assert told["samples"] == 500
        assert dwcp.Dictionary(out.read_bytes()).digest == told["digest"]
        digests.append(told["digest"])
    assert digests[0] == digests[1]


def test_examples_of_the_module_hold() -> None:
    assert doctest.testmod(dictionary).failed == 0
