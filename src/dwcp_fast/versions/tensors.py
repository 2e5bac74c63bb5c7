"""What a tensor is here: a name, an element type, a shape, and contiguous bytes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dwcp_fast.buffers import BufferLike, view_tensor
from dwcp_fast.errors import ConfigError, LimitExceededError

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "DTYPES",
    "MAX_TENSORS",
    "RESERVED_NAME",
    "Tensor",
    "TensorSpec",
    "check_spec",
    "describe",
    "elements_of",
    "plain_view",
]

DTYPES: Final = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
    "int16": 2,
    "uint16": 2,
    "fp16": 2,
    "bf16": 2,
    "int32": 4,
    "uint32": 4,
    "fp32": 4,
    "int64": 8,
    "uint64": 8,
    "fp64": 8,
}
"""Bytes of an element by the name of its type."""

ALIASES: Final = {
    "float16": "fp16",
    "float32": "fp32",
    "float64": "fp64",
    "bfloat16": "bf16",
    "float8_e4m3fn": "fp8_e4m3",
    "float8_e5m2": "fp8_e5m2",
}
"""What numpy, ml_dtypes and torch call them."""

MAX_NAME_BYTES: Final = 1024
MAX_DIMENSIONS: Final = 16
MAX_TENSOR_BYTES: Final = 1 << 46
MAX_TENSORS: Final = 1 << 18
RESERVED_NAME: Final = "__metadata__"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What is known of a tensor without its bytes.

    Attributes:
        name: Its name.
        dtype: Type of its elements, one of :data:`DTYPES`.
        shape: Its dimensions; empty for one element.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.width


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a version.

    Attributes:
        spec: Its name, type and shape.
        data: Its bytes, read-only.
    """

    spec: TensorSpec
    data: memoryview

    def array(self) -> "npt.NDArray[Any]":
        """Give it as a read-only array over the same memory.

        Returns:
            An array of this shape; of ``uint16`` for bf16 and ``uint8`` for fp8, which numpy does not have.
        """
        array: npt.NDArray[Any] = np.frombuffer(self.data, dtype=numpy_type(self.spec.dtype))
        return array.reshape(self.spec.shape)


def numpy_type(dtype: str) -> str:
    """Name the numpy type that holds elements of a type."""
    if dtype in {"fp16", "fp32", "fp64"}:
        return dtype.replace("fp", "float")
    return {"bf16": "uint16", "fp8_e4m3": "uint8", "fp8_e5m2": "uint8"}.get(dtype, dtype)


def check_spec(spec: TensorSpec) -> TensorSpec:
    """Refuse a tensor that cannot be named or counted.

    Args:
        spec: What is claimed.

    Returns:
        `spec`.

    Raises:
        ConfigError: The name, type or shape cannot be used.
        LimitExceededError: It has too many bytes or dimensions.
    """
    name = spec.name
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise ConfigError(f"tensor name {name!r} is not valid Unicode") from None
    if not 0 < length <= MAX_NAME_BYTES or name == RESERVED_NAME or "\0" in name:
        raise ConfigError(
            f"tensor name {name[:80]!r} cannot be used: it must have 1 to {MAX_NAME_BYTES} bytes, "
            f"no NUL, and not be {RESERVED_NAME}"
        )
    if spec.dtype not in DTYPES:
        raise ConfigError(f"dtype {spec.dtype!r} of {name!r} is not known: use one of {', '.join(DTYPES)}")
    if len(spec.shape) > MAX_DIMENSIONS:
        raise LimitExceededError(f"{name!r} has {len(spec.shape)} dimensions, the limit is {MAX_DIMENSIONS}")
    if any(extent < 0 for extent in spec.shape):
        raise ConfigError(f"shape {spec.shape} of {name!r} has a negative dimension")
    if spec.nbytes > MAX_TENSOR_BYTES:
        raise LimitExceededError(f"{name!r} has {spec.nbytes} bytes, the limit is {MAX_TENSOR_BYTES}")
    return spec


def plain_view(buf: BufferLike) -> memoryview:
    """View a buffer as its bytes.

    Args:
        buf: A C-contiguous buffer, also an array of a type that has no buffer protocol, or a CPU tensor.

    Returns:
        The bytes, without copying.

    Raises:
        BufferError: It is not contiguous, or on another device.
        TypeError: It is no buffer.
    """
    if isinstance(buf, np.ndarray):
        if not buf.flags.c_contiguous:
            raise BufferError("the array is not contiguous")
        # Through bytes, since arrays of bfloat16 do not export themselves.
        return memoryview(buf.reshape(-1).view(np.uint8))
    tensor = view_tensor(buf)
    view = memoryview(buf if tensor is None else tensor)
    if not view.c_contiguous:
        raise BufferError("the buffer is not contiguous")
    # An empty view with several dimensions cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(b"")


def describe(
    name: str, buf: BufferLike, dtype: str | None = None, shape: Sequence[int] | None = None
) -> TensorSpec:
    """Find type and shape of a tensor from its buffer, where it tells them.

    Args:
        name: Its name.
        buf: Its bytes.
        dtype: Type of its elements; None takes the buffer's own, or ``"uint8"``.
        shape: Its dimensions; None takes the buffer's own if the type is its own too, else one dimension.

    Returns:
        What the tensor is.

    Raises:
        ConfigError: The type is not known, or the length does not fit type and shape.
        LimitExceededError: It is too large.
        BufferError: The buffer is not contiguous.
    """
    view = plain_view(buf)
    own = getattr(buf, "dtype", None)
    found = None if own is None else ALIASES.get(bare(own), bare(own))
    kind = found if dtype is None else ALIASES.get(dtype, dtype)
    kind = "uint8" if kind is None else kind
    width = DTYPES.get(kind)
    if width is None:
        raise ConfigError(f"dtype {kind!r} of {name!r} is not known: use one of {', '.join(DTYPES)}")
    extents: tuple[int, ...]
    if shape is not None:
        extents = tuple(int(extent) for extent in shape)
    elif own is not None and found is not None and DTYPES.get(found) == width:
        extents = tuple(int(extent) for extent in getattr(buf, "shape", (view.nbytes // width,)))
    else:
        extents = (view.nbytes // width,)
    spec = check_spec(TensorSpec(name, kind, extents))
    if spec.nbytes != view.nbytes:
        raise ConfigError(
            f"{name!r} has {view.nbytes} bytes, but {kind} of shape {extents} has {spec.nbytes}"
        )
    return spec


def bare(dtype: object) -> str:
    """Name a type as numpy or torch would, without the module."""
    return str(getattr(dtype, "name", dtype)).removeprefix("torch.")


def elements_of(view: memoryview, width: int) -> "npt.NDArray[Any]":
    """View bytes as unsigned elements of a width, which is all that copying them needs."""
    array: npt.NDArray[Any] = np.frombuffer(view, dtype=f"<u{width}")
    return array
