"""``dwcp snap``."""

from collections.abc import Iterator
from pathlib import Path

import click

from dwcp_fast import snap as packs
from dwcp_fast.cli.files import FILE, PATCH_CODEC, SEEKABLE, output_file_option
from dwcp_fast.cli.output import Output, format_bytes, output_options
from dwcp_fast.cli.send import send
from dwcp_fast.cli.units import help_with_example, reading
from dwcp_fast.errors import ConfigError
from dwcp_fast.options import parse_bytes
from dwcp_fast.snap import PackInfo

__all__ = ["snap"]


snap = click.Group(
    "snap",
    short_help="Make snapshots portable: one file, relative to bases named by digest.",
    help=help_with_example(
        "Pack the files of a snapshot (memory, device state, disks) into one, as differences to what the "
        "other side holds: a golden image, or the snapshot before.",
        "dwcp snap pack snap-2/ --base snap-1/ -o snap-2.dwcs",
        "dwcp snap push snap-2.dwcs --to 'dwcp://host:7443#...'",
        "dwcp snap unpack snap-2.dwcs --into snap-2 --base snap-1/",
    ),
)


@snap.command(
    short_help="Pack a snapshot.",
    help=help_with_example(
        "Pack PARTS, files or directories of files. A file of the same name in a --base directory, or a "
        "--base NAME=FILE, is what that part is told against.",
        "dwcp snap pack vm.mem vm.state --base vm.mem=golden.mem -o vm.dwcs",
    ),
)
@click.argument("parts", type=SEEKABLE, nargs=-1, required=True)
@output_file_option("The pack to write.")
@click.option("--base", multiple=True, metavar="DIR|NAME=FILE", help="What the other side will hold.")
@PATCH_CODEC
@output_options
def pack(
    parts: tuple[Path, ...],
    output: Path,
    base: tuple[str, ...],
    codec: str,
    printer: Output,
) -> None:
    """Pack a snapshot."""
    named = dict(named_files(parts))
    told = packs.pack(
        output,
        named,
        bases=dict(named_bases(base, named)),
        codec=codec,
        progress=lambda name: printer.note(f"packing {name}"),
    )
    printer.result({"type": "packed", **told.to_dict()}, f"wrote {output}: {describe(told)}")


@snap.command(
    short_help="Unpack a snapshot.",
    help=help_with_example(
        "Unpack PACK to a directory that does not exist yet; it appears when every part is verified.",
        "dwcp snap unpack snap-2.dwcs --into snap-2 --base snap-1/",
    ),
)
@click.argument("path", metavar="PACK", type=SEEKABLE)
@click.option("--into", required=True, type=FILE, help="The directory to make.")
@click.option("--base", type=FILE, multiple=True, help="File, or directory of files, to find bases in.")
@click.option("--max-size", default="1TiB", callback=reading(parse_bytes), help="Most bytes to write (1TiB).")
@output_options
def unpack(
    path: Path,
    into: Path,
    base: tuple[Path, ...],
    max_size: int,
    printer: Output,
) -> None:
    """Unpack a snapshot."""
    told = packs.unpack(
        path, into, bases=base, max_bytes=max_size, progress=lambda name: printer.note(f"unpacking {name}")
    )
    text = f"wrote {into}: {len(told.pack.parts)} files, {format_bytes(told.pack.snapshot_bytes)}, verified"
    printer.result({"type": "unpacked", "verified": True, **told.to_dict()}, text)


@snap.command(
    short_help="Tell what a pack holds and needs.",
    help=help_with_example("Tell what PACK holds, and which bases it needs.", "dwcp snap info snap-2.dwcs"),
)
@click.argument("path", metavar="PACK", type=SEEKABLE)
@output_options
def info(path: Path, printer: Output) -> None:
    """Tell what a pack holds and needs."""
    told = packs.info(path)
    lines = [f"pack {told.digest}: {describe(told)}"]
    for part in told.parts:
        needs = (
            f", against {format_bytes(part.base.size_bytes)} {part.base.digest}"
            if part.base.size_bytes
            else ""
        )
        lines.append(
            f"  {part.name}: {format_bytes(part.target.size_bytes)} {part.target.digest}, "
            f"{format_bytes(part.patch_bytes)} here{needs}"
        )
    printer.result({"type": "pack", **told.to_dict()}, "\n".join(lines))


snap.add_command(
    click.Command(
        "push",
        short_help="Send packs.",
        help=help_with_example(
            "Send packs to `dwcp recv`, in the way and with the options of `dwcp send`.",
            "dwcp snap push snap-2.dwcs --to 'dwcp://host:7443#...'",
        ),
        params=send.params,
        callback=send.callback,
    )
)


def named_files(paths: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """Give each file its name in the snapshot: its own, or its path within the directory given."""
    taken: set[str] = set()
    for path in paths:
        inner = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in inner:
            if file.is_dir() and not file.is_symlink():
                continue
            if path.is_dir() and (file.is_symlink() or not file.is_file()):
                raise ConfigError(f"{file} is no regular file: a pack holds nothing else")
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            if name in taken:
                raise ConfigError(f"two parts have the name {name!r}")
            taken.add(name)
            yield name, file


def named_bases(bases: tuple[str, ...], parts: dict[str, Path]) -> Iterator[tuple[str, Path]]:
    """Give each part the base that is meant for it."""
    for base in bases:
        name, given, file = base.partition("=")
        if given and name in parts:
            yield name, Path(file)
            continue
        if not Path(base).is_dir():
            raise ConfigError(f"base {base!r} is no directory, and names no part: write DIR or NAME=FILE")
        yield from ((part, Path(base, part)) for part in parts if Path(base, part).is_file())


def describe(told: PackInfo) -> str:
    """Say in one line what a pack is."""
    return (
        f"{format_bytes(told.pack_bytes)} for {len(told.parts)} files of {format_bytes(told.snapshot_bytes)}"
    )
