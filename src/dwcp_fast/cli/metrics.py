"""The option ``--metrics`` of commands that keep running."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

from dwcp_fast.cli.output import Output

__all__ = ["METRICS", "serving_metrics"]

LOOPBACK: Final = "127.0.0.1"

METRICS: Final = click.option(
    "--metrics",
    metavar="[HOST:]PORT",
    help="Answer scrapes of Prometheus there, without asking who it is; without HOST only on this machine.",
)


@contextmanager
def serving_metrics(address: str | None, output: Output) -> Iterator[None]:
    """Serve metrics while the block runs, if they are wanted, and tell where they are.

    Args:
        address: As the option has it.
        output: Where it is told.

    Raises:
        ConfigError: It is no address, or the extra is not installed.
        OSError: It cannot be listened on.
    """
    if address is None:
        yield
        return
    # Imported late: its library is an extra.
    from dwcp_fast.metrics.prometheus import MetricsServer

    where = f"{LOOPBACK}:{address.removeprefix(':')}" if address.removeprefix(":").isdigit() else address
    try:
        server = MetricsServer(where)
    except OSError as error:
        raise OSError(error.errno, error.strerror, where) from error
    with server:
        output.event({"type": "metrics", "url": server.url})
        output.note(f"metrics at {server.url}")
        yield
