"""Real `dwcp` processes, each with a deadline."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from .relay import Relay

DWCP = [sys.executable, "-m", "dwcp_fast"]
WAIT_S = 60.0
MIB = 1 << 20


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The last line of stdout as an object."""
        told: dict[str, Any] = json.loads(self.out.strip().splitlines()[-1])
        return told


class Service:
    """A running command that listens, with `--json-lines`."""

    def __init__(
        self, command: Sequence[str | Path], log: Path, env: dict[str, str], prefix: Sequence[str] = ()
    ) -> None:
        self._log = log
        self._name = f"dwcp {command[0]}"
        self.events: list[dict[str, Any]] = []
        self._new: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._stack = ExitStack()
        self._err = self._stack.enter_context(log.open("a+b"))
        self.process = subprocess.Popen(
            [*prefix, *DWCP, *map(str, command), "--json-lines", "-v"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._err,
            env=env,
            # Tests that interrupt it must not meet an ignored SIGINT, which background jobs inherit.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        told = self.wait_for("listening")
        self.address: str = told["address"]
        self.pairing: str = told["pairing"]

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._new.put(json.loads(line))
        self._new.put(None)

    def wait_for(self, kind: str) -> dict[str, Any]:
        """The next event of a kind; fails when none comes in time or the process ends."""
        while True:
            try:
                event = self._new.get(timeout=WAIT_S)
            except queue.Empty:
                pytest.fail(f"no {kind!r} event within {WAIT_S} s; there were {self.events}; {self.err()}")
            if event is None:
                pytest.fail(
                    f"{self._name} ended without a {kind!r} event; there were {self.events}; {self.err()}"
                )
            self.events.append(event)
            if event["type"] == kind:
                return event

    def err(self) -> str:
        """What it wrote to stderr so far."""
        return self._log.read_text(errors="replace")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and give the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"{self._name} did not end after signal {number}: {self.err()}")
        finally:
            self._reader.join(WAIT_S)
            self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGKILL)


class Recv(Service):
    """A running `dwcp recv`."""

    def __init__(
        self,
        into: Path,
        env: dict[str, str],
        arguments: Sequence[str],
        listen: str,
        prefix: Sequence[str] = (),
    ) -> None:
        self.into = into
        command = ["recv", f"--listen={listen}", f"--into={into}", *arguments]
        super().__init__(command, into.parent / f"{into.name}.err", env, prefix)


class Machine:
    """What runs the commands: a folder, an environment of its own for each user, and what each is run by."""

    def __init__(
        self, folder: Path, prefixes: Mapping[str, Sequence[str]] | None = None, **variables: str
    ) -> None:
        self.folder = folder
        self._prefixes = prefixes or {}
        self._variables = variables

    def env(self, user: str) -> dict[str, str]:
        """The environment of a user."""
        own = {"DWCP_STATE_DIR": str(self.folder / f"state-{user}"), "CI": "1"}
        return {**os.environ, **own, **self._variables}

    def recv(self, *arguments: str, name: str = "inbox", listen: str = "127.0.0.1:0") -> Recv:
        """Start a receiver."""
        prefix = self._prefixes.get("receiver", ())
        return Recv(self.folder / name, self.env("receiver"), arguments, listen, prefix)

    def serve(self, path: Path, *arguments: str) -> Service:
        """Start a server."""
        command: list[str | Path] = ["serve", path, "--listen=127.0.0.1:0", *arguments]
        return Service(command, self.folder / "serve.err", self.env("server"))

    def start_pull(self, *arguments: str | Path, user: str = "puller") -> subprocess.Popen[str]:
        """Start a puller."""
        return self._start("pull", arguments, user)

    def pull(self, *arguments: str | Path, user: str = "puller") -> Ended:
        """Run a puller to its end."""
        return self.finish(self.start_pull(*arguments, user=user))

    def start_send(self, *arguments: str | Path, user: str = "sender") -> subprocess.Popen[str]:
        """Start a sender."""
        return self._start("send", arguments, user)

    def _start(self, command: str, arguments: Sequence[str | Path], user: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._prefixes.get(user, ()), *DWCP, command, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=self.env(user),
        )

    def send(self, *arguments: str | Path, user: str = "sender") -> Ended:
        """Run a sender to its end."""
        return self.finish(self.start_send(*arguments, user=user))

    def finish(self, process: subprocess.Popen[str]) -> Ended:
        """Wait for the end of a command."""
        try:
            out, err = process.communicate(timeout=WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"dwcp did not end within {WAIT_S} s: {out} {err}")
        return Ended(process.returncode, out, err)

    def run(self, *arguments: str | Path) -> Ended:
        """Run any command to its end."""
        done = subprocess.run(
            [*DWCP, *map(str, arguments)],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=WAIT_S,
            check=False,
            env=self.env("sender"),
        )
        return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A place to run commands in."""
    return Machine(tmp_path)


@pytest.fixture
def recv(machine: Machine) -> Iterator[Recv]:
    """A receiver with pairing."""
    with machine.recv() as running:
        yield running


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A file that no codec makes smaller."""
    path = tmp_path / "state"
    path.write_bytes(np.random.default_rng(5).bytes(24 * MIB))
    return path


@contextmanager
def relay_to(service: Service) -> Iterator[Relay]:
    """A relay to a receiver or a server."""
    host, _, port = service.address.rpartition(":")
    relay = Relay((host, int(port)), pulled=not isinstance(service, Recv))
    try:
        yield relay
    finally:
        relay.close()


def wait_until_held(relay: Relay) -> None:
    """Wait until the relay passes nothing on."""
    assert relay.held.wait(WAIT_S), f"only {relay.forwarded} bytes came"


def wait_until_staged(into: Path, blocks: int) -> None:
    """Wait until the ledger names that many blocks: what the relay passed on may still be on its way."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if sum(path.stat().st_size for path in into.glob(".dwcp/*/ledger")) >= 32 + 32 * blocks:
            return
        time.sleep(0.02)
    pytest.fail(f"fewer than {blocks} blocks are staged")
