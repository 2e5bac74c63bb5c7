"""The v1 codecs beyond the golden vectors: generations, limits, hostile lengths, what is never written."""

import mmap
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from dwcp_fast.errors import (
    BaseMismatchError,
    ConfigError,
    DwcpError,
    FormatError,
    IntegrityError,
    LimitExceededError,
    UnsupportedFormatError,
)
from dwcp_fast.v1 import (
    BaselineStore,
    HdeDecoder,
    HdeEncoder,
    deal_amst,
    deal_mstcp,
    decode_delta,
    decode_v3,
    encode_delta,
    encode_v3,
    guess_generation,
    read_amst,
    read_mstcp,
)
from dwcp_fast.v1._v1engine import AmstAssembly, apply_rsync, encode_block_delta
from dwcp_fast.v1.migration import (
    Envelope,
    MigrationKind,
    SessionBlock,
    decode_disk,
    disk_key,
    memory_key,
    pack_disk_blocks,
    pack_envelope,
    pack_session,
    read_envelope,
    read_session,
    read_standard_disk,
    read_standard_memory,
    split_disk_blocks,
)
from dwcp_fast.v1.payload import decode_zstd, encode_zstd
from test_v1_vectors import VECTORS, load, load_streams, make_input

STATE = make_input("d0")
CHANGED = make_input("d1")
KEY = memory_key("vm-1")


def frame_declaring(size: int) -> bytes:
    """A zstd frame of one raw byte that says it holds `size` bytes."""
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\x09\x00\x00A"


def packet_around(payload: bytes, length: int | None = None, tier: int = 1) -> bytes:
    return struct.pack(">BBHIQ", 0, tier, 0, 0, len(payload) if length is None else length) + payload


@pytest.mark.parametrize(
    ("generation", "tier", "number"),
    [
        ("A", "local", 0),
        ("B", "regional", 1),
        ("A", "global", 2),
        ("C", "none", 0),
        ("C", "local", 1),
        ("C", "global", 3),
    ],
)
def test_each_generation_numbers_its_tiers(generation: Any, tier: Any, number: int) -> None:
    packet = HdeEncoder(generation).encode(STATE, tier=tier)
    assert packet[:8] == bytes([0, number, 0, 0, 0, 0, 0, 0])
    decoded = HdeDecoder(generation).decode(packet)
    assert (decoded.payload, decoded.tier) == (STATE, tier)
    if tier == "none":
        assert packet[16:] == STATE
    expected = {0: "C" if tier == "none" else "A", 3: "C"}.get(number)
    assert guess_generation(packet) == expected


def test_generation_c_neither_sends_nor_takes_deltas() -> None:
    with pytest.raises(ConfigError):
        HdeEncoder("C", deltas=True)
    packet = bytearray(HdeEncoder("C").encode(STATE))
    packet[0] = 1
    for strict in (True, False):
        with pytest.raises(UnsupportedFormatError):
            HdeDecoder("C", strict=strict).decode(packet, key=KEY)


def test_a_baseline_is_a_copy_and_not_the_callers_buffer() -> None:
    buffer = bytearray(STATE)
    encoder, decoder = HdeEncoder("A", deltas=True), HdeDecoder("A")
    decoder.decode(encoder.encode(buffer, key=KEY), key=KEY)
    buffer[:] = CHANGED
    packet = encoder.encode(buffer, key=KEY)
    assert packet[0] == 1
    assert decoder.decode(packet, key=KEY).payload == CHANGED


def test_deltas_need_a_key_that_can_be_written() -> None:
    encoder = HdeEncoder("A", deltas=True)
    for key in (None, "", "a\0b"):
        with pytest.raises(ConfigError):
            encoder.encode(STATE, key=key)


def test_a_lost_packet_leaves_no_baseline_to_apply_to() -> None:
    encoder = HdeEncoder("A", deltas=True)
    encoder.encode(STATE, key=KEY)
    with pytest.raises(BaseMismatchError):
        HdeDecoder("A").decode(encoder.encode(CHANGED, key=KEY), key=KEY)


def test_a_refused_packet_leaves_no_older_baseline_for_the_next_delta() -> None:
    encoder, decoder = HdeEncoder("A", deltas=True), HdeDecoder("A")
    decoder.decode(encoder.encode(STATE, key=KEY), key=KEY)
    damaged = bytearray(encoder.encode(CHANGED, key=KEY))
    damaged[-1] ^= 1
    with pytest.raises(IntegrityError):
        decoder.decode(damaged, key=KEY)
    with pytest.raises(BaseMismatchError):
        decoder.decode(encoder.encode(STATE, key=KEY), key=KEY)
    decoder.decode(HdeEncoder("A").encode(STATE), key=KEY)


def test_a_state_that_cannot_be_one_packet_is_refused() -> None:
    with pytest.raises(FormatError):
        HdeEncoder("A").encode(b"")
    with pytest.raises(LimitExceededError):
        HdeEncoder("A", max_content_bytes=len(STATE) - 1).encode(STATE)
    with pytest.raises(LimitExceededError):
        HdeDecoder("C", max_bytes=len(STATE) - 1).decode(HdeEncoder("C").encode(STATE, tier="none"))


def test_the_baseline_store_drops_the_least_recently_used() -> None:
    store = BaselineStore(300)
    for key in ("a", "b", "c"):
        store.put(key, bytes(100))
    assert store.find("a") is not None
    store.put("d", bytes(100))
    assert store.find("b") is None
    assert (len(store), store.held_bytes) == (3, 300)
    store.put("a", bytes(301))
    assert store.find("a") is None
    store.drop("c")
    assert (len(store), store.held_bytes) == (1, 100)


def trained() -> tuple[zstandard.ZstdCompressionDict, bytes]:
    rng = random.Random(5)
    samples: list[Any] = [
        b" ".join(rng.choice((b"page", b"block", b"lane", b"state")) for _ in range(60)) for _ in range(200)
    ]
    dictionary = zstandard.train_dictionary(2048, samples, dict_id=0x0A0B0C0D)
    return dictionary, samples[0]


def test_generation_c_dictionaries_are_found_by_the_id_in_the_header() -> None:
    dictionary, sample = trained()
    frame = zstandard.ZstdCompressor(dict_data=dictionary).compress(sample)
    packet = struct.pack(">BBHIQ", 0, 1, 0, 0x0A0B0C0D, len(frame)) + frame
    held = {0x0A0B0C0D: dictionary.as_bytes()}
    assert HdeDecoder("C", dictionaries=held).decode(packet).payload == sample
    with pytest.raises(UnsupportedFormatError):
        HdeDecoder("C").decode(packet)


def test_generation_b_double_frames_are_undone_only_when_configured() -> None:
    dictionary, sample = trained()
    inner = zstandard.ZstdCompressor(dict_data=dictionary).compress(sample)
    packet = HdeEncoder("B").encode(inner)
    held = {0x0A0B0C0D: dictionary.as_bytes()}
    assert HdeDecoder("B", dictionaries=held).decode(packet).payload == inner
    assert HdeDecoder("B", dictionaries=held, double_wrap=True).decode(packet).payload == sample
    assert HdeDecoder("B", double_wrap=True).decode(packet).payload == inner
    with pytest.raises(ConfigError):
        HdeDecoder("A", double_wrap=True)


LYING: list[tuple[str, Callable[[], object]]] = [
    ("packet of 2^63", lambda: HdeDecoder("A").decode(packet_around(b"x" * 40, 1 << 63))),
    ("frame of 2^63", lambda: HdeDecoder("A").decode(packet_around(frame_declaring(1 << 63)))),
    ("frame of 2^40", lambda: HdeDecoder("A").decode(packet_around(frame_declaring(1 << 40)))),
    ("frame below the limit", lambda: HdeDecoder("A").decode(packet_around(frame_declaring(900 << 20)))),
    (
        "v3 lz4 of 2^31",
        lambda: decode_v3(struct.pack(">BBBBII", 3, 0, 1, 0, 1 << 31, 7) + b"1234567", max_bytes=1 << 32),
    ),
    (
        "v3 none of 2^31",
        lambda: decode_v3(struct.pack(">BBBBII", 3, 0, 0, 0, 1 << 31, 1) + b"1", max_bytes=1 << 32),
    ),
    ("amst of 2^32", lambda: read_amst([struct.pack(">IIII", 0, 0, 0xFFFF_FFF0, 0xFFFF_FFF0) + b"x"])),
    ("amst below the limit", lambda: read_amst([struct.pack(">IIII", 0, 0, 1, 1 << 30) + b"x"])),
    ("mstcp of 2^40", lambda: read_mstcp([b"x" * 9], sizes=[1 << 29], chunk_bytes=4096)),
    ("memory of 2^63", lambda: read_standard_memory(struct.pack(">Q", 1 << 63) + b"x")),
    ("disk of 2^63", lambda: read_standard_disk(struct.pack(">Q", 1 << 63) + b"x")),
    ("block of 2^32", lambda: split_disk_blocks(struct.pack(">II", 1, 0xFFFF_FFFF) + b"x")),
    (
        "delta of 2^31",
        lambda: decode_delta(b"\x00\x7f\xff\xff\xffx", b"", algorithm="rsync", original_bytes=1 << 30),
    ),
    ("xor of 2^30", lambda: decode_delta(b"x", b"", algorithm="xor", original_bytes=1 << 30)),
]


@pytest.mark.parametrize("call", [pytest.param(call, id=name) for name, call in LYING])
def test_a_lying_length_is_refused_without_allocating_it(call: Callable[[], object]) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DwcpError):
            call()
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_an_announced_transfer_takes_no_memory_before_its_bytes_arrive() -> None:
    def resident_pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    before = resident_pages()
    assembly = AmstAssembly(1 << 30)
    assembly.reserve(struct.pack(">IIII", 1, 1 << 29, 4096, 1 << 30))
    assembly.region(1 << 29, 4096)[:] = bytes(4096)
    assert resident_pages() - before < 1024


def test_a_bomb_of_unknown_size_stops_at_the_limit() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    bomb = compressor.compress(random.Random(1).randbytes(1 << 16) * 256)
    with pytest.raises(LimitExceededError):
        decode_zstd(bomb, 1 << 20)
    assert len(decode_zstd(bomb, 1 << 24)) == 1 << 24


def test_frames_with_a_skippable_or_second_frame_are_refused() -> None:
    frame = encode_zstd(STATE, 1)
    for payload in (frame + frame, b"\x50\x2a\x4d\x18\x01\x00\x00\x00x" + frame, frame + b"\0"):
        with pytest.raises(FormatError):
            decode_zstd(payload, 1 << 30)


def test_disk_blocks_are_bounded_together() -> None:
    encoder = HdeEncoder("A")
    blocks = pack_disk_blocks({7: encoder.encode(STATE), 2: encoder.encode(CHANGED)})
    assert decode_disk(blocks, HdeDecoder("A"), vm_id="vm-1") == {7: STATE, 2: CHANGED}
    with pytest.raises(LimitExceededError):
        decode_disk(blocks, HdeDecoder("A"), vm_id="vm-1", max_bytes=len(STATE) + 1)
    with pytest.raises(FormatError, match="twice"):
        split_disk_blocks(blocks[:0] + pack_disk_blocks({7: b"x"}) * 2)
    assert disk_key("vm-9", 12) == "vm-9_disk_12"


def test_envelope_and_session_block_are_read_back() -> None:
    envelope = Envelope(MigrationKind.DWCP_DISK, "vm-ü")
    session = SessionBlock(bytes(range(16)), 2, 4)
    head = pack_envelope(envelope) + pack_session(session)
    assert head[:3] == b"\x03\x00\x05"
    read, position = read_envelope(head + b"rest")
    assert read == envelope
    assert read_session(head + b"rest", position) == (session, len(head))
    for cut in range(len(head)):
        with pytest.raises(FormatError):
            read_session(head[:cut], read_envelope(head[:cut])[1])


@pytest.mark.parametrize(
    "head", [b"\x04\x00\x01v", b"\x00\x00\x00", b"\x00\x00\x01\xff", b"\x00\x00\x02v\x00", b"\x00\xff\xffv"]
)
def test_a_broken_envelope_is_refused(head: bytes) -> None:
    with pytest.raises(FormatError):
        read_envelope(head)


def test_a_session_index_must_be_below_its_count() -> None:
    with pytest.raises(FormatError):
        read_session(struct.pack(">16sHH", bytes(16), 4, 4))
    with pytest.raises(LimitExceededError):
        read_session(struct.pack(">16sHH", bytes(16), 4, 60_000))
    with pytest.raises(ConfigError):
        pack_session(SessionBlock(bytes(16), 1, 1))


def mst(*chunks: tuple[int, bytes]) -> bytes:
    return b"".join(struct.pack(">II", number, len(data)) + data for number, data in chunks)


@pytest.mark.parametrize(
    "streams",
    [
        [mst((0, b"abcd"), (3, b"efg")), mst((1, b"wxyz"))],
        [mst((0, b"abcde"), (2, b"fg")), mst((1, b"wxyz"))],
        [mst((0, b"abcd"), (0, b"efg")), mst((1, b"wxyz"))],
        [mst((0, b"abcd"), (1, b"wxyz"), (2, b"efg"))],
        [mst((0, b"abcd")), mst((1, b"wxyz"), (3, b"efg"))],
        [mst((0, b"abcd")), mst((2, b"efg"), (1, b"wxyz"))],
    ],
)
def test_mstcp_chunks_out_of_place_are_refused(streams: list[bytes]) -> None:
    good = [mst((2, b"efg"), (0, b"abcd")), mst((1, b"wxyz"))]
    assert read_mstcp(good, sizes=[11], chunk_bytes=4) == [b"abcdwxyzefg"]
    with pytest.raises(FormatError):
        read_mstcp([*streams, b""][:2], sizes=[11], chunk_bytes=4)


@pytest.mark.parametrize("streams", [1, 3, 16])
@pytest.mark.parametrize("chunk_bytes", [1, 7, 4096])
def test_dealt_chunks_are_read_back_in_any_order_of_streams(streams: int, chunk_bytes: int) -> None:
    data = STATE[:5000]
    dealt = deal_amst(data, streams=streams, chunk_bytes=chunk_bytes)
    random.Random(3).shuffle(dealt)
    assert read_amst(dealt) == data
    dealt = deal_mstcp(data, streams=streams, chunk_bytes=chunk_bytes)
    random.Random(3).shuffle(dealt)
    assert read_mstcp(dealt, sizes=[len(data)], chunk_bytes=chunk_bytes) == [data]


def test_a_transfer_of_four_gibibytes_is_refused_before_it_is_touched() -> None:
    huge: Any = np.broadcast_to(np.zeros(1, np.uint8), (1 << 32,))
    with pytest.raises(TypeError):
        deal_amst(huge, streams=1)
    with mmap.mmap(-1, 1 << 32) as mapped, pytest.raises(LimitExceededError):
        deal_amst(mapped, streams=1, chunk_bytes=1 << 20)


def test_any_contiguous_buffer_is_taken() -> None:
    array: Any = np.arange(1000, dtype="<u4").reshape(10, 100)
    plain = array.tobytes()
    assert HdeDecoder("A").decode(HdeEncoder("A").encode(array)).payload == plain
    assert read_amst(deal_amst(array, streams=2)) == plain
    assert decode_v3(bytearray(encode_v3(memoryview(array)))).payload == plain


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("algorithm", ["xor", "rsync"])
@pytest.mark.parametrize(
    ("base", "current"), [(b"", b"x"), (b"x", b""), (STATE, CHANGED), (STATE, STATE[:5000])]
)
def test_deltas_are_read_back(base: bytes, current: bytes, algorithm: Any, wrapped: bool) -> None:
    body = encode_delta(base, current, algorithm=algorithm, wrapped=wrapped)
    decoded = decode_delta(body, base, algorithm=algorithm, original_bytes=len(current), wrapped=wrapped)
    assert decoded == current


def test_an_xor_body_is_refused_for_a_baseline_it_cannot_belong_to() -> None:
    body = encode_delta(b"abcdef", b"abc", algorithm="xor")
    with pytest.raises(BaseMismatchError):
        decode_delta(body, b"abcxyz", algorithm="xor", original_bytes=3)
    with pytest.raises(FormatError):
        decode_delta(body, b"abcdef", algorithm="xor", original_bytes=7)


def test_a_collision_of_the_peers_checksum_is_not_written_as_a_copy() -> None:
    base, current = make_input("r-base"), make_input("r-collide")
    body = encode_delta(base, current, algorithm="rsync")
    assert decode_delta(body, base, algorithm="rsync", original_bytes=len(current)) == current


READERS: dict[str, Callable[[bytes], object]] = {
    "v1-hde": lambda data: HdeDecoder("A", strict=False, max_bytes=1 << 22).decode(data, key=KEY),
    "v3-hde": lambda data: decode_v3(data, max_bytes=1 << 22),
    "v1-amst": lambda data: read_amst([data], max_bytes=1 << 22),
    "v1-delta": lambda data: decode_delta(data, STATE[:6000], algorithm="rsync", original_bytes=6000),
}


@pytest.mark.parametrize("profile", READERS)
def test_damaged_bytes_raise_only_errors_of_this_package(profile: str) -> None:
    rng = random.Random(profile)
    samples = [load(v) for v in VECTORS if v["profile"] == profile]
    samples = [sample for sample in samples if 0 < len(sample) < 20_000]
    assert len(samples) > 10
    outcomes = [0, 0]
    for _ in range(3000):
        data = bytearray(rng.choice(samples))
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(min(len(data), rng.choice((32, 1 << 20))))] = rng.choice(
                (0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256))
            )
        del data[rng.choice((len(data), len(data), rng.randrange(len(data)))) :]
        try:
            READERS[profile](bytes(data))
            outcomes[0] += 1
        except DwcpError:
            outcomes[1] += 1
    assert outcomes[1] > 500


def test_a_damaged_delta_body_never_gives_more_than_its_limit() -> None:
    rng = random.Random(9)
    (vector,) = [v for v in VECTORS if v["id"] == "hde-delta-few-local"]
    body = decode_zstd(load(vector, 1)[16:], 1 << 20)
    store = BaselineStore()
    for _ in range(2000):
        damaged = bytearray(body)
        for _ in range(rng.choice((1, 2, 4))):
            damaged[rng.randrange(400)] = rng.choice((0, 1, 2, 0x7F, 0x80, 0xFF))
        store.put(KEY, STATE)
        packet = bytearray(packet_around(encode_zstd(damaged, 1), tier=0))
        packet[0] = 1
        try:
            decoded = HdeDecoder("A", baselines=store, max_bytes=1 << 17).decode(packet, key=KEY)
        except DwcpError:
            continue
        assert decoded.is_delta
        assert len(decoded.payload) <= 1 << 17


def test_streams_of_the_peer_cut_anywhere_are_refused() -> None:
    (vector,) = [v for v in VECTORS if v["id"] == "amst-s1-19-chunk8"]
    (stream,) = load_streams(vector)
    for cut in range(len(stream)):
        with pytest.raises(FormatError):
            read_amst([stream[:cut]])


def test_a_state_that_changes_while_it_is_encoded_leaves_both_sides_with_the_same_baseline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = bytearray(STATE)
    decoder = HdeDecoder("A", baselines=BaselineStore())

    def encode_then_change(*arguments: Any) -> bytes | None:
        body = encode_block_delta(*arguments)
        state[5] ^= 0xFF
        return body

    monkeypatch.setattr("dwcp_fast.v1.hde.encode_block_delta", encode_then_change)
    encoder = HdeEncoder("A", deltas=True, baselines=BaselineStore())
    flags = []
    for change in (b"first", b"second", b"third"):
        state[8192 : 8192 + len(change)] = change
        meant = bytes(state)
        decoded = decoder.decode(encoder.encode(state, key=KEY), key=KEY)
        flags.append(decoded.is_delta)
        assert decoded.payload == meant
    assert flags == [False, True, True]


def test_a_body_that_the_caller_may_change_is_copied_before_it_is_checked_and_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = bytearray(encode_delta(STATE, CHANGED, algorithm="rsync"))

    def apply_after_a_change(copied: memoryview, *arguments: Any) -> bytes:
        body[0] ^= 0x55
        return apply_rsync(copied, *arguments)

    monkeypatch.setattr("dwcp_fast.v1.delta.apply_rsync", apply_after_a_change)
    assert decode_delta(body, STATE, algorithm="rsync", original_bytes=len(CHANGED)) == CHANGED
