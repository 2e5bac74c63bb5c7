"""``dwcp demo``."""

import shutil
import sys
from pathlib import Path

import click

from dwcp_fast.cli.units import help_with_example

__all__ = ["demo"]


@click.command(
    short_help="Show what it does, on this machine.",
    help=help_with_example(
        "Send a memory image, weights and a disk image over slowed-down links, in four ways; break "
        "things and watch it recover; print one table, and write report.html and run.json. Exits 0 "
        "only if every claim held.",
        "dwcp demo --out demo-out",
    ),
)
@click.option(
    "--out", default=".", show_default=True, type=click.Path(path_type=Path), help="Where to write."
)
@click.option("--seed", default=1, show_default=True, help="Seed of the synthetic state.")
@click.option("--quick", is_flag=True, help="Less data, for a first look.")
@click.option("--quiet", "-q", is_flag=True, help="Only the table.")
def demo(out: Path, seed: int, quick: bool, quiet: bool) -> int:
    """Show what it does, on this machine."""
    # Imported late: the demo brings numpy and matplotlib.
    from dwcp_fast.demo.report import render_text
    from dwcp_fast.demo.run import run_demo

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    result = run_demo(out, seed, quick, say)
    colour = sys.stdout.isatty()
    width = shutil.get_terminal_size((110, 40)).columns
    print(render_text(result.record, width, colour))
    for file in result.files:
        say(f"wrote {file}")
    return 0 if result.ok else 1
