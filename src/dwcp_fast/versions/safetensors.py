"""Files in the safetensors format: the length of a JSON header (u64), the header, all tensors' bytes."""

import json
import mmap
import os
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Final

from dwcp_fast.errors import ConfigError, FormatError, LimitExceededError
from dwcp_fast.record import Record
from dwcp_fast.versions.tensors import MAX_TENSORS, RESERVED_NAME, Tensor, TensorSpec, check_spec

__all__ = ["header_of", "map_tensors", "read_header"]

MAX_HEADER_BYTES: Final = 100_000_000
"""What the format itself allows."""

DTYPE_NAMES: Final = {
    "bool": "BOOL",
    "int8": "I8",
    "uint8": "U8",
    "fp8_e4m3": "F8_E4M3",
    "fp8_e5m2": "F8_E5M2",
    "int16": "I16",
    "uint16": "U16",
    "fp16": "F16",
    "bf16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "fp32": "F32",
    "int64": "I64",
    "uint64": "U64",
    "fp64": "F64",
}
DTYPES_BY_NAME: Final = {theirs: ours for ours, theirs in DTYPE_NAMES.items()}


def header_of(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Make everything of a file that stands before the bytes of the tensors.

    Args:
        specs: The tensors, in the order of their bytes.
        metadata: Texts that are kept with them.

    Returns:
        The length and the header, a multiple of 8 bytes long.
    """
    fields: dict[str, Any] = {RESERVED_NAME: dict(metadata)} if metadata else {}
    offset = 0
    for spec in specs:
        fields[spec.name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    header = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def read_header(descriptor: int, length: int) -> tuple[list[tuple[TensorSpec, int]], dict[str, str]]:
    """Read the header of a file.

    Args:
        descriptor: The open file.
        length: Its length.

    Returns:
        The tensors and where each begins in the file, in that order; and the metadata.

    Raises:
        FormatError: It is no such file, or tensors overlap or leave gaps.
        LimitExceededError: It is larger than the format allows.
        OSError: It cannot be read.
    """
    size = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if size > MAX_HEADER_BYTES:
        raise LimitExceededError(f"the header has {size} bytes, the limit is {MAX_HEADER_BYTES}")
    if 8 + size > length:
        raise FormatError(f"the header of {size} bytes does not fit a file of {length}")
    try:
        fields = json.loads(read_exactly(descriptor, size, 8).decode())
    except (ValueError, RecursionError) as exc:
        raise FormatError("the header is not JSON") from exc
    if not isinstance(fields, dict) or len(fields) > MAX_TENSORS:
        raise FormatError(f"the header is no object of at most {MAX_TENSORS} tensors")
    metadata = fields.pop(RESERVED_NAME, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{RESERVED_NAME} of the header is not an object of texts")
    found = [read_tensor(name, value) for name, value in fields.items()]
    found.sort(key=lambda one: (one[1], one[0].nbytes))
    at = 0
    for spec, offset in found:
        if offset != at:
            raise FormatError(f"tensor {spec.name!r} begins at {offset}, the one before ends at {at}")
        at += spec.nbytes
    if 8 + size + at != length:
        raise FormatError(f"the file has {length} bytes, its tensors end at {8 + size + at}")
    return [(spec, 8 + size + offset) for spec, offset in found], metadata


def read_tensor(name: str, fields: object) -> tuple[TensorSpec, int]:
    """Read what a header says of one tensor."""
    record = Record(fields, f"tensor {name[:80]!r}")
    dtype = record.text("dtype")
    if dtype not in DTYPES_BY_NAME:
        raise record.fault("dtype", f"one of {', '.join(DTYPES_BY_NAME)}")
    try:
        spec = check_spec(TensorSpec(name, DTYPES_BY_NAME[dtype], tuple(record.numbers("shape", 64))))
    except ConfigError as exc:
        raise FormatError(f"the header has a tensor that cannot be: {exc}") from exc
    begin, end = (*record.numbers("data_offsets", 2), -1, -1)[:2]
    if end - begin != spec.nbytes:
        raise FormatError(f"tensor {name!r} has offsets {begin} and {end}, but {spec.nbytes} bytes")
    return spec, begin


def map_tensors(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Map a file; its bytes are read when they are used.

    Args:
        path: The file.

    Returns:
        Its tensors by name.

    Raises:
        FormatError: It is no such file.
        LimitExceededError: It is larger than the format allows.
        OSError: It cannot be read.
    """
    with Path(path).open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        if length < 8:
            raise FormatError(f"{os.fspath(path)} has {length} bytes, a header takes 8 and more")
        found, _ = read_header(file.fileno(), length)
        view = memoryview(mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ))
    return {spec.name: Tensor(spec, view[offset : offset + spec.nbytes]) for spec, offset in found}


def read_exactly(descriptor: int, count: int, offset: int) -> bytes:
    """Read a part of a file; what is missing at its end is missing in the result."""
    data = bytearray()
    while len(data) < count:
        part = os.pread(descriptor, min(count - len(data), 1 << 30), offset + len(data))
        if not part:
            break
        data += part
    return bytes(data)
