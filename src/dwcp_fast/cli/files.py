"""Options that name files, and how dictionaries are read."""

import os
from pathlib import Path
from typing import Any, Final

import click

from dwcp_fast.cli.grouping import Decorator
from dwcp_fast.dictionary import Dictionary
from dwcp_fast.errors import ConfigError
from dwcp_fast.options import MAX_DICTIONARY_BYTES

__all__ = [
    "DICTIONARY",
    "FILE",
    "PATCH_CODEC",
    "SEEKABLE",
    "output_file_option",
    "read_dictionary",
    "read_known",
]

FILE: Final = click.Path(path_type=Path)

MAX_KNOWN: Final = 256
"""Most dictionaries of a directory; each is made ready when it is read."""


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

DICTIONARY: Final = click.option(
    "--dict",
    type=FILE,
    metavar="FILE",
    help="What small files have in common, as `dwcp dict train` made it.",
)


def output_file_option(text: str, *, required: bool = True) -> Decorator:
    """Make the option for the file that is written."""

    def check(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
        if path is not None and not path.parent.is_dir():
            raise click.BadParameter(f"{path.parent} is no directory", ctx, param)
        return path

    return click.option("-o", "--output", required=required, type=FILE, callback=check, help=text)


def read_dictionary(path: Path | None) -> Dictionary | None:
    """Read a dictionary, where one is named, no longer than a transfer can use.

    Raises:
        ConfigError: The file is too long for a transfer; the message names both lengths.
        FormatError: It is no dictionary.
        OSError: It cannot be read.
    """
    if path is None:
        return None
    with path.open("rb") as file:
        data = file.read(MAX_DICTIONARY_BYTES + 1)
    if len(data) > MAX_DICTIONARY_BYTES:
        length = path.stat().st_size
        raise ConfigError(f"{path} has {length} bytes: a dictionary here may have {MAX_DICTIONARY_BYTES}")
    return Dictionary(data)


def read_known(directory: Path | None) -> tuple[Dictionary, ...]:
    """Read every file of a directory whose name ends in ``.dict``.

    Raises:
        ConfigError: There are more than 256, or one is too long.
        FormatError: One is no dictionary.
        OSError: One cannot be read.
    """
    if directory is None:
        return ()
    paths = sorted(path for path in directory.iterdir() if path.suffix == ".dict" and path.is_file())
    if len(paths) > MAX_KNOWN:
        raise ConfigError(f"{directory} holds {len(paths)} dictionaries: at most {MAX_KNOWN} are read")
    return tuple(known for path in paths if (known := read_dictionary(path)) is not None)
