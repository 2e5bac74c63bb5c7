"""Relay sessions and chunks of pages as docs/format.md has them, made by hand: what the golden files hold.

`python -m oracle.making` in tests/ writes the files that are not there yet.
"""

import struct
from pathlib import Path

import xxhash

from oracle.content import digest
from oracle.relay import PAGE, Block, PageDecoder
from oracle.wire import DATA, END, FILL, LZ4, NONE, OPENS, PAGES, PLAIN, RESET, ZSTD

GOLDEN = Path(__file__).parents[1] / "golden" / "relay"
SESSION = b"\x01\x23\x45\x67\x89\xab\xcd\xefgolden!!"
CACHE = 3 * 4192


def noise(seed: int) -> bytes:
    """A page that does not compress."""
    state = (seed * 0x9E37_79B9_7F4A_7C15 | 1) & (1 << 64) - 1
    out = bytearray()
    for _ in range(PAGE):
        state ^= state << 13 & (1 << 64) - 1
        state ^= state >> 7
        state ^= state << 17 & (1 << 64) - 1
        out.append(state >> 32 & 0xFF)
    return bytes(out)


BLOCKS: list[Block] = [(b"pc.ram", [noise(n) for n in range(3)]), (b"vga", [noise(n) for n in range(3, 5)])]


def number(value: int) -> bytes:
    """Seven bits a byte, the low ones first."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def placed(
    kind: int, gap: int, block: int, name: bytes = b"", *, named: bool = True, count: int = 1
) -> bytes:
    """An operation that tells where its page is: so many behind the page after the one before."""
    known = number(len(name)) + name if name else b""
    zigzag = gap * 2 if gap >= 0 else -gap * 2 - 1
    return (
        number(kind | 8 | count - 1 << 4)
        + number(zigzag)
        + number(block * 4 + 2 * bool(name) + named)
        + known
    )


def chunk(operations: bytes, literals: bytes, stream: bytes) -> bytes:
    """A chunk that stands for these bytes of a stream."""
    return digest(stream) + number(len(stream)) + number(len(operations)) + operations + literals


def page(at: int, content: bytes | None, name: bytes = b"") -> bytes:
    """A page as QEMU tells it; one of zeros without a content."""
    word = at * PAGE | (2 if content is None else 8) | (0 if name else 0x20)
    told = bytes([len(name)]) + name if name else b""
    return word.to_bytes(8, "big") + told + (b"\0" if content is None else content)


RUN = number(1) + b"\0\x64\0" + b"\0\x27\0" + b"\1\7"
"""Against what is held, coded as kind 5: one run of 40 bytes from byte 100 on, which all are 7."""


def chunks() -> list[tuple[bytes, bytes]]:
    """Chunks with operations of every kind, and what they stand for. There is room for three pages."""
    begins = b"QEVM\0\0\0\x03 and what is not looked into"
    first = (
        number(len(begins) - 1 << 4)
        + placed(1, 10, 0, b"pc.ram")  # page 10 in full,
        + number(1 | 1 << 4)  # and the two behind it
        + placed(2, 3, 0, named=False, count=2)  # 16 and 17 are zero
        + placed(6, -18, 0, count=2)  # 0 and 1 are those of the base
        + placed(7, 4, 1, b"vga")  # page 6 of vga is page 1 of the base's second block
        + number(1)
        + number(1)
    )
    told = [page(10, noise(10), b"pc.ram"), page(11, noise(11)), page(12, noise(12)), page(16, None)]
    told += [page(17, None), page(0, noise(0), b"pc.ram"), page(1, noise(1)), page(6, noise(4), b"vga")]
    stream = begins + b"".join(told)
    made = [(chunk(first, begins + noise(10) + noise(11) + noise(12), stream), stream)]
    decoder = PageDecoder(CACHE, BLOCKS)
    assert decoder.decode(made[0][0]) == stream
    # What was given up by then follows from the document alone; the last page is surely held.
    slot = decoder.held.places[1, 6]
    changed = noise(4)[:100] + b"\7" * 40 + noise(4)[140:]
    second = (
        placed(3, -1, 1)  # the page before as it is,
        + placed(5, -1, 1, named=False)  # and then changed;
        + number(5)
        + number(len(RUN))
        + placed(4, 93, 0)  # page 100 of pc.ram is what lies in its slot
        + number(slot)
        + number(2)  # and 101 is zero
    )
    told = [page(6, noise(4), b"vga"), page(6, changed), page(100, changed, b"pc.ram"), page(101, None)]
    stream = b"".join(told)
    return [*made, (chunk(second, RUN, stream), stream)]


class Lane:
    """Frames of one direction of a lane."""

    def __init__(self) -> None:
        self.bytes = b"DWCP3\n\x03\x03"
        self.sequence = 0

    def say(self, kind: int, head: bytes = b"", body: bytes = b"") -> None:
        """Append a frame; HELLO and WELCOME are checked with seed 0."""
        seed = 0 if kind in (1, 2) else int.from_bytes(SESSION[:8], "little")
        first = struct.pack("<BBHIII", kind, 0, 0, len(head), len(body), self.sequence)
        check = xxhash.xxh3_64_intdigest(first + head, seed=seed)
        self.bytes += first + check.to_bytes(8, "little") + head + body
        self.sequence += 1

    def relay(self, word: int, pages: int) -> None:
        self.say(0x14, struct.pack("<B7xQQ", word, CACHE, pages))

    def base(self, block: Block) -> None:
        name, pages = block
        told = b"".join(digest(content) for content in pages)
        self.say(0x15, struct.pack("<IIB", 0, len(pages), len(name)) + name + told)

    def record(
        self,
        stream: int,
        at: int,
        word: int,
        raw: bytes = b"",
        *,
        kind: int = PLAIN,
        codec: int = NONE,
        body: bytes | None = None,
    ) -> None:
        head = struct.pack("<IBBBxQI", stream, word, kind, codec, at, len(raw))
        self.say(0x16, head + digest(raw), raw if body is None else body)

    def taken(self, stream: int, count: int, come: int) -> None:
        self.say(0x17, struct.pack("<IQQ", stream, count, come))


LZ4_BODY = b"\x1f\x41\x01\0" + b"\xff" * 256 + b"\xe7\x50" + b"\x41" * 5
"""65,536 times 41: a literal, a match of 65,530 bytes at distance 1, five literals."""
ZSTD_BODY = b"\x28\xb5\x2f\xfd\xa0\0\0\1\0\x03\0\x08\x5a"
"""65,536 times 5A: one run-length block."""


def source() -> bytes:
    """What the side says that dials."""
    lane = Lane()
    hello = struct.pack(
        "<BBHI16s32sIQ20xI", 3, 1, 0, 8, bytes(16), b"pairing token of thirty-two byte", 0, 0, 65536
    )
    lane.say(0x01, hello)
    lane.relay(0, 0)
    lane.record(0, 0, OPENS, b"migration")
    lane.record(1, 0, OPENS, b"control")
    first, second = chunks()
    lane.record(0, 1, PAGES, first[0])
    lane.record(1, 1, DATA, b"Z" * 65_536, codec=ZSTD, body=ZSTD_BODY)
    # Overtaken on its lane's way, as it were: order is by number.
    lane.record(0, 3, DATA, b"A" * 65_536, codec=LZ4, body=LZ4_BODY)
    lane.record(0, 2, PAGES, second[0])
    lane.record(0, 3, DATA, b"A" * 65_536, codec=LZ4, body=LZ4_BODY)
    lane.record(0, 4, DATA, b"f" * 5000, kind=FILL, body=b"f")
    lane.taken(0, 2, 2)
    lane.record(0, 5, END)
    lane.record(1, 2, RESET)
    lane.say(0x10)
    lane.taken(0, 2, 3)
    lane.say(0x0F)
    return lane.bytes


def target() -> bytes:
    """What the side says that listens."""
    lane = Lane()
    welcome = struct.pack(
        "<BBHI16s32sIIQ", 3, 1, 64, 8, SESSION, b"join key of exactly 32 bytes ...", 65536, 1, 1
    )
    lane.say(0x02, welcome)
    for block in BLOCKS:
        lane.base(block)
    lane.relay(1, 5)
    lane.taken(0, 1, 2)
    lane.record(0, 0, DATA, b"\0\x01\0\x04\0\0\0\0")
    lane.taken(0, 6, 10)
    lane.record(0, 1, END)
    lane.record(1, 0, RESET)
    lane.say(0x0F)
    return lane.bytes


def files() -> dict[str, bytes]:
    """All golden files, by name."""
    told = chunks()
    return {
        "source.bin": source(),
        "target.bin": target(),
        "chunks.bin": b"".join(len(one).to_bytes(4, "little") + one for one, _ in told),
        "migration.bin": b"".join(stream for _, stream in told),
    }


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, content in files().items():
        if not (GOLDEN / name).exists():
            (GOLDEN / name).write_bytes(content)
