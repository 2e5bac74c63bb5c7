"""What is measured: files that a Linux machine has anyway, and sources that the user names."""

import glob
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from dwcp_fast.errors import ConfigError
from dwcp_fast.train.selector.content import Opener, difference, file_content
from dwcp_fast.train.selector.table import SPLITS

__all__ = [
    "Candidate",
    "Source",
    "chosen",
    "family_of",
    "parse_source",
    "rank",
    "source_candidates",
    "split_by_group",
    "system_candidates",
]

SHORTEST_BYTES: Final = 24 << 10
"""Shorter files say little of how fast a codec is."""
HELD_OUT_FROM: Final = 0.75
VALIDATION_FROM: Final = 0.6
WIDTHS: Final = (2, 4, 8)
OTHER: Final = "other"
ROOTS: Final = ("usr", "opt", "etc", "var/lib", "var/log", "var/cache")
MOST_IN_A_FOLDER: Final = 4
"""Of one family: neighbours tend to be variants of each other."""

KINDS: Final = {
    "source": ".c .h .cc .cpp .hpp .tcc .py .pyi .pyx .rs .js .mjs .ts .go .java .pl .pm .rb .php .sh .vim"
    " .el .lua .tcl .sql .cmake .m4 .cgi .css .td .s .swift .kt",
    "text": ".txt .md .rst .html .htm .xml .tex .po .mo .pod .tmpl .texi .info .yaml .yml .toml .conf .list"
    " .symbols",
    "json": ".json .jsonl .geojson .ndjson .ipynb .map",
    "csv": ".csv .tsv",
    "columnar": ".parquet .orc .arrow .feather",
    "log": ".log .journal",
    "bytecode": ".pyc .class .wasm .bc .elc .beam .dex .jsa",
    "object": ".a .rlib .rmeta .lib",
    "media": ".png .jpg .jpeg .gif .webp .ico .bmp .ttf .otf .woff .woff2 .wav .mp3 .ogg .oga .flac .mp4 .pdf"
    " .icc",
    "compressed": ".gz .xz .bz2 .zst .lz4 .zip .jar .jmod .whl .deb .rpm .7z .tgz .npz",
    "database": ".db .sqlite .sqlite3 .mdb .dafsa",
    "weights": ".safetensors .pt .pth .onnx .gguf .tflite .ckpt .jit .h5",
    "telemetry": ".npy",
    "tar": ".tar",
    "disk": ".img .qcow2 .vmdk .raw",
    "guest": ".vmem .dump .core",
}
FAMILY_OF_ENDING: Final = {ending: family for family, text in KINDS.items() for ending in text.split()}
FAMILY_OF_START: Final = {
    b"\x7fELF": "elf",
    b"SQLite format 3\0": "database",
    b"\x1f\x8b": "compressed",
    b"\xfd7zXZ": "compressed",
    b"(\xb5/\xfd": "compressed",
    b"\x89PNG": "media",
    b"%PDF": "media",
}
LONGEST_START: Final = max(map(len, FAMILY_OF_START))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A file that may be measured, or something made that is measured like one.

    Attributes:
        id: Its name, which says nothing of the machine: the name of its source, and its path below that.
        family: The kind of content.
        group: What it has in common with others: a group is never divided between training and evaluation.
        source: Where it comes from, in words.
        open: Gives its content while a block runs.
        width: Bytes of its elements where they are known.
        blocks: Most blocks to take of it, None for as many as of any.
    """

    id: str
    family: str
    group: str
    source: str
    open: Opener
    width: int | None = None
    blocks: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Files that the user adds.

    Attributes:
        name: What they are called.
        path: A file, a folder of which everything is taken, or a pattern.
        family: The kind of content; None tells it from each file, and is ``"other"`` where that fails.
        width: Bytes of an element, None if it is not known.
        blocks: Most blocks to take of each file, None for as many as of any.
        group: What the files have in common, None if they are independent of each other; ``"folder"`` if
            those of the same folder have something in common.
        base: The file from which they are measured as differences, None for the files themselves.
    """

    name: str
    path: str
    family: str | None = None
    width: int | None = None
    blocks: int | None = None
    group: str | None = None
    base: Path | None = None


def parse_source(text: str) -> Source:
    """Read a source as a person writes it.

    Args:
        text: ``NAME=PATH``, then any of ``,family=F``, ``,width=W``, ``,blocks=N``, ``,group=G``,
            ``,xor=PATH``.

    Raises:
        ConfigError: It is no such text.

    >>> parse_source("vm=dumps/*.bin,family=guest,blocks=64").family
    'guest'
    """
    first, *options = text.split(",")
    name, _, path = first.partition("=")
    if not name or not path or "/" in name:
        raise ConfigError(
            f"{text!r} is no source: write NAME=PATH[,family=F][,width=W][,blocks=N][,group=G][,xor=PATH]"
        )
    given: dict[str, str] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in {"family", "width", "blocks", "group", "xor"} or not value or key in given:
            raise ConfigError(
                f"{option!r} in {text!r} is none of family=, width=, blocks=, group= and xor=, once each"
            )
        given[key] = value
    width, blocks = (whole(given, key) for key in ("width", "blocks"))
    if width is not None and width not in WIDTHS:
        raise ConfigError(f"width is {width} in {text!r}: it must be one of {WIDTHS}")
    return Source(
        name=name,
        path=path,
        family=given.get("family"),
        width=width,
        blocks=blocks,
        group=given.get("group"),
        base=Path(given["xor"]) if "xor" in given else None,
    )


def whole(given: dict[str, str], key: str) -> int | None:
    """Read a number above 0."""
    text = given.get(key)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 1 << 16:
        raise ConfigError(f"{key} is {text!r}: it must be a number from 1 to {1 << 16}")
    return int(text)


def rank(seed: int, name: str) -> bytes:
    """Give what things are ordered by where the order should mean nothing, and yet be the same every time."""
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()


def family_of(path: Path) -> str | None:
    """Tell the kind of a file from its first bytes and its name.

    Raises:
        OSError: It cannot be read.
    """
    with file_content(path) as content:
        start = content.read(0, LONGEST_START)
    family = FAMILY_OF_ENDING.get(path.suffix.lower())
    if path.suffix in {".pt", ".pth"} and not start.startswith((b"PK", b"\x80")):
        # A text in Portuguese, more often than not.
        return None
    if family in {"weights", "compressed", "object"}:
        return family
    for magic, kind in FAMILY_OF_START.items():
        if start.startswith(magic):
            return kind
    return family


def source_candidates(source: Source, seed: int, most: int) -> list[Candidate]:
    """Give the files of a source, of each family no more than wanted.

    Args:
        source: The source.
        seed: What the choice depends on.
        most: Files of a family.

    Raises:
        ConfigError: There is none.
    """
    found = Path(source.path)
    if found.is_dir():
        top, paths = found, walk(found)
    else:
        paths = iter(sorted(Path(name) for name in glob.glob(source.path)))  # noqa: PTH207  # it is absolute
        top = found.parent
        # Below the first part of the pattern that is one.
        while glob.has_magic(str(top)):
            top = top.parent
    made = []
    for path in paths:
        # What cannot be read is told when it is its turn.
        try:
            family = source.family or family_of(path)
        except OSError:
            family = None
        name = name_of(source.name, path.relative_to(top))
        base = source.base
        made.append(
            Candidate(
                id=name,
                family=family or OTHER,
                group=group_of(source, name),
                source=f"source {source.name}" + (f", difference from {base.name}" if base else ""),
                open=opener(path) if base is None else difference_opener(path, base),
                width=source.width or width_of(path),
                blocks=source.blocks,
            )
        )
    if not made:
        raise ConfigError(f"source {source.name} has no file: {source.path}")
    counts: dict[str, int] = defaultdict(int)
    kept = []
    for candidate in chosen(made, seed):
        counts[candidate.family] += 1
        if counts[candidate.family] <= most:
            kept.append(candidate)
    return kept


def name_of(source: str, path: Path) -> str:
    """Name a file of a source in plain text, which names on disk need not be."""
    return f"{source}/{os.fsencode(path).decode(errors='backslashreplace')}"


def group_of(source: Source, name: str) -> str:
    """Give the group of a file of a source."""
    if source.group == "folder":
        # The same folder of two sources holds forms of the same.
        _, _, folder = name.rpartition("/")[0].partition("/")
        return folder or source.name
    return source.group or name


def system_candidates(root: Path, seed: int, most: int, taken: Iterable[Path] = ()) -> list[Candidate]:
    """Give files of a system, of each family as many as wanted.

    Args:
        root: Where the system's root is.
        seed: What the choice depends on.
        most: Files of a family.
        taken: Folders that are measured in another form, whose files would be measured twice.
    """
    kept = {str(folder) for folder in taken}
    found: dict[str, list[tuple[bytes, Path]]] = defaultdict(list)
    for top in ROOTS:
        for path in walk(root / top, kept):
            family = "log" if top == "var/log" else likely_family(path)
            if family:
                found[family].append((rank(seed, str(path.relative_to(root))), path))
    made = []
    for family, ranked in sorted(found.items()):
        folders: dict[Path, int] = defaultdict(int)
        count = 0
        for _, path in sorted(ranked):
            if count == most:
                break
            if folders[path.parent] == MOST_IN_A_FOLDER and family != "elf":
                continue
            try:
                if family != "log" and family_of(path) != family:
                    continue
            except OSError:
                continue
            folders[path.parent] += 1
            count += 1
            name = name_of("system", path.relative_to(root))
            made.append(
                Candidate(
                    id=name,
                    family=family,
                    group=name,
                    source="file of the system",
                    open=opener(path),
                    width=width_of(path),
                )
            )
    return made


def likely_family(path: Path) -> str | None:
    """Guess the family of a file without opening it; programs and libraries have any ending or none."""
    family = FAMILY_OF_ENDING.get(path.suffix.lower())
    if family is None and (not path.suffix or ".so" in path.name or path.suffix in {".debug", ".node"}):
        return "elf"
    return family


def walk(top: Path, skipped: Iterable[str] = ()) -> Iterator[Path]:
    """Give the regular files below a folder that are long enough, in order; links are not followed."""
    left_out = set(skipped)
    for folder, folders, files in os.walk(top):
        folders[:] = sorted(name for name in folders if os.path.join(folder, name) not in left_out)  # noqa: PTH118
        with os.scandir(folder) as entries:
            long = {
                entry.name
                for entry in entries
                if entry.is_file(follow_symlinks=False)
                and entry.stat(follow_symlinks=False).st_size >= SHORTEST_BYTES
            }
        yield from (Path(folder, name) for name in sorted(files) if name in long)


def width_of(path: Path) -> int | None:
    """Give the bytes of an element of an array that says so itself."""
    if path.suffix != ".npy":
        return None
    try:
        width = np.load(path, mmap_mode="r", allow_pickle=False).dtype.itemsize
    except (OSError, ValueError):
        return None
    return width if width in WIDTHS else None


def opener(path: Path) -> Opener:
    """Give what opens a file."""
    return lambda _deadline: file_content(path)


def difference_opener(new: Path, old: Path) -> Opener:
    """Give what opens the difference of two files."""
    return lambda _deadline: difference(new, old)


def chosen(candidates: Iterable[Candidate], seed: int) -> list[Candidate]:
    """Give the candidates in an order that spreads every family over the whole run.

    Raises:
        ConfigError: Two have the same id.
    """
    ordered = sorted(candidates, key=lambda candidate: rank(seed, candidate.id))
    ids = [candidate.id for candidate in ordered]
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise ConfigError(f"{twice} is there twice: give the sources different names")
    return ordered


def split_by_group(files: Iterable[tuple[str, str]], seed: int) -> dict[str, str]:
    """Divide groups into training, validation and what is held out, within each family.

    Args:
        files: Family and group of every file.
        seed: What the division depends on, beside the names of the groups.

    Returns:
        The split of every group. A group that is in several families is divided in the first of them.
    """
    groups: dict[str, set[str]] = defaultdict(set)
    for family, group in files:
        groups[family].add(group)
    splits: dict[str, str] = {}
    for _, names in sorted(groups.items()):
        ordered = sorted(names - splits.keys(), key=lambda name: rank(seed, f"split:{name}"))
        for place, name in enumerate(ordered):
            share = (place + 0.5) / len(ordered)
            splits[name] = SPLITS[(share >= VALIDATION_FROM) + (share >= HELD_OUT_FROM)]
    return splits
