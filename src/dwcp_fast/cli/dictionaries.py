"""Dictionaries that are files."""

from pathlib import Path
from typing import Final

import click

from dwcp_fast.cli.files import FILE
from dwcp_fast.dictionary import Dictionary
from dwcp_fast.errors import ConfigError
from dwcp_fast.options import MAX_DICTIONARY_BYTES

__all__ = ["DICTIONARY", "read_dictionary", "read_known"]

MAX_KNOWN: Final = 256
"""Most dictionaries of a directory; each is made ready when it is read."""
DICTIONARY: Final = click.option(
    "--dict",
    type=FILE,
    metavar="FILE",
    help="What small files have in common, as `dwcp dict train` made it.",
)


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
