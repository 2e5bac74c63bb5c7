"""The kill switch reaches sessions that run: they go on in v1, or end and say why."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dwcp_fast as dwcp
from dwcp_fast import errors, metrics
from dwcp_fast.policy.rollout import RolloutFlags
from dwcp_fast.probing import probe_link
from dwcp_fast.rollout.flags import FILE_VARIABLE
from dwcp_fast.rollout.switch import SWITCH, KillSwitch
from dwcp_fast.v1 import V1Delivery
from network.relay import Relay
from two_ends import LOCAL, WAIT_S, accepted, meanwhile, pairing_of

STATE = np.random.default_rng(3).bytes(4 << 20)
SLOW_BITS_PER_S = 8_000_000
REACH_S = 5.0
"""What is promised: within this time a switch has reached the sessions that run."""
V3 = '{"enableV3Transport": true, "v3RolloutPercentage": 100}'
KILLED = '{"enableV3Transport": true, "v3RolloutPercentage": 100, "forceV1Mode": true}'
Switch = Callable[[], None]


@pytest.fixture(autouse=True)
def switch_off() -> Iterator[None]:
    yield
    dwcp.force_v1(False)


@pytest.fixture(params=["force_v1", "flags file"])
def switch(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Switch:
    """Turns the kill switch on, by a call or by the file."""
    if request.param == "force_v1":
        return lambda: dwcp.force_v1(True)
    flags = tmp_path / "flags.json"
    flags.write_text(V3)
    monkeypatch.setenv(FILE_VARIABLE, str(flags))

    def kill() -> None:
        flags.write_text(KILLED)

    return kill


def until_some_came(read: Callable[[], dwcp.Progress]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not read().wire_bytes:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def slowly(**more: Any) -> dwcp.SendOptions:
    return dwcp.SendOptions(bandwidth_bits_per_s=SLOW_BITS_PER_S, codec="none", block_bytes=65536, **more)


def unlimited() -> dwcp.SendOptions:
    """With nothing that v1 cannot keep."""
    return dwcp.SendOptions(streams=1, codec="none", block_bytes=65536)


def serve_v1(deliveries: list[V1Delivery], arrived: threading.Event) -> Callable[[V1Delivery], None]:
    def take(delivery: V1Delivery) -> None:
        deliveries.append(delivery)
        arrived.set()

    return take


def test_a_running_v3_transfer_ends_byte_exact_in_v1(switch: Switch) -> None:
    deliveries: list[V1Delivery] = []
    arrived = threading.Event()
    told: list[dict[str, Any]] = []
    options = dwcp.ReceiveOptions(allow_v1=("127.0.0.0/8",))
    state = STATE * 8
    before = metrics.snapshot()
    with dwcp.listen(LOCAL, options=options, on_v1=serve_v1(deliveries, arrived)) as listener:
        # Nobody takes it in v3, so that it is under way until the switch comes.
        with (
            dwcp.connect(pairing_of(listener), options=unlimited(), events=told.append) as sending,
            meanwhile(lambda: sending.send({"state": state})) as running,
        ):
            time.sleep(0.3)
            switch()
            began = time.monotonic()
            report = running.result(WAIT_S)
            assert time.monotonic() - began < REACH_S + 10
        assert arrived.wait(WAIT_S)
    assert (report.protocol, report.verified) == ("v1", False)
    assert deliveries[0].payload == state
    assert "stopped" in report.why["protocol"]
    assert "switched" in [event["type"] for event in told]
    after = metrics.snapshot()
    assert after.flow("sent").failed == before.flow("sent").failed + 1
    assert after.flow("sent", "v1").completed == before.flow("sent", "v1").completed + 1


def test_a_transfer_asked_for_in_v3_is_stopped_with_its_reason(switch: Switch) -> None:
    with (
        dwcp.listen(LOCAL) as listener,
        dwcp.connect(pairing_of(listener), options=slowly(protocol="v3")) as sending,
        meanwhile(lambda: accepted(listener).receive(WAIT_S)) as receiving,
    ):
        with meanwhile(lambda: sending.send({"state": STATE})) as running:
            until_some_came(sending.progress)
            switch()
            began = time.monotonic()
            with pytest.raises(errors.V3StoppedError) as caught:
                running.result(WAIT_S)
            assert time.monotonic() - began < REACH_S
        # The receiver is under the same switch here, but its sender may have told it first.
        with pytest.raises((errors.V3StoppedError, errors.PeerError)):
            receiving.result(WAIT_S)
    assert caught.value.retryable and caught.value.code == "v3-stopped"


def test_what_v1_cannot_carry_is_stopped_and_continued_when_the_switch_is_off(
    tmp_path: Path, switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, into = tmp_path / "source", tmp_path / "into"
    source.mkdir()
    into.mkdir()
    (source / "one").write_bytes(STATE)
    (source / "two").write_bytes(STATE[:1000])
    with dwcp.listen(LOCAL, keep_pairing_in=into) as listener:
        target = pairing_of(listener)
        with (
            dwcp.connect(target, options=slowly()) as sending,
            meanwhile(lambda: accepted(listener).receive_tree(into, WAIT_S)) as receiving,
        ):
            with meanwhile(lambda: sending.send_paths([source])) as running:
                deadline = time.monotonic() + WAIT_S
                while sending.progress().state_bytes_done < 500_000:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                switch()
                with pytest.raises(errors.V3StoppedError, match="v1 cannot keep") as caught:
                    running.result(WAIT_S)
            with pytest.raises(errors.V3StoppedError):
                receiving.result(WAIT_S)
        assert caught.value.resumable and errors.exit_code_for(caught.value) == 12
        dwcp.force_v1(False)
        monkeypatch.delenv(FILE_VARIABLE, raising=False)
        with meanwhile(lambda: accepted(listener).receive_tree(into, WAIT_S)) as receiving:
            with dwcp.connect(target, options=dwcp.SendOptions(block_bytes=65536)) as sending:
                report = sending.send_paths([source])
            receiving.result(WAIT_S)
    assert report.bytes_held > 0
    assert (into / "source" / "one").read_bytes() == STATE


def test_a_fetch_is_stopped_on_both_sides(switch: Switch) -> None:
    with dwcp.listen(LOCAL, serve=slowly()) as listener:

        def serve() -> None:
            with accepted(listener) as incoming:
                assert incoming.next_request(WAIT_S) == b"state"
                incoming.send({"state": STATE})

        with meanwhile(serve) as serving:
            with (
                dwcp.connect(pairing_of(listener), receive=dwcp.ReceiveOptions()) as session,
                meanwhile(lambda: session.fetch(b"state")) as running,
            ):
                until_some_came(session.progress)
                switch()
                with pytest.raises(errors.V3StoppedError):
                    running.result(WAIT_S)
            with pytest.raises(errors.DwcpError) as caught:
                serving.result(WAIT_S)
    # The other side may have told this one that it is stopped before this one's own switch came.
    assert isinstance(caught.value, errors.V3StoppedError | errors.TransportError)


def test_a_receiver_that_is_switched_stops_its_senders_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    switch = KillSwitch(lambda: None)
    monkeypatch.setattr("dwcp_fast.incoming.SWITCH", switch)
    monkeypatch.setattr("dwcp_fast.listener.SWITCH", switch)
    with dwcp.listen(LOCAL) as listener, dwcp.connect(pairing_of(listener), options=slowly()) as sending:
        with meanwhile(lambda: accepted(listener).receive(WAIT_S)) as receiving:
            with meanwhile(lambda: sending.send({"state": STATE})) as running:
                until_some_came(sending.progress)
                switch.force(True)
                with pytest.raises(errors.PeerError, match="kill switch") as caught:
                    running.result(WAIT_S)
            with pytest.raises(errors.V3StoppedError):
                receiving.result(WAIT_S)
        assert caught.value.resumable
        with meanwhile(lambda: listener.accept(3.0)) as accepting:
            with pytest.raises(errors.PeerError, match="kill switch") as caught:
                dwcp.connect(pairing_of(listener))
            assert caught.value.retryable
            assert accepting.result(WAIT_S) is None


def test_a_receiver_that_is_switched_lets_no_probe_in_and_those_again_when_it_is_lifted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    switch = KillSwitch(lambda: None)
    monkeypatch.setattr("dwcp_fast.listener.SWITCH", switch)
    with dwcp.listen(LOCAL, serve=dwcp.SendOptions()) as listener:
        target = pairing_of(listener)
        switch.force(True)
        for come in (
            lambda: probe_link(target, seconds=0.1),
            lambda: dwcp.connect(target, receive=dwcp.ReceiveOptions()),
        ):
            with pytest.raises(errors.PeerError, match="kill switch") as caught:
                come()
            assert caught.value.retryable
        switch.force(False)
        assert probe_link(target, seconds=0.1).lanes


def test_a_probe_is_stopped_and_none_is_begun_under_the_switch(switch: Switch) -> None:
    with dwcp.listen(LOCAL) as listener:
        target = pairing_of(listener)
        with meanwhile(lambda: probe_link(target, seconds=60, max_bytes=1 << 40)) as running:
            deadline = time.monotonic() + WAIT_S
            while not any(row.role == "probe" and row.open for row in metrics.snapshot().sessions):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            switch()
            began = time.monotonic()
            with pytest.raises(errors.V3StoppedError):
                running.result(WAIT_S)
            assert time.monotonic() - began < REACH_S
        with pytest.raises(errors.NegotiationError):
            probe_link(target)


def test_what_v1_brings_goes_on_under_the_switch_of_the_receiver(switch: Switch) -> None:
    deliveries: list[V1Delivery] = []
    arrived = threading.Event()
    options = dwcp.ReceiveOptions(allow_v1=("127.0.0.0/8",), v1_payload="raw")
    with dwcp.listen(LOCAL, options=options, on_v1=serve_v1(deliveries, arrived)) as listener:
        host, _, port = listener.address.rpartition(":")
        relay = Relay((host, int(port)))
        relay.hold_after = len(STATE) // 2
        try:
            sends = dwcp.SendOptions(protocol="v1", streams=1, v1_payload="raw")
            with dwcp.connect(f"127.0.0.1:{relay.port}", options=sends) as sending:
                with meanwhile(lambda: sending.send({"state": STATE})) as running:
                    assert relay.held.wait(WAIT_S)
                    switch()
                    # By then it has reached all that it reaches.
                    time.sleep(1.0)
                    relay.hold.set()
                    assert running.result(WAIT_S).protocol == "v1"
                assert arrived.wait(WAIT_S)
        finally:
            relay.close()
    assert deliveries[0].payload == STATE


def test_an_idle_session_goes_on_in_v1_and_stays_there() -> None:
    deliveries: list[V1Delivery] = []
    arrived = threading.Event()
    options = dwcp.ReceiveOptions(allow_v1=("127.0.0.0/8",))
    with dwcp.listen(LOCAL, options=options, on_v1=serve_v1(deliveries, arrived)) as listener:
        with dwcp.connect(pairing_of(listener)) as sending:
            dwcp.force_v1(True)
            assert sending.send({"state": b"one"}).protocol == "v1"
            dwcp.force_v1(False)
            assert sending.send({"state": b"two"}).protocol == "v1"
        deadline = time.monotonic() + WAIT_S
        while len(deliveries) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert {delivery.payload for delivery in deliveries} == {b"one", b"two"}


def test_a_session_that_the_caller_cancelled_does_not_go_on_in_v1() -> None:
    with dwcp.listen(LOCAL) as listener, dwcp.connect(pairing_of(listener)) as sending:
        sending.cancel()
        dwcp.force_v1(True)
        with pytest.raises(errors.DwcpError) as caught:
            sending.send({"state": b"state"})
    assert caught.value.code == "cancelled"


def test_the_thread_that_watches_ends_with_the_last_session() -> None:
    switch = KillSwitch(RolloutFlags, look_s=0.01)
    ended = threading.Event()
    before = set(threading.enumerate())
    guards = [switch.guard(ended.set), switch.guard(ended.set)]
    (thread,) = (one for one in threading.enumerate() if one not in before)
    deadline = time.monotonic() + WAIT_S
    for guard in guards:
        guard.release()
    while thread.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not ended.is_set()
    again = switch.guard(ended.set)
    switch.force(True)
    assert ended.wait(WAIT_S) and again.why == "force_v1 is on"


def test_a_source_that_raises_whatever_it_likes_keeps_the_switch_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raised, flags = threading.Event(), list[RolloutFlags]()

    def read() -> RolloutFlags:
        if not flags:
            raised.set()
            raise RuntimeError("boom")
        return flags[0]

    switch = KillSwitch(read, look_s=0.01)
    ended = threading.Event()
    guard = switch.guard(ended.set)
    assert raised.wait(WAIT_S) and not guard.is_over
    monkeypatch.setattr("dwcp_fast.listener.SWITCH", switch)
    with dwcp.listen(LOCAL) as listener, dwcp.connect(pairing_of(listener)):
        accepted(listener).close()
    flags.append(RolloutFlags(forceV1Mode=True))
    assert ended.wait(WAIT_S)
    assert guard.why is not None and "forceV1Mode" in guard.why


def test_sessions_are_ended_where_there_is_no_thread_to_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    switch = KillSwitch(RolloutFlags, look_s=0.01)
    ended = [threading.Event() for _ in range(3)]

    def fail() -> None:
        raise RuntimeError("it cannot be ended")

    guards = [switch.guard(fail), *(switch.guard(one.set) for one in ended)]
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "dwcp-stop":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    switch.force(True)
    assert all(one.is_set() for one in ended) and all(guard.is_over for guard in guards)


def test_a_caller_that_cancels_after_the_switch_is_not_carried_on_in_v1() -> None:
    deliveries: list[V1Delivery] = []
    options = dwcp.ReceiveOptions(allow_v1=("127.0.0.0/8",))
    on_v1 = serve_v1(deliveries, threading.Event())
    with (
        dwcp.listen(LOCAL, options=options, on_v1=on_v1) as listener,
        dwcp.connect(pairing_of(listener)) as sending,
    ):
        dwcp.force_v1(True)
        sending.cancel()
        with pytest.raises(errors.V3StoppedError):
            sending.send({"state": b"state"})
    assert deliveries == []


def test_a_session_that_is_made_while_the_switch_goes_on_is_stopped_too() -> None:
    switch = KillSwitch(RolloutFlags, look_s=2 * WAIT_S)
    switch.force(True)
    ended = threading.Event()
    guard = switch.guard(ended.set)
    assert ended.wait(WAIT_S) and guard.why is not None


def test_what_a_peer_ends_that_read_the_same_flags_first_is_told_as_stopped_by_the_switch() -> None:
    flags = RolloutFlags()
    switch = KillSwitch(lambda: flags, look_s=2 * WAIT_S)
    guard = switch.guard(lambda: None)
    refusal = errors.PeerError("the peer reports: it uses no v3")
    with pytest.raises(errors.PeerError), guard.told():
        raise refusal
    flags = RolloutFlags(forceV1Mode=True)
    with pytest.raises(errors.IntegrityError), guard.told():
        raise errors.IntegrityError("altered")
    with pytest.raises(errors.V3StoppedError, match="forceV1Mode"), guard.told():
        raise refusal


def test_a_child_of_a_fork_has_sessions_of_its_own() -> None:
    ended = threading.Event()
    guard = SWITCH.guard(ended.set)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            own = threading.Event()
            held = SWITCH.guard(own.set)
            SWITCH.force(True)
            code = 0 if own.wait(WAIT_S) and held.why and not ended.is_set() else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + WAIT_S
    while (ended_as := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended_as[1]) == 0
    assert not guard.is_over
    guard.release()
