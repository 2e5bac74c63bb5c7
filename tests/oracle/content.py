"""Digests, block bodies and the ledger, as docs/format.md describes them."""

import struct
from collections.abc import Sequence
from typing import Any

import xxhash

from oracle import blocks
from oracle.wire import AGAINST_BASE, ENTRY_KINDS, WireError, require


def digest(data: bytes) -> bytes:
    """XXH3-128 in canonical byte order."""
    return xxhash.xxh3_128_digest(data)


def tree_digest(data: bytes, block_bytes: int) -> bytes:
    leaves = [digest(data[at : at + block_bytes]) for at in range(0, len(data), block_bytes)]
    return digest(b"dwcp-tree" + struct.pack("<QI", len(data), block_bytes) + b"".join(leaves))


def transfer_id(block_bytes: int, cores: Sequence[bytes]) -> bytes:
    return digest(b"dwcp-mani" + struct.pack("<II", block_bytes, len(cores)) + b"".join(cores))


def transfer_digest(transfer: bytes, trees: Sequence[bytes]) -> bytes:
    return digest(b"dwcp-xfer" + transfer + b"".join(trees))


def check_offer(offer: dict[str, Any], entries: Sequence[dict[str, Any]], cores: Sequence[bytes]) -> None:
    """Check the rules that hold over a whole manifest."""
    require(offer["entry_count"] == len(entries), "the entry count")
    require(offer["total_bytes"] == sum(item["size"] for item in entries), "the total")
    require(offer["transfer_id"] == transfer_id(offer["block_bytes"], cores).hex(), "the transfer id")
    require(len({ENTRY_KINDS[item["kind"]] == "buffer" for item in entries}) == 1, "buffers among files")
    paths = [bytes.fromhex(item["path_hex"]) for item in entries]
    require(len(set(paths)) == len(paths), "a path stands twice")


def decode_block(fields: dict[str, Any], body: bytes, base: bytes = b"", dictionary: bytes = b"") -> bytes:
    """Decode a BLOCK body; `base` is the object that the receiver holds, at any length."""
    size = fields["raw_length"]
    if fields["kind"] in AGAINST_BASE:
        piece = base[fields["offset"] : fields["offset"] + size]
        piece += bytes(size - len(piece))
        require(digest(piece).hex() == fields["base_digest"], "the base differs")
    at_offset = base[fields["offset"] :]
    raw = blocks.decode(fields["kind"], fields["codec"], body, at_offset, size, dictionary)
    require(digest(raw).hex() == fields["digest"], "the block's digest")
    return raw


def ledger(data: bytes) -> tuple[bytes, int, list[tuple[int, int, bytes]]]:
    """Decode a ledger: transfer id, block_bytes, and (entry, block, digest) up to the first torn record."""
    require(len(data) >= 32 and data[:8] == b"DWCL\x01\0\0\0" and data[28:32] == bytes(4), "no ledger header")
    (block_bytes,) = struct.unpack_from("<I", data, 24)
    records = []
    for at in range(32, len(data) - 31, 32):
        number, block, body, check = struct.unpack_from("<II16sQ", data, at)
        if xxhash.xxh3_64_intdigest(data[at : at + 24]) != check:
            break
        records.append((number, block, body))
    return data[8:24], block_bytes, records


__all__ = [
    "WireError",
    "check_offer",
    "decode_block",
    "digest",
    "ledger",
    "transfer_digest",
    "transfer_id",
    "tree_digest",
]
