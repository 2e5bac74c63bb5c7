"""Options of the commands that move state: what goes over the wire, and how it is written down."""

from pathlib import Path
from typing import Any, Final, TypedDict, get_args

import click

from dwcp_fast.cli.files import DICTIONARY, FILE, read_dictionary, read_known
from dwcp_fast.cli.grouping import Decorator, gather
from dwcp_fast.cli.units import parse_bandwidth, parse_streams, reading
from dwcp_fast.dictionary import Dictionary
from dwcp_fast.options import Carrier, ListenOn, Mode, Symlinks, parse_bytes, parse_duration

__all__ = [
    "LISTEN",
    "LISTEN_ON",
    "MODE",
    "ONCE",
    "POLITE",
    "STALL_TIMEOUT",
    "STREAMS",
    "SYMLINKS",
    "TIMEOUT",
    "Encoding",
    "Redialling",
    "Writing",
    "duration_option",
    "encoding_options",
    "length_option",
    "link_option",
    "redialling_options",
    "writing_options",
]


class Encoding(TypedDict):
    """How blocks go over the wire, in the words of the library's options."""

    codec: str
    dictionary: Dictionary | None
    codec_model: Path | None
    block_bytes: int
    bandwidth_bits_per_s: int | None
    bandwidth_schedule: str | None
    congestion: str


class Redialling(TypedDict):
    """How a peer is looked for, in the words of the library's options."""

    connect_timeout_s: float
    reconnect_s: float
    local_addresses: tuple[str, ...]
    link: Carrier


class Writing(TypedDict):
    """How what arrives is written down, in the words of the library's options."""

    overwrite: bool
    symlinks: Symlinks
    sync: bool
    max_object_bytes: int
    dictionaries: tuple[Dictionary, ...]


def duration_option(name: str, text: str, default: str | None = None) -> Decorator:
    """Make an option for a time span."""
    shown: dict[str, Any] = {} if default is None else {"default": default, "show_default": True}
    return click.option(name, metavar="TIME", callback=reading(parse_duration), help=text, **shown)


def length_option(name: str, text: str, default: str) -> Decorator:
    """Make an option for a number of bytes."""
    return click.option(
        name,
        metavar="LENGTH",
        callback=reading(parse_bytes),
        default=default,
        show_default=True,
        help=text,
    )


def link_option(peer: str, default: Carrier = "auto") -> Decorator:
    """Make the option for what carries the lanes to `peer`."""
    return click.option(
        "--link",
        type=click.Choice(get_args(Carrier)),
        default=default,
        show_default=True,
        help=f"What carries the lanes; auto shares memory with a {peer} on this host, and takes RDMA "
        "with --insecure where both sides have it.",
    )


LISTEN: Final = click.option(
    "--listen", default="0.0.0.0:7443", show_default=True, metavar="HOST:PORT", help="Port 0: any."
)
ONCE: Final = click.option("--once", is_flag=True, help="End after one transfer.")
STREAMS: Final = click.option(
    "--streams",
    metavar="auto|N",
    callback=reading(parse_streams),
    default="auto",
    show_default=True,
    help="Number of lanes; auto finds it while data flows.",
)
MODE: Final = click.option(
    "--mode",
    type=click.Choice(get_args(Mode)),
    default="auto",
    show_default=True,
    help="What kind of link there is; auto finds it, and finds it anew when that changes.",
)
POLITE: Final = click.option("--polite", is_flag=True, help="With few lanes: others on the link go first.")
LISTEN_ON: Final = click.option(
    "--link",
    type=click.Choice(get_args(ListenOn)),
    default="auto",
    show_default=True,
    help="auto also shares memory with processes of this user on this host, and takes RDMA with --insecure "
    "where there is a device.",
)
SYMLINKS: Final = click.option(
    "--symlinks",
    type=click.Choice(get_args(Symlinks)),
    default="keep",
    show_default=True,
    help="Symbolic links.",
)
TIMEOUT: Final = duration_option("--timeout", "Most that the transfer may take, such as 90s.")
STALL_TIMEOUT: Final = duration_option(
    "--stall-timeout",
    "Most for which nothing of a transfer may move though the peer is there; 1s more for each 64MiB of it.",
    "10min",
)


def encoding_options(bounded: str) -> Decorator:
    """Add the options for how blocks go over the wire, as the argument `encoding`.

    Args:
        bounded: What --bwlimit bounds.
    """
    return gather(
        "encoding",
        make_encoding,
        click.option(
            "--codec",
            default="auto",
            show_default=True,
            metavar="NAME",
            help="auto, none, lz4, zstd or zstd:LEVEL.",
        ),
        DICTIONARY,
        click.option(
            "--codec-model", type=FILE, metavar="FILE", help="Model for auto instead of the built-in one."
        ),
        length_option("--block-size", "Length of a block.", "1MiB"),
        click.option(
            "--bwlimit",
            metavar="RATE|SCHEDULE",
            callback=reading(parse_bandwidth),
            help=f"Most that {bounded}: 500Mbps, or 08:00-18:00=100Mbps,otherwise=off.",
        ),
        click.option(
            "--congestion",
            default="auto",
            show_default=True,
            metavar="NAME",
            help="auto, yielding, system, or a congestion control of the kernel, such as bbr.",
        ),
    )


def make_encoding(
    codec: str,
    codec_model: Path | None,
    dict: Path | None,  # noqa: A002 - it has the name of its option
    block_size: int,
    bwlimit: int | str | None,
    congestion: str,
) -> Encoding:
    """Make of the options what the library takes."""
    return Encoding(
        codec=codec,
        codec_model=codec_model,
        dictionary=read_dictionary(dict),
        block_bytes=block_size,
        bandwidth_bits_per_s=bwlimit if isinstance(bwlimit, int) else None,
        bandwidth_schedule=bwlimit if isinstance(bwlimit, str) else None,
        congestion=congestion,
    )


def redialling_options(peer: str) -> Decorator:
    """Add the options for how `peer` is looked for, as the argument `redialling`."""
    return gather(
        "redialling",
        lambda connect_timeout, reconnect, from_, link: Redialling(
            connect_timeout_s=connect_timeout, reconnect_s=reconnect, local_addresses=from_, link=link
        ),
        duration_option("--connect-timeout", "Most for connecting.", "10s"),
        duration_option("--reconnect", f"How long to look for a lost {peer}.", "30s"),
        click.option(
            "--from",
            multiple=True,
            metavar="ADDRESS",
            help="Address of this machine that lanes come from; more than one: in turn.",
        ),
        link_option(peer),
    )


def writing_options(no_overwrite: str) -> Decorator:
    """Add the options for how what arrives is written down, as the argument `writing`.

    Args:
        no_overwrite: What --no-overwrite does.
    """
    return gather(
        "writing",
        make_writing,
        click.option("--no-overwrite", is_flag=True, help=no_overwrite),
        SYMLINKS,
        click.option(
            "--no-sync", is_flag=True, help="Do not wait for the disk before files are put in place."
        ),
        length_option("--max-object", "Longest file taken.", "64TiB"),
        click.option(
            "--dict-dir",
            type=click.Path(path_type=Path, file_okay=False, exists=True),
            metavar="DIR",
            help="Dictionaries (*.dict) that need not be sent here.",
        ),
    )


def make_writing(
    no_overwrite: bool, symlinks: Symlinks, no_sync: bool, max_object: int, dict_dir: Path | None
) -> Writing:
    """Make of the options what the library takes."""
    return Writing(
        overwrite=not no_overwrite,
        symlinks=symlinks,
        sync=not no_sync,
        max_object_bytes=max_object,
        dictionaries=read_known(dict_dir),
    )
