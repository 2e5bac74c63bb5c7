"""Child processes of the demo that are spoken to in JSON lines.

The child reads one object per line on standard input, answers with one object per line on standard
output, and ends when its standard input ends, so that no child outlives the demo.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any, Self

from dwcp_fast.errors import DeadlineError, TransportError

__all__ = ["Message", "Worker", "answer", "last_words", "opened", "requests", "scratch_file", "wait_for_exit"]

Message = dict[str, Any]

_MAX_LINE_BYTES = 1 << 20
_EXIT_GRACE_S = 5.0
_LAST_WORDS_BYTES = 800


class Worker:
    """A running ``python -m <module>`` that is asked over its standard streams."""

    def __init__(self, module: str, arguments: list[str]) -> None:
        """Start the child.

        Args:
            module: name of the module to run, for example ``dwcp_fast.demo.link``.
            arguments: its command line.
        """
        self._module = module
        self._stack = ExitStack()
        self._errors = self._stack.enter_context(scratch_file())
        self._pending = b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._stdin = self._stack.enter_context(opened(self._process.stdin))
        self._stdout = self._stack.enter_context(opened(self._process.stdout))

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def ask(self, request: Message, timeout_s: float) -> Message:
        """Send one request and wait for its answer.

        Raises:
            TransportError: the child is gone, or it answered with an error.
            DeadlineError: no answer within ``timeout_s``.
        """
        try:
            self._stdin.write(json.dumps(request).encode() + b"\n")
            self._stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise TransportError(self._obituary()) from error
        return self.listen(timeout_s)

    def listen(self, timeout_s: float) -> Message:
        """Wait for the child's next line.

        Raises:
            TransportError: the child is gone, or its line reports an error.
            DeadlineError: no line within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        stdout = self._stdout.fileno()
        while b"\n" not in self._pending:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([stdout], [], [], left_s)[0]:
                raise DeadlineError(f"{self._module} did not answer within {timeout_s:g} s")
            data = os.read(stdout, 65536)
            if not data or len(self._pending) + len(data) > _MAX_LINE_BYTES:
                raise TransportError(self._obituary())
            self._pending += data
        line, self._pending = self._pending.split(b"\n", 1)
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise TransportError(f"{self._module} answered with {line[:80]!r}, not with an object")
        if "error" in answer:
            raise TransportError(f"{self._module}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the child: close its input, wait a little, then kill it."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        wait_for_exit(self._process, _EXIT_GRACE_S)
        self._stack.close()

    def __enter__(self) -> Self:
        """Hand out the worker itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the child."""
        self.close()

    def _obituary(self) -> str:
        wait_for_exit(self._process, 1.0)
        said = last_words(self._errors)
        return f"{self._module} ended with status {self._process.returncode}: {said or 'no message'}"


def opened(stream: IO[bytes] | None) -> IO[bytes]:
    """The stream of a child that was started with a pipe for it.

    Raises:
        TransportError: there is none.
    """
    if stream is None:
        raise TransportError("the child was started without a pipe")
    return stream


def scratch_file() -> IO[bytes]:
    """An unnamed file for what a child writes, which unlike a pipe never blocks it."""
    return tempfile.TemporaryFile()


def last_words(errors: IO[bytes]) -> str:
    """The end of what a child wrote to its standard error, which is a file here."""
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - _LAST_WORDS_BYTES))
    return errors.read().decode(errors="replace").strip()


def wait_for_exit(process: "subprocess.Popen[bytes]", grace_s: float) -> int:
    """Wait for a child to end, killing it after ``grace_s``; return its exit status."""
    try:
        return process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def requests() -> Iterator[Message]:
    """In the child: the requests, until standard input ends."""
    for line in sys.stdin:
        yield json.loads(line)


def answer(message: Message) -> None:
    """In the child: write one line to the parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
