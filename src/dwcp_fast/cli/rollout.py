"""``dwcp rollout``."""

import json
import time
from pathlib import Path
from typing import Any, Final

import click

from dwcp_fast.cli.files import FILE
from dwcp_fast.cli.grouping import gather
from dwcp_fast.cli.output import Output, output_options
from dwcp_fast.cli.transfer import duration_option
from dwcp_fast.cli.units import help_with_example, reading
from dwcp_fast.errors import ConfigError, DwcpError
from dwcp_fast.options import parse_duration
from dwcp_fast.policy.rollout import RolloutFlags, format_flags, merge_flags
from dwcp_fast.policy.stages import Rollout, RolloutPlan
from dwcp_fast.rollout.controller import Controller, Look
from dwcp_fast.rollout.flagfile import change_flags
from dwcp_fast.rollout.flags import FILE_VARIABLE
from dwcp_fast.rollout.outcomes import OUTCOMES_VARIABLE

__all__ = ["rollout"]

ROLLED_BACK: Final = 1

FLAGS: Final = click.option(
    "--flags", required=True, type=FILE, envvar=FILE_VARIABLE, help=f"The flags file (or {FILE_VARIABLE})."
)
OUTCOMES: Final = click.option(
    "--outcomes",
    multiple=True,
    type=FILE,
    metavar="PATH",
    help=f"Where nodes write how transfers end ({OUTCOMES_VARIABLE}): a file, or a directory of *.jsonl.",
)

rollout = click.Group(
    "rollout",
    short_help="Move a fleet from v1 to v3 by shares of nodes, and back.",
    help=help_with_example(
        "Move a fleet from v1 to v3: a share of the nodes, then a larger one. Every node reads the flags "
        f"file that {FILE_VARIABLE} names there, and writes how its transfers end to {OUTCOMES_VARIABLE}. "
        "`watch` goes on while v3 is as good as v1, and turns v3 off, also in sessions that run, when it is "
        "worse.",
        "dwcp rollout start --flags flags.json",
        "dwcp rollout watch --flags flags.json --outcomes outcomes/",
        "dwcp rollout rollback --flags flags.json",
    ),
)


def parse_stages(text: str) -> tuple[int, ...]:
    """Read shares in percent.

    Raises:
        ConfigError: They are no whole numbers.
    """
    parts = text.split(",")
    if any(not part.strip().isascii() or not part.strip().isdigit() for part in parts):
        raise ConfigError(f"{text!r} is no list of shares: write 10,50,100")
    return tuple(int(part.strip()[:4]) for part in parts)


def make_plan(
    stages: tuple[int, ...],
    hold: float,
    window: float,
    min_transfers: int,
    min_failures: int,
    max_error_rate: float,
    max_latency: float,
    max_loss: float,
) -> RolloutPlan:
    """Make of the options what the policy takes."""
    return RolloutPlan(
        stages=stages,
        hold_s=hold,
        window_s=window,
        min_transfers=min_transfers,
        min_failures=min_failures,
        max_error_rate=max_error_rate / 100,
        max_latency_ratio=max_latency,
        max_throughput_loss=max_loss / 100,
    )


plan_options: Final = gather(
    "plan",
    make_plan,
    click.option(
        "--stages",
        default="10,50,100",
        show_default=True,
        metavar="PERCENT,...",
        callback=reading(parse_stages),
        help="Shares of nodes.",
    ),
    duration_option("--hold", "Least time in a stage.", "1h"),
    duration_option("--window", "How far back transfers count.", "10min"),
    click.option(
        "--min-transfers", type=int, default=50, show_default=True, help="Least of each engine to judge."
    ),
    click.option(
        "--min-failures", type=int, default=5, show_default=True, help="Least failures that count as a rate."
    ),
    click.option(
        "--max-error-rate", type=float, default=1, show_default=True, help="Failures of v3, percent."
    ),
    click.option(
        "--max-latency", type=float, default=2, show_default=True, help="90th percentile, times v1's."
    ),
    click.option(
        "--max-loss", type=float, default=20, show_default=True, help="Median throughput under v1's, percent."
    ),
)


@rollout.command(
    short_help="Begin with the first share.",
    help=help_with_example(
        "Begin: all components on for the first share of nodes, the kill switch off.",
        "dwcp rollout start --flags flags.json --stages 10,50,100 --hold 1h",
    ),
)
@FLAGS
@plan_options
@output_options
def start(flags: Path, plan: RolloutPlan, printer: Output) -> None:
    """Begin."""
    begun = Controller(flags).start(plan)
    shares = ", ".join(f"{stage} %" for stage in plan.stages)
    tell(printer, {"why": begun.why, **stand(begun)}, f"started at {begun.percentage} % of {shares}")


@rollout.command(
    short_help="Tell where it stands.",
    help=help_with_example(
        "Tell where the rollout stands, what transfers show, and what `watch` would do. Changes nothing.",
        "dwcp rollout status --flags flags.json --outcomes outcomes/",
    ),
)
@FLAGS
@OUTCOMES
@output_options
def status(flags: Path, outcomes: tuple[Path, ...], printer: Output) -> None:
    """Tell where it stands."""
    found = Controller(flags, outcomes).look()
    tell(printer, found.to_dict(), describe(found))


@rollout.command(
    short_help="Go on by hand.",
    help=help_with_example(
        "Go to the next share now, whatever transfers show.", "dwcp rollout advance --flags flags.json"
    ),
)
@FLAGS
@OUTCOMES
@output_options
def advance(flags: Path, outcomes: tuple[Path, ...], printer: Output) -> None:
    """Go on by hand."""
    found = Controller(flags, outcomes).advance()
    tell(printer, found.to_dict(), describe(found))


@rollout.command(
    short_help="Turn v3 off everywhere.",
    help=help_with_example(
        "Turn the kill switch on: every node uses v1, and v3 sessions that run end within 5 s. Also works "
        "where no rollout was started.",
        "dwcp rollout rollback --flags flags.json",
    ),
)
@FLAGS
@click.option("--why", default="rolled back by hand", help="The reason, for whoever reads the status.")
@output_options
def rollback(flags: Path, why: str, printer: Output) -> None:
    """Turn v3 off everywhere."""
    taken_back = Controller(flags).rollback(why)
    tell(printer, {"why": why, **stand(taken_back)}, f"rolled back: {why}")


@rollout.command(
    short_help="Go on, or take it back, by what transfers show.",
    help=help_with_example(
        "Look every few seconds: go on when a share was good for long enough, and turn v3 off as soon as it "
        "is worse than v1. Ends with 0 when all nodes use v3, and with 1 when it was taken back.",
        "dwcp rollout watch --flags flags.json --outcomes outcomes/ --every 5s",
    ),
)
@FLAGS
@OUTCOMES
@click.option(
    "--every",
    metavar="TIME",
    callback=reading(parse_duration),
    default="5s",
    show_default=True,
    help="Time between looks.",
)
@output_options
def watch(flags: Path, outcomes: tuple[Path, ...], every: float, printer: Output) -> int:
    """Go on, or take it back."""
    if not outcomes:
        raise click.UsageError("give --outcomes: there is nothing to judge by")
    controller = Controller(flags, outcomes)
    told = ""
    found = controller.step()
    while True:
        if found.rollout.status != "running":
            tell(printer, found.to_dict(), describe(found))
            return ROLLED_BACK if found.rollout.status == "rolled-back" else 0
        text = describe(found)
        if found.choice.value != "wait" or text != told:
            printer.event({"type": "rollout", **found.to_dict()})
            printer.note(text)
            told = text
        time.sleep(every)
        try:
            found = controller.step()
        except (DwcpError, OSError) as error:
            # Whoever is to take a bad rollout back must not end because a file cannot be read for a moment.
            if str(error) != told:
                printer.note(f"error: {error}", needed=True)
                told = str(error)


@rollout.command(
    "set",
    short_help="Change some flags and keep the others.",
    help=help_with_example(
        "Change the named flags in the file, whole or not at all, and keep all others.",
        "dwcp rollout set v3RolloutPercentage=25 enableHybridMode=false --flags flags.json",
    ),
)
@click.argument("changes", nargs=-1, required=True, metavar="NAME=VALUE...")
@FLAGS
@output_options
def set_flags(changes: tuple[str, ...], flags: Path, printer: Output) -> None:
    """Change some flags."""
    wanted = dict(map(parse_change, changes))

    def change(old: RolloutFlags) -> RolloutFlags:
        return merge_flags(old, wanted)

    text = format_flags(change_flags(flags, change))
    printer.result({"type": "flags", **json.loads(text)}, text)


def parse_change(text: str) -> tuple[str, object]:
    """Read one change of a flag."""
    name, given, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError as error:
        what = f"{value!r} is neither true, false nor a number" if given else "write NAME=VALUE"
        raise click.UsageError(f"{text!r}: {what}") from error


def stand(rollout: Rollout) -> dict[str, Any]:
    """Say where a rollout stands."""
    return {"status": rollout.status, "percentage": rollout.percentage, "since_s": rollout.since_s}


def tell(printer: Output, told: dict[str, Any], text: str) -> None:
    """Print where a rollout stands."""
    printer.result({"type": "rollout", **told}, text)


def describe(found: Look) -> str:
    """Say in one line where a rollout stands and why."""
    why = found.choice.why if found.rollout.status == "running" else found.rollout.why
    return f"{found.rollout.status} at {found.rollout.percentage} %: {why}"
