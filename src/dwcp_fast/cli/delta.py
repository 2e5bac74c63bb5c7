"""``dwcp delta``."""

from pathlib import Path

import click

from dwcp_fast.cli.files import DICTIONARY, PATCH_CODEC, SEEKABLE, output_file_option, read_dictionary
from dwcp_fast.cli.output import Output, format_bytes, output_options
from dwcp_fast.cli.units import help_with_example
from dwcp_fast.delta import PatchInfo, apply_files, diff_files
from dwcp_fast.delta import recover as recover_file
from dwcp_fast.options import MAX_THREADS

__all__ = ["delta"]

THREADS = click.option(
    "--threads",
    type=click.IntRange(1, MAX_THREADS),
    default=1,
    show_default=True,
    help="How many threads work on it.",
)


delta = click.Group(
    "delta",
    short_help="Make and apply patches between files.",
    help=help_with_example(
        "Make and apply patches. A patch names its base by digest, and is applied to nothing else.",
        "dwcp delta diff model-1.bin model-2.bin -o step.dwcd --dtype bf16",
        "dwcp delta apply step.dwcd --base model-1.bin -o model-2.bin",
    ),
)


@delta.command(
    short_help="Write the patch between two files.",
    help=help_with_example(
        "Write the patch that turns OLD into NEW.",
        "dwcp delta diff model-1.bin model-2.bin -o step.dwcd --dtype bf16",
    ),
)
@click.argument("old", type=SEEKABLE)
@click.argument("new", type=SEEKABLE)
@output_file_option("The patch to write.")
@click.option("--dtype", help="Type of the elements, such as bf16 or fp32; bytes otherwise.")
@PATCH_CODEC
@DICTIONARY
@click.option("--search/--no-search", default=True, help="Whether to look for content that moved.")
@THREADS
@output_options
def diff(
    old: Path,
    new: Path,
    output: Path,
    dtype: str | None,
    codec: str,
    dict: Path | None,  # noqa: A002 - it has the name of its option
    search: bool,
    threads: int,
    printer: Output,
) -> None:
    """Write the patch between two files."""
    common = read_dictionary(dict)
    told = diff_files(
        old, new, output, dtype=dtype, codec=codec, dictionary=common, search=search, threads=threads
    )
    printer.result({"type": "diff", **told.to_dict()}, f"wrote {output}: {describe(told)}")


@delta.command(
    short_help="Apply a patch.",
    help=help_with_example(
        "Make the new file from PATCH and its base. It appears under its name only when it is verified. "
        "In place only what changes is written, with a journal beside the file: "
        "a call that was cut off can be made again.",
        "dwcp delta apply step.dwcd --base model-1.bin -o model-2.bin",
    ),
)
@click.argument("patch", type=SEEKABLE)
@click.option("--base", required=True, type=SEEKABLE, help="The file that the patch was made from.")
@output_file_option("The file to write.", required=False)
@click.option("--in-place", is_flag=True, help="Change the base itself.")
@DICTIONARY
@THREADS
@output_options
def apply(
    patch: Path,
    base: Path,
    output: Path | None,
    in_place: bool,
    dict: Path | None,  # noqa: A002 - it has the name of its option
    threads: int,
    printer: Output,
) -> None:
    """Apply a patch."""
    if in_place == (output is not None):
        raise click.UsageError("give either -o NEW or --in-place")
    made = base if output is None else output
    common = read_dictionary(dict)
    told = apply_files(patch, base, output, in_place=in_place, threads=threads, dictionary=common)
    text = f"wrote {made}: {format_bytes(told.target_bytes)}, verified"
    printer.result({"type": "applied", "verified": True, **told.to_dict()}, text)


@delta.command(
    short_help="Finish or take back a change in place that was cut off.",
    help=help_with_example(
        "Make FILE the new version if its journal is complete, and else the old one, which it is still.",
        "dwcp delta recover model.bin",
    ),
)
@click.argument("file", type=SEEKABLE)
@output_options
def recover(file: Path, printer: Output) -> None:
    """Finish or take back a change in place that was cut off."""
    done = recover_file(file)
    text = {
        "nothing": f"{file} needs no recovery",
        "discarded": f"{file} is the old version",
        "finished": f"{file} is the new version",
    }[done]
    printer.result({"type": "recovered", "journal": done}, text)


def describe(told: PatchInfo) -> str:
    """Say in one line what a patch is."""
    changed = told.blocks - told.blocks_same
    return (
        f"{format_bytes(told.patch_bytes)} for {format_bytes(told.target_bytes)}, "
        f"{changed} of {told.blocks} blocks changed"
    )
