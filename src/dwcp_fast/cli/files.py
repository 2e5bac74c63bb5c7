"""Options of the commands that make one file of others."""

from pathlib import Path
from typing import Final

import click

from dwcp_fast.cli.grouping import Decorator

__all__ = ["FILE", "PATCH_CODEC", "output_file_option"]

FILE: Final = click.Path(path_type=Path)

PATCH_CODEC: Final = click.option(
    "--codec", default="zstd:1", show_default=True, help="none, lz4, zstd or zstd:LEVEL."
)


def output_file_option(text: str, *, required: bool = True) -> Decorator:
    """Make the option for the file that is written."""
    return click.option("-o", "--output", required=required, type=FILE, help=text)
