"""Options that only matter to v1 peers."""

from collections.abc import Callable
from typing import Any, get_args

import click

from dwcp_fast.options import Generation, Payload

__all__ = ["v1_options"]


def v1_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for the dialect that a v1 peer speaks."""
    for option in reversed(
        (
            click.option(
                "--v1-generation",
                type=click.Choice(get_args(Generation)),
                default="A",
                show_default=True,
                help="For v1 only.",
            ),
            click.option(
                "--v1-payload",
                type=click.Choice(get_args(Payload)),
                default="hde",
                show_default=True,
                help="For v1 only.",
            ),
        )
    ):
        command = option(command)
    return command
