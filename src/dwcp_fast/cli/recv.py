"""``dwcp recv``."""

from pathlib import Path

import click

from dwcp_fast.cli.inbox import Inbox
from dwcp_fast.cli.metrics import METRICS
from dwcp_fast.cli.output import Output, output_options
from dwcp_fast.cli.security import security_options
from dwcp_fast.cli.service import run_service
from dwcp_fast.cli.transfer import LINK, LISTEN, ONCE, Writing, duration_option, writing_options
from dwcp_fast.cli.units import help_with_example
from dwcp_fast.cli.v1 import Dialect, v1_options
from dwcp_fast.options import Link, ReceiveOptions
from dwcp_fast.trust import Insecure, MutualTls

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
@LISTEN
@click.option(
    "--into", required=True, type=click.Path(path_type=Path, file_okay=False), help="Made if missing."
)
@ONCE
@LINK
@click.option(
    "--allow-v1",
    is_flag=False,
    flag_value="",
    metavar="[CIDR,...]",
    help="Serve v1 peers too, from these networks or from anywhere. v1 neither authenticates nor verifies.",
)
@writing_options("Refuse a transfer if something in it exists.")
@duration_option("--idle-timeout", "Longest silence.", "30s")
@v1_options
@METRICS
@security_options
@output_options
def recv(
    listen: str,
    into: Path,
    once: bool,
    link: Link,
    allow_v1: str | None,
    writing: Writing,
    idle_timeout: float,
    dialect: Dialect,
    metrics: str | None,
    trust: MutualTls | Insecure | None,
    printer: Output,
) -> int:
    """Receive into a directory."""
    networks = (
        None if allow_v1 is None else tuple(part.strip() for part in allow_v1.split(",") if part.strip())
    )
    options = ReceiveOptions(link=link, idle_timeout_s=idle_timeout, allow_v1=networks, **writing, **dialect)
    into.mkdir(parents=True, exist_ok=True)
    return run_service(
        lambda: Inbox(listen, trust, options, into, printer), printer, once=once, metrics=metrics
    )
