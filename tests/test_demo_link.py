"""The user-space link: what goes in comes out, faults happen on command, memory is bounded."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from dwcp_fast.demo.link import Link, LinkShape, LinkStats
from dwcp_fast.errors import TransportError

TIMEOUT_S = 20.0
FAST = LinkShape(rate_bps=2e9, delay_s=0.001)


class Sink:
    """Accepts connections, keeps what each one carried, and answers with the number of bytes."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.received: list[bytes] = []
        self.endings: list[str] = []
        self._done = threading.Condition()
        threading.Thread(target=self._accept, daemon=True).start()

    def wait_for(self, count: int) -> None:
        with self._done:
            assert self._done.wait_for(lambda: len(self.endings) >= count, TIMEOUT_S)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._keep, args=(peer,), daemon=True).start()

    def _keep(self, peer: socket.socket) -> None:
        data = bytearray()
        ending = "eof"
        with peer:
            peer.settimeout(TIMEOUT_S)
            try:
                while piece := peer.recv(1 << 18):
                    data += piece
                peer.sendall(str(len(data)).encode())
            except OSError as error:
                ending = type(error).__name__
        with self._done:
            self.received.append(bytes(data))
            self.endings.append(ending)
            self._done.notify_all()


@pytest.fixture
def sink() -> Iterator[Sink]:
    place = Sink()
    yield place
    place.close()


def dial(link: Link) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", link.port), TIMEOUT_S)
    peer.settimeout(TIMEOUT_S)
    return peer


def send_all(link: Link, data: bytes) -> bytes:
    with dial(link) as peer:
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: peer.recv(4096), b""))


def test_bytes_and_half_closes_pass_unchanged_on_several_connections(sink: Sink) -> None:
    payloads = [os.urandom(size) for size in (0, 1, 70_000, 3_000_001)]
    answers: list[bytes] = []
    with Link(FAST) as link:
        link.retarget("127.0.0.1", sink.port)
        threads = [
            threading.Thread(target=lambda data=data: answers.append(send_all(link, data)))
            for data in payloads
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        stats = link.stats()
    assert sorted(sink.received) == sorted(payloads)
    assert sorted(answers) == sorted(str(len(data)).encode() for data in payloads)
    assert (stats.bytes_up, stats.bytes_down) == (sum(map(len, payloads)), sum(map(len, answers)))
    assert (stats.connections, stats.killed, stats.refused) == (4, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one loopback address")
def test_a_link_on_another_address_is_not_seen_as_the_same_machine(sink: Sink) -> None:
    with Link(FAST, "127.0.0.2") as link:
        link.retarget("127.0.0.1", sink.port)
        with socket.create_connection(("127.0.0.2", link.port), TIMEOUT_S) as peer:
            assert peer.getpeername()[0] != peer.getsockname()[0]


def test_a_receiver_that_does_not_read_blocks_the_sender_and_memory_stays_bounded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, Link(FAST) as link:
        link.retarget(*listener.getsockname())
        with dial(link) as client:
            peer, _ = listener.accept()
            with peer:
                offered = fill(client)
                stats = link.stats()
                assert 0 < stats.held_bytes <= stats.held_peak_bytes <= stats.held_limit_bytes
                assert stats.held_limit_bytes < 4 << 20
                # Once the receiver reads, everything that was offered arrives.
                client.shutdown(socket.SHUT_WR)
                peer.settimeout(TIMEOUT_S)
                assert sum(map(len, iter(lambda: peer.recv(1 << 20), b""))) == offered


def test_a_stalled_connection_does_not_stop_another(sink: Sink) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, Link(FAST) as link:
        link.retarget(*listener.getsockname())
        with dial(link) as stalled:
            peer, _ = listener.accept()
            with peer:
                fill(stalled)
                link.retarget("127.0.0.1", sink.port)
                assert send_all(link, bytes(1 << 20)) == b"1048576"


def test_kill_one_resets_both_ends_of_the_busy_connection_only(sink: Sink) -> None:
    with Link(FAST) as link:
        link.retarget("127.0.0.1", sink.port)
        with dial(link) as idle, dial(link) as busy:
            busy.sendall(bytes(1 << 20))
            wait_for_stats(link, lambda stats: stats.live == 2 and stats.bytes_up == 1 << 20)
            assert link.kill_one() == 1
            with pytest.raises(ConnectionError):
                busy.recv(1)
            sink.wait_for(1)
            assert sink.endings == ["ConnectionResetError"]
            idle.sendall(b"still here")
            idle.shutdown(socket.SHUT_WR)
            assert idle.recv(10) == b"10"
        assert (link.stats().killed, link.stats().killed_bytes_up) == (1, 1 << 20)


def test_kill_all_resets_every_connection_and_nothing_is_left_to_kill(sink: Sink) -> None:
    with Link(FAST) as link:
        link.retarget("127.0.0.1", sink.port)
        with dial(link) as first, dial(link) as second:
            wait_for_stats(link, lambda stats: stats.live == 2)
            assert link.kill_all() == 2
            for peer in (first, second):
                with pytest.raises(ConnectionError):
                    peer.recv(1)
        assert (link.kill_one(), link.kill_all(), link.stats().live) == (0, 0, 0)


@pytest.mark.parametrize("after_bytes", [0, 100_000, 999_999])
def test_flip_byte_changes_exactly_one_bit_at_the_place_asked_for(sink: Sink, after_bytes: int) -> None:
    data = os.urandom(1_000_000)
    with Link(FAST) as link:
        link.retarget("127.0.0.1", sink.port)
        link.flip_byte(after_bytes)
        send_all(link, data)
        assert link.stats().flipped == 1
        send_all(link, data)
        assert link.stats().flipped == 1
    first, second = sink.received
    assert [at for at in range(len(data)) if first[at] != data[at]] == [after_bytes]
    assert (first[after_bytes] ^ data[after_bytes]).bit_count() == 1
    assert second == data


def test_the_first_connection_after_a_retarget_is_timed(sink: Sink) -> None:
    with Link(FAST) as link:
        link.retarget("127.0.0.1", sink.port)
        assert link.stats().opened_at == 0.0
        before = time.time()
        send_all(link, b"first")
        opened = link.stats().opened_at
        send_all(link, b"second")
        assert before <= opened == link.stats().opened_at
        link.retarget("127.0.0.1", sink.port)
        assert link.stats().opened_at == 0.0


def test_words_a_server_says_before_it_hangs_up_still_arrive() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, Link(LinkShape(1e9, 0.05)) as link:
        link.retarget(*listener.getsockname())
        with dial(link) as client:
            client.sendall(bytes(1 << 20))
            peer, _ = listener.accept()
            peer.recv(10)
            peer.sendall(b"no")
            peer.shutdown(socket.SHUT_WR)
            peer.close()
            assert client.recv(10) == b"no"


def test_a_target_that_refuses_is_a_reset_and_is_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    with Link(FAST) as link:
        link.retarget("127.0.0.1", port)
        with dial(link) as client, pytest.raises(ConnectionError):
            client.recv(1)
        assert link.stats().refused == 1


def test_a_link_that_died_is_reported_with_its_last_words() -> None:
    with Link(FAST) as link:
        os.kill(link.pid, 9)
        with pytest.raises(TransportError, match="ended with status -9"):
            link.stats()


def fill(peer: socket.socket) -> int:
    """Send until nothing more is taken for a second; return how many bytes were."""
    peer.settimeout(1.0)
    offered = 0
    try:
        while offered < 1 << 28:
            offered += peer.send(bytes(1 << 18))
    except TimeoutError:
        return offered
    raise AssertionError(f"the link took {offered} bytes that nobody read")


def wait_for_stats(link: Link, wanted: Callable[[LinkStats], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not wanted(link.stats()):
        assert time.monotonic() < deadline, link.stats()
        time.sleep(0.005)
