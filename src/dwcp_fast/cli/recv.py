"""``dwcp recv``."""

from pathlib import Path
from typing import get_args

import click

from dwcp_fast.cli.inbox import Inbox
from dwcp_fast.cli.output import make_output, output_options
from dwcp_fast.cli.security import make_trust, security_options
from dwcp_fast.cli.service import run_service
from dwcp_fast.cli.units import help_with_example, reading
from dwcp_fast.cli.v1 import v1_options
from dwcp_fast.options import (
    Generation,
    Payload,
    ReceiveOptions,
    Symlinks,
    parse_bytes,
    parse_duration,
)

__all__ = ["recv"]


@click.command(
    short_help="Receive into a directory.",
    help=help_with_example(
        "Receive what `dwcp send` sends. Prints a pairing string, a secret that is good for one "
        "sender. Files are staged in .dwcp under the directory, and put in place only when all of a "
        "transfer is verified.",
        "dwcp recv --listen 0.0.0.0:7443 --into inbox",
    ),
)
@click.option("--listen", default="0.0.0.0:7443", show_default=True, metavar="HOST:PORT", help="Port 0: any.")
@click.option(
    "--into", required=True, type=click.Path(path_type=Path, file_okay=False), help="Made if missing."
)
@click.option("--once", is_flag=True, help="End after one transfer.")
@click.option(
    "--allow-v1",
    is_flag=False,
    flag_value="",
    metavar="[CIDR,...]",
    help="Serve v1 peers too, from these networks or from anywhere. v1 neither authenticates nor verifies.",
)
@click.option("--no-overwrite", is_flag=True, help="Refuse a transfer if something in it exists.")
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
@click.option(
    "--idle-timeout",
    metavar="TIME",
    callback=reading(parse_duration),
    default="30s",
    show_default=True,
    help="Longest silence.",
)
@v1_options
@security_options
@output_options
def recv(
    listen: str,
    into: Path,
    once: bool,
    allow_v1: str | None,
    no_overwrite: bool,
    symlinks: Symlinks,
    no_sync: bool,
    max_object: int,
    idle_timeout: float,
    v1_generation: Generation,
    v1_payload: Payload,
    cert: Path | None,
    key: Path | None,
    ca: Path | None,
    insecure: bool,
    json: bool,
    json_lines: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Receive into a directory."""
    output = make_output(json_final=json, json_lines=json_lines, quiet=quiet, verbose=verbose)
    networks = (
        None if allow_v1 is None else tuple(part.strip() for part in allow_v1.split(",") if part.strip())
    )
    options = ReceiveOptions(
        overwrite=not no_overwrite,
        symlinks=symlinks,
        sync=not no_sync,
        max_object_bytes=max_object,
        idle_timeout_s=idle_timeout,
        allow_v1=networks,
        v1_generation=v1_generation,
        v1_payload=v1_payload,
    )
    trust = make_trust(cert, key, ca, insecure)
    into.mkdir(parents=True, exist_ok=True)
    return run_service(lambda: Inbox(listen, trust, options, into, output), once=once)
