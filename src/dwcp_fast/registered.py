"""Memory that is made once and sent from, or received into, again and again.

>>> from dwcp_fast import RegisteredBuffer
>>> with RegisteredBuffer.of(b"weights") as buffer:
...     with memoryview(buffer) as view:
...         view[0:1] = b"W"
...     bytes(buffer), len(buffer)
(b'Weights', 7)
"""

from typing import Final, Self

from dwcp_fast import _core
from dwcp_fast.buffers import BufferLike, view_tensor
from dwcp_fast.closing import Closing
from dwcp_fast.options import check_int

__all__ = ["RegisteredBuffer"]

MAX_BYTES: Final = 1 << 46


class RegisteredBuffer(_core.RegisteredMemory, Closing):
    """Memory for states that are sent or received again and again; any function takes it that takes a buffer.

    Lanes over RDMA send it from where it is: the first that does registers it with the device, for all
    that follow, until no session on the device is left. What they receive they copy once, out of the memory
    that the peer sends into. On other links it is memory like any other, whose pages are there from the
    beginning.

    It must not be written to during a call that sends it or receives into it. After a call that has failed,
    a device may still read it for a moment; bytes that change then are found by the receiver, and refused.
    Where the process may not lock as much memory, what is sent of it is copied, and the log says so. A
    forked child has a copy of its own.

    Attributes:
        registrations: With how many devices it is registered at present.
        closed: Whether it was closed.
    """

    def __new__(cls, length: int) -> Self:
        """Make a buffer of zeros.

        Args:
            length: Its length in bytes, at least 1.

        Raises:
            ConfigError: `length` is out of range.
            MemoryError: There is not as much memory.
        """
        check_int("length", length, 1, MAX_BYTES)
        return super().__new__(cls, length)

    @classmethod
    def of(cls, data: BufferLike) -> Self:
        """Make a buffer with a copy of other bytes.

        Args:
            data: Any C-contiguous buffer, of at least a byte.

        Raises:
            BufferError: `data` is not contiguous, or empty.
            MemoryError: There is not as much memory.
        """
        view = view_tensor(data)
        with memoryview(data if view is None else view) as whole:
            if not whole.c_contiguous:
                raise BufferError("the data is not contiguous")
            return super().__new__(cls, whole)
