"""Options with units, as a person writes them."""

from collections.abc import Callable
from typing import TypeVar

import click

from dwcp_fast.errors import ConfigError
from dwcp_fast.options import parse_rate, parse_schedule

__all__ = ["help_with_example", "parse_bandwidth", "parse_clients", "parse_streams", "reading"]

T = TypeVar("T")


def reading(parse: Callable[[str], T]) -> Callable[[click.Context, click.Parameter, str | None], T | None]:
    """Make a callback for an option of what reads its text; an option that is not given stays None."""

    def convert(ctx: click.Context, param: click.Parameter, text: str | None) -> T | None:
        try:
            return None if text is None else parse(text)
        except ConfigError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    return convert


def parse_streams(text: str) -> int | None:
    """Read ``auto``, which is None, or a number of lanes.

    Raises:
        ConfigError: It is neither.
    """
    return parse_count(text, "auto", "streams", 256)


def parse_clients(text: str) -> int | None:
    """Read ``any``, which is None, or a number of clients.

    Raises:
        ConfigError: It is neither.
    """
    return parse_count(text, "any", "clients", 65_536)


def parse_bandwidth(text: str) -> int | str | None:
    """Read a rate, which becomes bits per second, ``off``, or a schedule of rates, which stays text.

    Raises:
        ConfigError: It is none of them.
    """
    if text == "off":
        return None
    if "=" not in text:
        return parse_rate(text)
    parse_schedule(text)
    return text


def parse_count(text: str, free: str, what: str, most: int) -> int | None:
    """Read the word that leaves the number open, which is None, or a number from 1 to `most`."""
    if text == free:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= most:
        raise ConfigError(f"{text!r} is no number of {what}: write {free}, or 1 to {most}")
    return int(text)


def help_with_example(text: str, *commands: str) -> str:
    """Make a help text that begins with an example."""
    # A paragraph that begins with a backspace keeps its lines.
    return "\n".join(["\b", "Example:", *(f"  {command}" for command in commands), "", text])
