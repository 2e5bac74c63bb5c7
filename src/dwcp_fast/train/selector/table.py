"""The measured table: what every action made of every block, and in which time.

A table is CSV (xz-compressed where its name ends in ``.xz``): ``file``, ``family``, ``block``, ``raw_bytes``,
``width``, then ``feature.NAME`` for every feature, then ``size.ACTION``, ``compress_ns.ACTION``,
``decompress_ns.ACTION`` and ``again_ns.ACTION`` for every action. Sizes are bytes, times nanoseconds of
processor time. ``width`` is empty where the block's element width was not given; an action's four cells may
be empty in such a row, which says that the action was not offered.
"""

import csv
import io
import json
import lzma
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dwcp_fast.errors import FormatError, LimitExceededError, UnsupportedFormatError
from dwcp_fast.staging import replace_file

__all__ = [
    "MANIFEST_NAME",
    "SPLITS",
    "TABLE_NAME",
    "TYPED",
    "CostTable",
    "Row",
    "read_manifest",
    "read_table",
    "write_manifest",
    "write_table",
]

TABLE_NAME: Final = "table.csv.xz"
MANIFEST_NAME: Final = "manifest.json"
MANIFEST_VERSION: Final = 1
SPLITS: Final = ("train", "validation", "held-out")
TYPED: Final = "planes"
"""The action that needs the width of an element."""
MEASURES: Final = ("size", "compress_ns", "decompress_ns", "again_ns")
PLAIN: Final = ("file", "family", "block", "raw_bytes", "width")
FEATURE: Final = "feature."
MOST_TEXT_BYTES: Final = 1 << 29
MOST_FILE_BYTES: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class Row:
    """One block as it was measured.

    Attributes:
        block: Its place among the rows of its file that have the same width, from 0; whole blocks come first,
            in the order of their offsets, then the shorter ones.
        raw_bytes: Its length.
        width: Bytes of an element, None if not given.
        features: As the core computes them.
        costs: For each action that was offered: coded length in bytes, and nanoseconds for coding, for
            decoding and for coding in a later, independent pass.
    """

    block: int
    raw_bytes: int
    width: int | None
    features: tuple[float, ...]
    costs: Mapping[str, tuple[int, int, int, int]]


@dataclass(frozen=True, slots=True, eq=False)
class CostTable:
    """A table in memory: one entry of every array for each row.

    Attributes:
        files: Id of the file of each row.
        families: Its family.
        blocks: Number of the block in its file.
        raw_bytes: Its length.
        widths: Bytes of an element, 0 if not given.
        feature_names: The columns of `features`.
        features: What the model sees, float32.
        actions: The columns of the arrays below.
        sizes: Coded length in bytes; NaN where the action was not offered, as in those below.
        compress_ns: Processor time for coding.
        decompress_ns: Processor time for decoding.
        again_ns: Processor time for coding in a later pass: what the noise of the measurement is known from.
    """

    files: NDArray[np.str_]
    families: NDArray[np.str_]
    blocks: NDArray[np.int64]
    raw_bytes: NDArray[np.int64]
    widths: NDArray[np.int64]
    feature_names: tuple[str, ...]
    features: NDArray[np.float32]
    actions: tuple[str, ...]
    sizes: NDArray[np.float64]
    compress_ns: NDArray[np.float64]
    decompress_ns: NDArray[np.float64]
    again_ns: NDArray[np.float64]

    def __len__(self) -> int:
        """Give the number of rows."""
        return len(self.files)


def write_table(
    path: Path,
    feature_names: Sequence[str],
    actions: Sequence[str],
    files: Iterable[tuple[str, str, Iterable[Row]]],
) -> int:
    """Write a table, in one step.

    Args:
        path: The file; compressed if its name ends in ``.xz``.
        feature_names: The features of every row.
        actions: The actions, in the order of their columns.
        files: Id, family and rows of every file.

    Returns:
        The number of rows.

    Raises:
        OSError: It cannot be written; what was there is unchanged.
    """
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(columns(feature_names, actions))
    count = 0
    for name, family, rows in files:
        for row in rows:
            costs = [row.costs.get(action, ("",) * len(MEASURES)) for action in actions]
            cells = [cost[measure] for measure in range(len(MEASURES)) for cost in costs]
            width = "" if row.width is None else row.width
            # The shortest text that reads back as the same float32.
            features = [str(np.float32(value)) for value in row.features]
            out.writerow([name, family, row.block, row.raw_bytes, width, *features, *cells])
            count += 1
    data = text.getvalue().encode()
    # One thread, no time stamp: the same rows are the same bytes.
    replace_file(path, [lzma.compress(data, preset=9) if path.suffix == ".xz" else data])
    return count


def read_table(path: Path) -> CostTable:
    """Read a table and check all of it.

    Args:
        path: The file.

    Raises:
        FormatError: It is no such table; the message names the column, and the row where it is one.
        LimitExceededError: It is longer than any table.
        OSError: It cannot be read.
    """
    reader = csv.reader(io.StringIO(text_of(path), newline=""))
    try:
        header = next(reader, [])
        feature_names, actions = names_of(header)
        lines = [line for line in reader if line]
    except csv.Error as error:
        raise FormatError(f"{path.name} is no CSV: {error}") from error
    if not lines:
        raise FormatError(f"{path.name} has no rows")
    places = {name: place for place, name in enumerate(header)}
    for number, line in enumerate(lines, 1):
        if len(line) != len(header):
            raise FormatError(f"row {number} has {len(line)} cells, not the {len(header)} of the header")

    def numbers(name: str, low: float = 0.0) -> list[float]:
        place = places[name]
        return [number_of(line[place], name, row, low) for row, line in enumerate(lines, 1)]

    widths = [line[places["width"]] or "0" for line in lines]
    width_numbers = [number_of(text, "width", row, 0.0) for row, text in enumerate(widths, 1)]
    offered = offers(lines, places, actions)

    def measured(measure: str) -> NDArray[np.float64]:
        made = np.full((len(lines), len(actions)), np.nan)
        for at, action in enumerate(actions):
            name = f"{measure}.{action}"
            for row, line in enumerate(lines):
                if offered[row][at]:
                    made[row, at] = number_of(line[places[name]], name, row + 1, 0.0)
        return made

    return CostTable(
        files=np.array([line[places["file"]] for line in lines]),
        families=np.array([line[places["family"]] for line in lines]),
        blocks=np.array(numbers("block"), dtype=np.int64),
        raw_bytes=np.array(numbers("raw_bytes", 1.0), dtype=np.int64),
        widths=np.array(width_numbers, dtype=np.int64),
        feature_names=feature_names,
        features=np.array(
            [numbers(FEATURE + name, -math.inf) for name in feature_names], np.float32
        ).T.copy(),
        actions=actions,
        sizes=measured("size"),
        compress_ns=measured("compress_ns"),
        decompress_ns=measured("decompress_ns"),
        again_ns=measured("again_ns"),
    )


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest, in one step.

    Args:
        path: The file.
        manifest: All of it but its version.

    Raises:
        OSError: It cannot be written; what was there is unchanged.
    """
    text = json.dumps({"version": MANIFEST_VERSION, **manifest}, indent=1, ensure_ascii=False)
    replace_file(path, [text.encode(), b"\n"])


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest; every file in it has an id, a family and a split.

    Args:
        path: The file.

    Raises:
        FormatError: It is no manifest.
        UnsupportedFormatError: It is of another version.
        OSError: It cannot be read.
    """
    try:
        manifest = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{path.name} is no JSON: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), list):
        raise FormatError(f"{path.name} is no manifest: it lists no files")
    if manifest.get("version") != MANIFEST_VERSION:
        raise UnsupportedFormatError(
            f"{path.name} is a manifest of version {manifest.get('version')!r}, not {MANIFEST_VERSION}"
        )
    seen = set()
    for entry in manifest["files"]:
        for key in ("id", "family", "split"):
            if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
                raise FormatError(f"{path.name} has a file without {key}: {str(entry)[:80]}")
        if entry["split"] not in SPLITS:
            raise FormatError(f"file {entry['id']} has split {entry['split']!r}, which is none of {SPLITS}")
        if entry["id"] in seen:
            raise FormatError(f"file {entry['id']} is listed twice")
        seen.add(entry["id"])
    return manifest


def columns(feature_names: Sequence[str], actions: Sequence[str]) -> Iterator[str]:
    """Give the names of all columns in order."""
    yield from PLAIN
    yield from (FEATURE + name for name in feature_names)
    yield from (f"{measure}.{action}" for measure in MEASURES for action in actions)


def names_of(header: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Give the features and actions that a header has the columns of."""
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise FormatError(f"column {twice} is there twice")
    features = tuple(name.removeprefix(FEATURE) for name in header if name.startswith(FEATURE))
    measures = [name.partition(".") for name in header if name.partition(".")[0] in MEASURES]
    actions = tuple(dict.fromkeys(action for _, _, action in measures))
    if not features or not actions:
        raise FormatError(f"no column begins with {'size.' if features else FEATURE}")
    missing = [name for name in columns(features, actions) if name not in header]
    if missing:
        raise FormatError(f"column {missing[0]} is missing ({len(missing)} missing in all)")
    return features, actions


def offers(lines: list[list[str]], places: dict[str, int], actions: Sequence[str]) -> list[list[bool]]:
    """Tell for each row and action whether it was offered, and refuse what is offered by half."""
    cells = [[places[f"{measure}.{action}"] for measure in MEASURES] for action in actions]
    made = []
    for row, line in enumerate(lines, 1):
        empty = [[line[place] == "" for place in four] for four in cells]
        for action, four in zip(actions, empty, strict=True):
            if any(four) and (line[places["width"]] or not all(four)):
                raise FormatError(f"row {row} has no {MEASURES[four.index(True)]}.{action}")
        made.append([not any(four) for four in empty])
    return made


def number_of(text: str, column: str, row: int, low: float) -> float:
    """Read a cell."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise FormatError(f"column {column} is {text[:40]!r} in row {row}, which is no number")
    if number < low:
        raise FormatError(f"column {column} is {text[:40]!r} in row {row}, less than {low:g}")
    return number


def text_of(path: Path) -> str:
    """Read a text file that may be compressed, no longer than any table is."""
    if path.stat().st_size > MOST_FILE_BYTES:
        raise LimitExceededError(
            f"{path.name} has {path.stat().st_size} bytes, over the limit of {MOST_FILE_BYTES}"
        )
    data = path.read_bytes()
    try:
        if path.suffix == ".xz":
            decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=1 << 28)
            data = decompressor.decompress(data, MOST_TEXT_BYTES)
            if not decompressor.eof and len(data) == MOST_TEXT_BYTES:
                raise LimitExceededError(f"{path.name} has over {MOST_TEXT_BYTES} bytes, which is the limit")
            if not decompressor.eof:
                raise FormatError(f"{path.name} ends early")
        return data.decode()
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        raise FormatError(f"{path.name} is no table: {error}") from error
