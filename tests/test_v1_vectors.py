"""Every golden vector of v1, read as its manifest says it must be read."""

import gzip
import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dwcp_fast.errors import BaseMismatchError, ConfigError, DwcpError, FormatError, UnsupportedFormatError
from dwcp_fast.policy.rollout import (
    RolloutFlags,
    bucket_of,
    disable_all,
    enable_all,
    fnv1a_32,
    format_flags,
    is_component_enabled,
    merge_flags,
    parse_flags,
    uses_v3,
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
    read_amst,
    read_amst_sequence,
    read_mstcp,
)
from dwcp_fast.v1.migration import (
    decode_disk,
    pack_standard_disk,
    pack_standard_memory,
    read_standard_disk,
    read_standard_memory,
)
from dwcp_fast.v1.payload import decode_zstd

GOLDEN = Path(__file__).parent / "golden" / "v1"
MANIFEST: dict[str, Any] = json.loads((GOLDEN / "manifest.json").read_text())
VECTORS: list[dict[str, Any]] = MANIFEST["vectors"]
MASK = (1 << 64) - 1

Vector = dict[str, Any]


class Splitmix:
    """The generator the manifest's inputs are made of."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def next(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def blob(self, words: int) -> bytes:
        return b"".join(self.next().to_bytes(8, "little") for _ in range(words))


def make_text(seed: int, length: int) -> bytes:
    words: list[str] = MANIFEST["generators"]["words"]
    source = Splitmix(seed)
    out = bytearray()
    while len(out) < length:
        x = source.next()
        out += words[x >> 58].encode()
        out += b"\n" if (x >> 32) & 15 == 0 else b" "
    return bytes(out[:length])


def make_vm(seed: int, length: int) -> bytes:
    source = Splitmix(seed)
    out = bytearray()
    while len(out) < length:
        k = source.next() >> 60
        if k < 8:
            out += bytes(4096)
        elif k < 11:
            out += source.blob(2) * 256
        elif k < 14:
            out += make_text(source.next(), 4096)
        elif k == 14:
            base = source.next() & 0x00007FFFFFFFF000
            out += b"".join((base + 64 * j).to_bytes(8, "little") for j in range(512))
        else:
            out += source.blob(512)
    return bytes(out[:length])


def make_records(seed: int, length: int) -> bytes:
    source = Splitmix(seed)
    out = bytearray()
    i = 0
    while len(out) < length:
        out += i.to_bytes(8, "big") + source.next().to_bytes(8, "big") + bytes([i & 255]) * 240
        i += 1
    return bytes(out[:length])


def make_lcg(x: int, length: int) -> bytes:
    out = bytearray()
    for _ in range(length):
        x = (1664525 * x + 1013904223) & 0xFFFFFFFF
        out.append(x >> 24)
    return bytes(out)


def patch(data: bytes, places: list[tuple[int, dict[str, Any]]]) -> bytes:
    out = bytearray(data)
    for at, spec in places:
        piece = make(spec)
        out[at : at + len(piece)] = piece
    return bytes(out)


@cache
def make_input(name: str) -> bytes:
    entry = MANIFEST["inputs"][name]
    data = make(entry["spec"])
    assert digest(data) == entry["sha256"], name
    return data


MAKERS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "hex": lambda spec: bytes.fromhex(spec["hex"]),
    "zeros": lambda spec: bytes(spec["len"]),
    "repeat": lambda spec: (bytes.fromhex(spec["hex"]) * spec["len"])[: spec["len"]],
    "splitmix": lambda spec: Splitmix(spec["seed"]).blob(-(-spec["len"] // 8))[: spec["len"]],
    "text": lambda spec: make_text(spec["seed"], spec["len"]),
    "vm": lambda spec: make_vm(spec["seed"], spec["len"]),
    "records": lambda spec: make_records(spec["seed"], spec["len"]),
    "lcg": lambda spec: make_lcg(spec["x0"], spec["len"]),
    "concat": lambda spec: b"".join(make(part) for part in spec["parts"]),
    "slice": lambda spec: make(spec["of"])[spec["start"] : spec["end"]],
    "patch": lambda spec: patch(make(spec["of"]), spec["at"]),
    "ref": lambda spec: make_input(spec["input"]),
}


def make(spec: dict[str, Any]) -> bytes:
    return MAKERS[spec["gen"]](spec)


def digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def load(vector: Vector, index: int = 0) -> bytes:
    entry = vector["files"][index]
    raw = (GOLDEN / entry["path"]).read_bytes()
    assert digest(raw) == entry["sha256"]
    return gzip.decompress(raw) if entry["path"].endswith(".gz") else raw


def load_streams(vector: Vector) -> list[bytes]:
    joined = load(vector)
    streams = []
    position = 0
    for entry in vector["streams"]:
        streams.append(joined[position : position + entry["len"]])
        assert digest(streams[-1]) == entry["sha256"]
        position += entry["len"]
    assert position == len(joined)
    return streams


def of_kind(*kinds: str) -> list[Any]:
    return [pytest.param(vector, id=vector["id"]) for vector in VECTORS if vector["kind"] in kinds]


COVERED = {
    "adaptive-skip": 1,
    "amst": 20,
    "amst-refuse": 13,
    "delta": 21,
    "delta-known-bad": 1,
    "flag-file": 3,
    "flags": 1,
    "hde-delta-refuse": 15,
    "hde-quantized": 2,
    "hde-refuse": 15,
    "hde-sequence": 40,
    "mode": 1,
    "mst": 19,
    "mst-refuse": 6,
    "raw-stream": 2,
    "v3": 46,
    "v3-refuse": 10,
}


def test_every_vector_has_a_test_of_its_kind() -> None:
    counts: dict[str, int] = {}
    for vector in VECTORS:
        counts[vector["kind"]] = counts.get(vector["kind"], 0) + 1
    assert counts == COVERED
    assert sum(counts.values()) == 216
    stored = {str(path.relative_to(GOLDEN)) for path in GOLDEN.rglob("*") if path.is_file()}
    named = {entry["path"] for vector in VECTORS for entry in vector["files"]}
    assert stored - named == {"README.md", "manifest.json"}
    assert named <= stored


def check_packet(packet: bytes, decoder: HdeDecoder, key: str, expected: dict[str, Any]) -> None:
    decoded = decoder.decode(packet, key=key)
    assert digest(decoded.payload) == expected["output_sha256"]
    assert len(decoded.payload) == expected["output_len"]
    assert decoded.is_delta == (expected["as"] == "delta")
    assert decoded.flagged == bool(expected["flag"])
    assert decoded.tier == ("local", "regional", "global")[expected["tier"]]


@pytest.mark.parametrize("vector", of_kind("hde-sequence"))
def test_hde_packets_of_the_peer_decode_to_their_input(vector: Vector) -> None:
    key = vector["params"]["baseline_key"]
    full_only = vector["decode"] == "accept-as-full"
    decoder = HdeDecoder("A", strict=not full_only)
    for index, expected in enumerate(vector["expect"]["packets"]):
        check_packet(load(vector, index), decoder, key, expected)


@pytest.mark.parametrize(
    "vector", [v for v in of_kind("hde-sequence") if v.values[0]["decode"] == "accept-as-full"]
)
def test_a_strict_reader_refuses_a_delta_flag_on_a_full_state(vector: Vector) -> None:
    decoder = HdeDecoder("A")
    decoder.decode(load(vector, 0), key="vm-1_memory")
    with pytest.raises((FormatError, BaseMismatchError)) as caught:
        decoder.decode(load(vector, 1), key="vm-1_memory")
    assert caught.value.hint is not None


def test_without_a_key_every_flagged_packet_is_refused() -> None:
    (vector,) = [v for v in VECTORS if v["id"] == "hde-quirk-ambiguous"]
    decoder = HdeDecoder("A")
    decoder.decode(load(vector, 0))
    with pytest.raises(DwcpError):
        decoder.decode(load(vector, 1))


@pytest.mark.parametrize("vector", of_kind("hde-quantized"))
def test_a_quantized_packet_gives_the_masked_bytes(vector: Vector) -> None:
    payload = HdeDecoder("A").decode(load(vector)).payload
    assert digest(payload) == vector["expect"]["output_sha256"]
    mask = vector["params"]["mask"]
    assert payload == bytes(byte & mask for byte in make_input(vector["input"]))


@pytest.mark.parametrize("vector", of_kind("hde-refuse"))
def test_a_broken_hde_packet_is_refused(vector: Vector) -> None:
    limit = vector["params"].get("output_limit", 1 << 30)
    for strict in (True, False):
        with pytest.raises(DwcpError):
            HdeDecoder("A", strict=strict, max_bytes=limit).decode(load(vector))


@pytest.mark.parametrize("vector", of_kind("hde-delta-refuse"))
def test_a_broken_delta_is_never_applied(vector: Vector) -> None:
    key = vector["params"]["baseline_key"]
    base = make_input(vector["params"]["baseline_input"])
    store = BaselineStore()
    store.put(key, base)
    with pytest.raises(DwcpError):
        HdeDecoder("A", baselines=store).decode(load(vector), key=key)
    assert store.find(key) is None
    store.put(key, base)
    tolerant = HdeDecoder("A", strict=False, baselines=store).decode(load(vector), key=key)
    assert not tolerant.is_delta
    assert tolerant.payload == decode_zstd(load(vector)[16:], 1 << 20)


def sequences_of_deltas() -> list[Any]:
    return [
        v
        for v in of_kind("hde-sequence")
        if v.values[0]["decode"] == "accept" and "hde-delta-" in v.values[0]["id"]
    ]


@pytest.mark.parametrize("vector", sequences_of_deltas())
def test_our_delta_bodies_equal_those_of_the_peer(vector: Vector) -> None:
    tier = vector["params"]["tier_name"]
    encoder = HdeEncoder("A", deltas=True)
    plain = HdeEncoder("A")
    for expected in vector["expect"]["packets"]:
        state = make_input(expected["sender_state"])
        packet = encoder.encode(state, tier=tier, key=vector["params"]["baseline_key"])
        assert packet[0] == expected["flag"]
        assert packet[1] == expected["tier"]
        if expected["as"] == "delta":
            assert digest(decode_zstd(packet[16:], 1 << 20)) == expected["body_sha256"]
        assert plain.encode(state, tier=tier, key="unused")[0] == 0


@pytest.mark.parametrize("vector", of_kind("amst"))
def test_amst_streams_of_the_peer_give_the_message(vector: Vector) -> None:
    streams = load_streams(vector)
    messages = vector["messages"]
    if not messages:
        with pytest.raises(FormatError):
            read_amst(streams)
        return
    if vector["decode"] == "ambiguous-order":
        with pytest.raises(FormatError):
            read_amst(streams)
        return
    transfers = list(read_amst_sequence(streams[0])) if len(streams) == 1 else [read_amst(streams)]
    assert [digest(transfer) for transfer in transfers] == [message["sha256"] for message in messages]
    assert read_amst(streams[::-1]) == transfers[0] if len(messages) == 1 else True
    decoder = HdeDecoder("A")
    for content in vector.get("content", ()):
        transfer = transfers[content["message"]]
        if content["kind"] == "hde":
            check_packet(transfer, decoder, content["baseline_key"], content["packet"])
        else:
            disk = decode_disk(transfer, decoder, vm_id="vm-1")
            assert list(disk) == content["order"]
            assert disk == {block["id"]: make_input(block["input"]) for block in content["blocks"]}


@pytest.mark.parametrize("vector", [v for v in of_kind("amst") if v.values[0]["profile"] == "v1-amst"])
def test_our_amst_chunks_equal_those_of_the_peer(vector: Vector) -> None:
    def chunks(streams: list[bytes]) -> set[bytes]:
        found = set()
        for stream in streams:
            position = 0
            while position < len(stream):
                end = position + 16 + int.from_bytes(stream[position + 8 : position + 12], "big")
                found.add(stream[position:end])
                position = end
        return found

    size = vector["params"]["chunk_size"]
    count = vector["params"]["streams"]
    if not vector["messages"]:
        with pytest.raises(FormatError):
            deal_amst(b"", streams=count, chunk_bytes=size)
        return
    ours = deal_amst(make_input(vector["messages"][0]["input"]), streams=count, chunk_bytes=size)
    assert len(ours) == count
    assert chunks(ours) == chunks(load_streams(vector))


@pytest.mark.parametrize("vector", of_kind("amst-refuse"))
def test_broken_amst_streams_are_refused(vector: Vector) -> None:
    with pytest.raises(DwcpError):
        read_amst(load_streams(vector))


@pytest.mark.parametrize("vector", of_kind("mst"))
def test_mstcp_streams_of_the_peer_give_the_messages(vector: Vector) -> None:
    streams = load_streams(vector)
    sizes = [message["len"] for message in vector["messages"]]
    chunk = vector["params"]["chunk_size"]
    messages = read_mstcp(streams, sizes=sizes, chunk_bytes=chunk)
    assert messages == [make_input(message["input"]) for message in vector["messages"]]
    assert read_mstcp(streams[::-1], sizes=sizes, chunk_bytes=chunk) == messages
    if len(messages) != 1:
        return
    ours = deal_mstcp(messages[0], streams=len(streams), chunk_bytes=chunk)
    assert sorted(map(len, ours)) == sorted(map(len, streams))
    assert read_mstcp(ours, sizes=sizes, chunk_bytes=chunk) == messages
    if not vector["expect"]["out_of_order"]:
        assert sorted(ours) == sorted(streams)


@pytest.mark.parametrize("vector", of_kind("mst-refuse"))
def test_broken_mstcp_streams_are_refused(vector: Vector) -> None:
    params = vector["params"]
    with pytest.raises(FormatError):
        read_mstcp(load_streams(vector), sizes=params["sizes"], chunk_bytes=params["chunk_size"])


@pytest.mark.parametrize("vector", of_kind("raw-stream"))
def test_standard_migrations_are_read_and_written_alike(vector: Vector) -> None:
    (stream,) = load_streams(vector)
    if "blocks" not in vector["expect"]:
        memory = read_standard_memory(stream)
        assert digest(memory) == vector["expect"]["output_sha256"]
        assert pack_standard_memory(memory) == stream
        return
    disk = read_standard_disk(stream)
    assert list(disk) == vector["expect"]["order"]
    assert disk == {int(number): make_input(name) for number, name in vector["expect"]["blocks"].items()}
    assert pack_standard_disk(disk) == stream


@pytest.mark.parametrize("vector", of_kind("v3"))
def test_v3_packets_of_the_peer_decode_to_their_input(vector: Vector) -> None:
    golden = load(vector)
    packet = decode_v3(golden)
    state = make_input(vector["input"])
    assert packet.payload == state
    assert (packet.algorithm, packet.mode) == (vector["params"]["algorithm"], vector["params"]["mode"])
    if packet.algorithm == "brotli":
        with pytest.raises(ConfigError):
            encode_v3(state, algorithm="brotli")
        return
    ours = encode_v3(state, algorithm=packet.algorithm, mode=packet.mode)
    assert ours[:8] == golden[:8]
    assert decode_v3(ours).payload == state
    if packet.algorithm == "lz4":
        assert ours[12:17] == golden[12:17]


@pytest.mark.parametrize("vector", of_kind("v3-refuse"))
def test_broken_v3_packets_are_refused(vector: Vector) -> None:
    with pytest.raises(FormatError):
        decode_v3(load(vector))


@pytest.mark.parametrize("vector", of_kind("delta"))
def test_delta_bodies_of_the_peer_give_the_state(vector: Vector) -> None:
    params = vector["params"]
    base = make_input(vector["baseline"])
    current = make_input(vector["input"])
    block = params["block"] or 4096
    body = load(vector)
    state = decode_delta(
        body,
        base,
        algorithm=params["algorithm"],
        original_bytes=len(current),
        block_bytes=block,
        wrapped=params["wrapped"],
    )
    assert digest(state) == vector["expect"]["output_sha256"]
    assert (state == current) == vector["expect"]["matches_sender_state"]
    ours = encode_delta(base, current, algorithm=params["algorithm"], block_bytes=block)
    assert (digest(ours) == vector["expect"]["body_sha256"]) == (vector["emit"] == "may")


@pytest.mark.parametrize("vector", of_kind("delta-known-bad"))
def test_an_unnamed_delta_algorithm_is_refused(vector: Vector) -> None:
    unnamed: Any = vector["params"]["algorithm"]
    base = make_input(vector["baseline"])
    with pytest.raises(UnsupportedFormatError):
        decode_delta(load(vector), base, algorithm=unnamed, original_bytes=20_000, wrapped=True)
    with pytest.raises(UnsupportedFormatError):
        encode_delta(base, make_input(vector["input"]), algorithm=unnamed)


@pytest.mark.parametrize("vector", of_kind("adaptive-skip"))
def test_a_delta_body_outside_its_frame_is_refused(vector: Vector) -> None:
    with pytest.raises(FormatError):
        decode_delta(load(vector), b"", algorithm="xor", original_bytes=100, wrapped=True)


@pytest.mark.parametrize("vector", of_kind("flags"))
def test_rollout_buckets_are_those_of_the_peer(vector: Vector) -> None:
    table = json.loads(load(vector))
    assert len(table["rows"]) == vector["expect"]["rows"]
    for row in table["rows"]:
        assert fnv1a_32(row["node"]) == row["fnv1a32"]
        assert bucket_of(row["node"]) == row["bucket"]
        for percentage, expected in row["should_use_v3"].items():
            flags = enable_all(RolloutFlags(), int(percentage))
            assert uses_v3(flags, row["node"]) is expected
    off = disable_all(RolloutFlags())
    assert not any(uses_v3(off, node) for node in table["force_v1"])
    for state, flags in (("disable_all", off), ("enable_all_0", enable_all(off, 0))):
        for component, expected in table["components"][state].items():
            assert is_component_enabled(flags, component) is expected, component
    for percentage in table["unclamped"]:
        with pytest.raises(ConfigError, match="v3RolloutPercentage"):
            enable_all(RolloutFlags(), int(percentage))


@pytest.mark.parametrize("vector", of_kind("flag-file"))
def test_flag_files_are_read_and_written_alike(vector: Vector) -> None:
    text = load(vector)
    flags = parse_flags(text)
    assert json.loads(format_flags(flags)) == vector["expect"]["flags"]
    assert format_flags(flags) == text.decode()
    changed = merge_flags(flags, {"v3RolloutPercentage": 37})
    assert changed.v3RolloutPercentage == 37
    assert changed.enableHybridMode == flags.enableHybridMode


@pytest.mark.parametrize("vector", of_kind("mode"))
def test_the_mode_table_is_complete(vector: Vector) -> None:
    table = json.loads(load(vector))
    assert sum(len(sequence["modes"]) for sequence in table["sequences"]) == vector["expect"]["decisions"]
