"""Runs in the guest: transfers over Soft-RoCE, and what goes wrong. Each case leaves a line in ``results``.

RDMA is used in processes of their own only: a device that is open in this one could not be taken away, nor
used in its children.
"""

import contextlib
import ctypes
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final, Literal, Self

import dwcp_fast
from dwcp_fast import INSECURE, ReceiveOptions, RegisteredBuffer, SendOptions, connect, listen
from dwcp_fast.carriers import locked_memory_limit, rdma_devices
from dwcp_fast.doctor import rdma_limits
from dwcp_fast.options import Carrier, ListenOn

HOST: Final = "10.20.30.1"
MIB: Final = 1 << 20
NOBODY: Final = 65_534
BOUND_S: Final = 5.0
"""By when a side has to know that the process of the other was killed."""
RECEIVER_IDLE_S: Final = 3.0
PATIENCE_S: Final = 40.0
FORK: Final = multiprocessing.get_context("fork")
CASES: Final[list[Callable[[], Any]]] = []
OPTIONS: Final = SendOptions(link="rdma", codec="none", streams=2, reconnect_s=0, idle_timeout_s=10)


def case(run: Callable[[], Any]) -> Callable[[], Any]:
    """Add a case; they run in the order in which they stand here."""
    CASES.append(run)
    return run


class Side:
    """A process of its own that does something and tells what came of it."""

    def __init__(self, work: Callable[..., Any], *arguments: object) -> None:
        """Start it; `work` is given a function that tells something first."""
        self._told, telling = FORK.Pipe(duplex=False)
        self.process: BaseProcess = FORK.Process(target=run_side, args=(telling, work, arguments))
        self.process.start()
        telling.close()

    def next(self, timeout_s: float = PATIENCE_S) -> Any:
        """Give what it tells next."""
        if not self._told.poll(timeout_s):
            raise TimeoutError(f"{self.process.name} said nothing in {timeout_s:g} s")
        told = self._told.recv()
        if isinstance(told, BaseException):
            raise told
        return told

    def kill(self) -> None:
        """End it at once."""
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(PATIENCE_S)

    def __enter__(self) -> Self:
        """Use it in a ``with`` statement."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.kill()


def run_side(telling: Connection, work: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    """Do the work, and tell its result or how it failed, with the seconds since the beginning of the wait."""
    try:
        telling.send(work(telling.send, *arguments))
    except BaseException as error:  # noqa: BLE001 - it is told
        telling.send((type(error).__name__, str(error), getattr(error, "resumable", False)))


def receive(
    tell: Callable[[Any], None], port: int, into: Path | None, link: ListenOn = "rdma"
) -> dict[str, Any]:
    """Take one transfer, into a directory or into memory, and tell of it."""
    idle_s = RECEIVER_IDLE_S if port == 7004 else 30.0
    options = ReceiveOptions(link=link, idle_timeout_s=idle_s, sync=False)
    with listen(f"{HOST}:{port}", trust=INSECURE, options=options) as listener:
        tell(listener.address)
        session = listener.accept(timeout_s=PATIENCE_S)
        assert session is not None
        tell("accepted")
        with session:
            if into is not None:
                report = session.receive_tree(into, timeout_s=PATIENCE_S)
                assert report is not None
                return report.to_dict()
            received = session.receive(timeout_s=PATIENCE_S)
            assert received is not None
            digests = {name: dwcp_fast.digest(data) for name, data in received.items()}
            return {**received.report.to_dict(), "digests": digests}


def send(
    tell: Callable[[Any], None], port: int, state: Path | dict[str, bytes], options: SendOptions = OPTIONS
) -> dict[str, Any]:
    """Send a directory or buffers, and tell of it."""
    changes: list[dict[str, Any]] = []

    def note(event: dict[str, Any]) -> None:
        if event["type"] == "link-changed":
            changes.append(event)

    with connect(f"{HOST}:{port}", trust=INSECURE, options=options, events=note) as session:
        tell("connected")
        began = time.monotonic()
        report = session.send_paths([state]) if isinstance(state, Path) else session.send(state)
        seconds = time.monotonic() - began
        return {**report.to_dict(), "send_seconds": seconds, "link_changes": changes}


def carry(
    port: int,
    state: Path | dict[str, bytes],
    into: Path | None,
    options: SendOptions = OPTIONS,
    link: ListenOn = "rdma",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Send and receive in two processes; gives what each tells."""
    with Side(receive, port, into, link) as receiver:
        receiver.next()
        with Side(send, port, state, options) as sender:
            assert sender.next() == "connected"
            sent = sender.next()
        assert receiver.next() == "accepted"
        got = receiver.next()
    assert isinstance(sent, dict), sent
    assert isinstance(got, dict), got
    return sent, got


def fail(port: int, options: SendOptions = OPTIONS) -> tuple[str, str, bool]:
    """Try to send; gives the class and the text of the error, and whether it is resumable."""
    with Side(send, port, {"x": b"y"}, options) as sender:
        failure = sender.next()
    assert isinstance(failure, tuple), failure
    return failure


def noise(length: int, seed: int) -> bytes:
    """Make bytes of which no two mebibytes are alike; to make more of them is slow in the guest."""
    piece = random.Random(seed).randbytes(min(length, MIB))
    made = bytearray(piece * (length // MIB + 1))[:length]
    for at in range(0, length - 8, MIB):
        made[at : at + 8] = at.to_bytes(8, "big")
    return bytes(made)


def make_tree(at: Path, mib: int) -> Path:
    """Make a directory with some files, empty and large ones among them."""
    (at / "deep" / "er").mkdir(parents=True)
    (at / "empty").write_bytes(b"")
    (at / "deep" / "small").write_bytes(b"few bytes")
    for number in range(4):
        (at / "deep" / "er" / f"part{number}").write_bytes(noise(mib * MIB // 4, number))
    return at


def digests_of(tree: Path) -> dict[str, bytes]:
    """Digest each file of a directory."""
    return {
        str(path.relative_to(tree)): dwcp_fast.digest(path.read_bytes())
        for path in sorted(tree.rglob("*"))
        if path.is_file() and ".dwcp" not in path.parts
    }


@contextlib.contextmanager
def folder(name: str) -> Iterator[Path]:
    """Give a directory in memory, and remove it."""
    made = Path("/run") / name
    made.mkdir()
    try:
        yield made
    finally:
        shutil.rmtree(made)


def await_staged(into: Path, least: int) -> None:
    """Wait until so many bytes of a transfer are staged."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        sizes = [path.stat().st_blocks * 512 for path in into.rglob("*") if path.is_file()]
        if sum(sizes) >= least:
            return
        time.sleep(0.01)
    raise TimeoutError(f"less than {least} bytes were staged in {PATIENCE_S:g} s")


def device(verb: str) -> None:
    """Have Soft-RoCE or take it away."""
    more = ["type", "rxe", "netdev", "dummy0"] if verb == "add" else []
    subprocess.run(["rdma", "link", verb, "rxe0", *more], check=True, timeout=20)


@case
def objects_of_all_sizes_arrive_verified() -> dict[str, Any]:
    state = {"byte": b"\x07", "page": noise(4096, 1), "none": b"", "large": noise(64 * MIB, 2)}
    sent, got = carry(7001, state, None)
    assert got["digests"] == {name: dwcp_fast.digest(data) for name, data in state.items()}
    assert sent["verified"] and (sent["transport"], got["transport"]) == ("rdma", "rdma")
    assert sent["why"]["link"] == "rdma: asked for" and sent["lanes_lost"] == 0
    return {"seconds": sent["send_seconds"], "bytes": sent["bytes_raw"]}


@case
def a_directory_arrives_as_it_was_and_auto_chooses_rdma() -> dict[str, Any]:
    with folder("source") as source, folder("target") as target:
        tree = make_tree(source / "tree", 8)
        # Without an address of its own it would take memory, which both ends here could share.
        sent, got = carry(7002, tree, target, SendOptions(local_addresses=(HOST,)), "auto")
        assert digests_of(target / "tree") == digests_of(tree)
        assert (sent["transport"], got["transport"]) == ("rdma", "rdma"), sent["why"]
        assert sent["why"]["link"].endswith("there is rxe0"), sent["why"]
        return {"why": sent["why"]["link"]}


@case
def many_short_objects_cross_in_both_directions_without_a_standstill() -> dict[str, Any]:
    state = {f"object{number}": noise(number % 300 + 1, number) for number in range(2_000)}
    sent, got = carry(7012, state, None)
    assert got["digests"] == {name: dwcp_fast.digest(data) for name, data in state.items()}
    return {"seconds": sent["send_seconds"]}


def resume(port: int, tree: Path, target: Path) -> dict[str, Any]:
    """Send again what was interrupted."""
    sent, _ = carry(port, tree, target)
    assert digests_of(target / "tree") == digests_of(tree)
    assert sent["bytes_held"] > 0, sent
    return sent


def kill_one(port: int, victim: Literal["receiver", "sender"]) -> tuple[tuple[Any, ...], float, int]:
    """Kill a side under way, and send again.

    Gives how the other side has failed, after how long, and how many bytes were not sent twice.
    """
    with folder("source") as source, folder("target") as target:
        tree = make_tree(source / "tree", 48)
        with Side(receive, port, target) as receiver:
            receiver.next()
            with Side(send, port, tree, OPTIONS) as sender:
                assert sender.next() == "connected"
                assert receiver.next() == "accepted"
                await_staged(target, 8 * MIB)
                killed, left = (receiver, sender) if victim == "receiver" else (sender, receiver)
                killed.kill()
                began = time.monotonic()
                failure = left.next()
                seconds = time.monotonic() - began
        assert isinstance(failure, tuple) and failure[2], failure
        return failure, seconds, resume(port, tree, target)["bytes_held"]


@case
def a_killed_receiver_is_noticed_in_time_and_the_transfer_resumes() -> dict[str, Any]:
    failure, noticed_s, held = kill_one(7003, "receiver")
    assert noticed_s < BOUND_S, (noticed_s, failure)
    return {"noticed_s": noticed_s, "failure": failure[:2], "bytes_held": held}


@case
def a_killed_sender_is_noticed_in_time_and_the_transfer_resumes() -> dict[str, Any]:
    failure, ended_s, held = kill_one(7004, "sender")
    # The sender may come back on new lanes for as long as that.
    assert ended_s < RECEIVER_IDLE_S + BOUND_S, (ended_s, failure)
    return {"ended_s": ended_s, "failure": failure[:2], "bytes_held": held}


@case
def a_receiver_that_stands_still_is_waited_for_and_never_overrun() -> dict[str, Any]:
    with folder("source") as source, folder("target") as target:
        tree = make_tree(source / "tree", 48)
        with Side(receive, 7005, target) as receiver:
            receiver.next()
            with Side(send, 7005, tree, OPTIONS) as sender:
                assert sender.next() == "connected"
                await_staged(target, 4 * MIB)
                assert receiver.process.pid is not None
                for _ in range(3):
                    os.kill(receiver.process.pid, signal.SIGSTOP)
                    time.sleep(1)
                    os.kill(receiver.process.pid, signal.SIGCONT)
                    time.sleep(0.1)
                sent = sender.next()
                assert isinstance(sent, dict), sent
            receiver.next()
            receiver.next()
        assert digests_of(target / "tree") == digests_of(tree)
        assert sent["lanes_lost"] == 0 and sent["blocks_resent"] == 0, sent
        assert sent["send_seconds"] > 3, "it was not under way while the receiver stood still"
        return {"seconds": sent["send_seconds"]}


@case
def memory_that_may_not_be_locked_is_a_typed_error_and_auto_falls_back() -> dict[str, Any]:
    def poor(tell: Callable[[Any], None], link: Carrier) -> Any:
        # The libraries are in a folder of root's.
        rdma_devices()
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, 64 << 10))
        os.setuid(NOBODY)
        options = SendOptions(link=link, codec="none", link_memory=False)
        return send(lambda _: None, 7006, {"x": b"y" * 100_000}, options)

    with Side(receive, 7006, None, "auto") as receiver:
        receiver.next()
        with Side(poor, "rdma") as sender:
            failure = sender.next()
        assert failure[0] == "TransportError", failure
        assert "cannot register" in failure[1] and "65536" in failure[1], failure
        with Side(poor, "auto") as sender:
            sent = sender.next()
        assert sent["transport"] == "tcp", sent
        assert "but shm: " in sent["why"]["link"] and "; rdma: " in sent["why"]["link"], sent
    return {"failure": failure, "why": sent["why"]["link"]}


@case
def a_listener_without_rdma_is_a_typed_error_and_auto_falls_back() -> dict[str, Any]:
    with Side(receive, 7007, None, "tcp") as receiver:
        receiver.next()
        failure = fail(7007)
        with Side(send, 7007, {"x": b"y"}, SendOptions()) as sender:
            assert sender.next() == "connected"
            sent = sender.next()
        receiver.next()
        got = receiver.next()
    assert failure[0] == "TransportError" and "does not listen for rdma" in failure[1], failure
    assert (sent["transport"], got["transport"]) == ("tcp", "tcp")
    assert "but shm: cannot reach" in sent["why"]["link"], sent
    assert "; rdma: cannot reach" in sent["why"]["link"], sent
    return {"failure": failure, "why": sent["why"]["link"]}


@case
def a_child_of_a_process_with_rdma_is_told_that_it_has_none() -> dict[str, Any]:
    def fork_and_send(tell: Callable[[Any], None]) -> Any:
        send(lambda _: None, 7011, {"x": b"y"})
        return fail(7011)

    with Side(receive, 7011, None) as receiver:
        receiver.next()
        with Side(fork_and_send) as sender:
            failure = sender.next()
    assert failure[0] == "TransportError" and "before a fork" in failure[1], failure
    return {"failure": failure}


@case
def requests_that_fail_end_their_lanes_and_nothing_of_the_transfer_is_lost() -> dict[str, Any]:
    with folder("source") as source, folder("target") as target:
        tree = make_tree(source / "tree", 48)
        with Side(receive, 7008, target) as receiver:
            receiver.next()
            with Side(send, 7008, tree, OPTIONS) as sender:
                assert sender.next() == "connected"
                await_staged(target, 8 * MIB)
                subprocess.run(["ip", "link", "set", "dummy0", "down"], check=True, timeout=20)
                failure = sender.next()
        # Soft-RoCE does not recover from that by itself.
        device("delete")
        subprocess.run(["ip", "link", "set", "dummy0", "up"], check=True, timeout=20)
        device("add")
        assert failure[0] == "PeerClosedError" and failure[2], failure
        assert "an rdma request has failed" in failure[1], failure
        sent = resume(7008, tree, target)
        return {"failure": failure, "bytes_held": sent["bytes_held"]}


def lose_rdma(port: int, lose: Callable[[], None]) -> dict[str, Any]:
    """Lose RDMA under way where TCP is left; gives what the sender tells."""
    options = SendOptions(local_addresses=(HOST,), codec="none", streams=2, idle_timeout_s=10)
    with folder("source") as source, folder("target") as target:
        tree = make_tree(source / "tree", 48)
        with Side(receive, port, target, "auto") as receiver:
            receiver.next()
            with Side(send, port, tree, options) as sender:
                assert sender.next() == "connected"
                await_staged(target, 8 * MIB)
                lose()
                sent = sender.next()
            assert receiver.next() == "accepted"
            got = receiver.next()
        assert isinstance(sent, dict), sent
        assert digests_of(target / "tree") == digests_of(tree)
    # Nothing is lost, and nobody has to look for how it came.
    assert sent["verified"] and sent["lanes_lost"] >= 1, sent
    assert (sent["transport"], got["transport"]) == ("tcp", "tcp"), (sent, got)
    assert "but rdma: " in sent["why"]["link"], sent["why"]
    assert [change["link"] for change in sent["link_changes"]] == ["tcp"], sent["link_changes"]
    return {key: sent[key] for key in ("why", "link_changes", "lanes_lost", "blocks_resent", "send_seconds")}


@case
def a_session_whose_requests_fail_goes_on_over_tcp_and_says_so() -> dict[str, Any]:
    def lose() -> None:
        # Its own address stays one of the machine.
        subprocess.run(["ip", "link", "set", "dummy0", "down"], check=True, timeout=20)

    try:
        return lose_rdma(7013, lose)
    finally:
        device("delete")
        subprocess.run(["ip", "link", "set", "dummy0", "up"], check=True, timeout=20)
        device("add")


@case
def a_session_whose_device_is_taken_away_goes_on_over_tcp_and_says_so() -> dict[str, Any]:
    deleting: list[subprocess.Popen[bytes]] = []

    def lose() -> None:
        # It ends with the last process that has the device open.
        deleting.append(subprocess.Popen(["rdma", "link", "delete", "rxe0"]))

    try:
        return lose_rdma(7014, lose)
    finally:
        for process in deleting:
            process.wait(20)
        device("add")


@case
def a_registered_buffer_is_sent_from_where_it_is_and_received_into() -> dict[str, Any]:
    length, times = 16 * MIB + 5, 3

    def give(tell: Callable[[Any], None], limit: int | None) -> Any:
        rdma_devices()
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
            os.setuid(NOBODY)
        told = []
        options = replace(OPTIONS, link_memory=False, streams=1)
        with RegisteredBuffer.of(noise(length, 3)) as buffer:
            with connect(f"{HOST}:7015", trust=INSECURE, options=options) as session:
                for turn in range(times):
                    with memoryview(buffer) as view:
                        view[0] = turn
                    report = session.send({"state": buffer})
                    told.append((report.verified, report.transport, buffer.registrations))
            tell(told)
            return buffer.registrations

    def take(tell: Callable[[Any], None]) -> Any:
        with listen(f"{HOST}:7015", trust=INSECURE, options=ReceiveOptions(link="rdma")) as listener:
            tell(listener.address)
            session = listener.accept(timeout_s=PATIENCE_S)
            assert session is not None
            digests = []
            with session, RegisteredBuffer(length) as buffer:
                for _ in range(times):
                    assert session.receive_into({"state": buffer}, timeout_s=PATIENCE_S) is not None
                    digests.append(dwcp_fast.digest(buffer))
            return digests

    wanted = [dwcp_fast.digest(bytes([turn]) + noise(length, 3)[1:]) for turn in range(times)]
    # With too little memory that it may lock, the lane is made and what is sent is copied.
    for limit, registrations in ((None, 1), (8 * MIB, 0)):
        with Side(take) as taker:
            taker.next()
            with Side(give, limit) as giver:
                assert giver.next() == [(True, "rdma", registrations)] * times
                assert giver.next() == 0
            assert taker.next() == wanted
    return {"bytes": length}


@case
def a_machine_without_a_device_says_so_and_sends_over_tcp() -> dict[str, Any]:
    device("delete")
    try:
        with Side(receive, 7009, None, "rdma") as receiver:
            refused = receiver.next()
        with Side(receive, 7009, None, "auto") as receiver:
            receiver.next()
            failure = fail(7009)
            with Side(send, 7009, {"x": b"y"}, SendOptions(local_addresses=(HOST,))) as sender:
                assert sender.next() == "connected"
                sent = sender.next()
    finally:
        device("add")
    for error in (refused, failure):
        assert error[0] == "TransportError" and "no rdma device" in error[1], error
    assert sent["transport"] == "tcp" and "no rdma device" in sent["why"]["link"], sent
    return {"failure": failure, "why": sent["why"]["link"]}


@case
def a_library_that_cannot_be_used_is_named() -> dict[str, Any]:
    libc = ctypes.CDLL(None, use_errno=True)
    library = str((Path(os.environ["LD_LIBRARY_PATH"].split(":")[0]) / "librdmacm.so.1").resolve()).encode()
    bind = 4096
    assert libc.mount(b"/dev/null", library, b"", bind, b"") == 0, ctypes.get_errno()
    try:
        failure = fail(7010)
    finally:
        libc.umount(library)
    assert failure[0] == "TransportError" and "librdmacm.so.1" in failure[1], failure
    return {"failure": failure}


@case
def the_doctor_tells_the_limits_of_the_device() -> dict[str, Any]:
    with Side(lambda _: rdma_limits(*rdma_devices(), locked_memory_limit()).value) as looking:
        value = looking.next()
    assert value.startswith("rxe0: ") and "max_qp_wr 10485" in value, value
    return {"value": value}


def set_up() -> None:
    """Make a network that leads nowhere, with Soft-RoCE on it."""
    for command in (
        "ip link set lo up",
        "ip link add dummy0 type dummy",
        f"ip addr add {HOST}/24 dev dummy0",
        "ip link set dummy0 up",
    ):
        subprocess.run(command.split(), timeout=20, check=command.startswith("ip addr"))
    device("add")
    os.environ["DWCP_STATE_DIR"] = "/run/state"


def main() -> None:
    """Run all cases, and note what came of each."""
    set_up()
    with (Path(sys.argv[1]) / "results").open("w", encoding="utf-8") as results:
        for run in CASES:
            began = time.monotonic()
            told: dict[str, Any] = {"case": run.__name__, "failure": None}
            try:
                told["told"] = run()
            except BaseException:  # noqa: BLE001 - the test outside tells it
                told["failure"] = traceback.format_exc()
            told["seconds"] = time.monotonic() - began
            print(f"{run.__name__}: {told['seconds']:.1f} s, {'failed' if told['failure'] else 'passed'}")
            results.write(json.dumps(told, default=str) + "\n")
            results.flush()


if __name__ == "__main__":
    main()
