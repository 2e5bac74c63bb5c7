"""v1 over real sockets: what arrives, what is refused, and what never waits for ever."""

import hashlib
import json
import queue
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from dwcp_fast.errors import (
    BaseMismatchError,
    ConfigError,
    DeadlineError,
    FormatError,
    LimitExceededError,
    PeerClosedError,
    UnsupportedFormatError,
)
from dwcp_fast.v1 import HdeEncoder, V1Delivery, V1Options, V1Receiver, deal_amst, send_v1
from test_v1_vectors import VECTORS, Vector, load, load_streams, make_input

WAIT_S = 20.0
KEY = "vm-1_memory"
DATA = random.Random(11).randbytes(300_001)
FAST = {"idle_timeout_s": 5.0, "settle_s": 0.2}


class Served:
    """A receiver behind an accept loop, as a listener would hand connections over."""

    def __init__(self, options: V1Options, on_delivery: Callable[[V1Delivery], None] | None = None) -> None:
        self.deliveries: queue.Queue[V1Delivery] = queue.Queue()
        self.errors: queue.Queue[tuple[tuple[str, int], Exception]] = queue.Queue()
        self.taken: queue.Queue[bool] = queue.Queue()
        self.receiver = V1Receiver(
            options,
            on_delivery=on_delivery or self.deliveries.put,
            on_error=lambda peer, exc: self.errors.put((peer, exc)),
        )
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.accept)
        self.thread.start()

    def accept(self) -> None:
        while True:
            try:
                sock, peer = self.listener.accept()
            except OSError:
                return
            self.taken.put(self.receiver.add_connection(sock, peer))

    def delivery(self) -> V1Delivery:
        return self.deliveries.get(timeout=WAIT_S)

    def error(self) -> Exception:
        return self.errors.get(timeout=WAIT_S)[1]

    def stop(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(WAIT_S)
        self.receiver.close(1.0)


@contextmanager
def serve(on_delivery: Callable[[V1Delivery], None] | None = None, **options: Any) -> Iterator[Served]:
    served = Served(V1Options(**{**FAST, **options}), on_delivery)
    try:
        yield served
    finally:
        served.stop()


def until(condition: Callable[[], bool]) -> None:
    """Wait for something another thread does."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def dial(port: int, count: int = 1, source: str = "127.0.0.1") -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                socket.create_connection(("127.0.0.1", port), WAIT_S, source_address=(source, 0))
            )
            for _ in range(count)
        ]


def play(connections: list[socket.socket], streams: list[bytes]) -> None:
    """Send each stream, half-close all, and wait for the receiver to close."""
    for connection, stream in zip(connections, streams, strict=True):
        connection.sendall(stream)
        connection.shutdown(socket.SHUT_WR)
    for connection in connections:
        assert connection.recv(1) == b""


@pytest.mark.parametrize("streams", [1, 4, 16])
@pytest.mark.parametrize(
    ("generation", "tier", "payload_format"),
    [
        ("A", "local", "hde"),
        ("B", "global", "hde"),
        ("C", "none", "hde"),
        ("C", "regional", "hde"),
        ("A", "local", "raw"),
    ],
)
def test_a_sent_payload_arrives(streams: int, generation: Any, tier: Any, payload_format: Any) -> None:
    with serve(generation=generation, payload_format=payload_format) as served:
        report = send_v1(
            "127.0.0.1",
            served.port,
            DATA,
            streams=streams,
            generation=generation,
            tier=tier,
            payload_format=payload_format,
        )
        # The receiver closes only after delivery, so it is there when the sender returns.
        delivery = served.deliveries.get_nowait()
        assert delivery.payload == DATA
        assert delivery.xxh3_128 == report.xxh3_128
        assert (delivery.transfer_bytes, delivery.wire_bytes) == (report.transfer_bytes, report.wire_bytes)
        assert delivery.chunks == report.chunks
        assert report.to_dict()["verified"] is False
        assert delivery.to_dict()["verified"] is False
        assert served.errors.empty()


RECEIVER = """
import hashlib, json, queue, socket
from dwcp_fast.v1 import V1Options, V1Receiver
done = queue.Queue()
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
receiver = V1Receiver(V1Options(), on_delivery=done.put, on_error=lambda peer, exc: print(exc, flush=True))
for _ in range(4):
    receiver.add_connection(*listener.accept())
payload = done.get(timeout=20).payload
receiver.close(20)
print(json.dumps({"sha256": hashlib.sha256(payload).hexdigest(), "count": 1 + done.qsize()}), flush=True)
"""

# Written from the format notes alone, and by chunk number as the first implementation does it.
PLAIN_READER = """
import hashlib, json, socket, struct
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
socks = [listener.accept()[0] for _ in range(4)]
chunks, totals = {}, set()
for sock in socks:
    stream = b""
    while piece := sock.recv(1 << 16):
        stream += piece
    while stream:
        number, offset, length, total = struct.unpack(">IIII", stream[:16])
        chunks[number], totals = stream[16:16 + length], totals | {total}
        stream = stream[16 + length:]
for sock in socks:
    sock.close()
data = b"".join(chunks[number] for number in sorted(chunks))
assert totals == {len(data)} and sorted(chunks) == list(range(len(chunks)))
print(json.dumps({"sha256": hashlib.sha256(data).hexdigest(), "count": 1}), flush=True)
"""


@pytest.mark.parametrize(("script", "payload_format"), [(RECEIVER, "hde"), (PLAIN_READER, "raw")])
def test_a_receiver_in_another_process_gets_the_payload(script: str, payload_format: Any) -> None:
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent) as child:
        try:
            assert child.stdout is not None
            port = int(child.stdout.readline())
            send_v1("127.0.0.1", port, DATA, streams=4, payload_format=payload_format, timeout_s=WAIT_S)
            answer = json.loads(child.stdout.readline())
            assert answer == {"sha256": hashlib.sha256(DATA).hexdigest(), "count": 1}
            assert child.wait(WAIT_S) == 0
        finally:
            child.kill()


@pytest.mark.parametrize(
    "vector",
    [pytest.param(v, id=v["id"]) for v in VECTORS if v["profile"] == "v1-amst" and v.get("messages")],
)
def test_streams_of_the_peer_are_received_over_sockets(vector: Vector) -> None:
    streams = load_streams(vector)
    with serve(payload_format="raw") as served, dial(served.port, len(streams)) as connections:
        play(connections, streams)
        assert served.delivery().payload == make_input(vector["messages"][0]["input"])
        assert served.errors.empty()


def test_a_stalling_peer_is_dropped_and_others_are_served() -> None:
    with serve(idle_timeout_s=1.0) as served, dial(served.port, source="127.0.0.2") as (stalled,):
        stalled.sendall(deal_amst(DATA, streams=1)[0][:1000])
        report = send_v1("127.0.0.1", served.port, DATA, streams=2)
        assert served.delivery().xxh3_128 == report.xxh3_128
        peer, error = served.errors.get(timeout=WAIT_S)
        assert isinstance(error, DeadlineError)
        assert peer[0] == "127.0.0.2"
        with pytest.raises(ConnectionResetError):
            stalled.recv(1)


def test_a_trickling_peer_meets_the_absolute_deadline() -> None:
    with serve(idle_timeout_s=5.0, deadline_s=0.5) as served, dial(served.port) as (slow,):
        stream = deal_amst(DATA, streams=1)[0]
        until = time.monotonic() + WAIT_S
        with pytest.raises(ConnectionError):
            for index in range(len(stream)):
                slow.sendall(stream[index : index + 1])
                time.sleep(0.01)
                assert time.monotonic() < until
        assert isinstance(served.error(), DeadlineError)


def test_a_silent_stream_is_no_stall_while_others_move() -> None:
    streams = deal_amst(DATA, streams=1, chunk_bytes=40_000)
    with serve(payload_format="raw", idle_timeout_s=1.5) as served, dial(served.port, 2) as (busy, silent):
        pieces = [streams[0][at : at + 40_016] for at in range(0, len(streams[0]), 40_016)]
        for piece in pieces:
            busy.sendall(piece)
            time.sleep(0.25)
        play([busy, silent], [b"", b""])
        assert served.delivery().payload == DATA
        assert served.errors.empty()


@pytest.mark.parametrize("cut", [7, 16, 20_000, 70_000])
def test_a_peer_that_vanishes_is_an_error_and_not_a_delivery(cut: int) -> None:
    with serve() as served, dial(served.port, 2) as (first, second):
        first.sendall(deal_amst(DATA, streams=1)[0][:cut])
        first.close()
        second.close()
        error = served.error()
        assert isinstance(error, FormatError)
        assert served.deliveries.empty()


def test_a_reset_in_the_middle_is_a_closed_peer() -> None:
    with serve() as served, dial(served.port) as (connection,):
        connection.sendall(deal_amst(DATA, streams=1)[0][:70_000])
        until(served.receiver._busy)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        assert isinstance(served.error(), PeerClosedError)


def test_connections_that_end_without_a_byte_are_reported_once() -> None:
    with serve() as served, dial(served.port, 3) as connections:
        for connection in connections:
            connection.shutdown(socket.SHUT_WR)
        assert "no data" in str(served.error())
        until(lambda: not served.receiver._peers["127.0.0.1"].connections)
        assert served.errors.empty()


def test_an_empty_connection_after_its_transfer_is_no_error() -> None:
    with serve(payload_format="raw") as served:
        with dial(served.port) as connections:
            play(connections, deal_amst(DATA, streams=1))
        assert served.delivery().payload == DATA
        with dial(served.port) as connections:
            play(connections, [b""])
        assert served.errors.empty()


def test_transfers_follow_each_other_on_one_connection() -> None:
    (vector,) = [v for v in VECTORS if v["id"] == "migration-three-calls-s1"]
    with serve(payload_format="raw") as served, dial(served.port) as connections:
        play(connections, load_streams(vector))
        got = [hashlib.sha256(served.delivery().payload).hexdigest() for _ in range(3)]
        assert got == [message["sha256"] for message in vector["messages"]]


def test_a_chunk_after_a_transfer_of_several_connections_is_refused() -> None:
    streams = deal_amst(DATA, streams=2)
    with serve(payload_format="raw") as served, dial(served.port, 2) as (first, second):
        first.sendall(streams[0])
        second.sendall(streams[1])
        assert served.delivery().payload == DATA
        for connection in (first, second):
            with pytest.raises(ConnectionError):
                while True:
                    connection.sendall(streams[0][:16])
        assert served.deliveries.empty()


def test_a_sender_may_go_on_at_once_with_new_connections() -> None:
    with serve() as served:
        for index in range(5):
            send_v1("127.0.0.1", served.port, DATA[index:], streams=3)
            assert served.deliveries.get_nowait().payload == DATA[index:]
        assert served.errors.empty()


def test_stray_bytes_from_the_same_address_do_not_break_a_transfer() -> None:
    streams = deal_amst(DATA, streams=2)
    with serve(payload_format="raw") as served, dial(served.port, 2) as connections:
        connections[0].sendall(streams[0][:70_000])
        until(served.receiver._busy)
        with dial(served.port, 2) as (stray, twin):
            stray.sendall(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
            twin.sendall(streams[0][:100])
            assert "comes twice" in str(served.error())
            play(connections, [streams[0][70_000:], streams[1]])
            assert served.delivery().payload == DATA
            assert "beyond the transfer size" in str(served.error())


def test_an_announced_size_above_the_limit_is_refused() -> None:
    header = struct.pack(">IIII", 0, 0, 1, 0xFFFF_FFF0)
    with serve() as served, dial(served.port) as (connection,):
        connection.sendall(header)
        assert isinstance(served.error(), LimitExceededError)
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_unfinished_transfers_share_one_memory_limit() -> None:
    half = DATA[:150_000]
    stream = deal_amst(half, streams=1, chunk_bytes=140_000)[0]
    with (
        serve(payload_format="raw", max_bytes=200_000) as served,
        dial(served.port) as (first,),
        dial(served.port, source="127.0.0.2") as (second,),
    ):
        first.sendall(stream[:140_016])
        until(lambda: served.receiver._held_bytes >= 140_000)
        second.sendall(stream[:140_016])
        peer, error = served.errors.get(timeout=WAIT_S)
        assert isinstance(error, LimitExceededError)
        assert peer[0] == "127.0.0.2"
        play([first], [stream[140_016:]])
        assert served.delivery().payload == half


def test_too_many_connections_from_one_address_are_refused() -> None:
    with serve(max_connections_per_peer=2) as served, dial(served.port, 3):
        assert [served.taken.get(timeout=WAIT_S) for _ in range(3)] == [True, True, False]
        assert isinstance(served.error(), LimitExceededError)


def test_too_many_transfers_are_refused() -> None:
    with (
        serve(max_transfers=1) as served,
        dial(served.port) as (first,),
        dial(served.port, source="127.0.0.2") as (second,),
    ):
        first.sendall(deal_amst(DATA, streams=1)[0][:100])
        until(served.receiver._busy)
        second.sendall(deal_amst(DATA, streams=1)[0][:100])
        peer, error = served.errors.get(timeout=WAIT_S)
        assert (peer[0], type(error)) == ("127.0.0.2", LimitExceededError)


def test_a_packet_of_another_generation_is_refused_with_a_hint() -> None:
    with serve(generation="A") as served:
        with pytest.raises(PeerClosedError):
            send_v1("127.0.0.1", served.port, DATA, generation="C", tier="global")
        error = served.error()
        assert isinstance(error, UnsupportedFormatError)
        assert "generation C" in str(error.hint)


def test_a_failing_callback_reaches_the_error_callback_and_the_sender() -> None:
    def refuse(delivery: V1Delivery) -> None:
        raise OSError(28, "no space left on device")

    with serve(refuse) as served:
        with pytest.raises(PeerClosedError):
            send_v1("127.0.0.1", served.port, DATA)
        assert type(served.error()) is OSError


def test_deltas_are_applied_only_under_a_configured_key() -> None:
    (vector,) = [v for v in VECTORS if v["id"] == "hde-delta-few-local"]
    packets = [load(vector, index) for index in range(3)]
    with serve(baseline_key=KEY) as served:
        for packet, name in zip(packets, ("d0", "d1", "d1"), strict=True):
            with dial(served.port, 2) as connections:
                play(connections, deal_amst(packet, streams=2))
            assert served.delivery().payload == make_input(name)
    with serve() as served, dial(served.port, 2) as connections:
        # The second transfer is there before the first is read, as a sender that does not wait does it.
        connections[0].sendall(deal_amst(packets[0], streams=1)[0][:-1])
        until(served.receiver._busy)
        connections[1].sendall(deal_amst(packets[1], streams=1)[0])
        connections[0].sendall(packets[0][-1:])
        assert served.delivery().payload == make_input("d0")
        assert isinstance(served.error(), BaseMismatchError)


def test_a_baseline_of_one_address_is_not_used_for_another() -> None:
    encoder = HdeEncoder("A", deltas=True)
    full = encoder.encode(make_input("d0"), key=KEY)
    delta = encoder.encode(make_input("d1"), key=KEY)
    assert delta[0] == 1
    with serve(baseline_key=KEY) as served:
        with dial(served.port) as connections:
            play(connections, deal_amst(full, streams=1))
        with dial(served.port, source="127.0.0.2") as (other,):
            other.sendall(deal_amst(delta, streams=1)[0])
            assert isinstance(served.error(), BaseMismatchError)


def test_a_lost_transfer_leaves_no_older_baseline_for_the_next_delta() -> None:
    encoder = HdeEncoder("A", deltas=True)
    first, second, third = (encoder.encode(make_input(name), key=KEY) for name in ("d0", "d1", "d0"))
    assert second[0] == third[0] == 1
    with serve(baseline_key=KEY) as served:
        with dial(served.port) as connections:
            play(connections, deal_amst(first, streams=1))
        with dial(served.port) as (connection,):
            connection.sendall(deal_amst(second, streams=1)[0][:-1])
        assert isinstance(served.error(), FormatError)
        with dial(served.port) as (connection,):
            connection.sendall(deal_amst(third, streams=1)[0])
            assert isinstance(served.error(), BaseMismatchError)
        assert served.deliveries.qsize() == 1


def test_a_slow_callback_is_not_blamed_on_the_peer() -> None:
    taken: list[V1Delivery] = []

    def take_slowly(delivery: V1Delivery) -> None:
        time.sleep(0.6)
        taken.append(delivery)

    with serve(take_slowly, idle_timeout_s=0.2) as served:
        for streams in (1, 3):
            send_v1("127.0.0.1", served.port, DATA, streams=streams)
        assert [delivery.payload for delivery in taken] == [DATA, DATA]
        assert served.errors.empty()


def test_closing_ends_a_transfer_in_progress_with_an_error() -> None:
    with serve() as served, dial(served.port) as (connection,):
        connection.sendall(deal_amst(DATA, streams=1)[0][:70_000])
        until(served.receiver._busy)
        served.receiver.close(0.1)
        assert isinstance(served.error(), DeadlineError)
        assert not any(thread.name.startswith("dwcp-v1-recv") for thread in threading.enumerate())


def test_closing_waits_for_a_transfer_that_is_about_to_end() -> None:
    stream = deal_amst(DATA, streams=1)[0]
    with serve(payload_format="raw") as served, dial(served.port) as (connection,):
        connection.sendall(stream[:70_000])
        until(served.receiver._busy)
        closer = threading.Thread(target=served.receiver.close, args=(WAIT_S,))
        closer.start()
        until(lambda: served.receiver._closing)
        play([connection], [stream[70_000:]])
        closer.join(WAIT_S)
        assert served.delivery().payload == DATA


@contextmanager
def answer_with(action: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port whose connections each get `action`."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def run() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            held.append(sock)
            action(sock)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(WAIT_S)
        for sock in held:
            sock.close()


def test_a_peer_that_closes_early_is_said_not_to_serve_v1() -> None:
    def look_and_leave(sock: socket.socket) -> None:
        sock.recv(4, socket.MSG_PEEK)
        sock.close()

    with answer_with(look_and_leave) as port, pytest.raises(PeerClosedError) as caught:
        send_v1("127.0.0.1", port, DATA, streams=1)
    assert "--allow-v1" in str(caught.value.hint)


def test_a_peer_that_answers_is_said_not_to_serve_v1() -> None:
    with answer_with(lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n")) as port:
        with pytest.raises(PeerClosedError) as caught:
            send_v1("127.0.0.1", port, b"small", streams=2)
        assert "--allow-v1" in str(caught.value.hint)


@pytest.mark.parametrize("size", [5, 64 << 20])
def test_a_peer_that_never_reads_meets_the_deadline(size: int) -> None:
    with answer_with(lambda sock: None) as port, pytest.raises(DeadlineError):
        send_v1("127.0.0.1", port, bytes(size), streams=2, payload_format="raw", timeout_s=0.5)


def test_a_port_nobody_listens_on_is_an_os_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        send_v1("127.0.0.1", port, DATA)


@pytest.mark.parametrize(
    ("payload", "options", "error"),
    [
        (b"", {}, FormatError),
        (b"x", {"streams": 0}, ConfigError),
        (b"x", {"chunk_bytes": 0}, ConfigError),
        (b"x", {"tier": "none"}, ConfigError),
        (b"x", {"payload_format": "auto"}, ConfigError),
        (b"x", {"timeout_s": float("nan")}, ConfigError),
    ],
)
def test_a_transfer_that_cannot_be_sent_is_refused_before_dialling(
    payload: bytes, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        send_v1("127.0.0.1", 9, payload, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"generation": "D"},
        {"payload_format": "zip"},
        {"baseline_key": "a\0b"},
        {"max_bytes": 0},
        {"max_bytes": 1 << 32},
        {"idle_timeout_s": 0},
        {"deadline_s": float("inf")},
        {"max_connections_per_peer": 0},
        {"max_transfers": 0},
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        V1Options(**options)
