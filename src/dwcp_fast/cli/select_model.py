"""Commands of ``dwcp select`` that train, judge and question a model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import click

from dwcp_fast.cli.files import FILE, SEEKABLE
from dwcp_fast.cli.output import Output, output_options
from dwcp_fast.cli.units import help_with_example, reading
from dwcp_fast.options import parse_rate
from dwcp_fast.staging import replace_file

__all__ = ["evaluate", "explain", "train"]

STREAMS: Final = ("guest", "disk")
"""Families that whole transfers are simulated of."""

TABLES = click.option(
    "--table",
    type=FILE,
    multiple=True,
    required=True,
    help="A measured table with its manifest beside it; give it again to add your own.",
)
SEED = click.option("--seed", default=1, show_default=True, help="What everything random is drawn from.")
MODEL = click.option("--model", type=FILE, help="The model; the one that comes with dwcp if not given.")


@click.command(
    short_help="Train a model on measured tables.",
    help=help_with_example(
        "Train a model. It learns from the files that the manifest has in `train`, stops by those in "
        "`validation`, and is judged by those in `held-out`; its card, OUT with the ending .json, says how "
        "well it does. Needs the extra `train`: pip install 'dwcp-fast[train]'.",
        "dwcp select train --table selector/table.csv.xz --out model.dwsm",
    ),
)
@TABLES
@click.option("--out", required=True, type=FILE, help="The model to write.")
@click.option("--trees", default=None, type=click.IntRange(1, 1024), help="Trees for each quantity, at most.")
@SEED
@output_options
def train(table: tuple[Path, ...], out: Path, trees: int | None, seed: int, printer: Output) -> None:
    """Train a model."""
    # Imported late: few commands need it, and numpy takes a tenth of a second.
    from dwcp_fast.train.selector.dataset import read_dataset
    from dwcp_fast.train.selector.evaluation import evaluate as judge
    from dwcp_fast.train.selector.modelfile import write_forest
    from dwcp_fast.train.selector.report import card
    from dwcp_fast.train.selector.simulate import streams
    from dwcp_fast.train.selector.training import Settings
    from dwcp_fast.train.selector.training import train as fit

    dataset = read_dataset(table)
    settings = Settings(seed=seed) if trees is None else Settings(seed=seed, trees=trees)
    splits = dataset.splits
    forest = fit(
        dataset.table, splits == "train", splits == "validation", dataset.reference_ns_per_byte, settings
    )
    data = write_forest(forest)
    held_out, learned = dataset.part("held-out"), dataset.part("train")
    figures = judge(forest, held_out, learned, seed=seed)
    figures["streams"] = streams(forest, held_out, learned, STREAMS)
    told = card(forest, dataset, settings, data, figures)
    replace_file(out, [data])
    replace_file(out.with_suffix(".json"), [json.dumps(told, indent=1).encode(), b"\n"])
    printer.result(
        {"type": "trained", **told},
        f"wrote {out}: {told['model']['trees']} trees, {told['model']['bytes']} bytes; on held-out files "
        f"{figures['efficiency_sequential']:.1%} of the oracle one after the other, "
        f"{figures['efficiency_pipelined']:.1%} overlapping",
    )


@click.command(
    short_help="Judge a model by measured tables.",
    help=help_with_example(
        "Judge a model by files that it has not learned from, against an oracle that knows what was "
        "measured, and against rules that need no model. With --leave-out models are trained without a part "
        "of the data, and judged by that part.",
        "dwcp select evaluate --table selector/table.csv.xz --json",
        "dwcp select evaluate --table selector/table.csv.xz --leave-out family",
    ),
)
@TABLES
@MODEL
@click.option("--split", default="held-out", show_default=True, help="train, validation or held-out.")
@click.option(
    "--leave-out",
    multiple=True,
    type=click.Choice(["file", "family"]),
    help="Train without a fifth of the files, or without a family, in turn.",
)
@click.option("--rounds", default=3, show_default=True, help="How often, each time from another seed.")
@SEED
@output_options
def evaluate(
    table: tuple[Path, ...],
    model: Path | None,
    split: str,
    leave_out: tuple[Literal["file", "family"], ...],
    rounds: int,
    seed: int,
    printer: Output,
) -> None:
    """Judge a model."""
    from dwcp_fast.models import selector_bytes
    from dwcp_fast.train.selector.crossing import cross
    from dwcp_fast.train.selector.dataset import read_dataset
    from dwcp_fast.train.selector.evaluation import evaluate as judge
    from dwcp_fast.train.selector.modelfile import read_forest
    from dwcp_fast.train.selector.report import tables
    from dwcp_fast.train.selector.simulate import streams

    dataset = read_dataset(table)
    forest = read_forest(selector_bytes(model))
    judged, learned = dataset.part(split), dataset.part("train")
    figures: dict[str, Any] = {"type": "evaluation", "split": split}
    figures |= judge(forest, judged, learned, seed=seed)
    figures["streams"] = streams(forest, judged, learned, STREAMS)
    seeds = range(seed, seed + rounds)
    figures["cross"] = {by: cross(dataset, by, seeds, progress=teller(printer, by)) for by in leave_out}
    printer.result(figures, "\n".join(tables(figures)))


def teller(printer: Output, by: str) -> Callable[[int, int], None]:
    """Make what tells how many models are trained."""

    def tell(done: int, total: int) -> None:
        printer.note(f"without one {by}: {done} of {total} models trained")
        printer.event({"type": "progress", "what": "evaluate", "models_done": done, "models_total": total})

    return tell


@click.command(
    short_help="Say how a file would be sent, and why.",
    help=help_with_example(
        "Say for each block of FILE which action a model chooses at the rate of a link, and what it expects "
        "of it and of the others. Nothing is compressed, so nothing is corrected, as it is in a transfer.",
        "dwcp select explain model.safetensors --link 1Gbps --width 2",
    ),
)
@click.argument("file", type=SEEKABLE)
@click.option("--link", required=True, callback=reading(parse_rate), help="Rate of the link, such as 1Gbps.")
@click.option(
    "--cores", default=1.0, show_default=True, type=click.FloatRange(0.01, 1024), help="At each end."
)
@click.option(
    "--width", type=click.IntRange(1, 8), help="Bytes of an element, if that is what FILE is made of."
)
@MODEL
@output_options
def explain(
    file: Path, link: int, cores: float, width: int | None, model: Path | None, printer: Output
) -> None:
    """Say how a file would be sent, and why."""
    from dwcp_fast.train.selector.costs import Situation
    from dwcp_fast.train.selector.explanation import explain_file

    choices = explain_file(file, Situation(float(link), cores, "pipelined"), width, model)
    for choice in choices:
        printer.event({"type": "block", **choice.to_dict()})
    told = {"type": "explanation", "blocks": [choice.to_dict() for choice in choices]}
    printer.result(told, "\n".join(choice.text() for choice in choices))
