"""``dwcp serve``."""

import errno
import os
from pathlib import Path
from typing import Any, Literal

import click

from dwcp_fast.cli.files import FILE
from dwcp_fast.cli.metrics import METRICS
from dwcp_fast.cli.output import Output, output_options
from dwcp_fast.cli.security import security_options
from dwcp_fast.cli.send import describe
from dwcp_fast.cli.service import Service, run_service
from dwcp_fast.cli.transfer import (
    LISTEN,
    LISTEN_ON,
    ONCE,
    STALL_TIMEOUT,
    SYMLINKS,
    Encoding,
    duration_option,
    encoding_options,
)
from dwcp_fast.cli.units import help_with_example, parse_clients, reading
from dwcp_fast.errors import DwcpError
from dwcp_fast.incoming import IncomingSession
from dwcp_fast.links import scan_paths
from dwcp_fast.listener import Listener, listen
from dwcp_fast.options import ListenOn, ReceiveOptions, SendOptions, Symlinks
from dwcp_fast.state import served_pairing
from dwcp_fast.trust import Insecure, MutualTls

__all__ = ["serve"]


class Outbox(Service):
    """A directory or file that peers pull."""

    def __init__(
        self,
        address: str,
        trust: MutualTls | Insecure | None,
        options: SendOptions,
        path: Path,
        output: Output,
        *,
        clients: int | None,
        max_sessions: int,
        link: ListenOn,
        pairing_file: Path,
    ) -> None:
        """Listen."""
        self._trust = trust
        self._options = options
        self._path = path
        self._clients = clients
        self._max_sessions = max_sessions
        self._link = link
        self._pairing_file = pairing_file
        super().__init__(address, output)

    def _listen(self) -> Listener:
        return listen(
            self._address,
            trust=self._trust,
            options=ReceiveOptions(max_sessions=self._max_sessions, link=self._link),
            serve=self._options,
            receive=False,
            clients=self._clients,
            events=self._on_event,
            pairing_file=self._pairing_file,
        )

    def _instruct(self, target: str) -> tuple[dict[str, Any], str]:
        return {"path": os.fsdecode(self._path)}, f"dwcp pull '{target}' DIR"

    def _attend(self, session: IncomingSession) -> None:
        with self._output.progress(f"to {session.peer}", session.progress):
            while (request := session.next_request()) is not None:
                if request:
                    session.refuse("this server takes no request: ask for all it has")
                    return
                try:
                    scan = scan_paths([self._path], self._options)
                except (DwcpError, OSError):
                    # What exactly is wrong is said here, not there.
                    session.refuse("what is served cannot be read now")
                    raise
                report = session.send_scan(scan)
                told = {"type": "sent", **report.to_dict(), "record": report.record()}
                self._done(told, f"{describe(report)}, to {report.peer}")


@click.command(
    short_help="Let others pull a directory.",
    help=help_with_example(
        "Send a directory or file, as it is then, to each `dwcp pull` that asks. Prints a pairing string, a "
        "secret that stays the same when the command is run again, and that is good for as many clients as "
        "--clients says. It is bound to the first that come.",
        "dwcp serve model --listen 0.0.0.0:7443 --clients 20",
    ),
)
@click.argument("path", type=FILE, metavar="DIR")
@LISTEN
@LISTEN_ON
@click.option(
    "--clients",
    metavar="N|any",
    callback=reading(parse_clients),
    default="1",
    show_default=True,
    help="How many may use the pairing string; any: whoever has it.",
)
@click.option("--new-pairing", is_flag=True, help="Make a new pairing string; the old one is void.")
@click.option(
    "--max-sessions",
    type=click.IntRange(1, 65_536),
    default=64,
    show_default=True,
    help="Most peers at once; others are turned away.",
)
@ONCE
@encoding_options("is sent to all peers together")
@click.option(
    "--base",
    type=click.Choice(("auto", "none")),
    default="auto",
    show_default=True,
    help="Whether what a peer has already is made use of.",
)
@SYMLINKS
@duration_option("--idle-timeout", "Longest silence of a peer.", "30s")
@STALL_TIMEOUT
@METRICS
@security_options
@output_options
def serve(
    path: Path,
    listen: str,
    link: ListenOn,
    clients: int | None,
    new_pairing: bool,
    max_sessions: int,
    once: bool,
    encoding: Encoding,
    base: Literal["auto", "none"],
    symlinks: Symlinks,
    idle_timeout: float,
    stall_timeout: float,
    metrics: str | None,
    trust: MutualTls | Insecure | None,
    printer: Output,
) -> int:
    """Let others pull a directory."""
    options = SendOptions(
        base=base, symlinks=symlinks, idle_timeout_s=idle_timeout, stall_timeout_s=stall_timeout, **encoding
    )
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    pairing_file = served_pairing(path)
    if new_pairing:
        pairing_file.unlink(missing_ok=True)

    def make() -> Outbox:
        return Outbox(
            listen,
            trust,
            options,
            # Kept as it is named now, whatever becomes of the working directory.
            path.absolute(),
            printer,
            clients=clients,
            max_sessions=max_sessions,
            link=link,
            pairing_file=pairing_file,
        )

    return run_service(make, printer, once=once, metrics=metrics)
