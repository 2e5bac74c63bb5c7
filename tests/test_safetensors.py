"""The safetensors format: what is written is read back, and what cannot be is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwcp_fast.errors import DwcpError, FormatError, LimitExceededError
from dwcp_fast.versions import DeltaPublisher, TensorSpec
from dwcp_fast.versions.safetensors import header_of, map_tensors
from versions_double import MemoryStore, is_exactly, take_newest, version_arrays


def written(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def tensor(shape: list[int], begin: int, end: int, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_a_file_is_published_and_committed_with_the_same_tensors(tmp_path: Path) -> None:
    arrays = version_arrays(1) | {"empty": np.zeros((0, 3))}
    specs = [TensorSpec("embedding", "fp32", (64, 96)), TensorSpec("norm", "fp16", (96,))]
    specs += [TensorSpec("empty", "fp64", (0, 3)), TensorSpec("bias", "fp64", (7,))]
    content = b"".join(arrays[spec.name].tobytes() for spec in specs)
    (tmp_path / "in").write_bytes(header_of(specs, {"by": "hand"}) + content)
    store = MemoryStore()
    with DeltaPublisher(store).version(1) as draft:
        draft.put_file(tmp_path / "in")
    _, tensors = take_newest(store, tmp_path / "out")
    assert is_exactly(tensors, arrays)
    found = map_tensors(tmp_path / "out" / "model.safetensors")
    assert {name: bytes(one.data) for name, one in found.items()} == {
        name: array.tobytes() for name, array in arrays.items()
    }


@pytest.mark.parametrize(
    "header",
    [
        b"[",
        b"[" * 100_000,
        b"[]",
        {"a": tensor([2], 0, 3)},
        {"a": tensor([2], 0, 2), "b": tensor([2], 1, 3)},
        {"a": tensor([1], 0, 1), "b": tensor([1], 2, 3)},
        {"a": tensor([3], 0, 3, "U9")},
        {"a": tensor([1 << 40, 1 << 40], 0, 3)},
        {"a": tensor([-1], 0, 3)},
        {"a": {"dtype": "U8", "shape": [3], "data_offsets": [0]}},
        {"a": tensor([2], 0, 2)},
        {"": tensor([3], 0, 3)},
        {"__metadata__": {"x": 1}, "a": tensor([3], 0, 3)},
    ],
)
def test_a_header_that_cannot_be_is_refused(tmp_path: Path, header: Any) -> None:
    with pytest.raises((FormatError, LimitExceededError)):
        map_tensors(written(tmp_path / "file", header, b"abc"))


def test_a_header_longer_than_the_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(LimitExceededError):
        map_tensors(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"short")
    with pytest.raises(FormatError):
        map_tensors(tmp_path / "file")


@given(at=st.integers(0, 200), value=st.binary(min_size=1, max_size=3))
def test_files_with_any_damage_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    data = header_of([TensorSpec("a", "fp32", (2, 2)), TensorSpec("b", "bool", (3,))], {"k": "v"}) + bytes(19)
    where = at % len(data)
    path.write_bytes(data[:where] + value + data[where + len(value) :])
    try:
        map_tensors(path)
    except DwcpError:
        return
