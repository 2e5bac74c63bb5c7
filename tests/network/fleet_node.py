"""A node of the rollout drill: sends small states over a slow link of its own until it is told to end.

It runs in a process of its own, and takes its name, flags and outcomes from the environment as any node does.
What is wrong with its build of v3 it reads from a file, so that a bad build may come while it runs.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TextIO

import numpy as np

import dwcp_fast as dwcp
from dwcp_fast import links
from dwcp_fast.reports import SendReport

from .forwarder import Forwarder

DRILL = os.getppid()
SIZE = 48_000
BYTES_PER_S = 120_000
PIECE = 4096
RESET = struct.pack("ii", 1, 0)
PAUSE_S = 0.05
BAD = 3
"""One of so many transfers of a bad build is bad."""
LATE_S = 1.5
SLOWER = 0.7
STALL_S = 6.0
OPTIONS = dwcp.SendOptions(codec="none", base="none", streams=2, stall_timeout_s=STALL_S)


class SlowLink(Forwarder):
    """A link with a rate, one for all connections together. v1 knows its peers by their address alone."""

    def __init__(self, target: tuple[str, int], source: str) -> None:
        self._lock = threading.Lock()
        self.passes = threading.Event()
        """Cleared: nothing passes, and both ends hold that the other is there."""
        self.passes.set()
        super().__init__(target, source)

    def cut(self) -> None:
        """Nothing: the process ends."""

    def _let_in(self, near: socket.socket, far: socket.socket) -> Callable[[], None]:
        return partial(self._join, near, far)

    def _join(self, near: socket.socket, far: socket.socket) -> None:
        back = threading.Thread(target=self._pump, args=(far, near, 0.0), daemon=True)
        with near, far:
            back.start()
            self._pump(near, far, 1 / BYTES_PER_S)
            back.join()

    def _pump(self, source: socket.socket, sink: socket.socket, s_per_byte: float) -> None:
        try:
            while data := source.recv(PIECE):
                if not self.passes.is_set():
                    self.passes.wait(2 * STALL_S)
                    # What was kept must not take the link from the next transfer.
                    raise TimeoutError
                if s_per_byte:
                    with self._lock:
                        time.sleep(len(data) * s_per_byte)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            # A reset is passed on as one: it is all that tells a v1 sender that it was turned away.
            for one in (source, sink):
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    one.shutdown(socket.SHUT_RD)


def spoil(build: Path, passes: threading.Event) -> None:
    """Put what the build file names in the way of v3."""
    send: Callable[[links.V3Link, links.ScannedPaths], SendReport] = links.V3Link.send_scan
    count = 0

    def send_scan(link: links.V3Link, scan: links.ScannedPaths) -> SendReport:
        nonlocal count
        count += 1
        what = build.read_text()
        if what == "errors" and count % BAD == 0:
            raise dwcp.TransportError("this build is bad")
        began = time.monotonic()
        if what == "hangs" and count % BAD == 0:
            passes.clear()
        try:
            report = send(link, scan)
        finally:
            passes.set()
        if what == "latency" and count % BAD == 0:
            time.sleep(LATE_S)
        if what == "throughput":
            time.sleep(SLOWER * (time.monotonic() - began))
        return report

    setattr(links.V3Link, "send_scan", send_scan)  # noqa: B010 - that is what makes the build bad


def send_until_taken(target: str, path: Path, log: TextIO) -> SendReport:
    """Send a file, as often as it takes."""
    while True:
        try:
            with dwcp.connect(target, trust=dwcp.INSECURE, options=OPTIONS) as session:
                return session.send_paths([path])
        except dwcp.DwcpError as error:
            log.write(json.dumps({"error": error.code, "at_s": time.time()}) + "\n")
            if not error.retryable or is_alone():
                raise
            time.sleep(PAUSE_S)


def is_alone() -> bool:
    """Whether the drill has ended without a word, and with it what there was to send to."""
    return os.getppid() != DRILL


def main(target: str, source: str, build: str, sent: str) -> None:
    name = os.environ["DWCP_NODE_NAME"]
    host, _, port = target.rpartition(":")
    link = SlowLink((host, int(port)), source)
    spoil(Path(build), link.passes)
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    rng = np.random.default_rng(abs(hash(name)))
    number = 0
    with Path(sent).open("a", encoding="utf-8") as log:
        while not ended.is_set() and not is_alone():
            path = Path(sent).with_name(f"{name}-{number}")
            path.write_bytes(rng.bytes(SIZE))
            digest = dwcp.digest(path.read_bytes()).hex()
            report = send_until_taken(f"127.0.0.1:{link.port}", path, log)
            path.unlink()
            log.write(json.dumps({"digest": digest, "protocol": report.protocol, "at_s": time.time()}) + "\n")
            log.flush()
            number += 1
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
