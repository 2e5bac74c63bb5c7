"""The v3 wire, decoded frame by frame as docs/format.md describes it."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import xxhash

HEADER = struct.Struct("<BBHIIIQ")
HEAD_LIMIT = 1_048_576
BLOCK_MIN, BLOCK_LIMIT = 65_536, 4_194_304
ENTRY_LIMIT = 1_048_576
OBJECT_LIMIT = 1 << 62
DATA_KINDS = ("file", "buffer")
ENTRY_KINDS = ("file", "directory", "symlink", "buffer")
PLAIN, FILL, PLANES, DIFFERENCE, SPARSE, RUNS = range(6)
AGAINST_BASE = (DIFFERENCE, SPARSE, RUNS)
NONE, LZ4, ZSTD, ZSTD_DICTIONARY = range(4)
DICTIONARY_LIMIT = HEAD_LIMIT - 24
ANNOUNCED, WANTED, GIVEN, DECLINED = range(4)
OPENS, DATA, PAGES, END, RESET = range(5)
STREAM_LIMIT = 1_024


class WireError(ValueError):
    """The bytes are not what docs/format.md allows."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise WireError(message)


class Fields:
    """A head, read from front to back; it must be consumed exactly."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        require(0 <= size <= len(self.data) - self.at, f"{size} bytes wanted at offset {self.at}")
        piece = self.data[self.at : self.at + size]
        self.at += size
        return piece

    def unsigned(self, size: int, low: int = 0, high: int | None = None) -> int:
        value = int.from_bytes(self.take(size), "little")
        top = (1 << 8 * size) - 1 if high is None else high
        require(low <= value <= top, f"{value} is outside {low}..{top}")
        return value

    def zeros(self, size: int) -> None:
        require(self.take(size) == bytes(size), "reserved bytes are not zero")

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.at)

    def end(self) -> None:
        require(self.at == len(self.data), f"{len(self.data) - self.at} bytes left over")


def preface(data: bytes) -> tuple[int, int]:
    """Decode the 8 bytes that open a lane: lowest and highest version spoken."""
    require(len(data) == 8 and data[:6] == b"DWCP3\n", "not a preface")
    require(1 <= data[6] <= data[7], "the version range is empty")
    return data[6], data[7]


def hello(head: Fields) -> dict[str, Any]:
    out: dict[str, Any] = {
        "version": head.unsigned(1, 3, 3),
        "security": head.unsigned(1, 0, 1),
        "lane": head.unsigned(2, 0, 255),
        "features": head.unsigned(4),
        "session_id": head.take(16).hex(),
        "secret_hex": head.take(32).hex(),
    }
    fetches = out["features"] & 1
    out["most_entries"] = head.unsigned(4, fetches, ENTRY_LIMIT if fetches else 0)
    out["largest_object"] = head.unsigned(8, fetches, OBJECT_LIMIT if fetches else 0)
    head.zeros(20)
    out["largest_block"] = head.unsigned(4, BLOCK_MIN, BLOCK_LIMIT)
    return out


def welcome(head: Fields) -> dict[str, Any]:
    out = {
        "version": head.unsigned(1, 3, 3),
        "security": head.unsigned(1, 0, 1),
        "most_lanes": head.unsigned(2, 1, 256),
        "features": head.unsigned(4),
        "session_id": head.take(16).hex(),
        "join_key_hex": head.take(32).hex(),
        "largest_block": head.unsigned(4, BLOCK_MIN, BLOCK_LIMIT),
        "most_entries": head.unsigned(4, 1, ENTRY_LIMIT),
        "largest_object": head.unsigned(8, 1, OBJECT_LIMIT),
    }
    require(out["session_id"] != "00" * 16, "the session id is zero")
    return out


def offer(head: Fields) -> dict[str, Any]:
    transfer = head.take(16).hex()
    block_bytes = head.unsigned(4, BLOCK_MIN, BLOCK_LIMIT)
    require(block_bytes & (block_bytes - 1) == 0, "block_bytes is no power of two")
    out = {
        "transfer_id": transfer,
        "block_bytes": block_bytes,
        "entry_count": head.unsigned(4, 1, ENTRY_LIMIT),
        "total_bytes": head.unsigned(8, 0, OBJECT_LIMIT),
        "base": head.unsigned(1, 0, 1),
    }
    repeats = head.unsigned(1)
    head.unsigned(2, 0, 0)
    return out | ({"repeats": repeats} if repeats else {}) | {"number": head.unsigned(4)}


def check_path(path: bytes) -> None:
    require(1 <= len(path) <= 4096 and 0 not in path, "the path's length or a NUL")
    parts = path.split(b"/")
    require(all(part not in (b"", b".", b"..") and len(part) <= 255 for part in parts), "a path component")
    require(parts[0] != b".dwcp", "the path lies in .dwcp")


def entry(head: Fields) -> tuple[dict[str, Any], bytes]:
    """Decode one entry; also return its bytes without the candidates, which the transfer id covers."""
    start = head.at
    number = head.unsigned(1, 0, 3)
    kind = ENTRY_KINDS[number]
    path = head.take(head.unsigned(2))
    check_path(path)
    mode = head.unsigned(4, 0, 0o7777 if kind in ("file", "directory") else 0)
    mtime_ns = int.from_bytes(head.take(8), "little", signed=True)
    require(kind != "buffer" or mtime_ns == 0, "a buffer has no mtime")
    size = head.unsigned(8, 0, OBJECT_LIMIT if kind in DATA_KINDS else 0)
    link = kind == "symlink"
    target = head.take(head.unsigned(2, 1 if link else 0, 4095 if link else 0))
    require(0 not in target, "a NUL in the link target")
    core = head.data[start : head.at]
    count = head.unsigned(1, 0, 8 if kind == "file" else 0)
    candidates = [{"size": head.unsigned(8), "tree_digest": head.take(16).hex()} for _ in range(count)]
    fields = {"kind": number, "path_hex": path.hex(), "mode": mode, "mtime_ns": mtime_ns, "size": size}
    return fields | {"target_hex": target.hex(), "candidates": candidates}, core


def manifest(head: Fields) -> dict[str, Any]:
    first = head.unsigned(4, 0, ENTRY_LIMIT)
    entries = [entry(head) for _ in range(head.unsigned(4, 1, ENTRY_LIMIT))]
    return {
        "first_entry": first,
        "entries": [fields for fields, _ in entries],
        "cores": [core for _, core in entries],
    }


def digests(head: Fields, count: int) -> list[str]:
    return [head.take(16).hex() for _ in range(count)]


def have(head: Fields) -> dict[str, Any]:
    out: dict[str, Any] = {"entry": head.unsigned(4), "source": head.unsigned(1, 0, 2)}
    candidate_base = out["source"] == 2
    out["candidate"] = head.unsigned(1, 0, 7 if candidate_base else 0)
    head.zeros(2)
    out["first_block"] = head.unsigned(4, 0, 0 if candidate_base else None)
    count = head.unsigned(4, 0 if candidate_base else 1, 0 if candidate_base else 65_535)
    return out | {"digests": digests(head, count)}


def accept(head: Fields) -> dict[str, Any]:
    return {"transfer_id": head.take(16).hex(), "staged_bytes": head.unsigned(8)}


def block(head: Fields) -> dict[str, Any]:
    out: dict[str, Any] = {
        "entry": head.unsigned(4),
        "raw_length": head.unsigned(4, 1, BLOCK_LIMIT),
        "offset": head.unsigned(8, 0, OBJECT_LIMIT),
        "kind": head.unsigned(1, 0, RUNS),
        "codec": head.unsigned(1, 0, 3),
    }
    head.zeros(2)
    out["digest"] = head.take(16).hex()
    out["base_digest"] = head.take(16).hex()
    require(out["kind"] == PLAIN or out["codec"] == NONE, "a codec of a kind that has none")
    against = out["kind"] in AGAINST_BASE
    require(against or out["base_digest"] == "00" * 16, "a base digest without a base")
    return out


def same(head: Fields) -> dict[str, Any]:
    out = {"entry": head.unsigned(4), "first_block": head.unsigned(4)}
    return out | {"digests": digests(head, head.unsigned(4, 1, 65_535))}


def ack(head: Fields) -> dict[str, Any]:
    return {"count": head.unsigned(4)}


def nack(head: Fields) -> dict[str, Any]:
    return {"entry": head.unsigned(4), "reason": head.unsigned(4, 1, 2), "offset": head.unsigned(8)}


def tree_digests(head: Fields) -> dict[str, Any]:
    first = head.unsigned(4)
    return {"first_entry": first, "digests": digests(head, head.unsigned(4, 1, 65_535))}


def finish(head: Fields) -> dict[str, Any]:
    return {"transfer_id": head.take(16).hex(), "transfer_digest": head.take(16).hex()}


def committed(head: Fields) -> dict[str, Any]:
    return finish(head) | {"body_bytes": head.unsigned(8)}


def error(head: Fields) -> dict[str, Any]:
    code = head.unsigned(2)
    retryable = head.unsigned(1, 0, 1)
    head.zeros(1)
    text = head.rest()
    require(len(text) <= 1024, "the error text is too long")
    text.decode()
    return {"code": code if 1 <= code <= 11 else 11, "retryable": retryable, "text_hex": text.hex()}


def fetch(head: Fields) -> dict[str, Any]:
    number, request = head.unsigned(4), head.rest()
    require(len(request) <= 65_536, "the request is too long")
    return {"number": number, "request_hex": request.hex()}


def dictionary(head: Fields) -> dict[str, Any]:
    out: dict[str, Any] = {"digest": head.take(16).hex(), "length": head.unsigned(4, 1, DICTIONARY_LIMIT)}
    out["word"] = head.unsigned(1, 0, 3)
    head.zeros(3)
    content = head.rest()
    require(len(content) == (out["length"] if out["word"] == GIVEN else 0), "a dictionary of another length")
    return out | {"content_hex": content.hex()}


def fill(head: Fields) -> dict[str, Any]:
    length = len(head.rest())
    require(1 <= length <= 65_536, "a fill of another length")
    return {"length": length}


def relay(head: Fields) -> dict[str, Any]:
    word = head.unsigned(1, 0, 1)
    head.zeros(7)
    cache = head.unsigned(8, 0, OBJECT_LIMIT)
    return {"word": word, "cache": cache, "pages": head.unsigned(8, 0, OBJECT_LIMIT if word else 0)}


def base_pages(head: Fields) -> dict[str, Any]:
    first, count = head.unsigned(4), head.unsigned(4, 1, 65_535)
    name = head.take(head.unsigned(1, 1, 255))
    return {"first_page": first, "name_hex": name.hex(), "digests": digests(head, count)}


def record(head: Fields) -> dict[str, Any]:
    out: dict[str, Any] = {
        "stream": head.unsigned(4, 0, STREAM_LIMIT - 1),
        "word": head.unsigned(1, 0, RESET),
    }
    out["kind"] = head.unsigned(1, 0, PLANES)
    out["codec"] = head.unsigned(1, 0, ZSTD if out["kind"] == PLAIN else NONE)
    head.zeros(1)
    out["number"] = head.unsigned(8)
    low, high = {OPENS: (1, 32), DATA: (1, BLOCK_LIMIT), PAGES: (1, BLOCK_LIMIT)}.get(out["word"], (0, 0))
    out["raw_length"] = head.unsigned(4, low, high)
    require(out["word"] != OPENS or out["number"] == 0, "a record that opens a stream again")
    return out | {"digest": head.take(16).hex()}


def taken(head: Fields) -> dict[str, Any]:
    return {
        "stream": head.unsigned(4, 0, STREAM_LIMIT - 1),
        "count": head.unsigned(8),
        "come": head.unsigned(8),
    }


def nothing(_head: Fields) -> dict[str, Any]:
    return {}


FRAMES = {
    0x01: ("hello", hello),
    0x02: ("welcome", welcome),
    0x03: ("offer", offer),
    0x04: ("manifest", manifest),
    0x05: ("have", have),
    0x06: ("accept", accept),
    0x07: ("block", block),
    0x08: ("same", same),
    0x09: ("ack", ack),
    0x0A: ("nack", nack),
    0x0B: ("digests", tree_digests),
    0x0C: ("finish", finish),
    0x0D: ("committed", committed),
    0x0E: ("error", error),
    0x0F: ("close", nothing),
    0x10: ("keepalive", nothing),
    0x11: ("fetch", fetch),
    0x12: ("dictionary", dictionary),
    0x13: ("fill", fill),
    0x14: ("relay", relay),
    0x15: ("base", base_pages),
    0x16: ("record", record),
    0x17: ("taken", taken),
}


@dataclass
class Frame:
    """One decoded frame: its name, the fields of its head, and the body of a BLOCK or RECORD."""

    name: str
    fields: dict[str, Any]
    body: bytes = b""


@dataclass
class Lane:
    """One direction of one lane: knows the sequence and the seed of the checks."""

    session: bytes = bytes(16)
    sequence: int = field(default=0)

    def frames(self, data: bytes) -> Iterator[Frame]:
        """Decode all frames of `data`, which must hold whole frames only."""
        at = 0
        while at < len(data):
            frame, size = self.frame(data[at:])
            at += size
            yield frame

    def frame(self, data: bytes) -> tuple[Frame, int]:
        require(len(data) >= HEADER.size, "a header is cut short")
        kind, flags, reserved, head_len, body_len, sequence, check = HEADER.unpack_from(data)
        require(kind in FRAMES, f"frame type {kind:#x}")
        require(flags == 0 and reserved == 0, "flags or reserved bytes")
        require(head_len <= HEAD_LIMIT, f"a head of {head_len} bytes")
        least, most = {0x07: (1, BLOCK_LIMIT), 0x16: (0, BLOCK_LIMIT)}.get(kind, (0, 0))
        require(least <= body_len <= most, f"a body of {body_len} bytes")
        require(sequence == self.sequence, f"sequence {sequence} where {self.sequence} is due")
        end = HEADER.size + head_len + body_len
        require(len(data) >= end, "a frame is cut short")
        head = data[HEADER.size : HEADER.size + head_len]
        name, decode = FRAMES[kind]
        seed = 0 if name in ("hello", "welcome") else int.from_bytes(self.session[:8], "little")
        require(xxhash.xxh3_64_intdigest(data[:16] + head, seed=seed) == check, "the check does not match")
        self.sequence += 1
        reader = Fields(head)
        fields = decode(reader)
        reader.end()
        body = data[HEADER.size + head_len : end]
        if name == "block" or (name == "record" and fields["raw_length"] > 0):
            raw, plain = fields["raw_length"], fields["kind"] == PLAIN
            whole = plain and fields["codec"] == NONE
            require(not whole or body_len == raw, "an uncoded body of another length")
            most = raw if plain or fields["kind"] == FILL else raw - 1
            require(1 <= body_len <= most, "a body larger than its block")
        else:
            require(body_len == 0, "a body of a record that has no bytes")
        return Frame(name, fields, body), end
