"""A client of QEMU's machine protocol (QMP): JSON objects, one a line, on a socket."""

import json
import logging
import socket
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from dwcp_fast.closing import Closing
from dwcp_fast.errors import ConfigError, DeadlineError, FormatError, PeerClosedError, QmpError
from dwcp_fast.vm.lines import JsonLines

__all__ = ["Qmp"]

LOG: Final = logging.getLogger(__name__)
MAX_LINE_BYTES: Final = 16 << 20
"""Most that QEMU may say at once; its longest answer, the schema, has 200 kB."""
MAX_EVENTS: Final = 10_000
GONE_S: Final = 2.0
POLL_S: Final = 0.02
Json = dict[str, Any]


class Qmp(Closing):
    """A connection to a QEMU's monitor; for one thread at a time.

    A monitor serves one client: while another one is connected, no greeting comes.
    """

    def __init__(self, address: str, *, timeout_s: float = 10.0) -> None:
        """Connect and leave the negotiation mode.

        Args:
            address: Path of a Unix socket, or ``HOST:PORT``.
            timeout_s: Most seconds to wait for an answer.

        Raises:
            DeadlineError: QEMU does not greet or answer in time.
            OSError: There is no such socket.
        """
        self.address = address
        self._timeout_s = timeout_s
        self._events: deque[Json] = deque(maxlen=MAX_EVENTS)
        self._asked = 0
        self._socket = connect(address, timeout_s)
        self._lines = JsonLines(self._socket, f"the QEMU at {address}", MAX_LINE_BYTES)
        try:
            greeting = self._read(
                time.monotonic() + timeout_s, "its greeting; another client may be connected"
            )
            told = greeting.get("QMP")
            if not isinstance(told, dict):
                raise FormatError(f"{address} is no QMP monitor: it greets with {list(greeting)[:4]}")
            self.version = version_of(told)
            self.execute("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> Any:
        """Run a command.

        Args:
            command: Its name.
            arguments: Its arguments; those that are None are left out.
            timeout_s: Most seconds to wait for the answer; None takes the connection's.

        Returns:
            What QEMU returns.

        Raises:
            QmpError: QEMU refuses.
            DeadlineError: No answer comes in time. QEMU may still do what it was asked; its answer to that is
                not taken for that to a later command.
            PeerClosedError: QEMU is gone.
        """
        self._asked += 1
        request: Json = {"execute": command, "id": self._asked}
        if arguments:
            request["arguments"] = {name: value for name, value in arguments.items() if value is not None}
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit_s
        try:
            self._socket.settimeout(limit_s)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except TimeoutError as error:
            raise DeadlineError(f"{self.address} does not take {command} in {limit_s:g} s") from error
        except OSError as error:
            raise PeerClosedError(f"the QEMU at {self.address} is gone") from error
        while True:
            answer = self._read(deadline, f"an answer to {command}")
            if answer.get("id") == self._asked and "return" in answer:
                return answer["return"]
            # What QEMU cannot read at all it refuses without a number.
            if answer.get("id", self._asked) == self._asked and "error" in answer:
                told = answer["error"]
                why = told.get("desc", told) if isinstance(told, dict) else told
                raise QmpError(f"{command} of {self.address}: {why}".rstrip("."))
            self._keep(answer)
            if time.monotonic() > deadline:
                raise DeadlineError(f"{self.address} says other things than an answer to {command}")

    def next_event(self, timeout_s: float) -> Json | None:
        """Give the oldest event that was not given yet, or None when none comes in `timeout_s` seconds.

        Raises:
            PeerClosedError: QEMU is gone.
        """
        if self._events:
            return self._events.popleft()
        try:
            message = self._read(time.monotonic() + timeout_s, "an event")
        except DeadlineError:
            return None
        self._keep(message)
        return self._events.popleft() if self._events else None

    def is_gone(self) -> bool:
        """Whether QEMU has surely ended, as a connection that broke alone does not tell.

        Nobody listens at its Unix socket then. Of a monitor behind a network that cannot be known.
        """
        if is_remote(self.address):
            return False
        deadline = time.monotonic() + GONE_S
        while time.monotonic() < deadline:
            try:
                connect(self.address, GONE_S).close()
            except (ConnectionRefusedError, FileNotFoundError):
                return True
            except OSError as error:
                LOG.debug("%s", error)
            time.sleep(POLL_S)
        return False

    def close(self) -> None:
        """Leave the monitor to others."""
        self._socket.close()

    def _keep(self, message: Json) -> None:
        if "event" in message:
            self._events.append(message)
        elif message:
            LOG.debug("%s said what was not asked: %s", self.address, list(message)[:4])

    def _read(self, deadline: float, what: str) -> Json:
        message = self._lines.next(deadline)
        if message is None:
            raise DeadlineError(f"{self.address} does not give {what} in time")
        return message


def connect(address: str, timeout_s: float) -> socket.socket:
    """Connect to a Unix socket or to ``HOST:PORT``."""
    if is_remote(address):
        host, _, port = address.rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), timeout_s)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.settimeout(timeout_s)
        made.connect(address)
    except OSError as error:
        made.close()
        if "too long" in str(error):
            raise ConfigError(
                f"the path of a Unix socket is too long: {len(address)} bytes, {address}"
            ) from error
        if error.filename is None and error.strerror:
            raise OSError(error.errno, error.strerror, address) from error
        raise
    return made


def is_remote(address: str) -> bool:
    """Whether it is ``HOST:PORT``."""
    _, colon, port = address.rpartition(":")
    return bool(colon) and port.isdigit() and "/" not in address


def version_of(greeting: Json) -> tuple[int, int, int]:
    """Read QEMU's version from its greeting; zeros where it does not say."""
    version = greeting.get("version")
    told = version.get("qemu") if isinstance(version, dict) else None
    parts = [told.get(part) for part in ("major", "minor", "micro")] if isinstance(told, dict) else [0] * 3
    major, minor, micro = (part if isinstance(part, int) else 0 for part in parts)
    return (major, minor, micro)
