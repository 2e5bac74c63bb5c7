"""Relay frames and pages of a machine, decoded as docs/format.md says: golden bytes, and a live relay."""

import socket
import threading
from contextlib import suppress
from pathlib import Path

import lz4.block
import pytest
import zstandard

from dwcp_fast.trust import INSECURE
from dwcp_fast.vm.relay import MIGRATION, RelayOptions, SourceRelay, TargetRelay
from oracle import making, relay, wire

DEADLINE_S = 30.0
DIRECTIONS = ("source", "target")


def decode(data: bytes, session: bytes = making.SESSION) -> list[wire.Frame]:
    """Decode what one side says on a lane."""
    assert wire.preface(data[:8]) == (3, 3)
    lane, frames, at = wire.Lane(), [], 8
    while at < len(data):
        frame, size = lane.frame(data[at:])
        frames.append(frame)
        at += size
        lane.session = session
    return frames


@pytest.mark.parametrize("name", making.files())
def test_golden_files_are_what_the_document_says(name: str) -> None:
    assert (making.GOLDEN / name).read_bytes() == making.files()[name]


def test_golden_streams_come_together_as_they_were_whatever_the_order() -> None:
    sent = decode((making.GOLDEN / "source.bin").read_bytes())
    back = decode((making.GOLDEN / "target.bin").read_bytes())
    stream = (making.GOLDEN / "migration.bin").read_bytes()
    for frames in (sent, sent[::-1]):
        out = relay.streams(frames, making.CACHE, making.BLOCKS)
        assert {number: one.channel for number, one in out.items()} == {0: "migration", 1: "control"}
        assert out[0].data == stream + b"A" * 65_536 + b"f" * 5000 and out[0].end == wire.END
        assert out[1].data == b"Z" * 65_536 and out[1].end == wire.RESET
    answers = relay.streams(back, opens=False)
    assert answers[0].data == bytes([0, 1, 0, 4, 0, 0, 0, 0]) and answers[0].end == wire.END
    told = [(frame.fields["stream"], frame.fields["count"]) for frame in back if frame.name == "taken"]
    assert told == [(0, 1), (0, 6)]
    names = {frame.name for frame in sent + back}
    assert {"relay", "base", "record", "taken"} < names
    assert sum(len(one.fields["digests"]) for one in back if one.name == "base") == back[3].fields["pages"]


def test_every_kind_of_operation_is_in_the_golden_chunks_and_none_can_be_left_out() -> None:
    decoder = relay.PageDecoder(making.CACHE, making.BLOCKS)
    for chunk, stream in making.chunks():
        assert decoder.decode(chunk) == stream
    # Behind the first, the second says what it says; alone, or with another room or base, it is refused.
    first, second = (chunk for chunk, _ in making.chunks())
    for cache, base in ((making.CACHE, making.BLOCKS[:1]), (0, making.BLOCKS), (making.CACHE, making.BLOCKS)):
        other = relay.PageDecoder(cache, base)
        if cache and len(base) == 2:
            first = first[:-1] + bytes([first[-1] ^ 1])
        with pytest.raises((wire.WireError, KeyError)):
            other.decode(first)
            other.decode(second)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_no_flipped_bit_of_a_header_or_head_passes(name: str) -> None:
    data = (making.GOLDEN / f"{name}.bin").read_bytes()
    at = 8
    while at < len(data):
        head, body = (int.from_bytes(data[at + where : at + where + 4], "little") for where in (4, 8))
        for place in range(at, at + wire.HEADER.size + head):
            broken = bytearray(data)
            broken[place] ^= 1 << place % 8
            with pytest.raises((wire.WireError, UnicodeDecodeError)):
                decode(bytes(broken))
        at += wire.HEADER.size + head + body


def test_no_changed_byte_of_a_body_changes_what_comes_out() -> None:
    faults = (wire.WireError, KeyError, lz4.block.LZ4BlockError, zstandard.ZstdError, UnicodeDecodeError)
    whole_streams = relay.streams(
        decode((making.GOLDEN / "source.bin").read_bytes()), making.CACHE, making.BLOCKS
    )
    frames = decode((making.GOLDEN / "source.bin").read_bytes())
    for frame in frames:
        if frame.name != "record" or not frame.body:
            continue
        for place in range(0, len(frame.body), max(len(frame.body) // 40, 1)):
            whole = frame.body
            frame.body = whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :]
            # Some bits of a coder mean nothing.
            with suppress(*faults):
                assert relay.streams(frames, making.CACHE, making.BLOCKS) == whole_streams
            frame.body = whole


class Wire:
    """A way to a listener that keeps what passes."""

    def __init__(self, to: tuple[str, int]) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self.lanes: list[tuple[bytearray, bytearray]] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._to)
            self._sockets += [near, far]
            kept = (bytearray(), bytearray())
            self.lanes.append(kept)
            for pair in ((near, far, kept[0]), (far, near, kept[1])):
                self._threads.append(threading.Thread(target=carry, args=pair, daemon=True))
                self._threads[-1].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(DEADLINE_S)
        for one in self._sockets:
            one.close()


def carry(near: socket.socket, far: socket.socket, kept: bytearray) -> None:
    with suppress(OSError):
        while data := near.recv(1 << 16):
            kept += data
            far.sendall(data)
    with suppress(OSError):
        far.shutdown(socket.SHUT_WR)


def migration() -> bytes:
    """Three rounds of forty pages, of which some change, some are zero and some are those of others."""
    begins = b"QEVM\0\0\0\x03\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04"
    size = 64 * relay.PAGE
    out = begins + (size | 4).to_bytes(8, "big") + b"\6pc.ram" + size.to_bytes(8, "big")
    ended = (0x10).to_bytes(8, "big") + b"\x7e\0\0\0\2"
    out += ended
    for turn in range(3):
        out += bytes([2 if turn < 2 else 3]) + b"\0\0\0\2"
        for at in range(40):
            content: bytes | None = making.noise(at % 30 or turn)
            if at % 7 == 3:
                content = None
            elif at % 5 == 2 and content is not None:
                content = content[: 50 * turn] + bytes([turn]) * 8 + content[50 * turn + 8 :]
            out += making.page(at, content, b"" if at else b"pc.ram")
        out += ended
    return out + b"\4\0\0\0\5\3apic" + making.noise(99)


@pytest.mark.parametrize("slots", [5, 1000])
@pytest.mark.parametrize("codec", ["none", "lz4", "zstd:3"])
def test_what_a_relay_says_on_the_wire_is_what_the_document_says(
    tmp_path: Path, slots: int, codec: str
) -> None:
    stream, cache = migration(), slots * relay.SLOT
    held = b"".join(making.noise(at) for at in range(8))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "pc.ram").write_bytes(held)
    base = [(b"pc.ram", [making.noise(at) for at in range(8)])]
    machine = socket.socket(socket.AF_UNIX)
    machine.settimeout(DEADLINE_S)
    machine.bind(str(tmp_path / "in"))
    machine.listen()
    near, far = (
        RelayOptions(lanes=2, codec=codec, page_cache_bytes=cache),
        RelayOptions(base=tmp_path / "base"),
    )
    with (
        machine,
        TargetRelay("127.0.0.1:0", {MIGRATION: tmp_path / "in"}, trust=INSECURE, options=far) as target,
    ):
        host, _, port = target.address.rpartition(":")
        way = Wire((host, int(port)))
        to = f"127.0.0.1:{way.port}"
        with SourceRelay(to, {MIGRATION: tmp_path / "out"}, trust=INSECURE, options=near) as source:
            target.accept(DEADLINE_S)
            with socket.socket(socket.AF_UNIX) as leaving:
                leaving.connect(str(tmp_path / "out"))
                leaving.sendall(stream)
            with machine.accept()[0] as arriving, arriving.makefile("rb") as arrived:
                assert arrived.read() == stream
            source.finish()
            counts = source.wait(DEADLINE_S).pages
            target.wait(DEADLINE_S)
        way.close()
    lanes = [(bytes(sent), bytes(back)) for sent, back in way.lanes if sent]
    session = bytes.fromhex(
        next(decode(back[:8] + first_frame(back))[0] for _, back in lanes).fields["session_id"]
    )
    sent = [frame for said, _ in lanes for frame in decode(said, session)]
    back = [frame for _, said in lanes for frame in decode(said, session)]
    out = relay.streams(sent, cache, base)
    assert out[0].channel == MIGRATION and out[0].data == stream and out[0].end == wire.END
    assert out[0].chunks and counts["base"] > 0 and counts["zero"] > 0 and counts["full"] > 0
    assert [frame.fields["pages"] for frame in back if frame.name == "relay"] == [8]
    assert sum(frame.name == "taken" for frame in back) > 0


def first_frame(said: bytes) -> bytes:
    head = int.from_bytes(said[12:16], "little")
    return said[8 : 8 + wire.HEADER.size + head]
