"""What ``dwcp recv`` does with each peer that sends."""

import itertools
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dwcp_fast.cli.output import Output, format_bytes
from dwcp_fast.cli.service import Service
from dwcp_fast.incoming import IncomingSession
from dwcp_fast.listener import Listener, listen
from dwcp_fast.options import ReceiveOptions
from dwcp_fast.reports import ReceiveReport
from dwcp_fast.trust import Insecure, MutualTls

if TYPE_CHECKING:
    from dwcp_fast.v1 import V1Delivery

__all__ = ["Inbox", "describe_received"]


class Inbox(Service):
    """A directory into which peers send."""

    def __init__(
        self,
        address: str,
        trust: MutualTls | Insecure | None,
        options: ReceiveOptions,
        into: Path,
        output: Output,
    ) -> None:
        """Listen."""
        self._trust = trust
        self._options = options
        self._into = into
        self._v1_numbers = itertools.count(1)
        super().__init__(address, output)

    def _listen(self) -> Listener:
        return listen(
            self._address,
            trust=self._trust,
            options=self._options,
            events=self._on_event,
            on_v1=self._on_v1,
            keep_pairing_in=self._into,
        )

    def _instruct(self, target: str) -> tuple[dict[str, Any], str]:
        return {"into": os.fsdecode(self._into)}, f"dwcp send PATH... --to '{target}'"

    def _attend(self, session: IncomingSession) -> None:
        with self._output.progress(f"from {session.peer}", session.progress):
            while (report := session.receive_tree(self._into)) is not None:
                told = {"type": "received", **report.to_dict(), "record": report.record()}
                self._done(told, describe_received(report))

    def _on_v1(self, delivery: "V1Delivery") -> None:
        try:
            path = self._write_v1(delivery)
        except OSError as error:
            self._fail(error, delivery.peer[0])
            return
        told = {"type": "received", "protocol": "v1", "path": os.fsdecode(path), **delivery.to_dict()}
        size = format_bytes(len(delivery.payload))
        text = f"received {size} from v1 peer {delivery.peer[0]} as {path}, NOT verified: v1 cannot"
        self._done(told, text)

    def _write_v1(self, delivery: "V1Delivery") -> Path:
        """Write a delivery under a name of its own, whole or not at all."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        host = delivery.peer[0].replace(":", "-").replace("%", "-")
        staged = self._into / f".v1-{secrets.token_hex(8)}.part"
        try:
            with staged.open("xb") as file:
                file.write(delivery.payload)
                file.flush()
                os.fsync(file.fileno())
            while True:
                path = self._into / f"v1-{stamp}-{host}-{next(self._v1_numbers)}.bin"
                try:
                    # A link fails where a rename would replace.
                    os.link(staged, path)
                except FileExistsError:
                    continue
                return path
        finally:
            staged.unlink(missing_ok=True)


def describe_received(report: ReceiveReport) -> str:
    """Say in one line what was received."""
    return (
        f"received {report.entries} entries, {format_bytes(report.bytes_raw)} "
        f"from {report.peer} in {report.seconds:.2f} s "
        f"({format_bytes(report.bytes_wire)} on the wire), verified"
    )
