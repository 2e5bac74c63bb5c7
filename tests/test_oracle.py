"""The plain decoder that was written from docs/format.md agrees with the golden bytes of the Rust core."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import zstandard

from oracle import content, wire

GOLDEN = Path(__file__).with_name("golden") / "v3"
MANIFEST: dict[str, Any] = json.loads((GOLDEN / "manifest.json").read_text())
SESSION = bytes.fromhex(MANIFEST["session_id"])
STREAMS: dict[str, Any] = MANIFEST["streams"]


def decode(name: str, data: bytes | None = None) -> list[wire.Frame]:
    """Decode a golden stream; a stream that opens with HELLO or WELCOME is seeded after it."""
    data = (GOLDEN / STREAMS[name]["file"]).read_bytes() if data is None else data
    wire.preface(data[:8])
    lane, frames, at = wire.Lane(), [], 8
    while at < len(data):
        frame, size = lane.frame(data[at:])
        frames.append(frame)
        at += size
        if frame.name in ("hello", "welcome"):
            lane.session = SESSION
    return frames


def expected_fields(frame: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = frame["fields"]
    return {"type": frame["type"].lower(), "body": frame["body_hex"]} | fields


@pytest.mark.parametrize("name", STREAMS)
def test_every_golden_stream_decodes_to_what_its_manifest_says(name: str) -> None:
    stream = STREAMS[name]
    data = (GOLDEN / stream["file"]).read_bytes()
    assert wire.preface(data[:8]) == (stream["lowest_version"], stream["highest_version"])
    decoded = [{"type": frame.name, "body": frame.body.hex()} | frame.fields for frame in decode(name)]
    for fields in decoded:
        fields.pop("cores", None)
    assert decoded == [expected_fields(frame) for frame in stream["frames"]]


def test_golden_streams_hold_every_frame_type() -> None:
    seen = {frame.name for name in STREAMS for frame in decode(name)}
    of_relays = {"relay", "base", "record", "taken"}  # test_oracle_relay.py
    assert seen == {name for name, _ in wire.FRAMES.values()} - of_relays


def replay() -> tuple[list[dict[str, Any]], dict[int, dict[int, bytes]], list[wire.Frame]]:
    """Put the blocks of the first golden transfer together, from both streams."""
    sent = decode("sender")
    end = next(index for index, frame in enumerate(sent) if frame.name == "finish") + 1
    transfer = sent[:end]
    parts = [frame.fields for frame in transfer if frame.name == "manifest"]
    entries = [item for part in parts for item in part["entries"]]
    cores = [core for part in parts for core in part["cores"]]
    content.check_offer(transfer[1].fields, entries, cores)
    refused = {
        (frame.fields["entry"], frame.fields["offset"])
        for frame in decode("receiver")
        if frame.name == "nack"
    }
    blocks: dict[int, dict[int, bytes]] = {}
    for frame, facts in zip(transfer, STREAMS["sender"]["frames"], strict=False):
        if frame.name != "block":
            continue
        key = (frame.fields["entry"], frame.fields["offset"])
        if frame.fields["kind"] in wire.AGAINST_BASE and key in refused:
            with pytest.raises(wire.WireError, match="the base differs"):
                content.decode_block(frame.fields, frame.body, base=b"")
            continue
        raw = content.decode_block(frame.fields, frame.body)
        assert set(raw) == {facts["raw_byte"]}
        blocks.setdefault(key[0], {})[key[1]] = content.digest(raw)
    return entries, blocks, transfer


def test_block_bodies_and_digests_yield_the_tree_and_transfer_digests() -> None:
    entries, blocks, transfer = replay()
    block_bytes = transfer[1].fields["block_bytes"]
    staged = [frame for frame in decode("receiver") if frame.name == "have" and frame.fields["source"] == 0]
    for frame in [item for item in transfer if item.name == "same"] + staged:
        for number, digest in enumerate(frame.fields["digests"], frame.fields["first_block"]):
            blocks.setdefault(frame.fields["entry"], {})[number * block_bytes] = bytes.fromhex(digest)
    told = [
        bytes.fromhex(item)
        for frame in transfer
        if frame.name == "digests"
        for item in frame.fields["digests"]
    ]
    trees = []
    for index, item in enumerate(entries):
        leaves = b"".join(digest for _, digest in sorted(blocks.get(index, {}).items()))
        empty = wire.ENTRY_KINDS[item["kind"]] not in wire.DATA_KINDS
        tree = content.digest(b"dwcp-tree" + struct.pack("<QI", item["size"], block_bytes) + leaves)
        trees.append(bytes(16) if empty else tree)
    assert trees == told
    finish = transfer[-1].fields
    assert (
        content.transfer_digest(bytes.fromhex(finish["transfer_id"]), trees).hex()
        == finish["transfer_digest"]
    )


def test_a_block_is_made_with_the_dictionary_that_was_given_before_it_and_with_no_other() -> None:
    sent, answers = decode("dictionary-sender"), decode("dictionary-receiver")
    words = [frame.fields["word"] for frame in sent + answers if frame.name == "dictionary"]
    assert words == [wire.ANNOUNCED, wire.GIVEN, wire.ANNOUNCED, wire.WANTED, wire.DECLINED]
    announced, given = [frame.fields for frame in sent if frame.name == "dictionary"][:2]
    known = bytes.fromhex(given["content_hex"])
    assert content.digest(known).hex() == announced["digest"] == given["digest"]
    made, declined = (frame for frame in sent if frame.name == "block")
    assert made.fields["codec"] == wire.ZSTD_DICTIONARY and declined.fields["codec"] == wire.NONE
    record = content.decode_block(made.fields, made.body, dictionary=known)
    assert record == content.decode_block(declined.fields, declined.body)
    with pytest.raises(wire.WireError, match="no dictionary"):
        content.decode_block(made.fields, made.body)
    with pytest.raises((wire.WireError, zstandard.ZstdError)):
        content.decode_block(made.fields, made.body, dictionary=record)


@pytest.mark.parametrize("name", STREAMS)
def test_no_flipped_bit_in_headers_heads_or_prefaces_passes_the_oracle(name: str) -> None:
    data = (GOLDEN / STREAMS[name]["file"]).read_bytes()
    bodies = set()
    for facts in STREAMS[name]["frames"]:
        start = facts["offset"] + wire.HEADER.size + facts["head_bytes"]
        bodies |= set(range(start, start + len(facts["body_hex"]) // 2))
    original = decode(name)
    for at in range(len(data)):
        if at in bodies:
            continue
        broken = bytearray(data)
        broken[at] ^= 1 << at % 8
        try:
            changed = decode(name, bytes(broken))
        except (wire.WireError, UnicodeDecodeError):
            continue
        # The preface has no check: another version range is another offer, not damage that frames could show.
        assert at in (6, 7) and changed == original


def test_the_ledger_decodes_up_to_its_torn_record() -> None:
    facts = MANIFEST["ledger"]
    data = (GOLDEN / facts["file"]).read_bytes()
    transfer, block_bytes, records = content.ledger(data)
    assert (transfer.hex(), block_bytes) == (facts["transfer_id"], facts["block_bytes"])
    assert [{"entry": e, "block": b, "digest": d.hex()} for e, b, d in records] == facts["records"]
    assert facts["torn"] == (len(data) != 32 + 32 * len(records))
