"""What the package takes as bytes."""

from typing import TYPE_CHECKING, Any, TypeAlias, Union

from typing_extensions import Buffer

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["BufferLike"]

# Numpy's own annotations do not call an array a buffer before Python 3.12.
BufferLike: TypeAlias = Union[Buffer, "npt.NDArray[Any]"]
"""Any C-contiguous object with the buffer protocol."""
