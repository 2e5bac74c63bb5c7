"""v1 senders that are stopped, peers that fall silent, and what v1 cannot keep."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

import dwcp_fast as dwcp
from dwcp_fast import errors
from dwcp_fast.v1 import V1Stop, send_v1
from two_ends import WAIT_S, meanwhile

SIZES = pytest.mark.parametrize("size", [5, 64 << 20], ids=["all sent", "still sending"])


@contextmanager
def silent_peer(backlog: int = 16) -> Iterator[int]:
    """A port where the system takes connections, and nobody reads."""
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as server:
        yield server.getsockname()[1]


def until(condition: Callable[[], bool]) -> None:
    """Wait for something another thread does."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_sending() -> bool:
    return any(thread.name.startswith("dwcp-v1-send") for thread in threading.enumerate())


def v1_options(**more: Any) -> dwcp.SendOptions:
    return dwcp.SendOptions(protocol="v1", v1_payload="raw", streams=2, timeout_s=2 * WAIT_S, **more)


@SIZES
def test_cancelling_a_v1_session_ends_what_it_sends(size: int) -> None:
    with silent_peer() as port:
        session = dwcp.connect(f"127.0.0.1:{port}", options=v1_options())
        with meanwhile(lambda: session.send({"state": bytes(size)})) as sending:
            until(is_sending)
            session.cancel()
            with pytest.raises(errors.DwcpError) as caught:
                sending.result(WAIT_S)
        assert caught.value.code == "cancelled"
        with pytest.raises(errors.DwcpError, match="cancelled"):
            session.send({"state": b"state"})
    assert not is_sending()


@SIZES
def test_cancelling_a_task_ends_what_a_v1_session_sends(size: int) -> None:
    async def cancelled(port: int) -> bool:
        async with dwcp.connect_async(f"127.0.0.1:{port}", options=v1_options()) as session:
            task = asyncio.create_task(session.send({"state": bytes(size)}))
            await asyncio.to_thread(until, is_sending)
            task.cancel()
            await asyncio.wait([task], timeout=WAIT_S)
            return task.cancelled()

    with silent_peer() as port:
        assert asyncio.run(cancelled(port))
    assert not is_sending()


def test_a_v1_sender_is_stopped_while_it_connects() -> None:
    stop = V1Stop()
    with silent_peer(backlog=0) as port, ExitStack() as stack:
        # The queue has room for one; whoever comes after it is not answered.
        stack.enter_context(socket.create_connection(("127.0.0.1", port), WAIT_S))
        with meanwhile(
            lambda: send_v1("127.0.0.1", port, b"state", connect_timeout_s=2 * WAIT_S, stop=stop)
        ) as sending:
            time.sleep(0.2)
            assert not sending.done()
            stop.stop()
            with pytest.raises(errors.DwcpError) as caught:
                sending.result(WAIT_S)
    assert caught.value.code == "cancelled"


@SIZES
def test_a_peer_that_stays_silent_is_given_up(size: int) -> None:
    with silent_peer() as port:
        session = dwcp.connect(f"127.0.0.1:{port}", options=v1_options(idle_timeout_s=0.3))
        with pytest.raises(errors.DeadlineError, match=r"took nothing .* for 0\.3 s"):
            session.send({"state": bytes(size)})


def test_a_slow_peer_that_reads_one_connection_after_the_other_is_not_silent() -> None:
    with socket.socket() as server:
        # What waits here was taken as far as the sender can see.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        server.bind(("127.0.0.1", 0))
        server.listen(2)

        def read() -> int:
            with ExitStack() as stack:
                connections = [stack.enter_context(server.accept()[0]) for _ in range(2)]
                total = 0
                for connection in connections:
                    connection.settimeout(WAIT_S)
                    while piece := connection.recv(1 << 14):
                        total += len(piece)
                        time.sleep(0.008)
                return total

        with meanwhile(read) as reading:
            host, port = server.getsockname()
            report = send_v1(host, port, bytes(4 << 20), streams=2, payload_format="raw", idle_timeout_s=1.2)
            assert reading.result(WAIT_S) == report.wire_bytes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bandwidth_bits_per_s", 10**6),
        ("bandwidth_schedule", "08:00-18:00=1Mbps"),
        ("congestion", "bbr"),
        ("local_addresses", ("127.0.0.1",)),
    ],
)
def test_what_v1_cannot_keep_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(errors.NegotiationError, match=f"cannot keep {field}=") as caught:
        dwcp.connect("127.0.0.1:9", options=v1_options(**{field: value}))
    assert caught.value.hint is not None


@pytest.mark.parametrize("congestion", ["auto", "yielding", "system"])
def test_v1_takes_the_congestion_control_that_it_gets(congestion: str) -> None:
    dwcp.connect("127.0.0.1:9", options=v1_options(congestion=congestion)).close()
