"""What the package takes as bytes."""

import sys
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from typing_extensions import Buffer

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["BufferLike", "view_tensor"]

# Numpy's own annotations do not call an array a buffer before Python 3.12.
BufferLike: TypeAlias = Union[Buffer, "npt.NDArray[Any]"]
"""Any C-contiguous object with the buffer protocol. A contiguous CPU tensor of torch is taken too."""


def view_tensor(value: object) -> Buffer | None:
    """Give the bytes of a tensor of torch, which has no buffer protocol; the native side asks for this.

    Args:
        value: What was given for a buffer.

    Returns:
        A buffer over the tensor's own memory; None if `value` is no tensor.

    Raises:
        BufferError: The tensor is on another device, or has gaps.
    """
    # Whoever has a tensor has imported torch; this must not.
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return None
    tensor: Any = value.detach()
    if tensor.device.type != "cpu":
        raise BufferError(f"the tensor is on {tensor.device}: move it to the CPU first")
    if not tensor.is_contiguous():
        raise BufferError("the tensor is not contiguous")
    # Of the same width, from which a sender learns what the elements are.
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.element_size(), torch.uint8)
    view: Buffer = tensor.reshape(-1).view(whole).numpy()
    return view
