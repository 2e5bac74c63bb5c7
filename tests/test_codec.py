"""One-call compression: round trips, buffers of every kind, limits and errors."""

import array
import doctest
import mmap
import pickle
import struct
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

import dwcp_fast as dwcp
from dwcp_fast import codec, errors
from dwcp_fast.buffers import BufferLike

CODECS = ["auto", "none", "lz4", "lz4:8", "zstd", "zstd:1", "zstd:-5", "zstd:19"]
TEXT = b"the state of the machine, page by page; " * 4000


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("checksum", [False, True])
def test_what_was_compressed_comes_back(name: str, checksum: bool) -> None:
    noise = np.random.default_rng(1).bytes(100_000)
    for raw in (b"", b"x", TEXT, noise, bytes(300_000)):
        packed = dwcp.compress(raw, name, checksum=checksum)
        assert dwcp.decompress(packed) == raw
        assert len(packed) <= len(raw) + 32
        assert len(packed) <= dwcp.max_compressed_length(len(raw))


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=5000), st.sampled_from(CODECS))
def test_any_bytes_come_back(raw: bytes, name: str) -> None:
    assert dwcp.decompress(dwcp.compress(raw, name)) == raw


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_with_a_typed_error(junk: bytes) -> None:
    for data in (junk, b"DWCB\x01" + junk):
        try:
            dwcp.decompress(data, max_length=1 << 20)
        except (errors.FormatError, errors.LimitExceededError):
            continue


def test_every_contiguous_buffer_is_taken_as_raw_bytes(tmp_path: Path) -> None:
    numbers = np.arange(1000, dtype=np.float32).reshape(10, 100)
    raw = numbers.tobytes()
    path = tmp_path / "numbers"
    path.write_bytes(raw)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        buffers: list[BufferLike] = [
            raw,
            bytearray(raw),
            memoryview(raw),
            numbers.data,
            numbers,
            array.array("f", numbers.ravel().tolist()),
            pickle.PickleBuffer(numbers.data),
            mapping,
        ]
        for buffer in buffers:
            assert dwcp.decompress(dwcp.compress(buffer)) == raw
            assert dwcp.digest(buffer) == dwcp.digest(raw)


@pytest.mark.parametrize(
    "buffer",
    [np.zeros((8, 8))[:, ::2], memoryview(b"abcdef")[::2], np.asfortranarray(np.zeros((3, 4)))],
    ids=["array", "memoryview", "fortran"],
)
def test_a_buffer_with_gaps_is_refused(buffer: BufferLike) -> None:
    with pytest.raises(BufferError, match="contiguous"):
        dwcp.compress(buffer)


class Tensor:
    """What this package uses of a tensor of torch, which is too large to install for a test."""

    def __init__(self, array: npt.NDArray[Any], device: str = "cpu") -> None:
        self.array = array
        self.device = SimpleNamespace(type=device)

    def detach(self) -> "Tensor":
        return self

    def is_contiguous(self) -> bool:
        return bool(self.array.flags.c_contiguous)

    def reshape(self, length: int) -> "Tensor":
        return Tensor(self.array.reshape(length))

    def element_size(self) -> int:
        return self.array.itemsize

    def view(self, dtype: type[np.integer[Any]]) -> "Tensor":
        return Tensor(self.array.view(dtype))

    def numpy(self) -> npt.NDArray[Any]:
        return self.array


def test_a_tensor_is_read_and_written_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    types = {"uint8": np.uint8, "int16": np.int16, "int32": np.int32, "int64": np.int64}
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(Tensor=Tensor, **types))
    tensor: Any = Tensor(np.arange(12, dtype=np.float32).reshape(3, 4))
    packed = dwcp.compress(tensor)
    assert dwcp.decompress(packed) == tensor.array.tobytes()
    target: Any = Tensor(np.zeros((3, 4), dtype=np.float32))
    dwcp.decompress_into(packed, target)
    assert np.array_equal(target.array, tensor.array)
    elsewhere: Any = Tensor(np.zeros(3), device="cuda")
    with pytest.raises(BufferError, match="move it to the CPU"):
        dwcp.compress(elsewhere)
    gaps: Any = Tensor(np.zeros((4, 4))[:, ::2])
    with pytest.raises(BufferError, match="not contiguous"):
        dwcp.compress(gaps)


def test_text_is_no_buffer() -> None:
    with pytest.raises(TypeError, match="bytes-like"):
        dwcp.compress("text")  # type: ignore[arg-type]


def test_into_writes_at_the_start_and_returns_the_length() -> None:
    packed = bytearray(dwcp.max_compressed_length(len(TEXT)))
    length = dwcp.compress_into(TEXT, packed, "zstd:1")
    out = np.full(len(TEXT) + 10, 7, dtype=np.uint8)
    assert dwcp.decompress_into(memoryview(packed)[:length], out) == len(TEXT)
    assert out[: len(TEXT)].tobytes() == TEXT
    assert out[len(TEXT) :].tolist() == [7] * 10


def test_an_output_that_is_too_small_tells_both_lengths() -> None:
    with pytest.raises(errors.ConfigError, match=r"5 bytes is too small: 6 bytes") as caught:
        dwcp.decompress_into(dwcp.compress(b"states"), bytearray(5))
    assert isinstance(caught.value, ValueError)
    with pytest.raises(errors.ConfigError):
        dwcp.compress_into(np.random.default_rng(2).bytes(1000), bytearray(500))


def test_a_read_only_output_is_refused() -> None:
    frozen = np.zeros(100, dtype=np.uint8)
    frozen.flags.writeable = False
    outputs: list[BufferLike] = [bytes(100), frozen]
    for out in outputs:
        with pytest.raises(BufferError, match="read-only"):
            dwcp.decompress_into(dwcp.compress(b"state"), out)


def test_input_and_output_must_not_share_memory() -> None:
    both = bytearray(1000)
    with pytest.raises(ValueError, match="share memory"):
        dwcp.compress_into(memoryview(both)[:600], memoryview(both)[500:])


def test_a_buffer_stays_exported_only_during_the_call() -> None:
    buffer = bytearray(TEXT)
    dwcp.compress(buffer)
    with pytest.raises(errors.ConfigError):
        dwcp.compress(buffer, "brotli")
    buffer.append(0)


@pytest.mark.parametrize("name", ["brotli", "zstd:99", "zstd:x", "ZSTD", ""])
def test_an_unknown_codec_is_named(name: str) -> None:
    with pytest.raises(errors.ConfigError, match=name[-2:] or "unknown"):
        dwcp.compress(b"state", name)


def test_a_changed_byte_is_found_by_the_checksum() -> None:
    packed = bytearray(dwcp.compress(np.random.default_rng(3).bytes(1000), "none", checksum=True))
    packed[-1] ^= 1
    with pytest.raises(errors.IntegrityError, match="digest"):
        dwcp.decompress(packed)


def test_a_truncated_container_is_refused_at_every_length() -> None:
    packed = dwcp.compress(TEXT[:3000], "zstd", checksum=True)
    for length in range(len(packed)):
        with pytest.raises(errors.FormatError):
            dwcp.decompress(packed[:length])


def test_a_lying_length_is_refused_before_memory_is_taken() -> None:
    packed = bytearray(dwcp.compress(b"state"))
    struct.pack_into("<Q", packed, 8, 1 << 63)
    with pytest.raises(errors.LimitExceededError, match=str(1 << 63)):
        dwcp.decompress(packed)
    bomb = dwcp.compress(bytes(10_000_000), "zstd:1")
    with pytest.raises(errors.LimitExceededError, match="1000"):
        dwcp.decompress(bomb, max_length=1000)


def test_a_later_version_is_told_apart_from_damage() -> None:
    packed = bytearray(dwcp.compress(b"state"))
    packed[4] = 2
    with pytest.raises(errors.UnsupportedFormatError) as caught:
        dwcp.decompress(packed)
    assert (caught.value.exit_code, caught.value.code) == (10, "unsupported-format")


def test_the_digest_is_xxh3_of_128_bits() -> None:
    assert dwcp.digest(TEXT) == xxhash.xxh3_128(TEXT).digest()


def test_threads_compress_at_the_same_time_without_mixing() -> None:
    inputs = [np.random.default_rng(seed).integers(0, 9, 400_000, dtype=np.uint8) for seed in range(4)]
    results: list[bool] = []

    def work(raw: npt.NDArray[np.uint8]) -> None:
        results.extend(dwcp.decompress(dwcp.compress(raw, name)) == raw.tobytes() for name in CODECS)

    threads = [threading.Thread(target=work, args=(raw,)) for raw in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [True] * len(inputs) * len(CODECS)


def test_the_examples_in_the_documentation_hold() -> None:
    outcome = doctest.testmod(codec)
    assert outcome.attempted >= 6 and outcome.failed == 0
