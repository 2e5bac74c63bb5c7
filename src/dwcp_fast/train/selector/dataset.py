"""Tables with their splits: which files a model may learn from, and which judge it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dwcp_fast.errors import ConfigError, FormatError
from dwcp_fast.train.selector.rows import joined, rows_of
from dwcp_fast.train.selector.table import (
    MANIFEST_NAME,
    SPLITS,
    CostTable,
    read_manifest,
    read_table,
)

__all__ = ["Dataset", "read_dataset"]

CALIBRATION: Final = "calibration_ns_per_byte"


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """One or several tables.

    Attributes:
        table: All rows.
        groups: For each row what its file belongs to: files that depend on each other are in the same.
        splits: For each row ``"train"``, ``"validation"`` or ``"held-out"``: the same for all rows of a file.
        reference_ns_per_byte: For each action, nanoseconds per byte to compress and to decompress the
            calibration sample, as the first table's manifest tells them; 0 where it does not.
        sources: For each table what tells it apart from another: its digest, and from which machine it is.
    """

    table: CostTable
    groups: NDArray[np.str_]
    splits: NDArray[np.str_]
    reference_ns_per_byte: tuple[tuple[float, float], ...]
    sources: tuple[dict[str, Any], ...]

    def part(self, split: str) -> CostTable:
        """Give the rows of one split.

        Raises:
            ConfigError: There is no such split, or it has no rows.
        """
        if split not in SPLITS:
            raise ConfigError(f"{split!r} is no split: expected one of {', '.join(SPLITS)}")
        chosen = self.splits == split
        if not chosen.any():
            raise ConfigError(f"the table has no {split} rows")
        return rows_of(self.table, chosen)


def read_dataset(paths: Sequence[Path]) -> Dataset:
    """Read tables, each with the manifest that lies beside it.

    Args:
        paths: The tables.

    Raises:
        FormatError: A table or a manifest is malformed, or a file of a table has no split.
        ConfigError: The tables do not fit together: other features or actions, or a file in two splits.
        OSError: One cannot be read.
    """
    tables, sources, speeds = [], [], []
    splits: dict[str, str] = {}
    groups: dict[str, str] = {}
    for path in paths:
        manifest = read_manifest(path.with_name(MANIFEST_NAME))
        table = read_table(path)
        told = {entry["id"]: entry["split"] for entry in manifest["files"]}
        groups |= {entry["id"]: str(entry.get("group", entry["id"])) for entry in manifest["files"]}
        for file in map(str, np.unique(table.files)):
            if file not in told:
                raise FormatError(f"file {file} of {path.name} is not in {MANIFEST_NAME}")
            if splits.setdefault(file, told[file]) != told[file]:
                raise ConfigError(f"file {file} is in split {splits[file]} and in split {told[file]}")
        tables.append(table)
        speeds.append(calibration_of(manifest))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        sources.append(
            {"sha256": digest, "rows": len(table), "files": len(told), "machine": manifest.get("machine")}
        )
    whole = joined(tables)
    files = list(map(str, whole.files))
    return Dataset(
        whole,
        np.array([groups[f] for f in files]),
        np.array([splits[f] for f in files]),
        tuple(speeds[0].get(action, (0.0, 0.0)) for action in whole.actions),
        tuple(sources),
    )


def calibration_of(manifest: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Give the speeds on the calibration sample that a manifest tells: compressing and decompressing."""
    told = manifest.get(CALIBRATION, {})
    try:
        return {str(action): (float(one), float(other)) for action, (one, other) in told.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise FormatError(f"{CALIBRATION} of {MANIFEST_NAME} is no table of times: {error}") from error
