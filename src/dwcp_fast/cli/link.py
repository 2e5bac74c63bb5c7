"""``dwcp link``."""

import click

from dwcp_fast.cli.output import Output, format_bytes, output_options
from dwcp_fast.cli.security import security_options, server_name_option
from dwcp_fast.cli.transfer import duration_option, length_option, link_option
from dwcp_fast.cli.units import help_with_example
from dwcp_fast.options import Carrier
from dwcp_fast.probing import PROBE_LANES, LinkProbe, probe_link
from dwcp_fast.trust import Insecure, MutualTls

__all__ = ["link"]


@click.group(
    short_help="Look at links.",
    help=help_with_example("Look at the link to a peer.", "dwcp link probe 'dwcp://host:7443#...'"),
)
def link() -> None:
    """Look at links."""


@link.command(
    short_help="Measure the way to a receiver.",
    help=help_with_example(
        "Measure the way to `dwcp recv`: round trip, jitter, what it carries, and loss. The receiver drops "
        "what it is sent, and nothing is left there; a pairing that nobody has used belongs to this machine "
        "afterwards. What was not measured is said to be unknown.",
        "dwcp link probe 'dwcp://host:7443#...'",
    ),
)
@click.argument("target", metavar="PAIRING|HOST:PORT")
@click.option(
    "--streams",
    type=click.IntRange(1, 256),
    default=PROBE_LANES,
    show_default=True,
    help="Number of lanes.",
)
@duration_option("--time", "How long to send as much as passes.", "3s")
@length_option("--most", "How much to send in that time at most.", "256MiB")
@duration_option("--connect-timeout", "Most for connecting.", "10s")
@link_option("receiver", "tcp")
@server_name_option("receiver")
@security_options
@output_options
def probe(
    target: str,
    streams: int,
    time: float,
    most: int,
    connect_timeout: float,
    link: Carrier,
    trust: MutualTls | Insecure | None,
    printer: Output,
) -> None:
    """Measure the way to a receiver."""
    seen = probe_link(
        target,
        trust=trust,
        lanes=streams,
        seconds=time,
        max_bytes=most,
        connect_timeout_s=connect_timeout,
        link=link,
    )
    printer.result({"type": "probed", **seen.to_dict()}, describe(seen))


def describe(seen: LinkProbe) -> str:
    """Say in lines what was seen."""
    if seen.goodput_bits_per_s is None:
        carries = "unknown"
    else:
        bound = "no more than" if seen.limited else "at least"
        carries = f"{bound} {seen.goodput_bits_per_s / 1e6:,.1f} Mbps"
    sent = "unknown" if seen.sent_bytes is None else format_bytes(seen.sent_bytes)
    return "\n".join(
        [
            f"to {seen.peer} over {seen.lanes} lanes of {seen.transport}: {seen.why}",
            f"  round trip  {millis(seen.rtt_ms)}, under load {millis(seen.loaded_rtt_ms)}",
            f"  jitter      {millis(seen.jitter_ms)}",
            f"  carries     {carries}",
            f"  loss        {'unknown' if seen.loss is None else f'{seen.loss:.2%}'}",
            f"  mode        {seen.mode}",
            f"  sent        {sent} in {seen.seconds:.1f} s",
        ]
    )


def millis(time_ms: float | None) -> str:
    """Write a time as a person reads it."""
    return "unknown" if time_ms is None else f"{time_ms:.2f} ms"
