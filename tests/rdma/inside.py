"""Runs in the guest: transfers over Soft-RoCE, and what goes wrong with them. Each case leaves a line in ``results``."""

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
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import dwcp_fast
from dwcp_fast import INSECURE, ReceiveOptions, SendOptions, connect, listen

HOST: Final = "10.20.30.1"
MIB: Final = 1 << 20
NOBODY: Final = 65_534
BOUND_S: Final = 5.0
"""By when a side has to know that the process of the other was killed."""
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

    def __enter__(self) -> "Side":
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


def receive(tell: Callable[[Any], None], port: int, into: Path | None, link: str = "rdma") -> dict[str, Any]:
    """Take one transfer, into a directory or into memory, and tell of it."""
    options = ReceiveOptions(link=link, idle_timeout_s=10, sync=False)  # type: ignore[arg-type]
    with listen(f"{HOST}:{port}", trust=INSECURE, options=options) as listener:
        tell(listener.address)
        session = listener.accept(timeout_s=PATIENCE_S)
        assert session is not None
        tell("accepted")
        with session:
            if into is not None:
                report = session.receive_into(into, timeout_s=PATIENCE_S)
                assert report is not None
                return report.to_dict()
            received = session.receive(timeout_s=PATIENCE_S)
            assert received is not None
            digests = {name: dwcp_fast.digest(data) for name, data in received.items()}
            return {**received.report.to_dict(), "digests": digests}


def send_tree(tell: Callable[[Any], None], port: int, tree: Path, options: SendOptions) -> dict[str, Any]:
    """Send a directory, and tell of it."""
    with connect(f"{HOST}:{port}", trust=INSECURE, options=options) as session:
        tell("connected")
        return session.send_paths([tree]).to_dict()


def noise(length: int, seed: int) -> bytes:
    """Make bytes that no codec shortens."""
    return random.Random(seed).randbytes(length)


def make_tree(at: Path, mib: int) -> Path:
    """Make a directory with some files, empty and large ones among them."""
    (at / "deep" / "er").mkdir(parents=True)
    (at / "empty").write_bytes(b"")
    (at / "deep" / "small").write_bytes(b"few bytes")
    for number in range(4):
        (at / "deep" / "er" / f"part{number}").write_bytes(noise(mib * MIB // 4, number))
    return at


def digests_of(tree: Path) -> dict[str, str]:
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
    with Side(receive, 7001, None) as receiver:
        receiver.next()
        began = time.monotonic()
        with connect(f"{HOST}:7001", trust=INSECURE, options=OPTIONS) as session:
            report = session.send(state)
        seconds = time.monotonic() - began
        assert receiver.next() == "accepted"
        got = receiver.next()
    assert got["digests"] == {name: dwcp_fast.digest(data) for name, data in state.items()}
    assert report.verified and (report.transport, got["transport"]) == ("rdma", "rdma")
    assert report.why["link"] == "rdma: asked for" and report.lanes_lost == 0
    return {"seconds": seconds, "lanes": report.lanes_used, "bytes": report.bytes_raw}


@case
def a_directory_arrives_as_it_was_and_auto_chooses_rdma() -> dict[str, Any]:
    with folder("source") as source, folder("target") as target:
        tree = make_tree(source / "tree", 8)
        with Side(receive, 7002, target, "auto") as receiver:
            receiver.next()
            with connect(f"{HOST}:7002", trust=INSECURE, options=SendOptions()) as session:
                report = session.send_paths([tree])
            receiver.next()
            got = receiver.next()
        assert digests_of(target / "tree") == digests_of(tree)
        assert (report.transport, got["transport"]) == ("rdma", "rdma"), report.why
        assert report.why["link"] == "rdma: there is rxe0"
        return {"why": report.why["link"]}


@case
def a_killed_receiver_is_noticed_in_time_and_the_transfer_resumes() -> dict[str, Any]:
    with folder("source") as source, folder("target") as target:
        tree = make_tree(source / "tree", 64)
        with Side(receive, 7003, target) as receiver:
            receiver.next()
            with Side(send_tree, 7003, tree, OPTIONS) as sender:
                assert sender.next() == "connected"
                await_staged(target, 8 * MIB)
                receiver.kill()
                killed = time.monotonic()
                failure = sender.next()
                noticed_s = time.monotonic() - killed
        assert isinstance(failure, tuple) and failure[2], failure
        assert noticed_s < BOUND_S
        with Side(receive, 7003, target) as receiver:
            receiver.next()
            report = send_tree(lambda _: None, 7003, tree, OPTIONS)
            receiver.next()
            receiver.next()
        assert digests_of(target / "tree") == digests_of(tree)
        assert report["bytes_held"] > 0, report
        return {"noticed_s": noticed_s, "failure": failure[:2], "bytes_held": report["bytes_held"]}


@case
def a_killed_sender_is_noticed_in_time_and_the_transfer_resumes() -> dict[str, Any]:
    with folder("source") as source, folder("target") as target:
        tree = make_tree(source / "tree", 64)
        with Side(receive, 7004, target) as receiver:
            receiver.next()
            with Side(send_tree, 7004, tree, OPTIONS) as sender:
                assert sender.next() == "connected"
                assert receiver.next() == "accepted"
                await_staged(target, 8 * MIB)
                sender.kill()
                killed = time.monotonic()
            # The session outlives its lanes for as long as its idle time; that they are lost shows at once.
            failure = receiver.next()
            noticed_s = time.monotonic() - killed
        assert failure[0] in ("PeerClosedError", "DeadlineError", "TransportError") and failure[2], failure
        with Side(receive, 7004, target) as receiver:
            receiver.next()
            report = send_tree(lambda _: None, 7004, tree, OPTIONS)
            receiver.next()
            receiver.next()
        assert digests_of(target / "tree") == digests_of(tree)
        assert report["bytes_held"] > 0, report
        return {"ended_s": noticed_s, "failure": failure[:2], "bytes_held": report["bytes_held"]}


@case
def a_receiver_that_stands_still_is_waited_for_and_never_overrun() -> dict[str, Any]:
    with folder("source") as source, folder("target") as target:
        tree = make_tree(source / "tree", 64)
        with Side(receive, 7005, target) as receiver:
            receiver.next()
            with Side(send_tree, 7005, tree, OPTIONS) as sender:
                assert sender.next() == "connected"
                await_staged(target, 4 * MIB)
                assert receiver.process.pid is not None
                for _ in range(3):
                    os.kill(receiver.process.pid, signal.SIGSTOP)
                    time.sleep(1.5)
                    os.kill(receiver.process.pid, signal.SIGCONT)
                    time.sleep(0.1)
                report = sender.next()
        assert digests_of(target / "tree") == digests_of(tree)
        assert report["lanes_lost"] == 0 and report["blocks_resent"] == 0, report
        return {"seconds": report["seconds"]}


@case
def memory_that_may_not_be_locked_is_a_typed_error_and_auto_falls_back() -> dict[str, Any]:
    def poor(tell: Callable[[Any], None], link: str) -> Any:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, 64 << 10))
        os.setuid(NOBODY)
        options = SendOptions(link=link, codec="none", link_memory=False)  # type: ignore[arg-type]
        told: list[dict[str, Any]] = []
        with connect(f"{HOST}:7006", trust=INSECURE, options=options, events=told.append) as session:
            report = session.send({"x": b"y" * 100_000})
        link_events = [event for event in told if event.get("type") == "link"]
        return {"transport": report.transport, "why": report.why["link"], "events": link_events}

    with Side(receive, 7006, None, "auto") as receiver:
        receiver.next()
        with Side(poor, "rdma") as sender:
            failure = sender.next()
        assert failure[0] == "TransportError", failure
        assert "cannot register" in failure[1] and "65536" in failure[1], failure
        with Side(poor, "auto") as sender:
            told = sender.next()
        assert told["transport"] == "tcp" and "fallen back from rdma: " in told["why"], told
        assert len(told["events"]) == 1, told
    return {"failure": failure, "told": told}


@case
def a_listener_without_rdma_is_a_typed_error_and_auto_falls_back() -> dict[str, Any]:
    with Side(receive, 7007, None, "tcp") as receiver:
        receiver.next()
        try:
            connect(f"{HOST}:7007", trust=INSECURE, options=OPTIONS).close()
        except dwcp_fast.TransportError as error:
            refusal = str(error)
        with connect(f"{HOST}:7007", trust=INSECURE, options=SendOptions()) as session:
            report = session.send({"x": b"y"})
        receiver.next()
        got = receiver.next()
    assert "does not listen for rdma" in refusal
    assert (report.transport, got["transport"]) == ("tcp", "tcp")
    assert report.why["link"].startswith("tcp: fallen back from rdma: cannot reach")
    return {"refusal": refusal, "why": report.why["link"]}


@case
def a_device_that_is_taken_away_and_comes_back_loses_nothing() -> dict[str, Any]:
    with folder("source") as source, folder("target") as target:
        tree = make_tree(source / "tree", 64)
        options = SendOptions(link="rdma", codec="none", streams=2, reconnect_s=30)
        with Side(receive, 7008, target) as receiver:
            receiver.next()
            with Side(send_tree, 7008, tree, options) as sender:
                assert sender.next() == "connected"
                await_staged(target, 8 * MIB)
                device("delete")
                time.sleep(0.5)
                device("add")
                report = sender.next()
            receiver.next()
            receiver.next()
        assert digests_of(target / "tree") == digests_of(tree)
        assert report["verified"] and report["lanes_lost"] > 0, report
        return {"lanes_lost": report["lanes_lost"], "sessions": report["sessions"]}


@case
def a_machine_without_a_device_says_so_and_sends_over_tcp() -> dict[str, Any]:
    def send(tell: Callable[[Any], None], link: str) -> Any:
        options = SendOptions(link=link)  # type: ignore[arg-type]
        with connect(f"{HOST}:7009", trust=INSECURE, options=options) as session:
            report = session.send({"x": b"y"})
        return {"transport": report.transport, "why": report.why["link"]}

    device("delete")
    try:
        with Side(receive, 7009, None, "rdma") as receiver:
            refused = receiver.next()
        with Side(receive, 7009, None, "auto") as receiver:
            receiver.next()
            with Side(send, "rdma") as sender:
                failure = sender.next()
            with Side(send, "auto") as sender:
                told = sender.next()
    finally:
        device("add")
    for error in (refused, failure):
        assert error[0] == "TransportError" and "no rdma device" in error[1], error
    assert told["transport"] == "tcp" and "no rdma device" in told["why"], told
    return {"failure": failure, "told": told}


@case
def a_library_that_cannot_be_used_is_named() -> dict[str, Any]:
    def send(tell: Callable[[Any], None]) -> Any:
        connect(f"{HOST}:7010", trust=INSECURE, options=OPTIONS).close()

    libc = ctypes.CDLL(None, use_errno=True)
    library = Path(os.environ["LD_LIBRARY_PATH"]) / "librdmacm.so.1"
    bind = 4096
    assert libc.mount(b"/dev/null", str(library.resolve()).encode(), b"", bind, b"") == 0, ctypes.get_errno()
    try:
        with Side(send) as sender:
            failure = sender.next()
    finally:
        libc.umount(str(library.resolve()).encode())
    assert failure[0] == "TransportError" and "librdmacm.so.1" in failure[1], failure
    return {"failure": failure}


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
    wanted = sys.argv[2:]
    with (Path(sys.argv[1]) / "results").open("w", encoding="utf-8") as results:
        for run in CASES:
            if wanted and run.__name__ not in wanted:
                continue
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
