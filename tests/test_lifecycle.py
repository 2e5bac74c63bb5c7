"""Beginning and end: what cannot work does not begin, nothing is used before it is open or after its end,
and closing ends every wait."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dwcp_fast as dwcp
from dwcp_fast.errors import ClosedError, DwcpError
from two_ends import LOCAL, WAIT_S, accepted, meanwhile, pairing_of

SLOW = dwcp.SendOptions(bandwidth_bits_per_s=800_000, codec="none", streams=1)


@contextmanager
def connected(options: dwcp.SendOptions | None = None) -> Iterator[tuple[dwcp.Session, dwcp.IncomingSession]]:
    """Both ends of a session."""
    with (
        dwcp.listen(LOCAL) as listener,
        meanwhile(lambda: accepted(listener)) as arriving,
        dwcp.connect(pairing_of(listener), options=options or dwcp.SendOptions()) as session,
        arriving.result(WAIT_S) as incoming,
    ):
        yield session, incoming


def closed_under(call: Callable[[], object], close: Callable[[], object]) -> DwcpError:
    """Close something a moment after a call on it has begun, and give how the call ends."""
    with meanwhile(call) as calling:
        time.sleep(0.2)
        assert not calling.done()
        close()
        caught = calling.exception(WAIT_S)
    assert isinstance(caught, DwcpError)
    return caught


def test_every_use_of_a_closed_object_says_so_and_closing_twice_does_nothing() -> None:
    with dwcp.listen(LOCAL) as listener, connected() as (session, incoming):
        for closing in (session, incoming, listener):
            closing.close()
            closing.close()
        uses: list[Callable[[], object]] = [
            lambda: session.send({"state": b"x"}),
            session.progress,
            lambda: session.set_bandwidth_limit(1_000_000),
            lambda: incoming.receive(1),
            lambda: incoming.receive_into({"state": bytearray(1)}, 1),
            incoming.progress,
            lambda: listener.accept(1),
            lambda: listener.set_bandwidth_limit(1_000_000),
        ]
        for use in uses:
            with pytest.raises(ClosedError):
                use()


def test_closing_a_listener_ends_a_wait_for_peers_and_frees_its_port_at_once() -> None:
    listener = dwcp.listen(LOCAL)
    host, _, port = listener.address.rpartition(":")
    assert isinstance(closed_under(lambda: listener.accept(WAIT_S * 10), listener.close), ClosedError)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), WAIT_S)


def test_closing_a_listener_leaves_the_sessions_that_it_let_in() -> None:
    with (
        dwcp.listen(LOCAL) as listener,
        meanwhile(lambda: accepted(listener)) as arriving,
        dwcp.connect(pairing_of(listener)) as session,
        arriving.result(WAIT_S) as incoming,
    ):
        listener.close()
        with meanwhile(lambda: incoming.receive(WAIT_S)) as receiving:
            assert session.send({"state": b"state"}).verified
            received = receiving.result(WAIT_S)
    assert received is not None and bytes(received["state"]) == b"state"


def test_closing_a_session_ends_what_it_sends_and_what_it_waits_for() -> None:
    with connected(SLOW) as (session, incoming), meanwhile(lambda: incoming.receive(WAIT_S)):
        closed_under(lambda: session.send({"state": bytes(range(256)) * 40_000}), session.close)
    with connected() as (_session, incoming), meanwhile(lambda: incoming.receive(WAIT_S * 10)) as waiting:
        time.sleep(0.2)
        assert not waiting.done()
        incoming.close()
        assert waiting.result(WAIT_S) is None


def test_an_async_session_is_used_neither_before_it_is_open_nor_afterwards() -> None:
    async def use() -> None:
        session = dwcp.connect_async("127.0.0.1:1", trust=dwcp.INSECURE)
        for _ in range(2):
            with pytest.raises(ClosedError, match="async with"):
                await session.send({"state": b"x"})
            with pytest.raises(ClosedError, match="async with"):
                session.progress()
            await session.close()

    asyncio.run(asyncio.wait_for(use(), WAIT_S))


def test_an_async_session_that_is_closed_while_it_opens_is_not_opened() -> None:
    async def use() -> None:
        # Takes the connection and says nothing, so that the handshake lasts.
        with socket.create_server(("127.0.0.1", 0)) as silent:
            session = dwcp.connect_async(f"127.0.0.1:{silent.getsockname()[1]}", trust=dwcp.INSECURE)
            opening = asyncio.ensure_future(session.__aenter__())
            await asyncio.sleep(0.2)
            assert not opening.done()
            await session.close()
            with pytest.raises(ClosedError, match="while it was being opened"):
                await opening
            with pytest.raises(ClosedError):
                session.progress()

    begun = time.monotonic()
    asyncio.run(asyncio.wait_for(use(), WAIT_S))
    assert time.monotonic() - begun < dwcp.SendOptions().connect_timeout_s


def test_closing_from_a_coroutine_does_not_wait_for_its_turn_behind_a_call() -> None:
    async def use() -> None:
        listener = dwcp.listen_async(LOCAL)
        waiting = asyncio.ensure_future(listener.accept(WAIT_S * 10))
        await asyncio.sleep(0.2)
        await asyncio.wait_for(listener.close(), WAIT_S)
        with pytest.raises(ClosedError):
            await asyncio.wait_for(waiting, WAIT_S)

    asyncio.run(use())


def test_a_publisher_that_was_closed_publishes_nothing_more(tmp_path: Path) -> None:
    publisher = dwcp.DeltaPublisher(tmp_path / "store")
    publisher.publish(1, {"w": np.zeros(9)})
    begun = publisher.version(2)
    publisher.close()
    publisher.close()
    with pytest.raises(ClosedError):
        publisher.publish(2, {"w": np.ones(9)})
    with pytest.raises(ClosedError), begun as draft:
        draft.put("w", np.ones(9))
    with dwcp.DeltaPublisher(tmp_path / "store") as again:
        assert again.newest == 1


def test_closing_a_publisher_waits_for_what_it_publishes(tmp_path: Path) -> None:
    publisher = dwcp.DeltaPublisher(tmp_path / "store")
    begun = threading.Event()

    class Slow(dict[str, Any]):
        """Tensors that are looked at while the publisher is closed."""

        def items(self) -> Any:
            begun.set()
            return super().items()

    with meanwhile(lambda: publisher.publish(1, Slow(w=np.zeros(5_000_000)))) as publishing:
        assert begun.wait(WAIT_S)
        publisher.close()
        outcome = publishing.exception(WAIT_S)
    with dwcp.DeltaPublisher(tmp_path / "store") as again:
        # Either it came first, and is whole, or it was refused.
        assert again.newest == (None if isinstance(outcome, ClosedError) else 1)
        assert outcome is None or isinstance(outcome, ClosedError)


def test_a_subscriber_that_is_closed_ends_its_wait_and_gives_nothing_more(tmp_path: Path) -> None:
    with dwcp.DeltaPublisher(tmp_path / "store") as publisher:
        subscriber = dwcp.DeltaSubscriber(tmp_path / "store")
        with meanwhile(lambda: subscriber.wait(WAIT_S * 10)) as waiting:
            time.sleep(0.2)
            subscriber.close()
            assert waiting.result(WAIT_S) is None
        subscriber.close()
        publisher.publish(1, {"w": np.zeros(9)})
        assert list(subscriber) == []


@pytest.mark.parametrize("field", ["anchor_every", "keep", "threads", "max_version_bytes", "max_peers"])
def test_a_publisher_checks_what_it_makes_no_use_of(tmp_path: Path, field: str) -> None:
    wrong: dict[str, Any] = {field: 0}
    with pytest.raises(dwcp.ConfigError, match=field):
        dwcp.DeltaPublisher(tmp_path / "store", **wrong)
    assert not (tmp_path / "store").exists()


def test_a_model_is_looked_at_also_where_another_codec_is_asked_for(tmp_path: Path) -> None:
    model = tmp_path / "model.dwsm"
    model.write_bytes(b"DWSM" + bytes(99))
    options = dwcp.SendOptions(codec="none", codec_model=model)
    with pytest.raises(dwcp.FormatError):
        dwcp.connect("127.0.0.1:1", trust=dwcp.INSECURE, options=options)
