"""``dwcp pull``."""

from pathlib import Path

import click

from dwcp_fast.cli.inbox import describe_received
from dwcp_fast.cli.output import Output, output_options
from dwcp_fast.cli.security import security_options, server_name_option
from dwcp_fast.cli.transfer import (
    LINK,
    MODE,
    POLITE,
    STREAMS,
    TIMEOUT,
    Redialling,
    Writing,
    duration_option,
    redialling_options,
    writing_options,
)
from dwcp_fast.cli.units import help_with_example
from dwcp_fast.options import Link, Mode, ReceiveOptions, SendOptions
from dwcp_fast.session import connect
from dwcp_fast.trust import Insecure, MutualTls

__all__ = ["pull"]


@click.command(
    short_help="Fetch what `dwcp serve` has.",
    help=help_with_example(
        "Fetch what `dwcp serve` has into a directory, under the name it has there. Files are staged in "
        ".dwcp under the directory, and put in place only when all is verified; others stay. "
        "Interrupted, it continues when run again.",
        "dwcp pull 'dwcp://host:7443#...' models",
    ),
)
@click.argument("source", metavar="PAIRING|HOST:PORT")
@click.argument("into", type=click.Path(path_type=Path, file_okay=False), metavar="DIR")
@MODE
@LINK
@STREAMS
@POLITE
@TIMEOUT
@duration_option("--wait", "Most that the server may take before it offers anything.")
@redialling_options("server")
@writing_options("Fetch nothing if something of it exists.")
@server_name_option("server")
@security_options
@output_options
def pull(
    source: str,
    into: Path,
    mode: Mode,
    link: Link,
    streams: int | None,
    polite: bool,
    timeout: float | None,
    wait: float | None,
    redialling: Redialling,
    writing: Writing,
    trust: MutualTls | Insecure | None,
    printer: Output,
) -> None:
    """Fetch what ``dwcp serve`` has."""
    options = SendOptions(
        protocol="v3", mode=mode, link=link, streams=streams, polite=polite, timeout_s=timeout, **redialling
    )
    receive = ReceiveOptions(**writing)
    session = connect(source, trust=trust, options=options, receive=receive, events=printer.event)
    with session, printer.progress("fetching", session.progress):
        into.mkdir(parents=True, exist_ok=True)
        report = session.fetch_into(into, timeout_s=wait)
    printer.result(
        {"type": "received", **report.to_dict(), "record": report.record()}, describe_received(report)
    )
