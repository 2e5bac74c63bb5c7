"""More peers than a listener has places for: the rest is turned away, told to come again, and then served."""

import contextlib
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import dwcp_fast as dwcp
from dwcp_fast import metrics
from two_ends import LOCAL, WAIT_S, accepted, meanwhile, pairing_of

PLACES = 4
PEERS = 4 * PLACES


def test_a_full_listener_says_that_to_try_again_may_help_and_one_that_takes_nothing_does_not() -> None:
    options = dwcp.ReceiveOptions(max_sessions=1)
    with (
        dwcp.listen(LOCAL, options=options, clients=None) as full,
        meanwhile(lambda: accepted(full)) as arriving,
        dwcp.connect(pairing_of(full)),
        arriving.result(WAIT_S),
        pytest.raises(dwcp.PeerError, match="1 sessions already") as caught,
    ):
        dwcp.connect(pairing_of(full))
    assert caught.value.retryable and not caught.value.resumable
    with (
        dwcp.listen(LOCAL, serve=dwcp.SendOptions(), receive=False) as serving,
        pytest.raises(dwcp.PeerError, match="takes nothing") as final,
    ):
        dwcp.connect(pairing_of(serving))
    assert not final.value.retryable


def test_four_times_as_many_peers_as_places_are_all_served_and_never_more_at_once() -> None:
    at_once, most, served = 0, 0, 0
    lock, one_was_refused = threading.Lock(), threading.Event()
    options = dwcp.ReceiveOptions(max_sessions=PLACES)
    state = random.Random(4).randbytes(256 << 10)

    def attend(session: dwcp.IncomingSession) -> None:
        nonlocal at_once, most, served
        with lock:
            at_once += 1
            most = max(most, at_once)
        # All come at once, and none is done before one has found no place.
        assert one_was_refused.wait(WAIT_S)
        with session:
            received = session.receive(WAIT_S)
            assert received is not None and bytes(received["state"]) == state
            # The call that finds the session over gives its place to the next before it returns.
            with lock:
                served += 1
                at_once -= 1
            assert session.receive(WAIT_S) is None

    def send(seed: int) -> int:
        chance, refused, end = random.Random(seed), 0, time.monotonic() + 3 * WAIT_S
        while time.monotonic() < end:
            try:
                session = dwcp.connect(pairing, options=dwcp.SendOptions(streams=1))
            except dwcp.DwcpError as error:
                if not error.retryable:
                    raise
                # Where handshakes take long, some of so many at once are turned away without a word.
                if isinstance(error, dwcp.PeerError):
                    refused += 1
                    one_was_refused.set()
                time.sleep(chance.random() * 0.1)
                continue
            with session:
                assert session.send({"state": state}).verified
                return refused
        raise AssertionError("never served")

    before = metrics.snapshot()
    with (
        dwcp.listen(LOCAL, options=options, clients=None) as listener,
        ThreadPoolExecutor(PEERS + PLACES) as pool,
        meanwhile(lambda: take_all(listener, pool, attend)) as taking,
    ):
        pairing = pairing_of(listener)
        refused = sum(pool.map(send, range(PEERS)))
        listener.close()
        taking.result(WAIT_S)
    assert served == PEERS and most <= PLACES and refused > 0
    assert metrics.snapshot().peers_refused - before.peers_refused >= refused


def take_all(listener: dwcp.Listener, pool: ThreadPoolExecutor, attend: object) -> None:
    """Give every peer a thread until the listener is closed."""
    assert callable(attend)
    while True:
        try:
            session = listener.accept()
        except dwcp.ClosedError:
            return
        if session is not None:
            pool.submit(attend, session)


def test_what_v1_has_begun_to_send_is_never_sent_again() -> None:
    streams, heard = 3, threading.Semaphore(0)
    connections = 0
    with socket.create_server(("127.0.0.1", 0)) as rude:
        rude.settimeout(0.5)

        def hang_up() -> None:
            nonlocal connections
            # Takes what has come first, and ends the connection: what arrived nobody can tell.
            while True:
                try:
                    connection, _ = rude.accept()
                except TimeoutError:
                    if done.is_set():
                        return
                    continue
                connections += 1
                # The sender may have ended this one by now, since another was hung up on.
                with connection, contextlib.suppress(ConnectionError):
                    connection.settimeout(WAIT_S)
                    if connection.recv(1 << 10):
                        heard.release()

        done = threading.Event()
        with meanwhile(hang_up) as hanging:
            options = dwcp.SendOptions(protocol="v1", streams=streams, v1_payload="raw", reconnect_s=20)
            with dwcp.connect(f"127.0.0.1:{rude.getsockname()[1]}", options=options) as session:
                with pytest.raises(dwcp.DwcpError):
                    session.send({"state": random.Random(1).randbytes(64 << 20)})
                assert heard.acquire(timeout=WAIT_S)
            done.set()
            hanging.result(WAIT_S)
    assert 1 <= connections <= streams
