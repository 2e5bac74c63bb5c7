"""A user-space link between two processes: set rate, set delay, and faults on command. No root needed.

The link is a process of its own (``python -m dwcp_fast.demo.link``) that accepts TCP connections on
the loopback interface and continues each one to a target. It models

- the rate, one for all connections together and for each direction apart;
- the propagation delay, including the round trip that opening a TCP connection costs;
- a bounded queue before the bottleneck: when it is full the link stops reading and senders block;
- the loss of *connections*: :meth:`Link.kill_one` and :meth:`Link.kill_all` reset them;
- damage that TCP's checksum misses: :meth:`Link.flip_byte`.

It does not model the loss of packets, reordering inside a connection, or congestion control: TCP ends
at the link on either side, so a single connection always fills it. This flatters every method that
uses one connection; on a real path with loss they would be slower than shown.
"""

import argparse
import dataclasses
import json
import os
import sys
from typing import Self

from dwcp_fast.demo.relay import LinkShape, LinkStats, Relay
from dwcp_fast.demo.worker import Message, Worker, answer

__all__ = ["Link", "LinkShape", "LinkStats"]

_ANSWER_TIMEOUT_S = 10.0


class Link:
    """Handle of a running link process; a context manager that ends it."""

    def __init__(self, shape: LinkShape, host: str = "127.0.0.1") -> None:
        """Start the link. It has no target yet: call :meth:`retarget` before connecting.

        Args:
            shape: rate, delay and queue.
            host: address to listen on. From another one than its own, 127.0.0.1, a client takes the peer for
                another machine.
        """
        self.shape = shape
        self._worker = Worker(
            "dwcp_fast.demo.link",
            [
                f"--rate-bps={shape.rate_bps!r}",
                f"--delay-s={shape.delay_s!r}",
                f"--queue-s={shape.queue_s!r}",
                f"--host={host}",
            ],
        )
        try:
            self.port = int(self._worker.listen(_ANSWER_TIMEOUT_S)["port"])
        except BaseException:
            self._worker.close()
            raise

    @property
    def pid(self) -> int:
        """Process id of the link."""
        return self._worker.pid

    def retarget(self, host: str, port: int) -> None:
        """Continue connections accepted from now on to ``host:port``."""
        self._ask({"op": "retarget", "host": host, "port": port})

    def kill_one(self) -> int:
        """Reset the connection that carried most and has data in flight; return how many were (0 or 1)."""
        return int(self._ask({"op": "kill_one"})["killed"])

    def kill_all(self) -> int:
        """Reset every open connection; return how many were reset."""
        return int(self._ask({"op": "kill_all"})["killed"])

    def flip_byte(self, after_bytes: int) -> None:
        """Flip one bit of the client's data after ``after_bytes`` more of it have passed."""
        self._ask({"op": "flip_byte", "after_bytes": after_bytes})

    def stats(self) -> LinkStats:
        """Counters since the link started."""
        return LinkStats(**self._ask({"op": "stats"}))

    def close(self) -> None:
        """End the link; open connections are reset."""
        self._worker.close()

    def __enter__(self) -> Self:
        """Hand out the link itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the link."""
        self.close()

    def _ask(self, request: Message) -> Message:
        return self._worker.ask(request, _ANSWER_TIMEOUT_S)


def main(arguments: list[str]) -> int:
    """Run a link until standard input ends."""
    parser = argparse.ArgumentParser(prog="dwcp_fast.demo.link")
    parser.add_argument("--rate-bps", type=float, required=True)
    parser.add_argument("--delay-s", type=float, required=True)
    parser.add_argument("--queue-s", type=float, required=True)
    parser.add_argument("--host", required=True)
    options = parser.parse_args(arguments)
    shape = LinkShape(options.rate_bps, options.delay_s, options.queue_s)
    relay = Relay(shape, ("127.0.0.1", 9), options.host)
    answer({"port": relay.port})
    control = sys.stdin.fileno()
    pending = b""
    try:
        while True:
            relay.run_until_readable(control)
            data = os.read(control, 65536)
            if not data:
                return 0
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                answer(_obey(relay, json.loads(line)))
    finally:
        relay.close()


def _obey(relay: Relay, request: Message) -> Message:
    match request["op"]:
        case "retarget":
            relay.retarget((request["host"], request["port"]))
            return {}
        case "kill_one":
            return {"killed": relay.kill_one()}
        case "kill_all":
            return {"killed": relay.kill_all()}
        case "flip_byte":
            relay.flip_byte(request["after_bytes"])
            return {}
        case "stats":
            return dataclasses.asdict(relay.stats())
        case unknown:
            return {"error": f"unknown operation {unknown!r}"}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
