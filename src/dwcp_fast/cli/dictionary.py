"""``dwcp dict``."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import click

from dwcp_fast.cli.files import FILE, output_file_option
from dwcp_fast.cli.output import Output, format_bytes, output_options
from dwcp_fast.cli.units import help_with_example, reading
from dwcp_fast.dictionary import DEFAULT_MAX_BYTES, Dictionary
from dwcp_fast.options import parse_bytes
from dwcp_fast.staging import staged

__all__ = ["dictionary"]


dictionary = click.Group(
    "dict",
    short_help="Train dictionaries for small messages.",
    help=help_with_example(
        "Train dictionaries: what many small messages have in common, kept once by both sides.",
        "dwcp dict train messages/ -o messages.dict",
    ),
)


@dictionary.command(
    short_help="Train a dictionary on samples.",
    help=help_with_example(
        "Train a dictionary on SAMPLES: files, or directories of files, each file one message as it will be "
        "compressed; with --lines each line of each file.",
        "dwcp dict train messages/ -o messages.dict",
        "dwcp dict train access.jsonl --lines --max-size 16KiB -o access.dict",
    ),
)
@click.argument("samples", type=FILE, nargs=-1, required=True)
@output_file_option("The dictionary to write.")
@click.option(
    "--max-size",
    default=str(DEFAULT_MAX_BYTES),
    callback=reading(parse_bytes),
    help="Length of the dictionary, at most (110KiB).",
)
@click.option("--lines", is_flag=True, help="Each line is a message.")
@output_options
def train(
    samples: tuple[Path, ...],
    output: Path,
    max_size: int,
    lines: bool,
    printer: Output,
) -> None:
    """Train a dictionary on samples."""
    messages = [message for path in samples for message in messages_of(path, lines) if message]
    trained = Dictionary.train(messages, max_bytes=max_size)
    data = trained.to_bytes()
    with staged(output) as out:
        out.write_bytes(data)
    sample_bytes = sum(map(len, messages))
    told = {
        "type": "dictionary",
        "digest": trained.digest,
        "bytes": len(data),
        "samples": len(messages),
        "sample_bytes": sample_bytes,
    }
    printer.result(
        told,
        f"wrote {output}: dictionary {trained.digest}, {format_bytes(len(data))}, "
        f"from {len(messages)} samples of {format_bytes(sample_bytes)}",
    )


def messages_of(path: Path, lines: bool) -> Iterator[bytes]:
    """Give the messages of a file, or of every file below a directory."""
    if path.is_dir():
        for inner in sorted(path.rglob("*")):
            if inner.is_file():
                yield from messages_of(inner, lines)
        return
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    data = path.read_bytes()
    if lines:
        yield from data.splitlines(keepends=True)
    else:
        yield data
