"""Blocking calls awaited from coroutines: what is cancelled, and what is left when they are."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

import dwcp_fast as dwcp
from dwcp_fast import session
from dwcp_fast.listener import AsyncListener
from dwcp_fast.waiting import Worker
from two_ends import LOCAL, WAIT_S


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something another thread does."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def cancelled(task: "asyncio.Task[Any]") -> bool:
    """Wait until a task has ended, and tell whether it was cancelled."""
    await asyncio.wait([task], timeout=WAIT_S)
    return task.cancelled()


class Held:
    """Something that is waited for until it is cancelled, and comes nevertheless."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.given_up = threading.Event()
        self.closed = threading.Event()

    def accept(self, timeout_s: float | None) -> "Held":
        self.begun.set()
        self.given_up.wait(WAIT_S)
        return self

    def cancel(self) -> None:
        self.given_up.set()

    def close(self) -> None:
        self.closed.set()


def test_a_cancellation_that_takes_long_does_not_stop_the_loop() -> None:
    begun, allowed, ended = threading.Event(), threading.Event(), threading.Event()
    in_time: list[bool] = []

    def cancel() -> None:
        begun.set()
        in_time.append(allowed.wait(5))
        ended.set()

    async def run() -> bool:
        worker = Worker("dwcp-test")
        task = asyncio.create_task(worker.run(lambda: ended.wait(WAIT_S), cancel))
        await asyncio.sleep(0)
        task.cancel()
        await until(begun.is_set)
        # The second one must not leave the work behind.
        task.cancel()
        await asyncio.sleep(0.02)
        assert not task.done()
        allowed.set()
        try:
            return await cancelled(task)
        finally:
            worker.close()

    assert asyncio.run(run())
    assert ended.is_set() and in_time == [True]


def test_closing_a_second_time_does_nothing() -> None:
    async def close_twice() -> None:
        async with dwcp.listen_async(LOCAL, trust=dwcp.INSECURE) as listener:
            async with dwcp.connect_async(listener.address, trust=dwcp.INSECURE) as sending:
                incoming = await listener.accept(WAIT_S)
                assert incoming is not None
                async with incoming:
                    pass
                await incoming.close()
            await sending.close()
        await listener.close()
        with pytest.raises(dwcp.DwcpError) as caught:
            await listener.accept(WAIT_S)
        assert caught.value.code == "closed"

    asyncio.run(close_twice())


def test_a_session_that_opens_while_it_is_cancelled_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Held()

    def open_link(*arguments: Any) -> Held:
        link.begun.set()
        deadline = time.monotonic() + WAIT_S
        while not arguments[4].cancelled and time.monotonic() < deadline:
            time.sleep(0.005)
        return link

    monkeypatch.setattr(session, "open_link", open_link)

    async def enter() -> bool:
        task = asyncio.create_task(dwcp.connect_async("host:1").__aenter__())
        await until(link.begun.is_set)
        task.cancel()
        return await cancelled(task)

    assert asyncio.run(enter())
    assert link.closed.is_set()


def test_a_peer_that_is_accepted_while_that_is_cancelled_is_closed() -> None:
    peer = Held()

    async def accept() -> bool:
        task = asyncio.create_task(AsyncListener(cast(Any, peer)).accept())
        await until(peer.begun.is_set)
        task.cancel()
        return await cancelled(task)

    assert asyncio.run(accept())
    assert peer.closed.is_set()
