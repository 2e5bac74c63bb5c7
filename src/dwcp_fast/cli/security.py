"""Options that say how the two sides know each other."""

from pathlib import Path
from typing import Final

import click

from dwcp_fast.cli.files import FILE
from dwcp_fast.cli.grouping import Decorator, gather
from dwcp_fast.trust import INSECURE, Insecure, MutualTls

__all__ = ["security_options", "server_name_option"]


def server_name_option(peer: str) -> Decorator:
    """Make the option for the name of a peer that is dialled; `security_options` takes it in."""
    return click.option(
        "--server-name", metavar="NAME", help=f"Name in the {peer}'s certificate, for mutual TLS."
    )


def make_trust(
    cert: Path | None, key: Path | None, ca: Path | None, insecure: bool, server_name: str | None = None
) -> MutualTls | Insecure | None:
    """Make of the options what the library takes; None stands for pairing."""
    given = [name for name, value in (("--cert", cert), ("--key", key), ("--ca", ca)) if value is not None]
    if insecure:
        if given:
            raise click.UsageError(f"--insecure and {given[0]} contradict each other")
        return INSECURE
    if cert is None and key is None and ca is None:
        return None
    if cert is None or key is None or ca is None:
        raise click.UsageError(f"mutual TLS needs --cert, --key and --ca; given: {', '.join(given)}")
    return MutualTls(cert, key, ca, server_name)


security_options: Final = gather(
    "trust",
    make_trust,
    click.option("--cert", type=FILE, metavar="PEM", help="This side's certificate, for mutual TLS."),
    click.option("--key", type=FILE, metavar="PEM", help="Its private key."),
    click.option(
        "--ca", type=FILE, metavar="PEM", help="Authorities that sign the other side's certificate."
    ),
    click.option(
        "--insecure", is_flag=True, help="No encryption, no authentication; both sides must say so."
    ),
)
