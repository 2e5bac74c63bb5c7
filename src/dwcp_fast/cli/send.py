"""``dwcp send``."""

from pathlib import Path
from typing import Any, Literal, get_args

import click

from dwcp_fast.cli.output import Output, format_bytes, make_output, output_options
from dwcp_fast.cli.security import make_trust, security_options
from dwcp_fast.cli.units import help_with_example, parse_streams, reading
from dwcp_fast.cli.v1 import v1_options
from dwcp_fast.engine import engine_for
from dwcp_fast.links import ScannedPaths, scan_paths
from dwcp_fast.options import (
    Generation,
    Payload,
    Protocol,
    SendOptions,
    Symlinks,
    parse_bytes,
    parse_duration,
    parse_rate,
)
from dwcp_fast.policy.choice import Choice
from dwcp_fast.policy.codec import choose_codec
from dwcp_fast.policy.lanes import choose_lanes
from dwcp_fast.reports import SendReport
from dwcp_fast.session import connect
from dwcp_fast.trust import address_of

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
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@click.option("--to", required=True, metavar="PAIRING|HOST:PORT", help="What `dwcp recv` printed.")
@click.option(
    "--protocol",
    type=click.Choice(get_args(Protocol)),
    default="auto",
    show_default=True,
    help="Which engine.",
)
@click.option(
    "--streams",
    metavar="auto|N",
    callback=reading(parse_streams),
    default="auto",
    show_default=True,
    help="Number of lanes.",
)
@click.option(
    "--codec", default="auto", show_default=True, metavar="NAME", help="auto, none, lz4, zstd or zstd:LEVEL."
)
@click.option(
    "--block-size",
    metavar="LENGTH",
    callback=reading(parse_bytes),
    default="1MiB",
    show_default=True,
    help="Length of a block.",
)
@click.option(
    "--bwlimit",
    metavar="RATE",
    callback=reading(parse_rate),
    help="Most that all lanes together send, such as 500Mbps.",
)
@click.option(
    "--timeout",
    metavar="TIME",
    callback=reading(parse_duration),
    help="Most that the transfer may take, such as 90s.",
)
@click.option(
    "--connect-timeout",
    metavar="TIME",
    callback=reading(parse_duration),
    default="10s",
    show_default=True,
    help="Most for connecting.",
)
@click.option(
    "--reconnect",
    metavar="TIME",
    callback=reading(parse_duration),
    default="30s",
    show_default=True,
    help="How long to look for a lost receiver.",
)
@click.option(
    "--base",
    multiple=True,
    default=("auto",),
    show_default=True,
    metavar="auto|none|PATH",
    help="What the receiver has already: found by itself, or this file or directory.",
)
@click.option(
    "--symlinks",
    type=click.Choice(get_args(Symlinks)),
    default="keep",
    show_default=True,
    help="Symbolic links.",
)
@v1_options
@click.option("--server-name", metavar="NAME", help="Name in the receiver's certificate, for mutual TLS.")
@click.option("--dry-run", is_flag=True, help="Look at what would be sent, and connect to nobody.")
@security_options
@output_options
def send(
    paths: tuple[Path, ...],
    to: str,
    protocol: Protocol,
    streams: int | None,
    codec: str,
    block_size: int,
    bwlimit: int | None,
    timeout: float | None,
    connect_timeout: float,
    reconnect: float,
    base: tuple[str, ...],
    symlinks: Symlinks,
    v1_generation: Generation,
    v1_payload: Payload,
    server_name: str | None,
    dry_run: bool,
    cert: Path | None,
    key: Path | None,
    ca: Path | None,
    insecure: bool,
    json: bool,
    json_lines: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Send files and directories."""
    output = make_output(json_final=json, json_lines=json_lines, quiet=quiet, verbose=verbose)
    options = SendOptions(
        protocol=protocol,
        streams=streams,
        codec=codec,
        block_bytes=block_size,
        bandwidth_bits_per_s=bwlimit,
        timeout_s=timeout,
        connect_timeout_s=connect_timeout,
        reconnect_s=reconnect,
        base=make_base(base),
        symlinks=symlinks,
        v1_generation=v1_generation,
        v1_payload=v1_payload,
    )
    trust = make_trust(cert, key, ca, insecure, server_name)
    # What cannot be sent should show before anybody is bothered.
    scan = scan_paths(paths, options)
    if dry_run:
        tell_plan(output, scan, options, to)
        return
    session = connect(to, trust=trust, options=options, events=output.event)
    with session, output.progress("sending", session.progress):
        report = session.send_scan(scan)
    output.result({"type": "sent", **report.to_dict(), "record": report.record()}, describe(report))


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
        choose_codec(options.codec),
        choose_lanes(options.streams),
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
