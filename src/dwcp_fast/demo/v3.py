"""The v3 side of the demo: ``dwcp recv`` and ``dwcp send`` as two real processes.

Everything this module knows of the command line is here: the arguments, and the names of the fields
that the demo reads from what the two commands print as JSON.
"""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from dwcp_fast.demo.worker import last_words, opened, scratch_file, wait_for_exit
from dwcp_fast.errors import DeadlineError, FormatError, TransportError

__all__ = ["Receiver", "SendOutcome", "Sender", "reroute"]

_START_TIMEOUT_S = 20.0
_EXIT_GRACE_S = 10.0
_MAX_LINE_BYTES = 1 << 20
_PAIRING = re.compile(r"^(dwcp://)(?P<host>\[[^\]]+\]|[^:/#]+):(?P<port>\d+)(?P<rest>#.*)?$")


@dataclass(frozen=True)
class SendOutcome:
    """How ``dwcp send`` ended.

    Attributes:
        exit_code: its exit code.
        seconds: from dialling to the verified commit, as it reports; 0 when it failed.
        wall_s: life of the process, start of Python included.
        blocks_sent: blocks that went over the wire.
        blocks_skipped: blocks the receiver had verified before.
        lanes_replaced: lanes that died and were replaced.
        error_code: stable name of the failure, or None.
        message: last words on standard error.
    """

    exit_code: int
    seconds: float
    wall_s: float
    blocks_sent: int
    blocks_skipped: int
    lanes_replaced: int
    error_code: str | None
    message: str


class Receiver:
    """A running ``dwcp recv --once``."""

    def __init__(self, into: Path) -> None:
        """Start it and wait until it listens.

        Raises:
            TransportError: it ended before it listened.
            DeadlineError: it did not listen in time.
        """
        self._stack = ExitStack()
        self._errors = self._stack.enter_context(scratch_file())
        self._process = subprocess.Popen(
            [
                *_DWCP,
                "recv",
                "--listen=127.0.0.1:0",
                f"--into={into}",
                "--once",
                "--json-lines",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._stdout = self._stack.enter_context(opened(self._process.stdout))
        try:
            self.pairing = self._wait_for_pairing()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Wait for it to end (bounded; killed after that) and return its exit status."""
        status = wait_for_exit(self._process, _EXIT_GRACE_S)
        self._stack.close()
        return status

    def __enter__(self) -> Self:
        """Hand out the receiver itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it if it still runs."""
        self.kill()

    def _wait_for_pairing(self) -> str:
        stdout = self._stdout.fileno()
        deadline = time.monotonic() + _START_TIMEOUT_S
        pending = b""
        while True:
            while b"\n" in pending:
                line, pending = pending.split(b"\n", 1)
                event = _parse_object(line)
                if event.get("type") == "listening":
                    return str(event["pairing"])
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([stdout], [], [], left_s)[0]:
                raise DeadlineError(f"dwcp recv did not listen within {_START_TIMEOUT_S:g} s")
            data = os.read(stdout, 65536)
            if not data or len(pending) > _MAX_LINE_BYTES:
                raise TransportError(f"dwcp recv ended before it listened: {last_words(self._errors)}")
            pending += data


class Sender:
    """A running ``dwcp send``."""

    def __init__(self, paths: list[Path], pairing: str, base: Path | None) -> None:
        """Start it.

        Args:
            paths: what to send.
            pairing: pairing string of the receiver, already rerouted through the link.
            base: the sender's copy of what the receiver holds, or None to send without a base.
        """
        self._stack = ExitStack()
        self._output = self._stack.enter_context(scratch_file())
        self._errors = self._stack.enter_context(scratch_file())
        base_options = [] if base is None else ["--base=auto"]
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            [*_DWCP, "send", *map(str, paths), f"--to={pairing}", "--json", *base_options],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._errors,
        )

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def finish(self, timeout_s: float) -> SendOutcome:
        """Wait for its end and read what it says.

        Raises:
            DeadlineError: it did not end within ``timeout_s`` and was killed.
            FormatError: it claims success without one JSON object.
        """
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise DeadlineError(f"dwcp send did not end within {timeout_s:g} s") from error
        wall_s = time.monotonic() - self._started
        self._output.seek(0)
        lines = self._output.read().strip().splitlines()
        if status == 0 and not lines:
            raise FormatError("dwcp send ended well but printed no result")
        result = _parse_object(lines[-1]) if lines else {}
        return SendOutcome(
            exit_code=status,
            seconds=float(result.get("seconds", 0.0)),
            wall_s=wall_s,
            blocks_sent=int(result.get("blocks_sent", 0)),
            blocks_skipped=int(result.get("blocks_skipped", 0)),
            lanes_replaced=int(result.get("lanes_replaced", 0)),
            error_code=result.get("code"),
            message=last_words(self._errors),
        )

    def __enter__(self) -> Self:
        """Hand out the sender itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it if it still runs."""
        if self.running():
            self._process.kill()
        self._process.wait()
        self._stack.close()


def reroute(pairing: str, port: int) -> tuple[str, tuple[str, int]]:
    """Point a pairing string at a port of this machine.

    Returns:
        The new pairing string, and the address the old one named.

    Raises:
        FormatError: the string is not ``dwcp://host:port#...``.
    """
    match = _PAIRING.match(pairing)
    if match is None:
        raise FormatError(f"{pairing!r} is not a pairing string")
    address = (match["host"].strip("[]"), int(match["port"]))
    return f"{match[1]}127.0.0.1:{port}{match['rest'] or ''}", address


_DWCP = [sys.executable, "-m", "dwcp_fast"]


def _parse_object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise FormatError(f"{line[:80]!r} is not JSON") from error
    if not isinstance(value, dict):
        raise FormatError(f"{line[:80]!r} is not a JSON object")
    return value
