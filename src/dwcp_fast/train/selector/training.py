"""Fitting the model to a measured table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dwcp_fast.errors import ConfigError
from dwcp_fast.train.selector.choosing import AS_IT_IS
from dwcp_fast.train.selector.forest import (
    LEAF,
    QUANTITIES,
    Ensemble,
    Forest,
    Tree,
    logarithm_of,
)
from dwcp_fast.train.selector.table import CostTable

__all__ = ["Settings", "train"]

RATIO_FLOOR: Final = 1 / 256
"""What shrinks further than this is as good as free to send: how much further need not be told apart."""
NS_PER_BYTE_FLOOR: Final = 1e-4

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Settings:
    """How the trees are grown.

    Attributes:
        seed: Everything random is drawn from it.
        trees: Trees of an ensemble, at most.
        leaves: Leaves of a tree, at most.
        depth: Comparisons from root to leaf, at most.
        rate: How much of what a tree finds is believed.
        patience: Trees without a gain on the validation files after which an ensemble is complete.
        threads: Threads to train with.
    """

    seed: int = 1
    trees: int = 80
    leaves: int = 16
    depth: int = 5
    rate: float = 0.1
    patience: int = 15
    threads: int = 1


def train(
    table: CostTable,
    training: NDArray[np.bool_],
    validation: NDArray[np.bool_],
    reference_ns_per_byte: Sequence[tuple[float, float]],
    settings: Settings | None = None,
) -> Forest:
    """Fit a model.

    What an action makes of a block is learned as the difference to the action that is most like it, if that
    varies less: what all of them get wrong of a block then does not change which of them is best.

    Args:
        table: The measurements.
        training: Which rows to fit to.
        validation: Which rows say when to stop; none of their files may be among those fitted to.
        reference_ns_per_byte: The speed of each action on the calibration sample.
        settings: How.

    Raises:
        ConfigError: LightGBM is not installed, or there are no rows to fit to or to stop by.
    """
    settings = settings or Settings()
    if not training.any() or not validation.any():
        raise ConfigError(
            f"{training.sum()} rows to train on, {validation.sum()} to validate: both need some"
        )
    targets = targets_of(table)
    grower = Grower(table.features[training], table.features[validation], settings)
    learned: list[list[Ensemble]] = [[] for _ in table.actions]
    for quantity in range(len(QUANTITIES)):
        fitted, stopping = targets[training, :, quantity], targets[validation, :, quantity]
        for action in range(len(table.actions)):
            reference = reference_of(action, fitted, grower.x)
            less = [0.0, 0.0] if reference is None else [part[:, reference] for part in (fitted, stopping)]
            learned[action].append(
                grower.grow(fitted[:, action] - less[0], stopping[:, action] - less[1], reference)
            )
    ensembles = tuple((three[0], three[1], three[2]) for three in learned)
    return Forest(table.feature_names, table.actions, tuple(reference_ns_per_byte), ensembles)


def targets_of(table: CostTable) -> Floats:
    """Give the logarithms to be learned, rows x actions x quantities; NaN where there is nothing to learn.

    That is so where an action does not exist, and for blocks of one byte value: every action sends those
    as that value, and their numbers, far from all others, would bend every line.
    """
    raw = table.raw_bytes[:, None].astype(np.float64)
    ratio = np.clip(table.sizes / raw, RATIO_FLOOR, 1)
    per_byte = (np.maximum(ns / raw, NS_PER_BYTE_FLOOR) for ns in (table.compress_ns, table.decompress_ns))
    targets: Floats = np.log(np.stack([ratio, *per_byte], axis=2))
    targets[table.sizes[:, table.actions.index(AS_IT_IS)] < table.raw_bytes] = np.nan
    return targets


def reference_of(action: int, target: Floats, x: NDArray[np.float32]) -> int | None:
    """Choose the action before this one from which it is told best by a straight line, or none.

    Args:
        action: Number of the action.
        target: One quantity, rows x actions.
        x: The features of the rows.
    """
    best, found = straight(x, target[:, action])[0], None
    for other in range(action):
        apart = straight(x, target[:, action] - target[:, other])[0]
        if apart < 0.99 * best:
            best, found = apart, other
    return found


class Grower:
    """Grows ensembles over the same rows."""

    def __init__(self, x: NDArray[np.float32], x_validation: NDArray[np.float32], settings: Settings) -> None:
        self.x = x
        self.x_validation = x_validation
        self.settings = settings
        self.engine = lightgbm()

    def grow(self, wanted: Floats, wanted_validation: Floats, reference: int | None) -> Ensemble:
        """Grow the trees for one quantity of one action; rows where it is NaN are left out."""
        rows, stop_rows = np.isfinite(wanted), np.isfinite(wanted_validation)
        if not rows.any():
            raise ConfigError("an action has no measurement in the files to train on")
        if np.ptp(wanted[rows]) < 1e-6 or not stop_rows.any():
            return Ensemble(reference, float(np.float32(wanted[rows].mean())), 0.0, 0, ())
        _, base, slope, feature = straight(self.x, wanted)
        left, stop_left = (
            of - base - slope * logarithm_of(x[:, feature])
            for of, x in ((wanted, self.x), (wanted_validation, self.x_validation))
        )
        settings = self.settings
        options = {
            "objective": "regression",
            "learning_rate": settings.rate,
            "num_leaves": settings.leaves,
            "max_depth": settings.depth,
            "min_data_in_leaf": 4,
            "lambda_l2": 1.0,
            "feature_fraction": 0.8,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "boost_from_average": False,
            "seed": settings.seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": settings.threads,
            "verbose": -1,
        }
        data = self.engine.Dataset(self.x[rows], left[rows], free_raw_data=False)
        stop_data = self.engine.Dataset(self.x_validation[stop_rows], stop_left[stop_rows], reference=data)
        booster = self.engine.train(
            options,
            data,
            num_boost_round=settings.trees,
            valid_sets=[stop_data],
            callbacks=[self.engine.early_stopping(settings.patience, verbose=False)],
        )
        found = booster.dump_model(num_iteration=booster.best_iteration)["tree_info"]
        trees = (tree_of(told["tree_structure"]) for told in found)
        return Ensemble(reference, base, slope, feature, tuple(tree for tree in trees if tree is not None))


def straight(x: NDArray[np.float32], wanted: Floats) -> tuple[float, float, float, int]:
    """Find the feature whose logarithm tells most of what is wanted.

    Returns:
        The variance that is left, and base, slope and number of the feature, the former two as singles.
    """
    rows = np.isfinite(wanted)
    wanted = wanted[rows]
    best = (float(np.var(wanted)), float(wanted.mean()), 0.0, 0)
    for feature in range(x.shape[1]):
        known = logarithm_of(x[rows, feature]).astype(np.float64)
        variance = float(np.var(known))
        if variance > 1e-9:
            slope = float(np.mean((known - known.mean()) * (wanted - wanted.mean()))) / variance
            base = float(wanted.mean() - slope * known.mean())
            best = min(best, (float(np.var(wanted - slope * known)), base, slope, feature))
    left, base, slope, feature = best
    return left, float(np.float32(base)), float(np.float32(slope)), feature


def tree_of(structure: dict[str, Any]) -> Tree | None:
    """Make arrays of a tree as LightGBM tells it; None for one that has nothing but a leaf of 0."""
    nodes: list[tuple[int, float, int, int, float]] = []

    def place(node: dict[str, Any]) -> int:
        number = len(nodes)
        if "split_feature" not in node:
            nodes.append((LEAF, 0.0, 0, 0, node["leaf_value"]))
            return number
        nodes.append((LEAF, 0.0, 0, 0, 0.0))
        left, right = place(node["left_child"]), place(node["right_child"])
        nodes[number] = (node["split_feature"], single_below(node["threshold"]), left, right, 0.0)
        return number

    place(structure)
    if len(nodes) == 1 and nodes[0][4] == 0:
        return None
    return Tree.of(nodes)


def single_below(threshold: float) -> float:
    """Give the largest single that is not above: every single compares with it as with `threshold`."""
    rounded = np.float32(threshold)
    return float(np.nextafter(rounded, np.float32(-np.inf)) if rounded > threshold else rounded)


def lightgbm() -> Any:
    """Import LightGBM, which only training needs.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import lightgbm as engine
    except ImportError as error:
        raise ConfigError(
            "training needs LightGBM, which is not installed", hint="pip install 'dwcp-fast[train]'"
        ) from error
    return engine
