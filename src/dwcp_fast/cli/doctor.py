"""``dwcp doctor``."""

from dataclasses import asdict

import click

from dwcp_fast.carriers import locked_memory_limit, rdma_devices
from dwcp_fast.cli.output import Output, output_options
from dwcp_fast.cli.units import help_with_example
from dwcp_fast.doctor import Finding, examine, rdma_limits

__all__ = ["doctor"]


@click.command(
    short_help="Look at what this host offers.",
    help=help_with_example(
        "Look at what this host offers to transfers, and say what to change where it offers little. Changes "
        "nothing, and needs no rights.",
        "dwcp doctor",
    ),
)
@output_options
def doctor(printer: Output) -> None:
    """Look at what this host offers."""
    findings = (*examine(), rdma_limits(*rdma_devices(), locked_memory_limit()))
    advice = sum(finding.state == "advice" for finding in findings)
    width = max(len(finding.name) for finding in findings)
    lines = [line for finding in findings for line in describe(finding, width)]
    lines.append(f"{advice} of {len(findings)} can be improved" if advice else "nothing to improve")
    told = {"type": "doctor", "advice": advice, "findings": [asdict(finding) for finding in findings]}
    printer.result(told, "\n".join(lines))


def describe(finding: Finding, width: int) -> list[str]:
    """Say what was found, and how to change it."""
    lines = [f"{finding.state:<8} {finding.name:<{width}}  {finding.value}"]
    if finding.change is not None:
        margin = " " * (width + 11)
        lines += [f"{margin}{finding.why}", f"{margin}to change it: {finding.change}"]
    return lines
