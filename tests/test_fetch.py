"""Sessions in which the side that dials receives: what is asked for, what is answered, how waiting ends."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import dwcp_fast as dwcp
from dwcp_fast import errors
from two_ends import LOCAL, NEAREST, WAIT_S, accepted, meanwhile, pairing_of

SERVE = dwcp.SendOptions()
RECEIVE = dwcp.ReceiveOptions()


def fetching(listener: dwcp.Listener, options: dwcp.SendOptions = SERVE) -> dwcp.Session:
    """Connect in order to fetch."""
    return dwcp.connect(pairing_of(listener), options=options, receive=RECEIVE)


def echo(listener: dwcp.Listener) -> list[bytes]:
    """Answer every request of one peer with itself; give the requests."""
    seen: list[bytes] = []
    with accepted(listener) as incoming:
        while (request := incoming.next_request(WAIT_S)) is not None:
            report = incoming.send({"request": request, "number": b"%d" % len(seen)})
            assert report.verified and report.protocol == "v3"
            seen.append(request)
    return seen


def test_fetches_are_answered_one_after_the_other() -> None:
    requests = [b"", json.dumps({"have": 41}).encode(), bytes(65_536)]
    with dwcp.listen(LOCAL, serve=SERVE) as listener, meanwhile(lambda: echo(listener)) as serving:
        with fetching(listener) as session:
            for number, request in enumerate(requests):
                received = session.fetch(request)
                told = {name: bytes(value) for name, value in received.items()}
                assert told == {"request": request, "number": b"%d" % number}
                assert received.report.verified and received.report.transport == NEAREST
            with pytest.raises(errors.ConfigError, match="65537"):
                session.fetch(bytes(65_537))
        assert serving.result(WAIT_S) == requests


def test_the_first_request_is_there_when_the_peer_is_accepted() -> None:
    with dwcp.listen(LOCAL, serve=SERVE) as listener, fetching(listener) as session:
        # Whoever has asked for nothing needs nobody's attention.
        assert listener.accept(0.2) is None
        with meanwhile(lambda: session.fetch(b"first")) as waiting, accepted(listener) as incoming:
            assert incoming.fetches and incoming.request == b"first"
            incoming.send({"a": b"1"})
            assert incoming.request is None
            with pytest.raises(errors.ConfigError, match="asked for nothing"):
                incoming.send({"a": b"2"})
            with pytest.raises(errors.ConfigError, match="fetches"):
                incoming.receive(WAIT_S)
            assert bytes(waiting.result(WAIT_S)["a"]) == b"1"


def test_files_and_the_callers_memory_are_fetched_into(tmp_path: Path) -> None:
    (tmp_path / "source" / "deep").mkdir(parents=True)
    (tmp_path / "source" / "deep" / "file").write_bytes(b"content" * 500_000)
    (tmp_path / "target").mkdir()

    def serve() -> list[dwcp.SendReport]:
        with accepted(listener) as incoming:
            reports = [incoming.send_paths([tmp_path / "source"])]
            incoming.next_request(WAIT_S)
            (tmp_path / "source" / "deep" / "file").write_bytes(b"content" * 500_000 + b"more")
            reports.append(incoming.send_paths([tmp_path / "source"]))
            incoming.next_request(WAIT_S)
            incoming.send({"a": b"12345"})
            return reports

    with dwcp.listen(LOCAL, serve=SERVE, receive=False) as listener, meanwhile(serve) as serving:
        with fetching(listener) as session:
            first = session.fetch_into(tmp_path / "target")
            second = session.fetch_into(tmp_path / "target")
            memory = bytearray(5)
            session.fetch_to({"a": memory})
        sent = serving.result(WAIT_S)
    assert memory == b"12345"
    target = tmp_path / "target" / "source" / "deep" / "file"
    assert target.read_bytes() == b"content" * 500_000 + b"more"
    assert (first.entries, second.bytes_raw) == (3, 3_500_004)
    # What was pulled before is a base for what is pulled now.
    assert sent[1].blocks_same == second.blocks_same == 3


def test_many_peers_are_served_at_once_and_one_that_waits_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers = threading.Event()

    def answer(incoming: dwcp.IncomingSession) -> None:
        with incoming:
            while (request := incoming.next_request(WAIT_S)) is not None:
                assert request != b"slow" or answers.wait(WAIT_S)
                incoming.send({"state": request * 1000})

    def serve(count: int) -> None:
        with ThreadPoolExecutor(count) as pool:
            for done in [pool.submit(answer, accepted(listener)) for _ in range(count)]:
                done.result(WAIT_S)

    with dwcp.listen(LOCAL, serve=SERVE, clients=None) as listener, meanwhile(lambda: serve(9)) as serving:
        with fetching(listener) as slow, meanwhile(lambda: slow.fetch(b"slow")) as waiting:
            for number in range(8):
                monkeypatch.setenv("DWCP_STATE_DIR", str(tmp_path / f"client-{number}"))
                with fetching(listener) as session:
                    assert bytes(session.fetch(b"%d" % number)["state"]) == b"%d" % number * 1000
            assert not waiting.done()
            answers.set()
            assert len(waiting.result(WAIT_S)["state"]) == 4000
        serving.result(WAIT_S)


def test_a_pairing_is_good_for_as_many_clients_as_it_was_made_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "pairing"
    with dwcp.listen(LOCAL, serve=SERVE, clients=2, pairing_file=file) as listener:
        pairing = pairing_of(listener)
        for client in ("a", "b", "a"):
            monkeypatch.setenv("DWCP_STATE_DIR", str(tmp_path / client))
            with fetching(listener) as session, meanwhile(lambda: session.fetch()) as waiting:
                with accepted(listener) as incoming:
                    incoming.send({"a": b""})
                waiting.result(WAIT_S)
    # A listener that is made again has the same clients.
    with dwcp.listen(LOCAL, serve=SERVE, clients=2, pairing_file=file) as listener:
        assert pairing_of(listener) == pairing
        monkeypatch.setenv("DWCP_STATE_DIR", str(tmp_path / "c"))
        with pytest.raises(errors.AuthError):
            fetching(listener)
        monkeypatch.setenv("DWCP_STATE_DIR", str(tmp_path / "b"))
        fetching(listener).close()
    assert file.stat().st_mode & 0o077 == 0


def test_each_side_says_what_it_is_there_for() -> None:
    with dwcp.listen(LOCAL) as listener, pytest.raises(errors.PeerError, match="sends nothing"):
        fetching(listener)
    with dwcp.listen(LOCAL, serve=SERVE, receive=False) as listener:
        with pytest.raises(errors.PeerError, match="takes nothing"):
            dwcp.connect(pairing_of(listener))
        with fetching(listener) as session, pytest.raises(errors.ConfigError, match="cannot send"):
            session.send({"a": b"1"})
    with (
        dwcp.listen(LOCAL, serve=SERVE) as listener,
        dwcp.connect(pairing_of(listener)) as session,
        accepted(listener) as incoming,
    ):
        assert not incoming.fetches and incoming.request is None
        with pytest.raises(errors.ConfigError, match="sends"):
            incoming.next_request(WAIT_S)
        with pytest.raises(errors.ConfigError, match="cannot fetch"):
            session.fetch()
    with pytest.raises(errors.ConfigError, match="nobody"):
        dwcp.listen(LOCAL, receive=False)


def test_a_refusal_is_told_in_the_words_of_the_application() -> None:
    with dwcp.listen(LOCAL, serve=SERVE) as listener, fetching(listener) as session:
        with meanwhile(session.fetch) as waiting, accepted(listener) as incoming:
            incoming.refuse("no such version")
            with pytest.raises(errors.PeerError, match="no such version"):
                waiting.result(WAIT_S)
        # The session finds another way for what is asked for next.
        with meanwhile(session.fetch) as waiting, accepted(listener) as incoming:
            incoming.send({"a": b"1"})
            assert bytes(waiting.result(WAIT_S)["a"]) == b"1"


def test_waiting_for_an_answer_ends_when_the_time_has_passed_and_no_sooner() -> None:
    patient = dwcp.SendOptions(idle_timeout_s=0.5)
    serve = dwcp.SendOptions(idle_timeout_s=0.5)
    with dwcp.listen(LOCAL, serve=serve) as listener, fetching(listener, patient) as session:
        with meanwhile(lambda: session.fetch(timeout_s=10)) as waiting, accepted(listener) as incoming:
            time.sleep(1.5)
            incoming.send({"a": b"late"})
            assert bytes(waiting.result(WAIT_S)["a"]) == b"late"
        with pytest.raises(errors.DeadlineError):
            session.fetch(timeout_s=0.1)


def test_an_offer_that_is_too_large_is_refused_before_it_is_held() -> None:
    small = dwcp.ReceiveOptions(max_total_bytes=1000)
    with (
        dwcp.listen(LOCAL, serve=SERVE) as listener,
        dwcp.connect(pairing_of(listener), receive=small) as session,
        meanwhile(session.fetch) as waiting,
    ):
        with accepted(listener) as incoming, pytest.raises(errors.LimitExceededError, match="1000"):
            incoming.send({"a": bytes(1001)})
        with pytest.raises(errors.LimitExceededError, match="1001"):
            waiting.result(WAIT_S)


def test_cancelling_and_closing_end_a_fetch() -> None:
    with dwcp.listen(LOCAL, serve=SERVE) as listener:
        for end in (dwcp.Session.cancel, dwcp.Session.close):
            session = fetching(listener)
            with meanwhile(session.fetch) as waiting, accepted(listener) as incoming:
                end(session)
                with pytest.raises(errors.DwcpError) as caught:
                    waiting.result(WAIT_S)
                assert caught.value.code == "cancelled"
                with pytest.raises(errors.DwcpError):
                    incoming.send({"a": b"1"})
            session.close()


def test_coroutines_fetch_and_answer() -> None:
    async def both() -> list[bytes]:
        async with dwcp.listen_async(LOCAL, serve=SERVE) as listener:

            async def serve() -> list[bytes]:
                incoming = await listener.accept(WAIT_S)
                assert incoming is not None and incoming.fetches
                async with incoming:
                    seen = []
                    while (request := await incoming.next_request(WAIT_S)) is not None:
                        seen.append(request)
                        await incoming.send({"state": request * 1000})
                    return seen

            serving = asyncio.create_task(serve())
            assert listener.pairing is not None
            async with dwcp.connect_async(listener.pairing, receive=RECEIVE) as session:
                for request in (b"a", b"b"):
                    received = await session.fetch(request, timeout_s=WAIT_S)
                    assert bytes(received["state"]) == request * 1000
            return await serving

    assert asyncio.run(both()) == [b"a", b"b"]


def test_cancelling_a_task_that_fetches_awaits_the_end_of_the_native_work() -> None:
    async def cancelled() -> bool:
        async with dwcp.listen_async(LOCAL, serve=SERVE) as listener:
            assert listener.pairing is not None
            async with dwcp.connect_async(listener.pairing, receive=RECEIVE) as session:
                task = asyncio.create_task(session.fetch())
                await asyncio.sleep(0.1)
                task.cancel()
                await asyncio.wait([task], timeout=WAIT_S)
                return task.cancelled()

    assert asyncio.run(cancelled())
    assert not [thread for thread in threading.enumerate() if thread.name == "dwcp-call"]
