"""The two ends of a measured link: iperf3, and `dwcp` as a sending and a receiving process.

A sender tells in lines of JSON what it did. Goodput counts incompressible bytes from the call until the
receiver has proven that it holds them (COMMITTED); that of iperf3 what its receiver had when the sender had
handed all to its kernel, so iperf3 is spared the tail.
"""

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, Self

import numpy as np

import dwcp_fast
import harness
from network.lab import LEFT, RIGHT, Lab, wait_for_port

IPERF_PORT = 5201
START_S = 60.0
PEER_S = 900.0
DIALLING = 16
DATA = "bytes"
# Of the bytes on the line, the part that is neither IP nor TCP header.
PAYLOAD_SHARE = 1448 / 1500


@dataclass(frozen=True)
class Sample:
    """One run of a contender.

    Attributes:
        goodput_mbps: Of the transfer; what the link carried if it was stopped, None if it failed.
        with_connect_mbps: The same from before connecting; None where that is not told.
        seconds: Of the transfer, or until it was stopped.
        is_stopped: Whether it was stopped, because it took too long.
        facts: What else it told.
    """

    goodput_mbps: float | None
    with_connect_mbps: float | None
    seconds: float
    is_stopped: bool
    facts: dict[str, Any]


class WorkerError(RuntimeError):
    """A worker has ended before its time."""


class Carried:
    """What the link carries from now on, for a contender that is stopped."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._before = self._bytes()
        self._began = time.monotonic()

    def _bytes(self) -> float:
        return self._lab.stats()["ab"]["delivered_bytes"]

    def stopped(self) -> Sample:
        """The sample of a contender that is stopped now; what was sent twice counts in its favour."""
        seconds = time.monotonic() - self._began
        rate = 8e-6 * (self._bytes() - self._before) * PAYLOAD_SHARE / seconds
        return Sample(rate, rate, seconds, True, {})

    def failed(self, why: str) -> Sample:
        """The sample of a contender that failed."""
        return Sample(None, None, time.monotonic() - self._began, False, {"error": why})


def iperf3(
    lab: Lab, congestion: str, streams: int, size: int, patience_s: float, *, port: int = IPERF_PORT
) -> Sample:
    """Send `size` bytes, all streams together; stopped after `patience_s` seconds."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = lab.start(RIGHT, ["iperf3", "-s", "-1", "-p", str(port)], **quiet)
    wait_for_port(lab, RIGHT, port)
    command = ["iperf3", "-c", lab.address(RIGHT), "-p", str(port), "-J"]
    command += ["-C", congestion, "-P", str(streams), "-n", str(size)]
    carried = Carried(lab)
    client = lab.start(LEFT, command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        out, _ = client.communicate(timeout=patience_s)
    except subprocess.TimeoutExpired:
        return carried.stopped()
    finally:
        lab.kill(client)
        lab.kill(server)
    told: dict[str, Any] = json.loads(out) if out else {"error": "iperf3 said nothing"}
    if "error" in told:
        return carried.failed(told["error"])
    received, sent = told["end"]["sum_received"], told["end"]["sum_sent"]
    facts = {"retransmits": sent.get("retransmits"), "bytes": received["bytes"]}
    return Sample(received["bits_per_second"] / 1e6, None, received["seconds"], False, facts)


def dwcp(
    lab: Lab, size: int, *, patience_s: float, sessions: int = 1, arguments: Sequence[str] = ()
) -> Sample:
    """Send `size` bytes in so many sessions at once, with TLS; stopped after `patience_s` seconds."""
    carried = Carried(lab)
    try:
        with Transfer(lab, size, sessions=sessions, arguments=arguments) as transfer:
            carried = Carried(lab)
            try:
                out, _ = transfer.sender.communicate(timeout=patience_s)
            except subprocess.TimeoutExpired:
                return carried.stopped()
            if transfer.sender.returncode:
                return carried.failed("the sender failed")
            facts = json.loads(out.splitlines()[-1])
            facts["receiver_mib"] = line(transfer.receiver.stdout)["mib"]
    except (WorkerError, BrokenPipeError) as fault:
        return carried.failed(str(fault))
    for name in ("selection", "codec_mix", "transfer_id", "transfer_digest"):
        facts["report"].pop(name, None)
    rate, sent_s = 8e-6 * size, facts["send_s"]
    return Sample(rate / sent_s, rate / (facts["connect_s"] + sent_s), sent_s, False, facts)


def line(stream: IO[str] | None) -> dict[str, Any]:
    assert stream is not None
    text = stream.readline()
    if not text:
        raise WorkerError("a worker ended without a word")
    told: dict[str, Any] = json.loads(text)
    return told


class Transfer:
    """A receiver and a sender, the sender about to connect.

    Args:
        lab: Where they run.
        size: Bytes, all sessions together.
        sessions: How many at once.
        arguments: For the sender.
    """

    def __init__(self, lab: Lab, size: int, *, sessions: int = 1, arguments: Sequence[str] = ()) -> None:
        self._lab = lab
        share = str(size // sessions)
        worker = [sys.executable, __file__]
        pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        receive = [*worker, "receive", lab.address(RIGHT), share, str(sessions)]
        # Its warnings are about peers that it turns away; what it fails at, the sender tells.
        self.receiver = lab.start(RIGHT, receive, stderr=subprocess.DEVNULL, **pipe)
        pairing = line(self.receiver.stdout)["pairing"]
        send = [*worker, "send", pairing, share, str(sessions), *arguments]
        self.sender = lab.start(LEFT, send, **pipe)

    def __enter__(self) -> Self:
        try:
            # Ready: data made, nothing sent.
            line(self.sender.stdout)
            assert self.sender.stdin is not None
            self.sender.stdin.write("\n")
            self.sender.stdin.flush()
        except (WorkerError, BrokenPipeError):
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lab.kill(self.sender)
        self._lab.kill(self.receiver)


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def peak_mib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def receive(address: str, share: int, sessions: int) -> None:
    """Worker: so many sessions, each into memory of its own."""
    # Written now, so that no page is made while the clock runs.
    memory = [bytearray(share) for _ in range(sessions)]
    for into in memory:
        np.frombuffer(into, np.uint8)[:] = 1
    faults: list[BaseException] = []

    def take(session: Any, into: bytearray) -> None:
        try:
            with session:
                session.receive_into({DATA: into}, timeout_s=PEER_S)
                session.receive_into({DATA: into}, timeout_s=PEER_S)
        except dwcp_fast.DwcpError as fault:
            faults.append(fault)

    options = dwcp_fast.ReceiveOptions(sync=False, max_sessions=sessions)
    with dwcp_fast.listen(f"{address}:0", options=options) as listener:
        tell(pairing=listener.pairing)
        threads = []
        for into in memory:
            session = listener.accept(timeout_s=PEER_S)
            threads.append(threading.Thread(target=take, args=(session, into)))
            threads[-1].start()
        for thread in threads:
            thread.join()
    if faults:
        raise SystemExit(f"receiver: {faults[0]}")
    tell(mib=peak_mib())


def send(pairing: str, share: int, sessions: int, options: dwcp_fast.SendOptions) -> None:
    """Worker: so many sessions at once, all of the same bytes."""
    data = harness.incompressible(share)
    tell(ready=True)
    sys.stdin.readline()
    reports: list[dict[str, Any]] = []
    ended: list[float] = []
    faults: list[BaseException] = []
    # A listener takes only so many at once that have not shown who they are.
    dialling = threading.Semaphore(DIALLING)
    released: list[float] = []
    # Taken by whoever comes last, before anybody goes on.
    connected = threading.Barrier(sessions + 1, action=lambda: released.append(time.perf_counter()))

    def push() -> None:
        try:
            with dialling:
                session = dwcp_fast.connect(pairing, options=options)
            with session:
                connected.wait(START_S)
                report = session.send({DATA: data})
                ended.append(time.perf_counter())
                assert report.verified
                reports.append(report.to_dict())
        except (dwcp_fast.DwcpError, threading.BrokenBarrierError) as fault:
            faults.append(fault)
            connected.abort()

    threads = [threading.Thread(target=push) for _ in range(sessions)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    with suppress(threading.BrokenBarrierError):
        connected.wait(START_S)
    for thread in threads:
        thread.join()
    if faults:
        raise SystemExit(f"sender: {len(faults)} of {sessions} sessions failed: {faults[0]}")
    [began] = released
    tell(connect_s=began - start, send_s=max(ended) - began, mib=peak_mib(), report=reports[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    roles = parser.add_subparsers(dest="role", required=True)
    receiving = roles.add_parser("receive")
    receiving.add_argument("address")
    sending = roles.add_parser("send")
    sending.add_argument("pairing")
    for role in (receiving, sending):
        role.add_argument("share", type=int)
        role.add_argument("sessions", type=int)
    sending.add_argument("--local-address", action="append", default=[])
    sending.add_argument("--polite", action="store_true")
    given = parser.parse_args()
    if given.role == "receive":
        receive(given.address, given.share, given.sessions)
        return
    # Options that this version may not have are given only when asked for.
    extra: dict[str, Any] = {"local_addresses": tuple(given.local_address)} if given.local_address else {}
    extra |= {"polite": True} if given.polite else {}
    options = dwcp_fast.SendOptions(base="none", connect_timeout_s=START_S, **extra)
    send(given.pairing, given.share, given.sessions, options)


if __name__ == "__main__":
    main()
