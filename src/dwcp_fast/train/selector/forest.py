"""The model in Python: sums of small trees, evaluated in single precision as the native code does."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dwcp_fast.errors import ConfigError

__all__ = ["LEAF", "QUANTITIES", "Ensemble", "Forest", "Tree"]

LEAF: Final = 255
"""Feature number of a node that is a leaf."""

QUANTITIES: Final = ("ratio", "compress", "decompress")
"""What is predicted for an action: wire bytes per byte, and nanoseconds per byte each way."""

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
        reference: Number of the action whose logarithm of the same quantity this one is added to, or None.
        base: What is added to it without looking at the block.
        trees: What is added for what the block looks like.
    """

    reference: int | None
    base: float
    trees: tuple[Tree, ...]

    def sums(self, x: Singles) -> Singles:
        """Give base and leaves of each row, added in the order of the trees."""
        total = np.full(len(x), self.base, np.float32)
        for tree in self.trees:
            total += tree.leaves(x)
        return total


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """A model: for each action, what it makes of a block.

    Attributes:
        features: Names of what is known of a block.
        actions: Names of the actions.
        reference_ns_per_byte: For each action, nanoseconds per byte to compress the calibration sample on
            the machine where the table was measured.
        ensembles: For each action, one for each of QUANTITIES.
    """

    features: tuple[str, ...]
    actions: tuple[str, ...]
    reference_ns_per_byte: tuple[float, ...]
    ensembles: tuple[tuple[Ensemble, Ensemble, Ensemble], ...]

    def logarithms(self, x: Singles) -> Singles:
        """Give the logarithm of every prediction, rows x actions x quantities.

        A ratio is at most 1: what does not shrink is sent as it is.
        """
        out = np.zeros((len(x), len(self.actions), len(QUANTITIES)), np.float32)
        for quantity in range(len(QUANTITIES)):
            for action in self.in_order(quantity):
                ensemble = self.ensembles[action][quantity]
                total = ensemble.sums(x)
                if ensemble.reference is not None:
                    total += out[:, ensemble.reference, quantity]
                out[:, action, quantity] = total
        out[:, :, 0] = np.minimum(out[:, :, 0], 0)
        return out

    def predict(self, x: Singles) -> Singles:
        """Give ratio and nanoseconds per byte, rows x actions x quantities."""
        return np.exp(self.logarithms(x))

    def in_order(self, quantity: int) -> Iterator[int]:
        """Give the actions so that each comes after the one that it refers to.

        Raises:
            ConfigError: References go round in a circle.
        """
        done: set[int] = set()
        waiting = list(range(len(self.actions)))
        while waiting:
            ready = [a for a in waiting if self.ensembles[a][quantity].reference in done | {None}]
            if not ready:
                raise ConfigError(
                    f"the {QUANTITIES[quantity]} of {self.actions[waiting[0]]} refers to itself"
                )
            yield from ready
            done.update(ready)
            waiting = [action for action in waiting if action not in done]

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
