"""Options of the commands that make one file of others."""

import os
from pathlib import Path
from typing import Any, Final

import click

from dwcp_fast.cli.grouping import Decorator

__all__ = ["FILE", "PATCH_CODEC", "SEEKABLE", "output_file_option"]

FILE: Final = click.Path(path_type=Path)


class SeekablePath(click.Path):
    """A path that is no pipe: opening one that nobody writes to would wait for ever."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse a pipe."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.is_fifo():
            self.fail(f"{path} is a pipe: name a file, which can be read at any place", param, ctx)
        return path


SEEKABLE: Final = SeekablePath(path_type=Path)

PATCH_CODEC: Final = click.option(
    "--codec", default="zstd:1", show_default=True, help="none, lz4, lz4:ACCELERATION, zstd or zstd:LEVEL."
)


def output_file_option(text: str, *, required: bool = True) -> Decorator:
    """Make the option for the file that is written."""

    def check(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
        if path is not None and not path.parent.is_dir():
            raise click.BadParameter(f"{path.parent} is no directory", ctx, param)
        return path

    return click.option("-o", "--output", required=required, type=FILE, callback=check, help=text)
