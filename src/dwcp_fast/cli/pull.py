"""``dwcp pull``."""

from pathlib import Path
from typing import get_args

import click

from dwcp_fast.cli.inbox import describe_received
from dwcp_fast.cli.output import make_output, output_options
from dwcp_fast.cli.security import make_trust, security_options
from dwcp_fast.cli.units import help_with_example, parse_streams, reading
from dwcp_fast.options import ReceiveOptions, SendOptions, Symlinks, parse_bytes, parse_duration
from dwcp_fast.session import connect

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
@click.option(
    "--streams",
    metavar="auto|N",
    callback=reading(parse_streams),
    default="auto",
    show_default=True,
    help="Number of lanes.",
)
@click.option(
    "--timeout",
    metavar="TIME",
    callback=reading(parse_duration),
    help="Most that the transfer may take, such as 90s.",
)
@click.option(
    "--wait",
    metavar="TIME",
    callback=reading(parse_duration),
    help="Most that the server may take before it offers anything.",
)
@click.option(
    "--connect-timeout",
    metavar="TIME",
    callback=reading(parse_duration),
    default="10s",
    show_default=True,
    help="Most for connecting.",
)
@click.option(
    "--reconnect",
    metavar="TIME",
    callback=reading(parse_duration),
    default="30s",
    show_default=True,
    help="How long to look for a lost server.",
)
@click.option("--no-overwrite", is_flag=True, help="Fetch nothing if something of it exists.")
@click.option(
    "--symlinks",
    type=click.Choice(get_args(Symlinks)),
    default="keep",
    show_default=True,
    help="Symbolic links.",
)
@click.option("--no-sync", is_flag=True, help="Do not wait for the disk before files are put in place.")
@click.option(
    "--max-object",
    metavar="LENGTH",
    callback=reading(parse_bytes),
    default="64TiB",
    show_default=True,
    help="Longest file taken.",
)
@click.option("--server-name", metavar="NAME", help="Name in the server's certificate, for mutual TLS.")
@security_options
@output_options
def pull(
    source: str,
    into: Path,
    streams: int | None,
    timeout: float | None,
    wait: float | None,
    connect_timeout: float,
    reconnect: float,
    no_overwrite: bool,
    symlinks: Symlinks,
    no_sync: bool,
    max_object: int,
    server_name: str | None,
    cert: Path | None,
    key: Path | None,
    ca: Path | None,
    insecure: bool,
    json: bool,
    json_lines: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Fetch what ``dwcp serve`` has."""
    output = make_output(json_final=json, json_lines=json_lines, quiet=quiet, verbose=verbose)
    options = SendOptions(
        protocol="v3",
        streams=streams,
        timeout_s=timeout,
        connect_timeout_s=connect_timeout,
        reconnect_s=reconnect,
    )
    receive = ReceiveOptions(
        overwrite=not no_overwrite, symlinks=symlinks, sync=not no_sync, max_object_bytes=max_object
    )
    trust = make_trust(cert, key, ca, insecure, server_name)
    session = connect(source, trust=trust, options=options, receive=receive, events=output.event)
    with session, output.progress("fetching", session.progress):
        into.mkdir(parents=True, exist_ok=True)
        report = session.fetch_into(into, timeout_s=wait)
    output.result(
        {"type": "received", **report.to_dict(), "record": report.record()}, describe_received(report)
    )
