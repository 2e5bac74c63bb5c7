"""Sessions between two threads of one process: what arrives, what is refused, and how waiting ends."""

import asyncio
import doctest
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dwcp_fast as dwcp
from dwcp_fast import errors, session
from dwcp_fast.engine import FLAGS_VARIABLE
from dwcp_fast.reports import RECORD_FIELDS
from dwcp_fast.rollout.outcomes import failure_code
from dwcp_fast.v1 import V1Delivery
from two_ends import LOCAL, NEAREST, WAIT_S, accepted, meanwhile, pairing_of


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Keep identities and indices of tests out of the user's own, and the kill switch off."""
    path = tmp_path / "state"
    monkeypatch.setenv("DWCP_STATE_DIR", str(path))
    yield path
    dwcp.force_v1(False)


def receive(listener: dwcp.Listener) -> dwcp.Received:
    """Accept a sender and receive one state."""
    with accepted(listener) as incoming:
        received = incoming.receive(WAIT_S)
    assert received is not None
    return received


def test_buffers_arrive_verified_whatever_they_are() -> None:
    array = np.random.default_rng(1).normal(size=(300, 1000)).astype(np.float32)
    objects: dict[str, Any] = {
        "array": array,
        "text": b"state " * 9999,
        "empty": bytearray(),
        "ü": memoryview(b"x"),
    }
    with dwcp.listen(LOCAL) as listener, meanwhile(lambda: receive(listener)) as arriving:
        with dwcp.connect(pairing_of(listener)) as sending:
            report = sending.send(objects)
        received = arriving.result(WAIT_S)
    assert {name: bytes(value) for name, value in received.items()} == {
        name: bytes(memoryview(value).cast("B")) if memoryview(value).nbytes else b""
        for name, value in objects.items()
    }
    assert report.verified and report.protocol == "v3" and report.transport == NEAREST
    assert report.transfer_digest == received.report.transfer_digest
    assert report.bytes_raw == received.report.bytes_raw == array.nbytes + 6 * 9999 + 1
    received["text"][0:1] = b"S"


def test_auto_tells_what_it_chose_for_each_transfer_and_why() -> None:
    noise = np.random.default_rng(2).bytes(3 << 20)
    with dwcp.listen(LOCAL) as listener, meanwhile(lambda: receive(listener)) as arriving:
        with dwcp.connect(pairing_of(listener)) as sending:
            before = {choice.name: choice for choice in sending.explain()}["codec"]
            report = sending.send({"noise": noise})
            after = {choice.name: choice for choice in sending.explain()}["codec"]
        arriving.result(WAIT_S)
    assert before.value == after.value == "auto" and "nothing was measured" in before.why
    chosen = report.selection
    assert chosen is not None
    assert {share.action: share.raw_bytes for share in chosen.actions} == {"none": 3 << 20}
    assert sum(chosen.reasons.values()) == 3 and 0 <= chosen.price <= 1
    assert after.why.startswith("none 100%") and report.why["codec"] == f"auto: {after.why}"
    assert json.loads(json.dumps(report.to_dict()))["selection"]["actions"][0]["action"] == "none"


def test_a_fixed_codec_chooses_nothing() -> None:
    with dwcp.listen(LOCAL) as listener, meanwhile(lambda: receive(listener)) as arriving:
        with dwcp.connect(pairing_of(listener), options=dwcp.SendOptions(codec="lz4")) as sending:
            report = sending.send({"text": b"state " * 99_999})
        arriving.result(WAIT_S)
    assert report.selection is None and report.why["codec"] == "lz4: asked for"
    assert {share.codec for share in report.codec_mix} == {"lz4"}


def test_a_model_that_is_none_is_told_before_anybody_is_dialled(tmp_path: Path) -> None:
    model = tmp_path / "model.dwsm"
    model.write_bytes(b"DWSM" + bytes(99))
    with pytest.raises(errors.FormatError):
        dwcp.connect("127.0.0.1:1", trust=dwcp.INSECURE, options=dwcp.SendOptions(codec_model=model))


def test_a_session_carries_transfers_one_after_the_other() -> None:
    def serve() -> list[bytes]:
        with accepted(listener) as incoming:
            states = []
            while (received := incoming.receive(WAIT_S)) is not None:
                states.append(bytes(received["state"]))
            return states

    with dwcp.listen(LOCAL) as listener, meanwhile(serve) as serving:
        with dwcp.connect(pairing_of(listener)) as sending:
            for number in range(3):
                sending.send({"state": b"%d" % number * 1000})
        assert serving.result(WAIT_S) == [b"%d" % number * 1000 for number in range(3)]


def test_receive_into_fills_the_callers_memory() -> None:
    state = np.arange(500_000, dtype=np.int64)
    target = np.zeros_like(state)

    def serve() -> dwcp.ReceiveReport | None:
        with accepted(listener) as incoming:
            return incoming.receive_into({"state": target, "unused": bytearray(3)}, WAIT_S)

    with dwcp.listen(LOCAL) as listener, meanwhile(serve) as serving:
        with dwcp.connect(pairing_of(listener)) as sending:
            sending.send({"state": state})
        report = serving.result(WAIT_S)
    assert report is not None and report.bytes_raw == state.nbytes
    assert np.array_equal(target, state)


@pytest.mark.parametrize(
    "buffers", [{"state": bytearray(5)}, {"other": bytearray(6)}], ids=["length", "name"]
)
def test_a_buffer_that_does_not_fit_is_refused_on_both_sides(buffers: dict[str, bytearray]) -> None:
    def serve() -> object:
        with accepted(listener) as incoming:
            return incoming.receive_into(buffers, WAIT_S)

    with dwcp.listen(LOCAL) as listener, meanwhile(serve) as serving:
        with dwcp.connect(pairing_of(listener)) as sending, pytest.raises(errors.PeerError, match="refused"):
            sending.send({"state": b"states"})
        with pytest.raises(errors.DwcpError, match="refused") as caught:
            serving.result(WAIT_S)
    assert caught.value.code == "refused"
    assert not any(buffers["state"]) if "state" in buffers else True


def test_a_state_over_the_limit_is_refused_before_it_is_held() -> None:
    options = dwcp.ReceiveOptions(max_total_bytes=1000)
    with dwcp.listen(LOCAL, options=options) as listener, meanwhile(lambda: receive(listener)) as arriving:
        with (
            dwcp.connect(pairing_of(listener)) as sending,
            pytest.raises(errors.LimitExceededError, match="1000"),
        ):
            sending.send({"state": bytes(1001)})
        with pytest.raises(errors.LimitExceededError, match="1001"):
            arriving.result(WAIT_S)


def test_files_are_sent_by_path(tmp_path: Path) -> None:
    (tmp_path / "source" / "deep").mkdir(parents=True)
    (tmp_path / "source" / "deep" / "file").write_bytes(b"content" * 1000)
    (tmp_path / "target").mkdir()

    def serve() -> dwcp.ReceiveReport | None:
        with accepted(listener) as incoming:
            return incoming.receive_tree(tmp_path / "target", WAIT_S)

    with dwcp.listen(LOCAL) as listener, meanwhile(serve) as serving:
        with dwcp.connect(pairing_of(listener)) as sending:
            report = sending.send_paths([tmp_path / "source"])
        assert serving.result(WAIT_S) is not None
    assert report.entries == 3
    assert (tmp_path / "target" / "source" / "deep" / "file").read_bytes() == b"content" * 1000


def test_reports_are_plain_values_and_records_follow_the_schema() -> None:
    with dwcp.listen(LOCAL) as listener, meanwhile(lambda: receive(listener)) as arriving:
        # Only of a network there is anything to tell.
        with dwcp.connect(pairing_of(listener), options=dwcp.SendOptions(link="tcp")) as sending:
            report = sending.send({"state": b"state" * 100_000})
        other = arriving.result(WAIT_S).report
    for one in (report, other):
        record = json.loads(json.dumps(one.record()))
        assert tuple(record) == RECORD_FIELDS
        assert record["queue_depth"] is None and record["throughput_mbps"] > 0
        assert json.loads(json.dumps(one.to_dict()))["verified"] is True
    if sys.platform == "linux":
        assert report.path is not None and report.record()["rtt_ms"] == report.path.rtt_ms > 0
        assert report.record()["packet_loss"] == report.path.retransmitted_share
        assert report.path.limits is None or report.path.limited_by in report.path.limits
    assert report.record()["bytes_tx"] == other.record()["bytes_rx"] == report.bytes_wire > 0
    assert sum(share.blocks for share in report.codec_mix) == report.blocks_sent


def test_lanes_come_from_the_addresses_that_are_named() -> None:
    events: list[dict[str, Any]] = []
    with (
        dwcp.listen(LOCAL, events=events.append) as listener,
        meanwhile(lambda: receive(listener)) as arriving,
    ):
        options = dwcp.SendOptions(local_addresses=("127.0.0.1", "192.0.2.1"), congestion="system")
        with dwcp.connect(pairing_of(listener), options=options) as sending:
            sending.send({"state": b"state"})
        arriving.result(WAIT_S)
        with pytest.raises(dwcp.ConfigError, match=r"192\.0\.2\.1"):
            dwcp.connect(pairing_of(listener), options=dwcp.SendOptions(local_addresses=("192.0.2.1",)))
        with pytest.raises(dwcp.ConfigError, match="no_such"):
            dwcp.connect(pairing_of(listener), options=dwcp.SendOptions(congestion="no_such"))
    assert {event["peer"].partition(":")[0] for event in events if event["type"] == "lane-up"} == {
        "127.0.0.1"
    }


def test_every_choice_is_explained() -> None:
    with dwcp.listen(LOCAL, trust=dwcp.INSECURE) as listener:
        options = dwcp.SendOptions(codec="lz4", streams=2)
        with dwcp.connect(listener.address, trust=dwcp.INSECURE, options=options) as sending:
            told = {choice.name: (choice.value, choice.why) for choice in sending.explain()}
    assert told["codec"] == ("lz4", "asked for") and told["streams"] == (2, "asked for")
    assert told["protocol"][0] == "v3" and told["base"][0] == "auto"


def test_without_trust_nobody_is_connected_to() -> None:
    with dwcp.listen(LOCAL) as listener, pytest.raises(errors.AuthError, match="trust"):
        dwcp.connect(listener.address)


def test_a_wrong_token_or_fingerprint_is_refused() -> None:
    with dwcp.listen(LOCAL) as listener:
        address, _, secrets = pairing_of(listener).partition("#")
        fingerprint, _, token = secrets.partition(".")
        for wrong in (f"{fingerprint}.{'A' * 43}", f"{'A' * 43}.{token}"):
            with pytest.raises(errors.AuthError) as caught:
                dwcp.connect(f"{address}#{wrong}")
            assert caught.value.exit_code == 5
            assert token not in str(caught.value)
        with dwcp.connect(pairing_of(listener)):
            pass


def test_a_token_is_good_for_one_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with dwcp.listen(LOCAL) as listener:
        for _ in range(2):
            with dwcp.connect(pairing_of(listener)):
                pass
        monkeypatch.setenv("DWCP_STATE_DIR", str(tmp_path / "somebody-else"))
        with pytest.raises(errors.AuthError):
            dwcp.connect(pairing_of(listener))


def test_plain_text_is_spoken_only_if_both_sides_say_so() -> None:
    quick = dwcp.SendOptions(connect_timeout_s=5)
    with dwcp.listen(LOCAL) as listener, pytest.raises(errors.DwcpError) as caught:
        dwcp.connect(listener.address, trust=dwcp.INSECURE, options=quick)
    assert isinstance(caught.value, errors.AuthError)
    with dwcp.listen(LOCAL, trust=dwcp.INSECURE) as listener:
        pairing = f"dwcp://{listener.address}#{'A' * 43}.{'A' * 43}"
        with pytest.raises(errors.DwcpError):
            dwcp.connect(pairing, options=quick)


def test_an_address_where_nobody_listens_is_unreachable() -> None:
    with dwcp.listen(LOCAL) as listener:
        address = listener.address
    with pytest.raises(errors.TransportError, match=address) as caught:
        dwcp.connect(address, trust=dwcp.INSECURE)
    assert (caught.value.exit_code, caught.value.resumable) == (4, False)


@pytest.mark.parametrize("target", ["host", "host:port", "host:99999", "dwcp://host:1#short", ":", ""])
def test_a_target_that_is_none_is_a_usage_error(target: str) -> None:
    with pytest.raises(errors.ConfigError):
        dwcp.connect(target, trust=None if target.startswith("dwcp") else dwcp.INSECURE)


def test_waiting_ends_when_the_time_has_passed() -> None:
    with dwcp.listen(LOCAL) as listener:
        assert listener.accept(timeout_s=0.05) is None
        with (
            dwcp.connect(pairing_of(listener)),
            accepted(listener) as incoming,
            pytest.raises(errors.DeadlineError),
        ):
            incoming.receive(timeout_s=0.05)


def test_a_sender_that_closes_is_told_by_none() -> None:
    with dwcp.listen(LOCAL) as listener:
        with dwcp.connect(pairing_of(listener)):
            incoming = accepted(listener)
        with incoming:
            assert incoming.receive(WAIT_S) is None


def test_cancelling_from_another_thread_ends_a_wait() -> None:
    with dwcp.listen(LOCAL) as listener, meanwhile(listener.accept) as waiting:
        listener.cancel()
        with pytest.raises(errors.DwcpError) as caught:
            waiting.result(WAIT_S)
    assert caught.value.code == "cancelled"
    with dwcp.listen(LOCAL) as listener:
        sending = dwcp.connect(pairing_of(listener))
        # Nobody receives, so this would last until the idle timeout.
        with meanwhile(lambda: sending.send({"state": b"state"})) as waiting:
            sending.cancel()
            with pytest.raises(errors.DwcpError) as caught:
                waiting.result(WAIT_S)
        sending.close()
    assert caught.value.code == "cancelled"


def test_a_transfer_that_takes_too_long_is_given_up_and_can_be_resumed() -> None:
    with dwcp.listen(LOCAL) as listener:
        options = dwcp.SendOptions(timeout_s=0.2)
        with (
            dwcp.connect(pairing_of(listener), options=options) as sending,
            pytest.raises(errors.DeadlineError) as caught,
        ):
            sending.send({"state": b"state"})
    assert caught.value.resumable and errors.exit_code_for(caught.value) == 12


def test_a_closed_session_says_so() -> None:
    with dwcp.listen(LOCAL) as listener:
        sending = dwcp.connect(pairing_of(listener))
        sending.close()
        sending.close()
        with pytest.raises(errors.DwcpError, match="closed") as caught:
            sending.send({"state": b"state"})
    assert caught.value.code == "closed"


def test_coroutines_send_and_receive() -> None:
    async def both() -> tuple[dwcp.SendReport, bytes]:
        async with dwcp.listen_async(LOCAL) as listener:

            async def serve() -> bytes:
                incoming = await listener.accept(WAIT_S)
                assert incoming is not None
                async with incoming:
                    received = await incoming.receive(WAIT_S)
                    assert received is not None
                    return bytes(received["state"])

            serving = asyncio.create_task(serve())
            assert listener.pairing is not None
            async with dwcp.connect_async(listener.pairing) as sending:
                report = await sending.send({"state": b"state" * 1000})
            return report, await serving

    report, state = asyncio.run(both())
    assert report.verified and state == b"state" * 1000


def test_cancelling_a_task_cancels_the_native_work_and_awaits_its_end() -> None:
    async def cancelled() -> bool:
        async with dwcp.listen_async(LOCAL) as listener:
            assert listener.pairing is not None
            async with dwcp.connect_async(listener.pairing) as sending:
                # Nobody receives.
                task = asyncio.create_task(sending.send({"state": b"state"}))
                await asyncio.sleep(0.1)
                task.cancel()
                await asyncio.wait([task], timeout=WAIT_S)
                return task.cancelled()

    assert asyncio.run(cancelled())
    assert not [thread for thread in threading.enumerate() if thread.name == "dwcp-call"]


def test_a_session_made_before_a_fork_refuses_the_child() -> None:
    script = """
import os, sys, warnings
import dwcp_fast as dwcp
warnings.simplefilter("ignore")
with dwcp.listen("127.0.0.1:0") as listener:
    with dwcp.connect(listener.pairing) as sending:
        child = os.fork()
        if child == 0:
            try:
                sending.send({"state": b"state"})
            except dwcp.DwcpError as error:
                os._exit(7 if error.code == "forked" else 8)
            os._exit(9)
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status))
"""
    outcome = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert outcome.returncode == 7


def serve_v1(deliveries: list[V1Delivery], arrived: threading.Event) -> Callable[[V1Delivery], None]:
    """Make what takes v1 deliveries."""

    def take(delivery: V1Delivery) -> None:
        deliveries.append(delivery)
        arrived.set()

    return take


def test_the_kill_switch_sends_new_sessions_through_v1() -> None:
    deliveries: list[V1Delivery] = []
    arrived = threading.Event()
    options = dwcp.ReceiveOptions(allow_v1=("127.0.0.0/8",))
    with dwcp.listen(LOCAL, options=options, on_v1=serve_v1(deliveries, arrived)) as listener:
        dwcp.force_v1(True)
        with dwcp.connect(pairing_of(listener)) as sending:
            report = sending.send({"state": b"state" * 1000})
            with pytest.raises(errors.NegotiationError, match="not 2"):
                sending.send({"one": b"1", "two": b"2"})
        assert arrived.wait(WAIT_S)
        with pytest.raises(errors.NegotiationError, match="force_v1"):
            dwcp.connect(pairing_of(listener), options=dwcp.SendOptions(protocol="v3"))
        dwcp.force_v1(False)
        with dwcp.connect(pairing_of(listener)) as sending:
            assert sending.explain()[0].value == "v3"
    assert (report.protocol, report.verified) == ("v1", False)
    assert deliveries[0].payload == b"state" * 1000


def test_the_flag_file_is_read_for_every_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = tmp_path / "flags.json"
    monkeypatch.setenv(FLAGS_VARIABLE, str(flags))
    with dwcp.listen(LOCAL) as listener:
        for text, expected in (
            ('{"forceV1Mode": true}', "v1"),
            ('{"enableV3Transport": true, "v3RolloutPercentage": 100}', "v3"),
            ('{"enableV3Transport": true, "v3RolloutPercentage": 0}', "v1"),
        ):
            flags.write_text(text)
            with dwcp.connect(pairing_of(listener)) as sending:
                assert sending.explain()[0].value == expected
                if expected == "v3":
                    # Its component is off.
                    assert [one.value for one in sending.explain() if one.name == "codec"] == ["none"]
        flags.write_text('{"v3RolloutPercentage": 101}')
        with dwcp.connect(pairing_of(listener)) as sending:
            assert sending.explain()[0].value == "v1", "the last good flags"
        never_good = tmp_path / "never-good.json"
        never_good.write_text('{"v3RolloutPercentage": 101}')
        monkeypatch.setenv(FLAGS_VARIABLE, str(never_good))
        with pytest.raises(errors.ConfigError, match="101"):
            dwcp.connect(pairing_of(listener))


def test_a_v1_peer_that_was_not_allowed_is_turned_away() -> None:
    with dwcp.listen(LOCAL) as listener:
        options = dwcp.SendOptions(protocol="v1", timeout_s=20)
        with (
            dwcp.connect(listener.address, options=options) as sending,
            pytest.raises(errors.PeerClosedError),
        ):
            sending.send({"state": bytes(3_000_000)})


def test_events_are_told_as_they_happen() -> None:
    told: list[str] = []
    with dwcp.listen(LOCAL) as listener, meanwhile(lambda: receive(listener)) as arriving:
        with dwcp.connect(pairing_of(listener), events=lambda event: told.append(event["type"])) as sending:
            sending.send({"state": b"state"})
        arriving.result(WAIT_S)
    assert "session-opened" in told and "accepted" in told and "committed" in told


def make_certificates(folder: Path) -> dict[str, Path]:
    """Make an authority and one certificate that it signed, with the system's openssl."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60, cwd=folder)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    ca = ("-addext", "basicConstraints=critical,CA:TRUE", "-subj", f"/CN=authority of {folder.name}")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", *ca)
    openssl("req", *key, "-keyout", "peer.key", "-out", "peer.csr", "-subj", "/CN=peer")
    (folder / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl(
        *("x509", "-req", "-in", "peer.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-out", "peer.pem", "-days", "1", "-extfile", "san"),
    )
    return {name: folder / name for name in ("ca.pem", "peer.pem", "peer.key")}


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, Path]:
    """Certificates of this test."""
    try:
        return make_certificates(tmp_path)
    except FileNotFoundError:
        pytest.skip("needs openssl")


def test_certificates_of_a_known_authority_are_trusted(certificates: dict[str, Path]) -> None:
    trust = dwcp.MutualTls(certificates["peer.pem"], certificates["peer.key"], certificates["ca.pem"])
    with dwcp.listen(LOCAL, trust=trust) as listener, meanwhile(lambda: receive(listener)) as arriving:
        assert listener.pairing is None
        with dwcp.connect(listener.address, trust=trust) as sending:
            assert sending.send({"state": b"state"}).verified
        assert bytes(arriving.result(WAIT_S)["state"]) == b"state"


def test_certificates_of_another_authority_are_refused(certificates: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    foreign = make_certificates(tmp_path / "foreign")
    ours = dwcp.MutualTls(certificates["peer.pem"], certificates["peer.key"], certificates["ca.pem"])
    theirs = dwcp.MutualTls(foreign["peer.pem"], foreign["peer.key"], foreign["ca.pem"])
    mixed = dwcp.MutualTls(foreign["peer.pem"], foreign["peer.key"], certificates["ca.pem"])
    with dwcp.listen(LOCAL, trust=ours) as listener:
        for trust in (theirs, mixed):
            with pytest.raises(errors.AuthError):
                dwcp.connect(listener.address, trust=trust)


def test_a_name_that_the_certificate_lacks_is_refused(certificates: dict[str, Path]) -> None:
    files = (certificates["peer.pem"], certificates["peer.key"], certificates["ca.pem"])
    with dwcp.listen(LOCAL, trust=dwcp.MutualTls(*files)) as listener, pytest.raises(errors.AuthError):
        dwcp.connect(listener.address, trust=dwcp.MutualTls(*files, server_name="elsewhere.example"))


def test_the_identity_is_made_once_and_is_secret(own_state: Path) -> None:
    with dwcp.listen(LOCAL) as listener:
        with dwcp.connect(pairing_of(listener)):
            pass
        blob = (own_state / "identity").read_bytes()
        assert (own_state / "identity").stat().st_mode & 0o077 == 0
        with dwcp.connect(pairing_of(listener)):
            pass
        assert (own_state / "identity").read_bytes() == blob
        (own_state / "identity").chmod(0o644)
        with pytest.raises(errors.ConfigError, match="others may read"):
            dwcp.connect(pairing_of(listener))


def test_native_logs_reach_pythons_logging(caplog: pytest.LogCaptureFixture) -> None:
    with dwcp.listen(LOCAL) as listener:
        pairing, _, _ = pairing_of(listener).partition(".")
        with pytest.raises(errors.DwcpError), caplog.at_level("INFO", logger="dwcp_fast"):
            dwcp.connect(f"{pairing_of(listener).rpartition('.')[0]}.{'A' * 43}")
        deadline = time.monotonic() + WAIT_S
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
    assert any("turned away" in record.message for record in caplog.records), pairing


def test_the_examples_in_the_documentation_hold() -> None:
    outcome = doctest.testmod(session)
    assert outcome.attempted >= 4 and outcome.failed == 0


def test_descriptors_and_threads_are_given_back() -> None:
    def once() -> None:
        with dwcp.listen(LOCAL) as listener, meanwhile(lambda: receive(listener)) as arriving:
            with dwcp.connect(pairing_of(listener)) as sending:
                sending.send({"state": b"state"})
            arriving.result(WAIT_S)

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    once()
    before = descriptors()
    for _ in range(5):
        once()
    deadline = time.monotonic() + WAIT_S
    while descriptors() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert descriptors() <= before


def test_a_transfer_that_nobody_takes_fails_in_time_though_its_receiver_is_there() -> None:
    options = dwcp.SendOptions(stall_timeout_s=0.3)
    with (
        dwcp.listen(LOCAL) as listener,
        dwcp.connect(pairing_of(listener), options=options) as sending,
        accepted(listener) as incoming,
    ):
        with pytest.raises(dwcp.DeadlineError, match="a step of the transfer") as caught:
            sending.send({"state": b"state"})
        assert caught.value.retryable and failure_code(caught.value) == "deadline"
        # The receiver is told, and does not wait for the rest of it.
        with pytest.raises(dwcp.DwcpError):
            incoming.receive(WAIT_S)
