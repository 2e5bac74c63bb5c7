"""The ways to send one file over the link, behind one call."""

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, Self

import xxhash

from dwcp_fast.demo.baselines import V1_NAME
from dwcp_fast.demo.link import Link
from dwcp_fast.demo.record import Cell
from dwcp_fast.demo.v3 import Event, Receiver, Sender, SendOutcome, reroute
from dwcp_fast.demo.worker import Worker
from dwcp_fast.errors import TransportError

__all__ = ["Method", "V3Method", "WorkerMethod", "digest_file", "run_cell", "send_v3"]

TRANSFER_TIMEOUT_S = 60.0
_START_TIMEOUT_S = 20.0


class Method(Protocol):
    """A way to send a file, with its own place where received files end up."""

    name: str

    def send(self, link: Link, path: Path, base: Path | None) -> tuple[float, Path]:
        """Send ``path`` through ``link``.

        Args:
            link: the link to go through; it is pointed at the method's receiver.
            path: the file to send.
            base: the sender's copy of what the receiver holds under that name, or None.

        Returns:
            The seconds it took, and where the receiver put the file.

        Raises:
            TransportError: it failed.
            DeadlineError: it did not end in time.
        """


class WorkerMethod:
    """A rival (raw, zstd-1, xor-zstd-1, v1): two processes that live as long as the method does."""

    def __init__(self, name: str, into: Path) -> None:
        """Start both processes.

        Args:
            name: ``raw``, ``zstd-1``, ``xor-zstd-1`` or ``v1``.
            into: directory of the receiver.
        """
        self.name = name
        self._into = into
        self._start()

    def send(self, link: Link, path: Path, base: Path | None) -> tuple[float, Path]:
        """Send by the rival's processes; see :meth:`Method.send`. Only xor-zstd-1 makes use of a base."""
        if base is not None:
            shutil.copyfile(base, self._into / path.name)
        link.retarget("127.0.0.1", self._port)
        request = {
            "host": "127.0.0.1",
            "port": link.port,
            "path": str(path),
            "base": None if base is None else str(base),
        }
        try:
            sent = self._sender.ask(request, TRANSFER_TIMEOUT_S)
            if self.name != "v1":
                return float(sent["seconds"]), self._into / path.name
            received = self._receiver.listen(TRANSFER_TIMEOUT_S)
        except BaseException:
            # An answer may still be under way; it must not be taken for the next transfer's.
            self._stack.close()
            self._start()
            raise
        return float(received["finished_at"]) - float(sent["started_at"]), self._into / V1_NAME

    def close(self) -> None:
        """End both processes."""
        self._stack.close()

    def __enter__(self) -> Self:
        """Hand out the method itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End both processes."""
        self.close()

    def _start(self) -> None:
        module = "dwcp_fast.demo.baselines"
        with ExitStack() as stack:
            self._receiver = stack.enter_context(Worker(module, ["recv", self.name, str(self._into)]))
            self._sender = stack.enter_context(Worker(module, ["send", self.name]))
            self._port = int(self._receiver.listen(_START_TIMEOUT_S)["port"])
            self._stack = stack.pop_all()


class V3Method:
    """v3: a new ``dwcp recv`` and ``dwcp send`` for every file, as a user would run them."""

    name = "v3"

    def __init__(self, into: Path, state: Path) -> None:
        """Remember the receiver's directory, and where the sender keeps what it knows."""
        self._into = into
        self._state = state

    def send(self, link: Link, path: Path, base: Path | None) -> tuple[float, Path]:
        """Send by the command line; see :meth:`Method.send`.

        A change is sent over the file that the transfer before left, as a user would; the command finds
        ``base`` by itself, because it has sent it. Without a base the receiver holds nothing.
        """
        target = self._into / path.name
        if base is None:
            target.unlink(missing_ok=True)
        outcome, _ = send_v3(link, path, self._into, self._state)
        if outcome.exit_code != 0:
            raise TransportError(f"dwcp send exited with {outcome.exit_code}: {outcome.message}")
        # From the first connection, so that the handshake counts.
        return outcome.committed_at - link.stats().opened_at, target


def send_v3(
    link: Link, path: Path, into: Path, state: Path, codec: str = "auto"
) -> tuple[SendOutcome, Event]:
    """Run one ``dwcp recv`` and one ``dwcp send`` to their ends.

    Returns:
        How the sender ended, and what the receiver says of the transfer, if it ended well.
    """
    with Receiver(into, state) as receiver:
        pairing, address = reroute(receiver.pairing, link.port)
        link.retarget(*address)
        with Sender(path, pairing, state, codec) as sender:
            outcome = sender.finish(TRANSFER_TIMEOUT_S)
        return outcome, receiver.finish() if outcome.exit_code == 0 else {}


def run_cell(method: Method, link: Link, link_name: str, version: str, path: Path, base: Path | None) -> Cell:
    """Send one file by one method and check what arrived.

    Raises:
        TransportError: the transfer failed.
        DeadlineError: the transfer did not end in time.
    """
    before = link.stats()
    seconds, received = method.send(link, path, base)
    after = link.stats()
    digest = digest_file(received)
    return Cell(
        link=link_name,
        state=path.name,
        version=version,
        method=method.name,
        seconds=seconds,
        raw_bytes=path.stat().st_size,
        wire_bytes=after.bytes_up + after.bytes_down - before.bytes_up - before.bytes_down,
        digest=digest,
        verified=digest == digest_file(path),
    )


def digest_file(path: Path) -> str:
    """XXH3-128 of a file in hexadecimal; ``absent`` when there is none."""
    try:
        return xxhash.xxh3_128_hexdigest(path.read_bytes())
    except FileNotFoundError:
        return "absent"
