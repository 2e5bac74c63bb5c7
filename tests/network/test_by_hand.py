"""Peers made by hand against real ends: what is cut short, played again, or a lie gets nothing."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from oracle.wire import Frame

from . import by_hand
from .by_hand import (
    PREFACE,
    WAIT_S,
    Hand,
    Identity,
    hello,
    seal,
    token_of,
    transfer_of,
    u,
)
from .conftest import Machine, Recv, relay_to
from .soak import Footprint, wait_until_settled

CONTENT = b"the state of the machine " * 100
LOOPBACK = "127.0.0.1"


@pytest.fixture
def hurried(machine: Machine) -> Iterator[Recv]:
    """A receiver that gives up early."""
    with machine.recv("--idle-timeout", "3s") as running:
        yield running


@pytest.fixture
def me(tmp_path: Path) -> Identity:
    """Who the hand is."""
    return Identity.make(tmp_path)


def inside(recv: Recv, me: Identity | None) -> Hand:
    """A hand that was let in."""
    hand = Hand(recv.address, me)
    answer = hand.greet(hello(token_of(recv.pairing)))
    assert answer is not None and answer.name == "welcome", answer
    return hand


def arrived(recv: Recv, name: str = "state") -> bool:
    return (recv.into / name).exists()


def refused_with(frame: Frame | None) -> int:
    assert frame is not None and frame.name == "error", frame
    return int(frame.fields["code"])


def test_what_is_said_by_hand_arrives_as_anything_else(recv: Recv, me: Identity) -> None:
    with inside(recv, me) as hand:
        for kind, head, body in transfer_of("state", CONTENT):
            hand.tell(kind, head, body)
            if kind == by_hand.MANIFEST:
                hand.hear_until("accept")
        hand.hear_until("committed")
    assert (recv.into / "state").read_bytes() == CONTENT


def test_a_session_cut_at_and_inside_every_frame_leaves_nothing(
    machine: Machine, hurried: Recv, me: Identity
) -> None:
    frames = transfer_of("state", CONTENT)
    before = Footprint.of(hurried.process.pid)
    for last, (kind, head, body) in enumerate(frames):
        for share in ("nothing", "header", "head", "all"):
            hand = inside(hurried, me)
            for earlier in frames[:last]:
                hand.tell(*earlier)
                if earlier[0] == by_hand.MANIFEST:
                    hand.hear_until("accept")
            whole = seal(kind, hand.said, hand.seed, head, body)
            length = {"nothing": 0, "header": 11, "head": 24 + len(head) // 2, "all": len(whole) - 1}[share]
            hand.say(whole[:length])
            hand.vanish()
            assert not arrived(hurried), (kind, share)
    # The listener is as it was, and what was staged is good for whoever sends it in full.
    with inside(hurried, me) as hand:
        for kind, head, body in frames:
            hand.tell(kind, head, body)
            if kind == by_hand.MANIFEST:
                hand.hear_until("accept")
        hand.hear_until("committed")
    assert (hurried.into / "state").read_bytes() == CONTENT
    wait_until_settled(hurried.process.pid, before)


def test_frames_of_another_session_do_not_pass(hurried: Recv, me: Identity) -> None:
    with inside(hurried, me) as first, inside(hurried, me) as second:
        assert first.session != second.session
        for kind, head, body in transfer_of("state", CONTENT):
            second.say(seal(kind, second.said, first.seed, head, body))
            second.said += 1
        assert refused_with(second.hear_until("error")) == 3
        assert not arrived(hurried)


def test_a_recorded_connection_cannot_be_played_again(machine: Machine, recv: Recv) -> None:
    state = machine.folder / "state"
    state.write_bytes(CONTENT)
    recorded: list[bytes] = []
    with relay_to(recv) as relay:
        relay.on_piece = recorded.append
        assert machine.send(state, "--to", relay.reroute(recv.pairing), "--streams", "1").code == 0
    (recv.into / "state").unlink()
    host, _, port = recv.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as again:
        with contextlib.suppress(ConnectionError):
            again.sendall(b"".join(recorded))
            again.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while again.recv(65_536):
                pass
    recv.wait_for("refused")
    assert not arrived(recv)


def test_a_session_is_joined_only_by_its_owner_with_its_key(
    hurried: Recv, me: Identity, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    stranger = Identity.make(tmp_path / "other")
    with inside(hurried, me) as hand:
        for who, session, key in (
            (me, hand.session, bytes(32)),
            (me, hand.session, token_of(hurried.pairing)),
            (me, bytes([1]) * 16, hand.key),
            (stranger, hand.session, hand.key),
        ):
            with Hand(hurried.address, who) as lane:
                assert refused_with(lane.greet(hello(key, session=session, lane=1))) == 2
        with Hand(hurried.address, me) as lane:
            welcome = lane.greet(hello(hand.key, session=hand.session, lane=1))
            assert welcome is not None and welcome.name == "welcome"


def test_a_greeting_that_contradicts_its_connection_is_refused(recv: Recv, me: Identity) -> None:
    token = token_of(recv.pairing)
    with Hand(recv.address, me) as hand:
        assert refused_with(hand.greet(hello(token, security=0))) == 2
    for version in (2, 4):
        with Hand(recv.address, me) as hand:
            answer = hand.greet(hello(token, version=version))
            assert answer is None or answer.name == "error", answer
    with inside(recv, me):
        pass


def test_nobody_talks_a_listener_out_of_tls_1_3(recv: Recv, me: Identity) -> None:
    host, _, port = recv.address.rpartition(":")
    older = me.context()
    older.minimum_version = ssl.TLSVersion.TLSv1_2
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    refusal = pytest.raises((ssl.SSLError, ConnectionError))
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as raw, refusal:
        older.wrap_socket(raw)
    # Without TLS, even the right token is told why, and nothing else.
    with Hand(recv.address, None) as plain:
        assert refused_with(plain.greet(hello(token_of(recv.pairing), security=0))) == 2
    # Only older versions: the listener says which it speaks, and leaves.
    with Hand(recv.address, me) as old:
        old.say(b"DWCP3\n\x01\x02")
        assert old._take(9) == PREFACE
    # No certificate, although the token is right: the alert comes behind the handshake.
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as raw, refusal:
        with bare.wrap_socket(raw) as anonymous:
            anonymous.sendall(PREFACE + seal(1, 0, 0, hello(token_of(recv.pairing))))
            assert anonymous.recv(1) == b"", "somebody without a certificate was answered"
        raise ConnectionResetError


def test_guessing_is_slowed_and_costs_only_the_guesser(machine: Machine, recv: Recv, me: Identity) -> None:
    elsewhere = "127.0.0.2"
    greeting = PREFACE + seal(by_hand.HELLO, 0, 0, hello(bytes(32)))
    for _ in range(10):
        with Hand(recv.address, me, source=elsewhere) as hand:
            assert refused_with(hand.greet(hello(bytes(32)))) == 2
    # From now on each wrong token keeps its connection waiting, and with it one of the places of the address.
    with contextlib.ExitStack() as waiting:
        turned_away = 0
        for _ in range(100):
            try:
                hand = waiting.enter_context(Hand(recv.address, me, source=elsewhere))
                hand.say(greeting)
            except (ConnectionError, ssl.SSLError):
                turned_away += 1
                if turned_away == 10:
                    break
        assert turned_away == 10, "a hundred guesses were let in at once"
        # Those who know the token are let in at once, from there as soon as there is a place.
        state = machine.folder / "state"
        state.write_bytes(CONTENT)
        sent = machine.send(state, "--to", recv.pairing)
        assert sent.code == 0, sent.err
    assert "its answers are delayed" in recv.err() and "too many" in recv.err()


def test_strangers_of_many_addresses_make_room_for_whoever_is_let_in(machine: Machine, recv: Recv) -> None:
    host, _, port = recv.address.rpartition(":")
    state = machine.folder / "state"
    state.write_bytes(CONTENT)
    with contextlib.ExitStack() as crowd:
        for number in range(2, 6):
            for _ in range(16):
                source = (f"127.0.0.{number}", 0)
                silent = socket.create_connection((host, int(port)), timeout=WAIT_S, source_address=source)
                crowd.enter_context(silent)
        sent = machine.send(state, "--to", recv.pairing, "--streams", "2")
        assert sent.code == 0, sent.err
    assert "made room" in recv.err()


class Impostor:
    """A listener by hand, which answers each connection with the same bytes and keeps how each began."""

    def __init__(self, me: Identity, answer: bytes, *, version: ssl.TLSVersion | None) -> None:
        self.began: list[bytes] = []
        self._answer = answer
        self._context = me.context(server=True)
        if version is not None:
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2
            self._context.maximum_version = version
        self._server = socket.create_server((LOOPBACK, 0))
        self.port = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                raw, _ = self._server.accept()
            except OSError:
                return
            raw.settimeout(WAIT_S)
            with contextlib.suppress(OSError), raw:
                self.began.append(raw.recv(1, socket.MSG_PEEK))
                with self._context.wrap_socket(raw, server_side=True) as stream:
                    stream.recv(4096)
                    stream.sendall(self._answer)
                    while stream.recv(4096):
                        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(10)


def welcome(**lies: int) -> bytes:
    told = {"version": 3, "security": 1, "session": 7, **lies}
    head = bytes([told["version"], told["security"]]) + u(2, 8) + u(4, 0) + u(16, told["session"]) + bytes(32)
    return head + u(4, by_hand.BLOCK_BYTES) + u(4, 1) + u(8, 1 << 20)


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        (b"", ssl.TLSVersion.TLSv1_2),
        (b"DWCP3\n\x01\x02", None),
        (PREFACE + seal(2, 0, 0, welcome(security=0)), None),
        (PREFACE + seal(2, 0, 0, welcome(version=2)), None),
        (PREFACE + seal(2, 0, 0, welcome(session=0)), None),
        (PREFACE + seal(2, 1, 0, welcome()), None),
        (b"\0\0\0\x08v1 speaks", None),
    ],
    ids=["tls-1.2", "old-version", "plaintext-inside", "other-version", "no-session", "out-of-order", "v1"],
)
def test_nobody_talks_a_sender_out_of_anything(
    machine: Machine, me: Identity, answer: bytes, version: ssl.TLSVersion | None
) -> None:
    state = machine.folder / "state"
    state.write_bytes(CONTENT)
    impostor = Impostor(me, answer, version=version)
    try:
        target = f"dwcp://{LOOPBACK}:{impostor.port}#{me.fingerprint()}.{'A' * 43}"
        sent = machine.send(state, "--to", target, "--json", "--connect-timeout", "5s", "--reconnect", "1s")
    finally:
        impostor.close()
    assert sent.code in {1, 4, 5, 6, 10, 12} and "Traceback" not in sent.err, (sent.code, sent.err)
    # Whatever it was told, it began with TLS each time.
    assert impostor.began and set(impostor.began) == {b"\x16"}
