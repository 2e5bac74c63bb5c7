"""A monitor that says what QEMU would, and what it would not."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from dwcp_fast.closing import Closing

GREETING: Final = b'{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 9}}}}\n'
Answer = Callable[[dict[str, Any]], bytes | None]


def done(_: dict[str, Any]) -> bytes:
    """Do what is asked."""
    return b'{"return": {}}\n'


class Monitor(Closing):
    """A Unix socket behind which a thread says, for each line that it hears, what it is given."""

    def __init__(self, path: Path, answer: Answer = done, greeting: bytes = GREETING) -> None:
        """Listen, for one client after another; None for an answer ends the connection."""
        self.address = str(path)
        self.heard: list[dict[str, Any]] = []
        self._answer, self._greeting = answer, greeting
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen(1)
        threading.Thread(target=self._run, daemon=True).start()

    def commands(self) -> list[str]:
        """What it was asked to do."""
        return [str(one["execute"]) for one in self.heard]

    def close(self) -> None:
        """Listen no longer."""
        self._listener.close()

    def _run(self) -> None:
        # Whoever was told nonsense leaves in the middle of it; the listener is closed at the end.
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), connection, connection.makefile("rb") as lines:
                connection.sendall(self._greeting)
                for line in lines:
                    asked = json.loads(line)
                    self.heard.append(asked)
                    said = self._answer(asked)
                    if said is None:
                        break
                    connection.sendall(b"".join(map(numbered(asked), said.splitlines(keepends=True))))


def numbered(asked: dict[str, Any]) -> Callable[[bytes], bytes]:
    """Give answers that have no number that of what was asked, as QEMU does."""

    def number(line: bytes) -> bytes:
        said = json.loads(line)
        if "event" in said or "id" in said or "id" not in asked:
            return line
        return json.dumps(said | {"id": asked["id"]}).encode() + b"\n"

    return number
