"""Registered buffers where there is no RDMA: memory like any other, with an end of its own."""

import threading

import numpy as np
import pytest

import dwcp_fast
from dwcp_fast import INSECURE, ConfigError, RegisteredBuffer, SendOptions, connect, listen
from dwcp_fast.options import Carrier

LENGTH = 3_000_001


@pytest.mark.parametrize("link", ["tcp", "shm"])
def test_a_buffer_is_sent_and_received_into_again_and_again(link: Carrier) -> None:
    content = np.random.default_rng(1).bytes(LENGTH)
    with listen("127.0.0.1:0", trust=INSECURE) as listener:
        got = []

        def take() -> None:
            session = listener.accept(timeout_s=20)
            assert session is not None
            with session, RegisteredBuffer(LENGTH) as buffer:
                for _ in range(2):
                    report = session.receive_into({"state": buffer}, timeout_s=20)
                    assert report is not None
                    got.append((report.transport, dwcp_fast.digest(buffer)))

        thread = threading.Thread(target=take)
        thread.start()
        options = SendOptions(link=link)
        with RegisteredBuffer.of(content) as buffer:
            with connect(listener.address, trust=INSECURE, options=options) as session:
                for turn in range(2):
                    with memoryview(buffer) as view:
                        view[0] = turn
                    report = session.send({"state": buffer})
                    assert report.verified and report.transport == link
            assert buffer.registrations == 0
        thread.join(20)
    assert got == [(link, dwcp_fast.digest(bytes([turn]) + content[1:])) for turn in range(2)]


def test_it_copies_any_buffer_and_begins_with_zeros() -> None:
    numbers = np.arange(10, dtype=">f4").reshape(2, 5)
    assert bytes(RegisteredBuffer.of(numbers)) == numbers.tobytes()
    assert bytes(RegisteredBuffer.of(bytearray(b"state"))) == b"state"
    made = RegisteredBuffer(5)
    assert (bytes(made), len(made), made.closed) == (bytes(5), 5, False)
    with pytest.raises(BufferError, match="contiguous"):
        RegisteredBuffer.of(numbers[:, ::2])
    with pytest.raises(BufferError, match="no byte"):
        RegisteredBuffer.of(b"")
    for length in (0, -1, 1 << 60, True, 1.0):
        with pytest.raises(ConfigError, match="length"):
            RegisteredBuffer(length)  # type: ignore[arg-type]


def test_it_is_not_closed_under_whoever_looks_at_it() -> None:
    buffer = RegisteredBuffer.of(b"state")
    view = memoryview(buffer)
    with pytest.raises(BufferError, match="view"):
        buffer.close()
    assert bytes(view) == b"state"
    view.release()
    buffer.close()
    buffer.close()
    assert (buffer.closed, len(buffer), buffer.registrations) == (True, 0, 0)
    with pytest.raises(ValueError, match="closed"):
        memoryview(buffer)
