"""``dwcp select``."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from dwcp_fast.cli.files import FILE
from dwcp_fast.cli.output import Output, output_options
from dwcp_fast.cli.select_model import evaluate, explain, train
from dwcp_fast.cli.units import help_with_example, reading
from dwcp_fast.options import parse_duration

if TYPE_CHECKING:
    from dwcp_fast.train.selector.collect import Step

__all__ = ["select"]

TELL_EVERY_S: Final = 5.0


select = click.Group(
    "select",
    short_help="Measure, train and explain the choice of compressors.",
    help=help_with_example(
        "The choice of a compressor for each block: measure what it is learned from, train it, judge it, and "
        "ask it why.",
        "dwcp select collect --out selector/",
    ),
)


for command in (train, evaluate, explain):
    select.add_command(command)


@select.command(
    short_help="Measure what compressors make of real files.",
    help=help_with_example(
        "Measure size and processor time of every compressor on blocks of real files: of this system, of "
        "memory of processes, images and archives made for it, and of every --source. Only numbers are "
        "kept: OUT/table.csv.xz, and OUT/manifest.json with the names of the files. A run that was "
        "stopped goes on where it was.",
        "dwcp select collect --out selector/",
        "dwcp select collect --out selector/ --source 'vm=dumps/*.mem,family=guest,blocks=64'",
        "dwcp select collect --out mine/ --no-system --source weights=ckpt/,width=2",
    ),
)
@click.option("--out", required=True, type=FILE, metavar="DIR", help="Where the table and the manifest go.")
@click.option(
    "--source",
    multiple=True,
    metavar="NAME=PATH[,...]",
    help="More files: one, those of a folder, or those of a pattern; then any of family=NAME, width=BYTES of "
    "an element, blocks=N, group=NAME of files that depend on each other (group=folder: each folder), "
    "xor=PATH to measure differences from.",
)
@click.option("--system/--no-system", default=True, help="Whether files of this system are measured.")
@click.option("--exclude", multiple=True, type=FILE, metavar="DIR", help="Leave out a folder of the system.")
@click.option("--blocks", default=6, show_default=True, help="Most blocks of 1 MiB of a file.")
@click.option("--files", default=24, show_default=True, help="Most files of a family and source.")
@click.option("--repeats", default=3, show_default=True, help="Measurements, of which the least counts.")
@click.option("--seed", default=0, show_default=True, help="What the choice of files depends on.")
@click.option(
    "--file-timeout",
    default="2m",
    show_default=True,
    callback=reading(parse_duration),
    help="Time for a file.",
)
@output_options
def collect(
    out: Path,
    source: tuple[str, ...],
    system: bool,
    exclude: tuple[Path, ...],
    blocks: int,
    files: int,
    repeats: int,
    seed: int,
    file_timeout: float,
    printer: Output,
) -> None:
    """Measure what compressors make of real files."""
    # Imported late: few commands need it, and numpy takes a tenth of a second.
    from dwcp_fast.train.selector.collect import CollectOptions
    from dwcp_fast.train.selector.collect import collect as run
    from dwcp_fast.train.selector.corpus import parse_source, source_candidates
    from dwcp_fast.train.selector.recipes import system_corpus

    options = CollectOptions(blocks=blocks, repeats=repeats, file_timeout_s=file_timeout, seed=seed)
    candidates = []
    for parsed in [parse_source(text) for text in source]:
        candidates += source_candidates(parsed, seed, files)
    if system:
        printer.note("looking for files")
        candidates += system_corpus(Path("/"), seed, files, exclude)
    report = run(candidates, out, options, Teller(printer))
    for name, reason in report.skipped.items():
        printer.note(f"skipped {name}: {reason}")
    measured = sum(report.families.values())
    told = {
        "type": "collected",
        "files": measured,
        "families": report.families,
        "rows": report.rows,
        "skipped": len(report.skipped),
        "kept": report.kept,
    }
    printer.result(
        told,
        f"wrote {out}: {report.rows} rows of {measured} files in {len(report.families)} families, "
        f"{len(report.skipped)} files skipped",
    )


class Teller:
    """Tells of progress, not more often than anybody reads it."""

    def __init__(self, printer: Output) -> None:
        self._printer = printer
        self._next = 0.0

    def __call__(self, step: "Step") -> None:
        """Tell of a step, if it is time to."""
        now = time.monotonic()
        if now < self._next and step.done < step.total:
            return
        self._next = now + TELL_EVERY_S
        self._printer.note(f"{step.done} of {step.total} files, {step.rows} rows: {step.file}")
        self._printer.event(
            {
                "type": "progress",
                "what": "collect",
                "files_done": step.done,
                "files_total": step.total,
                "rows": step.rows,
            }
        )
