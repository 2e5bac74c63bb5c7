"""The streams of a relay and the pages of a machine, as docs/format.md describes them in section 10."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from oracle import blocks
from oracle.content import digest
from oracle.wire import END, NONE, OPENS, PAGES, RESET, Fields, Frame, WireError, require

PAGE = 4096
SLOT = 4192
CHUNK_LIMIT = 1 << 20
BYTES, FULL, ZERO, SAME, COPY, DELTA, BASE, BASE_COPY = range(8)
PLACED = 8
RUNS = (FULL, ZERO, SAME, BASE)
NAMED, KNOWN_BY = 1, 2
FIRST_STATE = 0x9E37_79B9_7F4A_7C15
MASK = (1 << 64) - 1
Block = tuple[bytes, Sequence[bytes]]


class Reader(Fields):
    """A chunk, read from front to back."""

    def number(self, low: int = 0, high: int = MASK) -> int:
        value = 0
        for index in range(10):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                require(low <= value <= high, f"{value} is outside {low}..{high}")
                return value
        raise WireError("a number in more than ten bytes")


@dataclass
class Slot:
    """One page that is held."""

    place: tuple[int, int]
    uses: int
    page: bytes


@dataclass
class Held:
    """The pages that both sides hold, by place."""

    room: int
    slots: list[Slot] = field(default_factory=list)
    places: dict[tuple[int, int], int] = field(default_factory=dict)
    state: int = FIRST_STATE

    def page(self, slot: int) -> bytes:
        require(slot < len(self.slots), f"slot {slot}")
        return self.slots[slot].page

    def use(self, slot: int, more: int) -> None:
        self.slots[slot].uses = min(max(self.slots[slot].uses + more, 0), 255)

    def put(self, place: tuple[int, int], page: bytes) -> None:
        slot = self.places.get(place)
        if slot is not None:
            self.use(slot, 8)
            self.slots[slot].page = page
        elif len(self.slots) < self.room:
            self.places[place] = len(self.slots)
            self.slots.append(Slot(place, 0, page))
        elif self.room:
            slot = self.given_up()
            del self.places[self.slots[slot].place]
            self.slots[slot] = Slot(place, 0, page)
            self.places[place] = slot

    def given_up(self) -> int:
        least = None
        for _ in range(4):
            self.state ^= self.state << 13 & MASK
            self.state ^= self.state >> 7
            self.state ^= self.state << 17 & MASK
            slot = self.state % len(self.slots)
            if least is None or self.slots[slot].uses < self.slots[least].uses:
                least = slot
            else:
                self.use(slot, -1)
        assert least is not None
        return least


class PageDecoder:
    """Makes a migration stream of its chunks, in their order."""

    def __init__(self, cache: int, base: Sequence[Block] = ()) -> None:
        self.held = Held(cache // SLOT)
        self.base = list(base)
        self.names: dict[int, bytes] = {}
        self.place = (0, -1)

    def decode(self, chunk: bytes) -> bytes:
        reader = Reader(chunk)
        proof = reader.take(16)
        length = reader.number(1, CHUNK_LIMIT)
        told = Reader(reader.take(reader.number()))
        out = bytearray()
        while told.at < len(told.data):
            self.step(told, reader, out)
        reader.end()
        require(len(out) == length and digest(bytes(out)) == proof, "a chunk without its digest")
        return bytes(out)

    def step(self, told: Reader, literals: Reader, out: bytearray) -> None:
        tag = told.number()
        kind, count = tag & 7, (tag >> 4) + 1
        if kind == BYTES:
            require(not tag & PLACED, "bytes have no place")
            out += literals.take(count)
            return
        require(count == 1 or kind in RUNS, "a row of what has none")
        named = False
        if tag & PLACED:
            named = self.read_place(told)
        else:
            self.place = (self.place[0], self.place[1] + 1)
        for index in range(count):
            if index:
                self.place, named = (self.place[0], self.place[1] + 1), False
            self.page(kind, told, literals, out, named)

    def read_place(self, told: Reader) -> bool:
        gap = blocks.unzigzag(told.number())
        block = told.number()
        self.place = (block >> 2, self.place[1] + 1 + gap)
        if block & KNOWN_BY:
            self.names[block >> 2] = told.take(told.number(1, 255))
        return bool(block & NAMED)

    def page(self, kind: int, told: Reader, literals: Reader, out: bytearray, named: bool) -> None:
        block, number = self.place
        require(block in self.names and 0 <= number <= MASK // PAGE, f"page {number} of block {block}")
        word = number * PAGE | (2 if kind == ZERO else 8) | (0 if named else 0x20)
        out += word.to_bytes(8, "big")
        if named:
            out += bytes([len(self.names[block])]) + self.names[block]
        if kind == ZERO:
            out.append(0)
            return
        page = self.content(kind, told, literals)
        out += page
        if kind == SAME:
            self.held.use(self.held.places[self.place], 8)
        else:
            self.held.put(self.place, page)

    def content(self, kind: int, told: Reader, literals: Reader) -> bytes:
        block, number = self.place
        if kind == FULL:
            return literals.take(PAGE)
        if kind == COPY:
            return self.held.page(told.number())
        if kind in (SAME, DELTA):
            require(self.place in self.held.places, "a page that is not held")
            held = self.held.page(self.held.places[self.place])
            if kind == SAME:
                return held
            coding = told.number(3, 5)
            return blocks.decode(coding, NONE, literals.take(told.number()), held, PAGE)
        if kind == BASE_COPY:
            at, page = told.number(0, len(self.base) - 1), told.number()
            require(page < len(self.base[at][1]), "a page that the base does not have")
            return self.base[at][1][page]
        pages = next((pages for name, pages in self.base if name == self.names[block]), ())
        require(number < len(pages), "a page that the base does not have")
        return pages[number]


@dataclass
class Stream:
    """One direction of a stream: what is said of it, in order."""

    channel: str = ""
    data: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    end: int | None = None


def streams(
    frames: Iterable[Frame], cache: int = 0, base: Sequence[Block] = (), *, opens: bool = True
) -> dict[int, Stream]:
    """Put records of one direction together, whatever their order; from the listener none opens a stream."""
    records: dict[tuple[int, int], Frame] = {}
    for frame in frames:
        if frame.name != "record":
            continue
        key = (frame.fields["stream"], frame.fields["number"])
        require(key not in records or records[key] == frame, "a record that came again as another one")
        records[key] = frame
    made: dict[int, Stream] = {}
    decoders: dict[int, PageDecoder] = {}
    due: dict[int, int] = {}
    for (number, at), frame in sorted(records.items()):
        require(at == due.get(number, 0), f"record {due.get(number, 0)} of stream {number} is missing")
        due[number] = at + 1
        stream, fields = made.setdefault(number, Stream()), frame.fields
        require(stream.end is None, "a record behind the end")
        require(
            (fields["word"] == OPENS) == (opens and at == 0), "a stream that is opened at the wrong place"
        )
        size = fields["raw_length"]
        raw = blocks.decode(fields["kind"], fields["codec"], frame.body, b"", size) if size else b""
        require(digest(raw).hex() == fields["digest"], "the digest of a record")
        if fields["word"] == OPENS:
            stream.channel = raw.decode("ascii")
        elif fields["word"] in (END, RESET):
            stream.end = fields["word"]
        elif fields["word"] == PAGES:
            stream.chunks.append(raw)
            stream.data += decoders.setdefault(number, PageDecoder(cache, base)).decode(raw)
        else:
            stream.data += raw
    return made
