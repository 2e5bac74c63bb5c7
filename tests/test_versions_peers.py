"""Subscribers that dial the publisher: fed at once, confirmed, and never in each other's way."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dwcp_fast
from dwcp_fast.errors import (
    ConfigError,
    DeadlineError,
    DwcpError,
    FormatError,
    IntegrityError,
    LimitExceededError,
    PeerError,
)
from dwcp_fast.options import ReceiveOptions, SendOptions
from dwcp_fast.policy.versions import Retained
from dwcp_fast.versions import DeltaPublisher, DeltaSubscriber, reading, serving
from dwcp_fast.versions.asking import Question
from dwcp_fast.versions.manifest import Head
from dwcp_fast.versions.peer import PeerSource
from versions_double import is_exactly, publish, version_arrays

WAIT_S = 30.0
LYING = Retained(1, "1" * 32, "2" * 32, 50, None, 0, 9)


@contextmanager
def following(subscriber: DeltaSubscriber) -> Iterator[list[int]]:
    """Commits whatever comes, in a thread, until the block ends; failures are left to the next version."""
    seen: list[int] = []

    def follow() -> None:
        while True:
            try:
                seen.extend(staged.commit().version for staged in subscriber)
                return
            except DwcpError:
                continue

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield seen
    finally:
        subscriber.close()
        thread.join(WAIT_S)
        assert not thread.is_alive()


def until(condition: Any) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def pairing_of(opened: DeltaPublisher) -> str:
    assert opened.pairing is not None
    return opened.pairing


def test_subscribers_that_dial_confirm_each_version(tmp_path: Path) -> None:
    with DeltaPublisher(tmp_path, anchor_every=3, listen="127.0.0.1:0", confirm="all") as opened:
        publish(opened, 1)
        first, second = DeltaSubscriber(pairing_of(opened)), DeltaSubscriber(pairing_of(opened))
        with following(first) as seen, following(second):
            until(lambda: [peer.version for peer in opened.peers()] == [1, 1])
            for number in range(2, 6):
                report = opened.publish(number, version_arrays(number))
                assert len(report.confirmed) == 2
                for subscriber in (first, second):
                    assert is_exactly(subscriber.tensors(), version_arrays(number))
            assert seen == [1, 2, 3, 4, 5]
    assert opened.peers() == ()


def test_version_0_is_confirmed_too(tmp_path: Path) -> None:
    with (
        DeltaPublisher(tmp_path, listen="127.0.0.1:0", confirm="all") as opened,
        following(DeltaSubscriber(pairing_of(opened))),
    ):
        until(lambda: len(opened.peers()) == 1)
        assert len(opened.publish(0, version_arrays(0)).confirmed) == 1
        assert opened.peers()[0].version == 0


def test_a_subscriber_that_does_not_follow_holds_up_nobody_else(tmp_path: Path) -> None:
    with DeltaPublisher(tmp_path, listen="127.0.0.1:0", confirm="any", keep=2, anchor_every=2) as opened:
        publish(opened, 1)
        idle, eager = DeltaSubscriber(pairing_of(opened)), DeltaSubscriber(pairing_of(opened))
        assert idle.wait(WAIT_S) is not None
        with following(eager):
            until(lambda: 1 in [peer.version for peer in opened.peers()])
            for number in range(2, 8):
                publish(opened, number)
            until(lambda: eager.version == 7)
            # What it had seen is long removed, so it comes from an anchor.
            staged = idle.wait(WAIT_S)
            assert staged is not None and staged.version == 7 and staged.report.kind.startswith("anchor")
            assert is_exactly(staged.tensors(), version_arrays(7))
        idle.close()


def test_a_failed_apply_is_told_on_both_sides_and_the_next_version_heals_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DeltaPublisher(tmp_path, listen="127.0.0.1:0", confirm="all") as opened:
        publish(opened, 1)
        subscriber = DeltaSubscriber(pairing_of(opened))
        with following(subscriber) as seen:
            until(lambda: [peer.version for peer in opened.peers()] == [1])

            def fail(*given: Any) -> None:
                raise FormatError("the patch is not liked")

            monkeypatch.setattr(reading, "read_patches", fail)
            with pytest.raises(PeerError, match="not liked"):
                publish(opened, 2)
            monkeypatch.undo()
            report = opened.publish(3, version_arrays(3))
            assert report.kind == "both" and "not liked" in report.why["anchor"]
            assert seen == [1, 3] and is_exactly(subscriber.tensors(), version_arrays(3))


def test_a_version_that_is_not_confirmed_in_time_is_published_all_the_same(tmp_path: Path) -> None:
    with DeltaPublisher(tmp_path, listen="127.0.0.1:0", confirm="all", confirm_timeout_s=0.2) as opened:
        publish(opened, 1)
        subscriber = DeltaSubscriber(pairing_of(opened))
        staged = subscriber.wait(WAIT_S)
        assert staged is not None
        with pytest.raises(DeadlineError, match="version 2 is published"):
            publish(opened, 2)
        assert opened.newest == 2
        later = subscriber.wait(WAIT_S)
        assert later is not None and is_exactly(later.tensors(), version_arrays(2))
        subscriber.close()


def test_a_publisher_that_comes_back_is_found_again(tmp_path: Path) -> None:
    trust = dwcp_fast.INSECURE
    first = DeltaPublisher(tmp_path, listen="127.0.0.1:0", trust=trust)
    address = first.address
    assert address is not None
    publish(first, 1)
    subscriber = DeltaSubscriber(address, trust=trust)
    with following(subscriber):
        until(lambda: subscriber.version == 1)
        first.close()
        with DeltaPublisher(tmp_path, listen=address, trust=trust) as second:
            publish(second, 2)
            until(lambda: subscriber.version == 2)
    assert is_exactly(subscriber.tensors(), version_arrays(2))


@pytest.mark.parametrize("mistake", [{"port": "taken"}, {"codec": "zsdt:1"}, {"codec": "zstd:99"}])
def test_a_publisher_that_cannot_be_opened_takes_nothing_from_another(
    tmp_path: Path, mistake: dict[str, str]
) -> None:
    with DeltaPublisher(tmp_path, listen="127.0.0.1:0") as first:
        publish(first, 1)
        options: dict[str, Any] = {"listen": first.address} if "port" in mistake else mistake
        with pytest.raises((OSError, ConfigError)):
            DeltaPublisher(tmp_path, **options)
        publish(first, 2)
        assert first.newest == 2


class Held:
    """The publisher's answers to what is asked for by key, held back until the block ends."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.asked = threading.Event()
        self._go_on = threading.Event()
        read = serving.Server._object

        def wait(server: serving.Server, key: str) -> bytes | memoryview | None:
            self.asked.set()
            assert self._go_on.wait(WAIT_S)
            return read(server, key)

        # Nothing is given before it is asked for.
        patch.setattr(serving.Server, "_ahead", lambda *given: {})
        patch.setattr(serving.Server, "_object", wait)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._go_on.set()


def test_a_version_whose_fetch_is_cancelled_is_offered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def follow(opened: DeltaPublisher) -> int:
        async with DeltaSubscriber(pairing_of(opened)) as subscriber:
            with Held(monkeypatch) as held:
                waiting = asyncio.ensure_future(anext(aiter(subscriber)))
                assert await asyncio.to_thread(held.asked.wait, WAIT_S)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            staged = await anext(aiter(subscriber))
            assert [peer.failure for peer in opened.peers() if peer.failure is not None] == []
            assert staged.report.healed == () and is_exactly(staged.tensors(), version_arrays(1))
            return staged.version

    with DeltaPublisher(tmp_path, listen="127.0.0.1:0") as opened:
        publish(opened, 1)
        assert asyncio.run(asyncio.wait_for(follow(opened), WAIT_S)) == 1


def test_closing_during_a_fetch_ends_the_wait_without_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome: list[object] = []

    def wait() -> None:
        try:
            outcome.append(subscriber.wait(WAIT_S))
        except DwcpError as exc:
            outcome.append(exc)

    with DeltaPublisher(tmp_path, listen="127.0.0.1:0") as opened:
        publish(opened, 1)
        subscriber = DeltaSubscriber(pairing_of(opened))
        with Held(monkeypatch) as held:
            thread = threading.Thread(target=wait)
            thread.start()
            assert held.asked.wait(WAIT_S)
            subscriber.close()
            thread.join(WAIT_S)
    assert outcome == [None]


def test_a_question_that_cannot_be_is_refused_and_others_are_served(tmp_path: Path) -> None:
    with DeltaPublisher(tmp_path, listen="127.0.0.1:0") as opened:
        publish(opened, 1)
        for question in (
            b"{}",
            b"\xff",
            b'{"format":"dwcp-versions-question","revision":1,"keys":["../head"]}',
        ):
            with (
                dwcp_fast.connect(pairing_of(opened), receive=ReceiveOptions()) as session,
                pytest.raises(PeerError),
            ):
                session.fetch(question, timeout_s=WAIT_S)
        with DeltaSubscriber(pairing_of(opened)) as subscriber:
            staged = subscriber.wait(WAIT_S)
            assert staged is not None and is_exactly(staged.tensors(), version_arrays(1))


def test_large_anchors_are_asked_for_pack_by_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dwcp_fast.versions.serving.AHEAD_BYTES", 2000)
    with DeltaPublisher(tmp_path, listen="127.0.0.1:0") as opened:
        publish(opened, 1)
        with DeltaSubscriber(pairing_of(opened)) as subscriber:
            staged = subscriber.wait(WAIT_S)
            assert staged is not None and is_exactly(staged.tensors(), version_arrays(1))


def test_a_wait_below_a_second_does_not_ask_over_and_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[Question] = []
    ask = PeerSource._ask

    def count(source: PeerSource, question: Question) -> dict[str, memoryview]:
        questions.append(question)
        return ask(source, question)

    monkeypatch.setattr(PeerSource, "_ask", count)
    with DeltaPublisher(tmp_path, listen="127.0.0.1:0") as opened:
        publish(opened, 1)
        with DeltaSubscriber(pairing_of(opened)) as subscriber:
            staged = subscriber.wait(WAIT_S)
            assert staged is not None
            staged.commit()
            questions.clear()
            assert subscriber.wait(0.5) is None
            assert 1 <= len(questions) < 20


def test_confirmation_needs_somewhere_to_dial(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="listen"):
        DeltaPublisher(tmp_path, confirm="all")


@given(
    st.builds(
        Question, version=st.none() | st.integers(0, 1 << 62), failure=st.none() | st.text(max_size=600)
    )
)
def test_questions_survive_the_way(question: Question) -> None:
    told = Question.load(question.dump())
    assert told.version == question.version
    assert (told.failure is None) == (question.failure is None)
    assert told.failure is None or (len(told.failure) <= 512 and told.failure.isprintable())


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"head": b"{}"}, FormatError),
        ({"head": b"[" * 10_000}, FormatError),
        ({"head": b"", "other": b"x"}, FormatError),
        ({"head": bytes(3 << 20)}, LimitExceededError),
        ({"head": b"", "packs." + "0" * 32: bytes(100 << 20)}, LimitExceededError),
        ({"head": Head("0" * 32, (LYING,)).dump()}, IntegrityError),
        ({"head": Head("0" * 32, (replace(LYING, anchor_bytes=None),)).dump()}, IntegrityError),
        ({"head": Head("0" * 32, (LYING,)).dump(), f"manifests.{LYING.manifest}": b"x" * 50}, IntegrityError),
    ],
)
def test_a_publisher_that_lies_is_found_out(answer: dict[str, bytes], error: type[DwcpError]) -> None:
    def lie() -> None:
        session = listener.accept(WAIT_S)
        assert session is not None
        with session, contextlib.suppress(DwcpError):
            while session.next_request(WAIT_S) is not None:
                session.send(answer)

    with dwcp_fast.listen("127.0.0.1:0", serve=SendOptions(), receive=False) as listener:
        thread = threading.Thread(target=lie)
        thread.start()
        assert listener.pairing is not None
        subscriber = DeltaSubscriber(listener.pairing, max_version_bytes=1 << 20)
        with pytest.raises(error):
            subscriber.wait(WAIT_S)
        assert subscriber.version is None
        subscriber.close()
        thread.join(WAIT_S)
        assert not thread.is_alive()
