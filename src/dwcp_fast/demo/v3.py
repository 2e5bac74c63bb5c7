"""The v3 side of the demo: ``dwcp recv`` and ``dwcp send`` as two real processes.

Everything this module knows of the command line is here: the arguments, and the names of the events and
fields that the demo reads from what the two commands print as JSON lines.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Self

from dwcp_fast.demo.worker import last_words, scratch_file, wait_for_exit
from dwcp_fast.errors import DeadlineError, FormatError, TransportError

__all__ = ["Event", "Receiver", "SendOutcome", "Sender", "reroute"]

_START_TIMEOUT_S = 20.0
_EXIT_GRACE_S = 10.0
_POLL_S = 0.005
_PAIRING = re.compile(r"^(dwcp://)(?P<host>\[[^\]]+\]|[^:/#]+):(?P<port>\d+)(?P<rest>#.*)?$")

Event = dict[str, Any]


@dataclass(frozen=True)
class SendOutcome:
    """How ``dwcp send`` ended.

    Attributes:
        exit_code: its exit code.
        committed_at: when it heard that all is verified and in place, in seconds since the epoch; 0 if never.
        held_share: share of the state that an interrupted attempt had left verified.
        blocks_held: the same as a number of blocks.
        blocks_sent: blocks that went over the wire, repetitions included.
        blocks_resent: blocks that went over the wire again.
        blocks_helped: blocks of slow lanes that others, which had nothing left to do, sent as well.
        lanes_used: lanes that carried blocks.
        lanes_lost: lanes that died.
        sessions: 1, and one more for each time the receiver had to be found again.
        integrity_failures: times that the sender was told of altered bytes, or saw some.
        message: last words on standard error.
    """

    exit_code: int
    committed_at: float
    held_share: float
    blocks_held: int
    blocks_sent: int
    blocks_resent: int
    blocks_helped: int
    lanes_used: int
    lanes_lost: int
    sessions: int
    integrity_failures: int
    message: str


class Receiver:
    """A running ``dwcp recv --once``."""

    def __init__(self, into: Path, state: Path) -> None:
        """Start it and wait until it listens.

        Args:
            into: directory that it writes into.
            state: directory for what its user would keep in the home directory.

        Raises:
            TransportError: it ended before it listened.
            DeadlineError: it did not listen in time.
        """
        # The rivals do not wait for the disk either; by default `dwcp recv` does.
        options = ["--listen=127.0.0.1:0", f"--into={into}", "--once", "--no-sync"]
        self._command = _Command(["recv", *options], state)
        try:
            self.pairing = self._wait_for_pairing()
        except BaseException:
            self._command.close()
            raise

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        self._command.kill()

    def finish(self) -> Event:
        """Wait for it to end (bounded; killed after that); what it says of the transfer, or nothing."""
        self._command.wait(_EXIT_GRACE_S)
        return next((event for event in self._command.events() if event.get("type") == "received"), {})

    def __enter__(self) -> Self:
        """Hand out the receiver itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it if it still runs."""
        self._command.close()

    def _wait_for_pairing(self) -> str:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            ended = not self._command.running()
            for event in self._command.events():
                if event.get("type") == "listening":
                    return str(event["pairing"])
            if ended:
                raise TransportError(f"dwcp recv ended before it listened: {self._command.last_words()}")
            if time.monotonic() > deadline:
                raise DeadlineError(f"dwcp recv did not listen within {_START_TIMEOUT_S:g} s")
            time.sleep(_POLL_S)


class Sender:
    """A running ``dwcp send``."""

    def __init__(self, path: Path, pairing: str, state: Path, codec: str = "auto") -> None:
        """Start it.

        Args:
            path: what to send.
            pairing: pairing string of the receiver, already rerouted through the link.
            state: directory for what its user would keep in the home directory, such as the index of what
                was sent.
            codec: what to compress with.
        """
        self._command = _Command(["send", str(path), f"--to={pairing}", f"--codec={codec}"], state)

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._command.running()

    def finish(self, timeout_s: float) -> SendOutcome:
        """Wait for its end and read what it says.

        Raises:
            DeadlineError: it did not end within ``timeout_s``.
            FormatError: it claims success without saying that anything was committed and sent.
        """
        status = self._command.wait(timeout_s)
        if status is None:
            raise DeadlineError(f"dwcp send did not end within {timeout_s:g} s")
        said = {event.get("type"): event for event in self._command.events()}
        if status == 0 and not {"committed", "sent"} <= set(said):
            raise FormatError(f"dwcp send ended well but said only {sorted(map(str, said))}")
        told = said.get("sent", {})
        count = {name: int(told.get(name, 0)) for name in _COUNTS}
        return SendOutcome(
            exit_code=status,
            committed_at=datetime.fromisoformat(said["committed"]["ts"]).timestamp() if told else 0.0,
            held_share=told["bytes_held"] / max(1, told["bytes_raw"]) if told else 0.0,
            blocks_held=count["blocks_held"],
            blocks_sent=count["blocks_sent"],
            blocks_resent=count["blocks_resent"],
            blocks_helped=count["blocks_helped"],
            lanes_used=count["lanes_used"],
            lanes_lost=count["lanes_lost"],
            sessions=count["sessions"],
            integrity_failures=count["integrity_failures"],
            message=self._command.last_words(),
        )

    def __enter__(self) -> Self:
        """Hand out the sender itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it if it still runs."""
        self._command.close()


_COUNTS = (
    "blocks_sent",
    "blocks_held",
    "blocks_resent",
    "blocks_helped",
    "lanes_used",
    "lanes_lost",
    "sessions",
    "integrity_failures",
)


class _Command:
    """A ``dwcp`` command that runs and prints JSON lines into a file, which unlike a pipe never blocks it."""

    def __init__(self, arguments: list[str], state: Path) -> None:
        with ExitStack() as stack:
            self._output: IO[bytes] = stack.enter_context(scratch_file())
            self._errors: IO[bytes] = stack.enter_context(scratch_file())
            self._process = subprocess.Popen(
                [*_DWCP, *arguments, "--json-lines"],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._errors,
                env={**os.environ, "DWCP_STATE_DIR": str(state)},
            )
            self._files = stack.pop_all()

    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self, timeout_s: float) -> int | None:
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def events(self) -> Iterator[Event]:
        """What it has said so far; a line that is still being written is left out."""
        # By position, because the child writes at the offset that it shares with this descriptor.
        said = os.pread(self._output.fileno(), os.fstat(self._output.fileno()).st_size, 0)
        *lines, _ = said.split(b"\n")
        return map(_parse_object, lines)

    def last_words(self) -> str:
        return last_words(self._errors)

    def kill(self) -> None:
        if self.running():
            self._process.send_signal(signal.SIGKILL)
        wait_for_exit(self._process, _EXIT_GRACE_S)

    def close(self) -> None:
        self.kill()
        self._files.close()


def reroute(pairing: str, port: int, host: str = "127.0.0.1") -> tuple[str, tuple[str, int]]:
    """Point a pairing string at a port of this machine, under any of its addresses.

    Returns:
        The new pairing string, and the address the old one named.

    Raises:
        FormatError: the string is not ``dwcp://host:port#...``.
    """
    match = _PAIRING.match(pairing)
    if match is None:
        raise FormatError(f"{pairing!r} is not a pairing string")
    address = (match["host"].strip("[]"), int(match["port"]))
    return f"{match[1]}{host}:{port}{match['rest'] or ''}", address


_DWCP = [sys.executable, "-m", "dwcp_fast"]


def _parse_object(line: bytes) -> Event:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise FormatError(f"{line[:80]!r} is not JSON") from error
    if not isinstance(value, dict):
        raise FormatError(f"{line[:80]!r} is not a JSON object")
    return value
