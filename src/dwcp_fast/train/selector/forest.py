"""The model in Python: sums of small trees, evaluated in single precision as the native code does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dwcp_fast.errors import ConfigError

__all__ = ["LEAF", "QUANTITIES", "Ensemble", "Forest", "Tree", "logarithm_of"]

LEAF: Final = 255
"""Feature number of a node that is a leaf."""

QUANTITIES: Final = ("ratio", "compress", "decompress")
"""What is predicted for an action: wire bytes per byte, and nanoseconds per byte each way."""

LEAST: Final = np.float32(1 / 256)
"""The least of which a logarithm is taken."""
MOST_LOG: Final = np.float32(30)
"""Logarithms are cut to this."""

Singles = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """A binary tree as arrays, its root first.

    Attributes:
        feature: Which feature a node compares, LEAF for a leaf.
        threshold: A value up to this goes left.
        left: Node to go to, 0 for a leaf.
        right: The other one.
        value: What a leaf adds, 0 for other nodes.
    """

    feature: NDArray[np.uint8]
    threshold: Singles
    left: NDArray[np.uint16]
    right: NDArray[np.uint16]
    value: Singles

    @classmethod
    def of(cls, nodes: Sequence[tuple[int, float, int, int, float]]) -> "Tree":
        """Make a tree of its nodes, each with the fields in their order."""
        feature, threshold, left, right, value = zip(*nodes, strict=True)
        return cls(
            np.array(feature, np.uint8),
            np.array(threshold, np.float32),
            np.array(left, np.uint16),
            np.array(right, np.uint16),
            np.array(value, np.float32),
        )

    def __len__(self) -> int:
        return len(self.feature)

    def leaves(self, x: Singles) -> Singles:
        """Give the value of the leaf that each row comes to."""
        at = np.zeros(len(x), np.intp)
        rows = np.arange(len(x))
        while True:
            feature = self.feature[at]
            inner = feature != LEAF
            if not inner.any():
                return self.value[at]
            low = x[rows, np.where(inner, feature, 0)] <= self.threshold[at]
            at = np.where(inner, np.where(low, self.left[at], self.right[at]), at)


@dataclass(frozen=True, slots=True, eq=False)
class Ensemble:
    """The logarithm of one quantity of one action.

    Attributes:
        reference: Number of an action before this one, to whose logarithm of the same quantity this one is
            added, or None.
        base: What it is without looking at the block.
        slope: What is added for each unit of the logarithm of one feature.
        feature: Number of that feature.
        trees: What is added for what the block looks like.
    """

    reference: int | None
    base: float
    slope: float
    feature: int
    trees: tuple[Tree, ...]

    def sums(self, x: Singles) -> Singles:
        """Give base, slope and leaves of each row, added in this order."""
        total = np.float32(self.base) + np.float32(self.slope) * logarithm_of(x[:, self.feature])
        for tree in self.trees:
            total += tree.leaves(x)
        return total


def logarithm_of(values: Singles) -> Singles:
    """Give the logarithm of a feature, that of the least where the feature is less."""
    return np.log(np.maximum(values, LEAST))


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """A model: for each action, what it makes of a block.

    Attributes:
        features: Names of what is known of a block.
        actions: Names of the actions.
        reference_ns_per_byte: For each action, nanoseconds per byte to compress and to decompress the
            calibration sample on the machine where the table was measured.
        ensembles: For each action, one for each of QUANTITIES.
    """

    features: tuple[str, ...]
    actions: tuple[str, ...]
    reference_ns_per_byte: tuple[tuple[float, float], ...]
    ensembles: tuple[tuple[Ensemble, Ensemble, Ensemble], ...]

    def logarithms(self, x: Singles) -> Singles:
        """Give the logarithm of every prediction, rows x actions x quantities."""
        out = np.zeros((len(x), len(self.actions), len(QUANTITIES)), np.float32)
        for action, three in enumerate(self.ensembles):
            for quantity, ensemble in enumerate(three):
                total = ensemble.sums(x)
                if ensemble.reference is not None:
                    total += out[:, ensemble.reference, quantity]
                out[:, action, quantity] = np.clip(total, -MOST_LOG, MOST_LOG)
        return out

    def predict(self, x: Singles) -> Singles:
        """Give ratio and nanoseconds per byte, rows x actions x quantities."""
        return np.exp(self.logarithms(x))

    def size(self) -> tuple[int, int]:
        """Give the number of trees and of nodes."""
        trees = [tree for three in self.ensembles for ensemble in three for tree in ensemble.trees]
        return len(trees), sum(map(len, trees))

    def columns(self, features: Sequence[str]) -> list[int]:
        """Find this model's features among those of a table.

        Raises:
            ConfigError: The table lacks one.
        """
        missing = [name for name in self.features if name not in features]
        if missing:
            raise ConfigError(f"the table lacks feature {missing[0]} of the model")
        return [list(features).index(name) for name in self.features]
