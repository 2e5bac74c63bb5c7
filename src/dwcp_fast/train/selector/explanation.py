"""What a model would choose for the blocks of a file, and what it expects of every action."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np

from dwcp_fast._core import select_feature_names, select_features
from dwcp_fast.models import selector_bytes
from dwcp_fast.train.selector.choosing import AS_IT_IS, Rule, expected_seconds
from dwcp_fast.train.selector.costs import Situation
from dwcp_fast.train.selector.forest import Forest
from dwcp_fast.train.selector.modelfile import read_forest
from dwcp_fast.train.selector.table import TYPED

__all__ = ["Explained", "explain_file"]

BLOCK_BYTES: Final = 1 << 20
STAGES: Final = ("compressing", "the link", "decompressing")


@dataclass(frozen=True, slots=True)
class Explained:
    """A choice for one block, or for several in a row.

    Attributes:
        offset: Where the first one begins, in bytes.
        blocks: How many there are.
        raw_bytes: Their length.
        action: What is chosen.
        ratio: Wire bytes expected per byte.
        limit: What takes longest with it: compressing, the link, or decompressing.
        seconds: Seconds expected for each action, the least first.
        features: What is known of the blocks, their mean.
    """

    offset: int
    blocks: int
    raw_bytes: int
    action: str
    ratio: float
    limit: str
    seconds: dict[str, float]
    features: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Give it for JSON."""
        return asdict(self)

    def text(self) -> str:
        """Give it in a line for people."""
        per_mib = {action: 1e3 * s / self.raw_bytes * BLOCK_BYTES for action, s in self.seconds.items()}
        others = [f"{action} {ms:.2f}" for action, ms in per_mib.items() if action != self.action][:2]
        plain = [] if self.action == AS_IT_IS else [f"{AS_IT_IS} {per_mib[AS_IT_IS]:.2f}"]
        blocks = "1 block" if self.blocks == 1 else f"{self.blocks} blocks"
        return (
            f"at {self.offset / BLOCK_BYTES:g} MiB, {blocks}: {self.action}, "
            f"{self.ratio:.3f} of the length in {per_mib[self.action]:.2f} ms/MiB, limited by {self.limit} "
            f"({', '.join(dict.fromkeys(others + plain))})"
        )


def explain_file(
    path: Path, situation: Situation, width: int | None = None, model: Path | None = None
) -> list[Explained]:
    """Say what a model would choose for a file.

    Args:
        path: The file.
        situation: The link, and the CPU at its ends.
        width: Bytes of an element, None if the file is not made of any.
        model: A model file; None for the one that comes with the package.

    Raises:
        FormatError: The model is damaged or no model.
        UnsupportedFormatError: The model is of another version.
        ConfigError: The model needs features that this release does not compute.
        OSError: A file cannot be read.
    """
    forest = read_forest(selector_bytes(model))
    columns = forest.columns(select_feature_names())
    single = [
        explain_block(forest, columns, block, offset, situation, width) for offset, block in blocks_of(path)
    ]
    return [together(list(run)) for _, run in groupby(single, key=lambda one: (one.action, one.limit))]


def blocks_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Give the blocks of a file and where they begin."""
    with path.open("rb") as file:
        offset = 0
        while block := file.read(BLOCK_BYTES):
            yield offset, block
            offset += len(block)


def explain_block(
    forest: Forest, columns: list[int], block: bytes, offset: int, situation: Situation, width: int | None
) -> Explained:
    """Choose for one block."""
    known = np.array(select_features(block, width), np.float32)[columns]
    logarithms = forest.logarithms(known[None, :]).astype(np.float64)
    logarithms[..., 0] = np.minimum(logarithms[..., 0], 0)
    if width is None and TYPED in forest.actions:
        logarithms[:, forest.actions.index(TYPED)] = np.nan
    as_it_is = forest.actions.index(AS_IT_IS)
    seconds = expected_seconds(logarithms, float(len(block)), [situation], as_it_is, Rule())[0]
    order = [int(action) for action in seconds.argsort() if np.isfinite(seconds[action])]
    best = order[0]
    ratio, compress, decompress = (float(value) for value in np.exp(logarithms[0, best]))
    each = (
        compress * 1e-9 / situation.cpu_share,
        ratio * 8 / situation.link_bps,
        decompress * 1e-9 / situation.cpu_share,
    )
    return Explained(
        offset,
        1,
        len(block),
        forest.actions[best],
        ratio,
        STAGES[int(np.argmax(each))],
        {forest.actions[action]: float(seconds[action]) for action in order},
        {name: float(value) for name, value in zip(forest.features, known, strict=True)},
    )


def together(run: list[Explained]) -> Explained:
    """Put blocks in a row, for which the same is chosen, into one."""
    raw = sum(one.raw_bytes for one in run)
    totals = {action: sum(one.seconds[action] for one in run) for action in run[0].seconds}
    return Explained(
        run[0].offset,
        len(run),
        raw,
        run[0].action,
        sum(one.ratio * one.raw_bytes for one in run) / raw,
        run[0].limit,
        dict(sorted(totals.items(), key=lambda pair: pair[1])),
        {name: sum(one.features[name] for one in run) / len(run) for name in run[0].features},
    )
