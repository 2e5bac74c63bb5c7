"""``dwcp demo``."""

import os
import shutil
import sys
from json import dumps
from pathlib import Path

import click

from dwcp_fast.cli.files import FILE
from dwcp_fast.cli.units import help_with_example
from dwcp_fast.errors import IntegrityError

__all__ = ["demo"]


@click.command(
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
def demo(out: Path, seed: int, quick: bool, json: bool, quiet: bool) -> int:
    """Show what it does, on this machine."""
    # Imported late: the demo brings numpy and matplotlib.
    from dwcp_fast.demo.report import render_text
    from dwcp_fast.demo.run import run_demo

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

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
