"""``dwcp vm``."""

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click

from dwcp_fast.cli.files import FILE
from dwcp_fast.cli.output import Output, format_bytes, output_options
from dwcp_fast.cli.security import security_options, server_name_option
from dwcp_fast.cli.transfer import LISTEN, STREAMS, TIMEOUT, duration_option, length_option
from dwcp_fast.cli.units import help_with_example, reading
from dwcp_fast.errors import NotConvergingError
from dwcp_fast.options import parse_duration, parse_rate
from dwcp_fast.trust import Insecure, MutualTls
from dwcp_fast.vm.accept import Acceptance
from dwcp_fast.vm.estimate import estimate as estimate_move
from dwcp_fast.vm.migrate import Migration
from dwcp_fast.vm.options import AcceptOptions, MigrateOptions
from dwcp_fast.vm.picture import require_pictures, write_page
from dwcp_fast.vm.report import AcceptReport, MigrationReport

__all__ = ["vm"]

FOLDER: Final = click.Path(path_type=Path, file_okay=False)
QMP_HELP: Final = "QEMU's monitor: path of a Unix socket, or HOST:PORT."


def folder_option(name: str, text: str) -> Callable[[Any], Any]:
    """Make an option for a directory."""
    return click.option(name, type=FOLDER, metavar="DIR", help=text)


SOCKETS: Final = folder_option(
    "--socket-dir", "Where QEMU finds the Unix sockets; by default a new directory for this user alone."
)
DOWNTIME: Final = duration_option("--max-downtime", "For how long the guest may stand still.", "300ms")


@click.group(
    short_help="Move a running virtual machine.",
    help=help_with_example(
        "Move a running QEMU guest to another machine, with its memory and, if asked, its disks.",
        "dwcp vm accept --qmp new.qmp --listen 0.0.0.0:7443       (prints a pairing string)",
        "dwcp vm migrate --qmp old.qmp --to 'dwcp://host:7443#...'   (where the guest runs)",
    ),
)
def vm() -> None:
    """Move a running virtual machine."""


@vm.command(
    short_help="Take a guest, beside a QEMU that waits for one.",
    help=help_with_example(
        "Take a guest. The QEMU must have been started like the one that the guest leaves, with `-incoming "
        "defer`, and a monitor of its own for this. It starts the guest only when it no longer runs on the "
        "other "
        "side; when the link is lost just then, the command waits for the other side to come back. Run it "
        "again if it was ended meanwhile. Where QEMU's monitor is not to be had, start it with `-incoming "
        "unix:SOCKET` and give --to-unix: it starts the guest when it is given the end of the stream.",
        "dwcp vm accept --qmp new.qmp --listen 0.0.0.0:7443",
    ),
)
@click.option("--qmp", metavar="SOCKET", help=QMP_HELP)
@click.option(
    "--to-unix",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="SOCKET",
    help="Instead of --qmp: where a QEMU without a monitor listens. No disks, no --multifd.",
)
@LISTEN
@folder_option("--base", "An earlier copy of the guest's memory, which --keep wrote.")
@folder_option("--keep", "Write the guest's memory there: a base for its next way here.")
@length_option("--max-page-cache", "Most memory that the other side may ask for.", "4GiB")
@duration_option("--wait", "Most that the other side may take to come.")
@duration_option("--settle", "Most that it may take to come back if the link is lost at the very end.", "10m")
@duration_option("--idle-timeout", "Longest silence of a lane.", "30s")
@SOCKETS
@security_options
@output_options
def accept(
    qmp: str | None,
    to_unix: Path | None,
    listen: str,
    base: Path | None,
    keep: Path | None,
    max_page_cache: int,
    wait: float | None,
    settle: float,
    idle_timeout: float,
    socket_dir: Path | None,
    trust: MutualTls | Insecure | None,
    printer: Output,
) -> None:
    """Take a guest."""
    options = AcceptOptions(
        base=base,
        keep=keep,
        max_page_cache_bytes=max_page_cache,
        settle_s=settle,
        idle_timeout_s=idle_timeout,
        socket_dir=socket_dir,
    )
    with Acceptance(
        qmp, listen, to_unix=to_unix, trust=trust, options=options, events=printer.event
    ) as acceptance:
        on_signals(acceptance.cancel)
        tell_listening(printer, acceptance.address, acceptance.pairing)
        report = acceptance.run(wait)
    printer.result({"type": "accepted", **report.to_dict()}, describe_accepted(report))


@vm.command(
    short_help="Move a guest to where `dwcp vm accept` waits.",
    help=help_with_example(
        "Move a running guest. Exits 0 when it runs on the other side, and 7 if it writes faster than can be "
        "sent; after every failure the guest runs here, and that is checked. Only when the link is lost in "
        "the "
        "moment between stopping here and running there does it stand still until both sides meet again; if "
        "the "
        "command gives up on that, it says so, and settles it when run again.",
        "dwcp vm migrate --qmp old.qmp --to 'dwcp://host:7443#...' --max-downtime 300ms",
    ),
)
@click.option("--qmp", required=True, metavar="SOCKET", help=QMP_HELP)
@click.option("--to", required=True, metavar="PAIRING|HOST:PORT", help="The other side.")
@DOWNTIME
@click.option(
    "--disks", is_flag=True, help="Mirror its disks too; else both sides have to see the same ones."
)
@click.option(
    "--bwlimit", metavar="RATE", callback=reading(parse_rate), help="Most that is sent, such as 500Mbps."
)
@STREAMS
@click.option("--codec", default="auto", show_default=True, help="auto, none, lz4 or zstd:N.")
@click.option("--congestion", default="auto", show_default=True, help="As for `dwcp send`.")
@length_option("--page-cache", "Memory on either side for pages that were sent.", "256MiB")
@click.option(
    "--multifd",
    type=click.IntRange(0, 64),
    default=0,
    show_default=True,
    help="Connections over which QEMU spreads memory; their pages are not looked into.",
)
@folder_option("--keep", "Write the guest's memory there: a base for its way back.")
@click.option(
    "--patience",
    type=click.IntRange(2, 1000),
    default=8,
    show_default=True,
    help="Rounds without gain after which it is given up.",
)
@TIMEOUT
@duration_option("--stall", "Longest time in which nothing may go on.", "60s")
@duration_option("--settle", "How long to look for a link that was lost at the very end.", "60s")
@duration_option("--idle-timeout", "Longest silence of a lane.", "30s")
@click.option("--report", type=FILE, metavar="HTML", help="Write a page with a picture of how it went.")
@SOCKETS
@server_name_option("other side")
@security_options
@output_options
def migrate(
    qmp: str,
    to: str,
    max_downtime: float,
    disks: bool,
    bwlimit: int | None,
    streams: int | None,
    codec: str,
    congestion: str,
    page_cache: int,
    multifd: int,
    keep: Path | None,
    patience: int,
    timeout: float | None,
    stall: float,
    settle: float,
    idle_timeout: float,
    report: Path | None,
    socket_dir: Path | None,
    trust: MutualTls | Insecure | None,
    printer: Output,
) -> None:
    """Move a guest."""
    options = MigrateOptions(
        max_downtime_s=max_downtime,
        disks=disks,
        bandwidth_bits_per_s=bwlimit,
        streams=streams,
        codec=codec,
        congestion=congestion,
        page_cache_bytes=page_cache,
        multifd=multifd,
        keep=keep,
        timeout_s=timeout,
        stall_s=stall,
        patience_rounds=patience,
        settle_s=settle,
        idle_timeout_s=idle_timeout,
        socket_dir=socket_dir,
    )
    if report is not None:
        require_pictures()
    migration = Migration(
        qmp, to, trust=trust, options=options, events=lambda event: show_event(printer, event)
    )
    on_signals(migration.cancel)
    done = migration.run()
    text = describe_moved(done)
    if report is not None:
        write_page(done, report, text)
    printer.result({"type": "moved", **done.to_dict()}, text)


@vm.command(
    short_help="Tell if a guest would arrive, and why.",
    help=help_with_example(
        "Watch for a few seconds how fast a guest writes its memory, and tell whether it would arrive over a "
        "link, in what time, with how much sent and how long a stop. Exits 7 if it would not arrive.",
        "dwcp vm estimate --qmp old.qmp --link 100Mbps --rtt 200ms",
    ),
)
@click.option("--qmp", required=True, metavar="SOCKET", help=QMP_HELP)
@click.option(
    "--link",
    required=True,
    metavar="RATE",
    callback=reading(parse_rate),
    help="What the link carries, 100Mbps.",
)
@click.option(
    "--rtt", metavar="TIME", default="0ms", callback=reading(parse_duration), help="Its round trip."
)
@click.option(
    "--ratio",
    type=click.FloatRange(0.01, 1000),
    default=1.0,
    show_default=True,
    help="Bytes of memory for each byte sent; an earlier report tells it.",
)
@DOWNTIME
@click.option(
    "--probe",
    type=click.IntRange(1, 30),
    default=1,
    show_default=True,
    help="Seconds to watch, then twice as many.",
)
@output_options
def estimate(
    qmp: str, link: int, rtt: float, ratio: float, max_downtime: float, probe: int, printer: Output
) -> int:
    """Tell if a guest would arrive."""
    found = estimate_move(
        qmp, link_bits_per_s=link, rtt_s=rtt, ratio=ratio, max_downtime_s=max_downtime, probe_s=probe
    )
    ahead = found.forecast
    text = (
        f"it arrives in {ahead.seconds:.1f} s with {format_bytes(ahead.wire_bytes)} sent in {ahead.rounds} "
        f"rounds, "
        f"and stands still for {ahead.downtime_s * 1000:.0f} ms: {ahead.why}"
        if ahead.converges
        else f"it does not arrive: {ahead.why}"
    )
    printer.result({"type": "estimate", **found.to_dict()}, text)
    return 0 if ahead.converges else NotConvergingError.exit_code


def on_signals(cancel: Callable[[], None]) -> None:
    """Have Ctrl-C and a request to end cancel in order, instead of ending in the middle of anything."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        cancel()

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)


def tell_listening(printer: Output, address: str, pairing: str | None) -> None:
    """Say what the other side needs to know."""
    told = {"type": "listening", "address": address, "pairing": pairing}
    command = f"dwcp vm migrate --qmp SOCKET --to '{pairing or address}'"
    text = f"listening on {address}; on the other machine:\n  {command}"
    if printer.json_lines:
        printer.event(told)
    else:
        # What is on stdout at the end is the result.
        printer.note(text, needed=True)


def show_event(printer: Output, event: dict[str, Any]) -> None:
    """Show how a move goes on."""
    printer.event(event)
    if printer.machine:
        return
    match event["type"]:
        case "round":
            end, ratio = event["expected_end_s"], event["ratio"]
            printer.note(
                f"round {event['round']}: at {event['at_s']:.1f} s {format_bytes(event['remaining_bytes'])} "
                f"are left, "
                f"{format_bytes(event['bytes_per_s'])}/s sent, {format_bytes(event['dirty_bytes_per_s'])}/s "
                f"written, "
                f"{format_bytes(event['wire_bytes'])} on the link"
                + (f" ({ratio:.1f}x)" if ratio else "")
                + ("; no end in sight" if end is None else f"; expected to end at {end:.1f} s")
            )
        case "disks":
            printer.note(
                f"disks: {format_bytes(event['copied_bytes'])} of {format_bytes(event['total_bytes'])} "
                f"mirrored"
            )
        case "goes-on":
            printer.note(f"the guest here is {event['status']}")
        case "in-doubt":
            printer.note(f"the guest has stopped here; looking for the other side: {event['message']}")
        case _:
            pass


def describe_moved(report: MigrationReport) -> str:
    """Tell what was done in a sentence."""
    settled = ", after the link was lost at the end" if report.settled else ""
    return (
        f"the guest runs on the other side{settled}: "
        f"{format_bytes(report.memory_bytes + report.disk_bytes)} in "
        f"{report.seconds:.1f} s, {format_bytes(report.wire_bytes)} on the link ({report.ratio:.1f}x), "
        f"{len(report.rounds)} rounds, stood still for {report.downtime_s * 1000:.0f} ms"
    )


def describe_accepted(report: AcceptReport) -> str:
    """Tell what was done in a sentence."""
    state = "runs" if report.running else "is here, paused as it was"
    return f"the guest {state}: {format_bytes(report.wire_bytes)} in {report.seconds:.1f} s"
