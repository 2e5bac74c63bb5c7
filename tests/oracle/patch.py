"""Patches, as docs/format-files.md describes them."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

from oracle import blocks
from oracle.blocks import Payload, unzigzag, unzstd
from oracle.content import digest, tree_digest
from oracle.wire import FILL, NONE, PLAIN, RUNS, ZSTD, ZSTD_DICTIONARY, WireError, require

SAME, COPY, SPLICE, TAIL = 16, 17, 18, 255
SEED = 0x64776364


@dataclass
class Entry:
    """One entry: the first of the blocks it tells of, and how."""

    first: int
    blocks: int
    kind: int
    codec: int
    digest: bytes
    payload: bytes


@dataclass
class Patch:
    """A parsed patch."""

    block_bytes: int
    base_size: int
    target_size: int
    entries: list[Entry]
    base_digest: bytes
    target_digest: bytes
    dictionary: bytes = b""

    def length(self, index: int) -> int:
        return min(self.block_bytes, self.target_size - index * self.block_bytes)


def parse(data: bytes) -> tuple[Patch, bytes]:
    """Parse the first patch of a chain; also return what stands behind it."""
    require(len(data) >= 32 and data[:5] + data[6:8] == b"DWCD\x02\0\0", "no head of a patch")
    require(data[5] <= 1, "flags of the head")
    head = 32 + 16 * data[5]
    require(len(data) >= head, "the head is cut short")
    block_bytes, reserved, base_size, target_size = struct.unpack_from("<IIQQ", data, 8)
    require(reserved == 0 and block_bytes.bit_count() == 1 and 1 << 16 <= block_bytes <= 1 << 22, "the head")
    require(base_size < 1 << 63 and target_size < 1 << 63, "sizes")
    patch = Patch(block_bytes, base_size, target_size, [], b"", b"", data[32:head])
    count = -(-target_size // block_bytes)
    checked, at, told = data[:head], head, 0
    best = ZSTD_DICTIONARY if patch.dictionary else ZSTD
    while True:
        require(at + 8 <= len(data), "an entry is cut short")
        kind, codec, reserved, length = struct.unpack_from("<BBHI", data, at)
        require(reserved == 0, "reserved bytes")
        if kind == TAIL:
            break
        if kind == SAME:
            require(codec == NONE and length > 0 and told + length <= count, "how many blocks are the same")
            require(min((told + length) * block_bytes, target_size) <= base_size, "the same past the base")
            patch.entries.append(Entry(told, length, kind, codec, b"", b""))
            checked += data[at : at + 8]
            told, at = told + length, at + 8
            continue
        require(kind <= RUNS or kind in (COPY, SPLICE), f"kind {kind}")
        require(told < count, "more blocks than there are")
        require(codec <= (best if kind == PLAIN else NONE), "a codec of another kind")
        size = patch.length(told)
        low, high = {(FILL, NONE): (1, 1), (PLAIN, NONE): (size, size)}.get((kind, codec), (1, size - 1))
        require(low <= length <= high and at + 24 + length <= len(data), "the length of a payload")
        payload = data[at + 24 : at + 24 + length]
        patch.entries.append(Entry(told, 1, kind, codec, data[at + 8 : at + 24], payload))
        checked += data[at : at + 24]
        told, at = told + 1, at + 24 + length
    require(at + 48 <= len(data) and told == count, "the tail")
    tail = data[at : at + 48]
    require(tail[1:4] == bytes(3) and tail[4:8] == struct.pack("<I", len(patch.entries)), "the tail")
    check = xxhash.xxh3_64_intdigest(checked + tail[:40], seed=SEED)
    require(tail[40:] == struct.pack("<Q", check), "the check does not match")
    patch.base_digest, patch.target_digest = tail[8:24], tail[24:40]
    return patch, data[at + 48 :]


def apply(patch: Patch, base: bytes, dictionary: bytes = b"") -> bytes:
    """Make the target, proving everything on the way."""
    size = patch.block_bytes
    require(len(base) == patch.base_size, "the size of the base")
    require(tree_digest(base, size) == patch.base_digest, "the base is another")
    target = bytearray(patch.target_size)
    later = []
    for entry in patch.entries:
        at = entry.first * size
        if entry.kind == SAME:
            end = min(at + entry.blocks * size, patch.target_size)
            target[at:end] = base[at:end]
            continue
        if entry.kind in (COPY, SPLICE):
            lists = Lists(patch, entry)
            if any(origin == 1 for origin, _, _ in lists.segments()):
                later.append((entry, lists))
                continue
            block = lists.block(base, bytes(target))
        else:
            length, held = patch.length(entry.first), base[at : at + size]
            if entry.codec == ZSTD_DICTIONARY:
                require(digest(dictionary) == patch.dictionary, "the dictionary is another")
            block = blocks.decode(entry.kind, entry.codec, entry.payload, held, length, dictionary)
        require(digest(block) == entry.digest, "the digest of a block")
        target[at : at + len(block)] = block
    nested = {entry.first for entry, _ in later}
    for entry, lists in later:
        for origin, offset, length in lists.segments():
            touched = range(offset // size, (offset + length - 1) // size + 1)
            require(origin == 0 or nested.isdisjoint(touched), "a block of blocks of blocks")
        block = lists.block(base, bytes(target))
        require(digest(block) == entry.digest, "the digest of a block")
        target[entry.first * size : entry.first * size + len(block)] = block
    require(tree_digest(bytes(target), size) == patch.target_digest, "the target's digest")
    return bytes(target)


class Lists:
    """What a copy or a splice says of its segments."""

    def __init__(self, patch: Patch, entry: Entry) -> None:
        payload = Payload(entry.payload)
        self.size = patch.length(entry.first)
        self.start = entry.first * patch.block_bytes
        self.limits = (patch.base_size, self.start)
        reader = Payload(payload.stream(payload.number(1, self.size)))
        splice = entry.kind == SPLICE
        count = reader.number(0 if splice else 1, 1 << 16)
        fresh = [reader.number(0, self.size if splice else 0) for _ in range(count)]
        moved = [unzigzag(reader.number()) for _ in range(count)]
        spans = [reader.number(2) for _ in range(count)]
        self.pieces: list[tuple[int, int, int, int]] = []
        expected, end = [self.start, self.start], 0
        for gap, move, span in zip(fresh, moved, spans, strict=True):
            at, origin, length = end + gap, span & 1, span >> 1
            offset = expected[origin] + at + move & (1 << 64) - 1
            require(offset + length <= self.limits[origin], "a segment past its origin")
            self.pieces.append((at, origin, offset, length))
            expected[origin], end = offset - at, at + length
        require(end <= self.size if splice else end == self.size, "pieces past the block")
        self.contexts: list[tuple[int, int, int]] = []
        if splice:
            count = reader.number(0, 1024)
            moved = [unzigzag(reader.number()) for _ in range(count)]
            spans = [reader.number(2) for _ in range(count)]
            at = self.start
            for move, span in zip(moved, spans, strict=True):
                origin, offset, length = span & 1, at + move & (1 << 64) - 1, span >> 1
                require(offset + length <= self.limits[origin], "a context past its origin")
                self.contexts.append((origin, offset, length))
                at = offset + length
            require(sum(length for _, _, length in self.contexts) <= 8 << 20, "contexts too long")
        reader.end()
        self.coder = payload.take(1)[0] if splice else 0
        self.coded = payload.rest()
        require(self.coder <= 1 and (self.coder == 1 or not self.contexts), "the coder of fresh bytes")
        require(splice == bool(self.coded), "fresh bytes")
        touched = {
            block
            for origin, offset, length in self.segments()
            if origin == 1
            for block in range(offset // patch.block_bytes, (offset + length - 1) // patch.block_bytes + 1)
        }
        require(len(touched) <= len(entry.payload), "more blocks touched than bytes say so")

    def segments(self) -> Iterator[tuple[int, int, int]]:
        yield from ((origin, offset, length) for _, origin, offset, length in self.pieces)
        yield from self.contexts

    def block(self, base: bytes, target: bytes) -> bytes:
        origins = (base, target)
        missing = self.size - sum(length for *_, length in self.pieces)
        fresh = self.coded
        if self.coder == 1:
            prefix = b"".join(origins[origin][at : at + length] for origin, at, length in self.contexts)
            fresh = unzstd(self.coded, missing, prefix)
        require(len(fresh) == missing, "the length of fresh bytes")
        block, used = bytearray(), 0
        for at, origin, offset, length in self.pieces:
            gap = at - len(block)
            block += fresh[used : used + gap] + origins[origin][offset : offset + length]
            used += gap
        return bytes(block + fresh[used:])


__all__ = ["Patch", "WireError", "apply", "parse"]
