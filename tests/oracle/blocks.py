"""Coded blocks, as docs/format-files.md describes them: kinds 0 to 5."""

import lz4.block
import zstandard

from oracle.wire import (
    DIFFERENCE,
    FILL,
    LZ4,
    NONE,
    PLAIN,
    PLANES,
    RUNS,
    SPARSE,
    ZSTD,
    ZSTD_DICTIONARY,
    Fields,
    require,
)

MANTISSA = {2: 3, 4: 2, 8: 1}


class Payload(Fields):
    """A payload, read from front to back; it must be used up exactly."""

    def number(self, low: int = 0, high: int = (1 << 64) - 1) -> int:
        value = 0
        for index in range(10):
            byte = self.take(1)[0]
            require(byte > 0 or index == 0, "a number in more bytes than it needs")
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                require(low <= value <= high, f"{value} is outside {low}..{high}")
                return value
        raise AssertionError("unreachable")

    def stream(self, size: int) -> bytes:
        if size == 0:
            return b""
        coder = self.take(1)[0]
        require(coder <= 2, f"coder {coder}")
        if coder == 0:
            return self.take(size)
        if coder == 1:
            return self.take(1) * size
        return unzstd(self.take(self.number(1, size)), size)

    def stream_behind(self, size: int, before: bytes) -> bytes:
        if self.data[self.at : self.at + 1] != b"\x03":
            return self.stream(size)
        self.take(1)
        return unzstd(self.take(self.number(1, size)), size, before)

    def values(self, count: int, width: int, mantissa: int) -> list[int]:
        if count == 0:
            return []
        codes = self.stream(count)
        if width == 1:
            return list(codes)
        extra = self.take(self.number())
        bits = int.from_bytes(extra, "little")
        out, used = [], 0
        for code in codes:
            if code < 128:
                out.append(code)
                continue
            length = 8 + ((code - 128) >> mantissa)
            require(length <= 8 * width, f"a value of {length} bits")
            low = length - 1 - mantissa
            top = 1 << mantissa | (code - 128) & ((1 << mantissa) - 1)
            out.append(top << low | (bits >> used) & ((1 << low) - 1))
            used += low
        require(len(extra) == -(-used // 8) and bits >> used == 0, "extra bits that belong to no value")
        return out


def unzstd(data: bytes, size: int, prefix: bytes = b"", kind: int = zstandard.DICT_TYPE_RAWCONTENT) -> bytes:
    """Decode zstd frames to exactly `size` bytes, with what stands before them or a dictionary."""
    known = zstandard.ZstdCompressionDict(prefix, dict_type=kind)
    decoder = zstandard.ZstdDecompressor(dict_data=known if prefix else None, max_window_size=1 << 30)
    raw = b""
    while data:
        frame = decoder.decompressobj()
        raw += frame.decompress(data)
        require(frame.eof, "a frame is cut short")
        data = frame.unused_data
    require(len(raw) == size, f"{len(raw)} bytes where {size} are due")
    return raw


def unzigzag(value: int) -> int:
    return value >> 1 ^ -(value & 1)


def decode(kind: int, codec: int, payload: bytes, base: bytes, size: int, dictionary: bytes = b"") -> bytes:
    """Decode a block of `size` bytes; `base` holds the base's bytes at the same offset, if any."""
    require(kind == PLAIN or codec == NONE, "a codec for a coded block")
    if kind == PLAIN:
        raw: bytes = payload
        if codec == LZ4:
            raw = lz4.block.decompress(payload, uncompressed_size=size)
        elif codec == ZSTD:
            raw = unzstd(payload, size)
        elif codec == ZSTD_DICTIONARY:
            require(dictionary != b"", "no dictionary was agreed on")
            raw = unzstd(payload, size, dictionary, zstandard.DICT_TYPE_AUTO)
        require(len(raw) == size, f"{len(raw)} bytes where {size} are due")
        return raw
    if kind == FILL:
        require(len(payload) == 1, "a fill payload is one byte")
        return payload * size
    require(1 <= len(payload) < size, "a coded block that is no shorter")
    reader = Payload(payload)
    base = base[:size]
    require(kind != SPARSE or len(base) == size, "the base is too short")
    block = {PLANES: planes, DIFFERENCE: planes, SPARSE: sparse, RUNS: runs}[kind](
        reader, base.ljust(size, b"\0"), kind == DIFFERENCE
    )
    reader.end()
    return block


def planes(reader: Payload, base: bytes, against_base: bool) -> bytes:
    mode = reader.take(1)[0]
    width, transform = 1 << (mode & 3), mode >> 2
    require(transform <= 1, f"mode {mode:#x}")
    count, top = len(base) // width, (1 << 8 * width) - 1
    parts = [reader.stream(count) for _ in range(width)]
    block = bytearray()
    for index in range(count):
        value = int.from_bytes(bytes(part[index] for part in parts), "little")
        held = int.from_bytes(base[index * width : (index + 1) * width], "little")
        if against_base:
            value = held + unzigzag(value) & top if transform else held ^ value
        elif transform:
            value = value >> 1 | (value & 1) << 8 * width - 1
        block += value.to_bytes(width, "little")
    return bytes(block) + reader.take(len(base) % width)


def sparse(reader: Payload, base: bytes, _: bool) -> bytes:
    mode = reader.take(1)[0]
    width, form = 1 << (mode & 3), mode >> 2
    require(form <= 1, f"mode {mode:#x}")
    count, top = len(base) // width, (1 << 8 * width) - 1
    changed = reader.number(0, count)
    require(changed > 0 or (form == 0 and len(base) % width > 0), "nothing changed")
    places = []
    if form == 0:
        at = -1
        for gap in reader.values(changed, 4, 3):
            at += gap + 1
            places.append(at)
        require(at < count, "an element past the last")
    else:
        bits = int.from_bytes(reader.stream(-(-count // 8)), "little")
        require(bits.bit_count() == changed and bits >> count == 0, "bits of the positions")
        places = [index for index in range(count) if bits >> index & 1]
    block = bytearray(base)
    for place, change in zip(places, reader.values(changed, width, MANTISSA.get(width, 0)), strict=True):
        require(change > 0, "a change of nothing")
        held = int.from_bytes(base[place * width : (place + 1) * width], "little")
        block[place * width : (place + 1) * width] = (held + unzigzag(change) & top).to_bytes(width, "little")
    tail = len(base) % width
    block[len(base) - tail :] = reader.take(tail)
    return bytes(block)


def runs(reader: Payload, base: bytes, _: bool) -> bytes:
    count = reader.number(1, -(-len(base) // 2))
    gaps, lengths = reader.values(count, 4, 3), reader.values(count, 4, 3)
    require(all(gap > 0 for gap in gaps[1:]), "a run right behind another")
    places, at = [], 0
    for gap, length in zip(gaps, lengths, strict=True):
        places.append((at + gap, at := at + gap + length + 1))
    require(at <= len(base), "a run past the end")
    new = reader.stream_behind(sum(lengths) + count, b"".join(base[start:end] for start, end in places))
    block, used = bytearray(base), 0
    for start, end in places:
        block[start:end] = new[used : used + end - start]
        used += end - start
    return bytes(block)
