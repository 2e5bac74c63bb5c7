"""Options that say how the two sides know each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dwcp_fast.trust import INSECURE, Insecure, MutualTls

__all__ = ["make_trust", "security_options"]


def security_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for certificates and for doing without."""
    file = click.Path(path_type=Path)
    for option in reversed(
        (
            click.option("--cert", type=file, metavar="PEM", help="This side's certificate, for mutual TLS."),
            click.option("--key", type=file, metavar="PEM", help="Its private key."),
            click.option(
                "--ca", type=file, metavar="PEM", help="Authorities that sign the other side's certificate."
            ),
            click.option(
                "--insecure", is_flag=True, help="No encryption, no authentication; both sides must say so."
            ),
        )
    ):
        command = option(command)
    return command


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
