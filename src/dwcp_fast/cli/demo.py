"""``dwcp demo``."""

import os
import shutil
import sys
from collections.abc import Callable
from json import dumps
from pathlib import Path

import click

from dwcp_fast.cli.files import FILE
from dwcp_fast.cli.units import help_with_example, reading
from dwcp_fast.errors import IntegrityError
from dwcp_fast.options import parse_duration, parse_rate

__all__ = ["demo"]


@click.group(
    invoke_without_command=True,
    short_help="Show what it does, on this machine.",
    help=help_with_example(
        "Send a memory image, weights and a disk image over slowed-down links, in five ways; break "
        "things and watch it recover; print what was lost and won, and write report.html, run.json and "
        "pictures. Takes about a minute. Exits 0 only if every claim held.",
        "dwcp demo --out demo-out",
    ),
)
@click.option("--out", default=".", show_default=True, type=FILE, help="Where to write.")
@click.option("--seed", default=1, show_default=True, help="Seed of the synthetic state.")
@click.option("--quick", is_flag=True, help="Less data and fewer links, in a third of the time.")
@click.option("--json", is_flag=True, help="The content of run.json on stdout at the end.")
@click.option("--quiet", "-q", is_flag=True, help="Only the result.")
@click.pass_context
def demo(context: click.Context, out: Path, seed: int, quick: bool, json: bool, quiet: bool) -> int:
    """Show what it does, on this machine."""
    if context.invoked_subcommand is not None:
        return 0
    # Imported late: the demo brings numpy and matplotlib.
    from dwcp_fast.demo.report import render_text
    from dwcp_fast.demo.run import run_demo

    say = sayer(quiet)
    result = run_demo(out, seed, quick, say)
    if json:
        print(dumps(result.record.to_dict()))
    else:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        width = shutil.get_terminal_size((100, 40)).columns
        print(render_text(result.record, width, colour))
    for file in result.files:
        say(f"wrote {file}")
    if result.ok:
        return 0
    wrong_bytes = any(not cell.verified for cell in result.record.cells)
    return IntegrityError.exit_code if wrong_bytes else 1


@demo.command(
    short_help="Move a real guest while it writes.",
    help=help_with_example(
        "Start a small guest under QEMU, move it to another QEMU on this machine over a slowed-down link "
        "while it writes its memory, and have it check every page; write move.html, with a picture of the "
        "rounds and the stop, and move.json. Needs Linux on x86, QEMU, gcc and a Debian kernel, and says "
        "what is missing. Takes about a minute. Exits 0 only if every claim held.",
        "dwcp demo vm --out demo-out",
    ),
)
@click.option("--out", default=".", show_default=True, type=FILE, help="Where to write.")
@click.option(
    "--memory", type=click.IntRange(96, 4096), default=192, show_default=True, help="The guest's, in MiB."
)
@click.option(
    "--writes",
    type=click.IntRange(0, 100_000),
    default=500,
    show_default=True,
    help="Pages that the guest writes each second.",
)
@click.option(
    "--link",
    metavar="RATE",
    default="100Mbps",
    show_default=True,
    callback=reading(parse_rate),
    help="What the link carries.",
)
@click.option(
    "--rtt",
    metavar="TIME",
    default="20ms",
    show_default=True,
    callback=reading(parse_duration),
    help="Its round trip.",
)
@click.option("--json", is_flag=True, help="The content of move.json on stdout at the end.")
@click.option("--quiet", "-q", is_flag=True, help="Only the result.")
def vm(out: Path, memory: int, writes: int, link: int, rtt: float, json: bool, quiet: bool) -> int:
    """Move a real guest while it writes."""
    # Imported late: the demo brings matplotlib.
    from dwcp_fast.demo.move import MoveSettings, run_move

    say = sayer(quiet)
    settings = MoveSettings(memory_mib=memory, pages_per_s=writes, rate_bps=link, rtt_s=rtt)
    record, files = run_move(out, settings, say)
    print(dumps(record.to_dict()) if json else "\n".join(record.sentences()))
    for file in files:
        say(f"wrote {file}")
    return 0 if record.ok else 1


def sayer(quiet: bool) -> Callable[[str], None]:
    """Make what tells how it goes on."""

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    return say
