"""Options that only matter to v1 peers."""

from typing import Final, TypedDict, get_args

import click

from dwcp_fast.cli.grouping import gather
from dwcp_fast.options import Generation, Payload

__all__ = ["Dialect", "v1_options"]


class Dialect(TypedDict):
    """What a v1 peer speaks, in the words of the library's options."""

    v1_generation: Generation
    v1_payload: Payload


def make_dialect(v1_generation: Generation, v1_payload: Payload) -> Dialect:
    """Make of the options what the library takes."""
    return Dialect(v1_generation=v1_generation, v1_payload=v1_payload)


v1_options: Final = gather(
    "dialect",
    make_dialect,
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
