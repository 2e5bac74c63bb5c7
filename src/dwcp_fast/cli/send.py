"""``dwcp send``."""

from pathlib import Path
from typing import Any, Literal, get_args

import click

from dwcp_fast.cli.files import FILE
from dwcp_fast.cli.output import Output, format_bytes, output_options
from dwcp_fast.cli.security import security_options, server_name_option
from dwcp_fast.cli.transfer import (
    MODE,
    POLITE,
    STALL_TIMEOUT,
    STREAMS,
    SYMLINKS,
    TIMEOUT,
    Encoding,
    Redialling,
    encoding_options,
    redialling_options,
)
from dwcp_fast.cli.units import help_with_example
from dwcp_fast.cli.v1 import Dialect, v1_options
from dwcp_fast.engine import current_flags, engine_for
from dwcp_fast.links import ScannedPaths, scan_paths
from dwcp_fast.options import Mode, Protocol, SendOptions, Symlinks
from dwcp_fast.policy.choice import Choice
from dwcp_fast.policy.codec import choose_codec
from dwcp_fast.policy.lanes import choose_lanes
from dwcp_fast.policy.mode import choose_mode
from dwcp_fast.reports import SendReport
from dwcp_fast.rollout.flags import component_refusal
from dwcp_fast.session import connect
from dwcp_fast.trust import Insecure, MutualTls, address_of

__all__ = ["send"]


@click.command(
    short_help="Send files and directories.",
    help=help_with_example(
        "Send files and directories to `dwcp recv`. Each PATH arrives under its last component. The "
        "command ends well only if the receiver proved that it holds exactly what was sent. "
        "Interrupted, it continues when run again.",
        "dwcp send model.bin --to 'dwcp://host:7443#...'",
    ),
)
@click.argument("paths", nargs=-1, required=True, type=FILE, metavar="PATH...")
@click.option("--to", required=True, metavar="PAIRING|HOST:PORT", help="What `dwcp recv` printed.")
@click.option(
    "--protocol",
    type=click.Choice(get_args(Protocol)),
    default="auto",
    show_default=True,
    help="Which engine.",
)
@MODE
@STREAMS
@POLITE
@encoding_options("all lanes together send")
@click.option(
    "--link-memory/--no-link-memory",
    default=True,
    show_default=True,
    help="Whether --codec auto begins with what the last session found out about the link, and keeps it.",
)
@TIMEOUT
@STALL_TIMEOUT
@redialling_options("receiver")
@click.option(
    "--base",
    multiple=True,
    default=("auto",),
    show_default=True,
    metavar="auto|none|PATH",
    help="What the receiver has already: found by itself, or this file or directory.",
)
@SYMLINKS
@v1_options
@server_name_option("receiver")
@click.option("--dry-run", is_flag=True, help="Look at what would be sent, and connect to nobody.")
@security_options
@output_options
def send(
    paths: tuple[Path, ...],
    to: str,
    protocol: Protocol,
    mode: Mode,
    streams: int | None,
    polite: bool,
    encoding: Encoding,
    link_memory: bool,
    timeout: float | None,
    stall_timeout: float,
    redialling: Redialling,
    base: tuple[str, ...],
    symlinks: Symlinks,
    dialect: Dialect,
    dry_run: bool,
    trust: MutualTls | Insecure | None,
    printer: Output,
) -> None:
    """Send files and directories."""
    options = SendOptions(
        protocol=protocol,
        mode=mode,
        streams=streams,
        polite=polite,
        link_memory=link_memory,
        timeout_s=timeout,
        stall_timeout_s=stall_timeout,
        base=make_base(base),
        symlinks=symlinks,
        **encoding,
        **redialling,
        **dialect,
    )
    # What cannot be sent should show before anybody is bothered.
    scan = scan_paths(paths, options)
    if dry_run:
        tell_plan(printer, scan, options, to)
        return
    session = connect(to, trust=trust, options=options, events=printer.event)
    with session, printer.progress("sending", session.progress):
        report = session.send_scan(scan)
    printer.result({"type": "sent", **report.to_dict(), "record": report.record()}, describe(report))


def make_base(bases: tuple[str, ...]) -> Literal["auto", "none"] | tuple[Path, ...]:
    """Make of the --base options what the library takes."""
    if bases == ("auto",):
        return "auto"
    if bases == ("none",):
        return "none"
    if "auto" in bases or "none" in bases:
        raise click.UsageError(
            "--base auto or none goes with no other --base; for a file of that name write ./auto"
        )
    paths = tuple(Path(base) for base in bases)
    for path in paths:
        if not path.exists():
            raise click.UsageError(f"--base {path} does not exist")
    return paths


def tell_plan(output: Output, scan: ScannedPaths, options: SendOptions, target: str) -> None:
    """Print what would be done."""
    choices: list[Choice[Any]] = [
        engine_for(options.protocol),
        choose_mode(options.mode, flags=current_flags()),
        choose_codec(options.codec, refusal=component_refusal("compression")),
        choose_lanes(options.streams, polite=options.polite),
    ]
    why = {choice.name: f"{choice.value}: {choice.why}" for choice in choices}
    plan: dict[str, Any] = {
        "type": "plan",
        "to": address_of(target),
        "entries": scan.entries,
        "files": scan.files,
        "bytes_raw": scan.total_bytes,
        "has_base": scan.has_base,
        "why": why,
    }
    lines = [f"would send {scan.entries} entries, {format_bytes(scan.total_bytes)}, to {plan['to']}"]
    lines += [f"  {name} {reason}" for name, reason in why.items()]
    output.result(plan, "\n".join(lines))


def describe(report: SendReport) -> str:
    """Say in one line what was done."""
    proof = "verified" if report.verified else "NOT verified: v1 cannot"
    ratio = f", {report.bytes_raw / report.bytes_wire:.1f}x" if report.bytes_wire else ""
    return (
        f"sent {report.entries} entries, {format_bytes(report.bytes_raw)} in {report.seconds:.2f} s "
        f"({format_bytes(report.bytes_wire)} on the wire{ratio}), {proof}"
    )
