"""Rates that change while something is sent."""

import gc
import itertools
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import dwcp_fast as dwcp
from dwcp_fast.options import BandwidthSchedule, parse_schedule
from dwcp_fast.throttle import Throttle
from two_ends import LOCAL, WAIT_S, accepted, pairing_of


class Pipe:
    """Something with a rate, which notes what it is told."""

    def __init__(self) -> None:
        self.rates: queue.Queue[int | None] = queue.Queue()

    def set_rate(self, bytes_per_s: int | None) -> None:
        self.rates.put(bytes_per_s)


def clock(minutes: list[int], ended: threading.Event) -> Callable[[], int]:
    """Make a clock that shows these minutes, one with each look, and stays at the last."""

    def minute() -> int:
        if len(minutes) > 1:
            return minutes.pop(0)
        ended.set()
        return minutes[0]

    return minute


def test_a_schedule_holds_by_the_minute_and_windows_pass_midnight() -> None:
    day = parse_schedule("08:00-18:00=100Mbps, otherwise=off")
    assert [day.rate_at(minute) for minute in (479, 480, 1079, 1080)] == [None, 10**8, 10**8, None]
    night = parse_schedule("otherwise=1MB/s,22:30-06:00=off,05:00-07:00=16Mbps")
    hours = {hour: night.rate_at(hour * 60) for hour in (22, 23, 0, 5, 6, 7)}
    assert hours == {22: 8 * 10**6, 23: None, 0: None, 5: None, 6: 16 * 10**6, 7: 8 * 10**6}
    assert parse_schedule("00:00-24:00=8kbps") == BandwidthSchedule(((0, 1440, 8000),), None)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("08:00-18:00", "no rate"),
        ("08:00=5Mbps", "'08:00=5Mbps'"),
        ("08:00-08:00=5Mbps", "no span"),
        ("24:00-08:00=5Mbps", "no span"),
        ("08:60-09:00=5Mbps", "no span"),
        ("08:00-24:01=5Mbps", "no span"),
        ("08:00-18:00=fast", "'fast'"),
        ("08:00-18:00=1bps", "8000"),
        ("otherwise=off,otherwise=off", "otherwise=off"),
        ("08:00-18:00=5Mbps,,", "''"),
        (",".join(["08:00-18:00=5Mbps"] * 49), "49 parts"),
    ],
)
def test_what_is_no_schedule_is_refused_with_its_part(text: str, named: str) -> None:
    with pytest.raises(dwcp.ConfigError, match=r"part|span|rate") as caught:
        dwcp.SendOptions(bandwidth_schedule=text)
    assert named in str(caught.value)


def test_a_schedule_excludes_a_fixed_rate() -> None:
    with pytest.raises(dwcp.ConfigError, match="exclude"):
        dwcp.SendOptions(bandwidth_schedule="otherwise=off", bandwidth_bits_per_s=10**6)


def test_a_throttle_tells_each_change_once_until_it_is_stopped() -> None:
    schedule = parse_schedule("08:00-18:00=8Mbps,otherwise=off")
    pipe, ended = Pipe(), threading.Event()
    throttle = Throttle(
        pipe, schedule, minute=clock([479, 479, 480, 481, 1080, 1081], ended), pause_s=lambda: 0.001
    )
    assert ended.wait(WAIT_S)
    throttle.stop()
    assert [pipe.rates.get_nowait() for _ in range(3)] == [None, 10**6, None]
    assert pipe.rates.empty()


@pytest.mark.parametrize("rates", [(8_000, 16_000), (8_000,)], ids=["changing", "constant"])
def test_a_throttle_ends_with_what_it_throttles(rates: tuple[int, ...]) -> None:
    minutes = itertools.count()
    schedule = BandwidthSchedule(
        tuple((at, at + 1, rates[at % len(rates)]) for at in range(1440)), otherwise=None
    )
    pipe = Pipe()
    throttle = Throttle(pipe, schedule, minute=lambda: next(minutes) % 1440, pause_s=lambda: 0.001)
    del pipe
    gc.collect()
    try:
        throttle._thread.join(WAIT_S)
        assert not throttle._thread.is_alive()
    finally:
        throttle.stop()


def test_the_rate_of_a_session_changes_while_it_sends() -> None:
    options = dwcp.SendOptions(bandwidth_schedule="00:00-24:00=8kbps")
    with (
        ThreadPoolExecutor() as threads,
        dwcp.listen(LOCAL) as listener,
        dwcp.connect(pairing_of(listener), options=options) as session,
    ):

        def receive() -> bytes:
            with accepted(listener) as incoming:
                received = incoming.receive(WAIT_S)
                assert received is not None
                return bytes(received["state"])

        state = os.urandom(1_000_000)
        arriving = threads.submit(receive)
        sending = threads.submit(session.send, {"state": state})
        # At the rate of the schedule it would take a quarter of an hour.
        session.set_bandwidth_limit(None)
        assert sending.result(WAIT_S).verified
        assert arriving.result(WAIT_S) == state
        with pytest.raises(dwcp.ConfigError, match="bits_per_s"):
            session.set_bandwidth_limit(1)


def test_the_rate_of_a_listener_changes_while_it_serves() -> None:
    serve = dwcp.SendOptions(bandwidth_bits_per_s=8_000)
    with ThreadPoolExecutor() as threads, dwcp.listen(LOCAL, serve=serve, receive=False) as listener:

        def answer() -> None:
            with accepted(listener) as incoming:
                assert incoming.next_request(WAIT_S) == b""
                incoming.send({"state": bytes(os.urandom(1_000_000))})

        serving = threads.submit(answer)
        with dwcp.connect(pairing_of(listener), receive=dwcp.ReceiveOptions()) as session:
            fetching = threads.submit(session.fetch)
            with pytest.raises(dwcp.ConfigError, match="fetches"):
                session.set_bandwidth_limit(None)
            listener.set_bandwidth_limit(10**9)
            assert len(fetching.result(WAIT_S)["state"]) == 1_000_000
            serving.result(WAIT_S)
