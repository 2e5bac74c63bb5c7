"""A session whose link is gone goes on over the next in its order, and says so."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dwcp_fast import INSECURE, Listener, ReceiveOptions, SendOptions, connect, listen
from dwcp_fast.options import ListenOn

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is shared on Linux only")

STATE = {"state": bytes(range(256)) * 2_000}
WAIT_S = 20.0


@contextmanager
def peer(address: str, link: ListenOn) -> Iterator[tuple[Listener, list[str]]]:
    """Take what is sent, or send what is asked for, once; gives what carried it as that side saw it."""
    carried = []
    options = ReceiveOptions(link=link)
    with listen(address, trust=INSECURE, options=options, serve=SendOptions(codec="none")) as listener:

        def attend() -> None:
            session = listener.accept(timeout_s=WAIT_S)
            assert session is not None
            with session:
                if session.fetches:
                    session.next_request(WAIT_S)
                    carried.append(session.send(STATE).transport)
                else:
                    got = session.receive(timeout_s=WAIT_S)
                    assert got is not None
                    assert dict(got) == STATE
                    carried.append(got.report.transport)

        thread = threading.Thread(target=attend)
        thread.start()
        yield listener, carried
        thread.join(WAIT_S)
        listener.cancel()


@pytest.mark.parametrize("fetches", [False, True])
def test_lanes_come_back_over_tcp_where_memory_is_not_shared_any_more(fetches: bool) -> None:
    events: list[dict[str, Any]] = []
    receive = ReceiveOptions() if fetches else None
    with peer("127.0.0.1:0", "auto") as (listener, carried):
        address = listener.address
        session = connect(address, trust=INSECURE, receive=receive, events=events.append)
        first = session.fetch().report if fetches else session.send(STATE)
        assert first.transport == "shm"
    assert carried == ["shm"]
    with session, peer(address, "tcp") as (_, carried):
        if fetches:
            got = session.fetch()
            assert dict(got) == STATE
            assert got.report.transport == "tcp"
        else:
            assert session.send(STATE).transport == "tcp"
        (why,) = [choice.why for choice in session.explain() if choice.name == "link"]
        assert "but shm: " in why
    assert carried == ["tcp"]
    # Once, however many lanes there are.
    changes = [event for event in events if event["type"] == "link-changed"]
    assert [change["link"] for change in changes] == ["tcp"]
    assert changes[0]["reason"].startswith("shm: ")
