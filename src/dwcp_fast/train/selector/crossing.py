"""Judging how training goes, and not one model: every row is predicted by one that has not seen its like."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from dwcp_fast.errors import ConfigError
from dwcp_fast.train.selector.choosing import choose, predicted_logarithms
from dwcp_fast.train.selector.dataset import Dataset
from dwcp_fast.train.selector.evaluation import by_family, outcomes, summary
from dwcp_fast.train.selector.rows import rows_of
from dwcp_fast.train.selector.training import Settings, train

__all__ = ["By", "cross"]

By = Literal["file", "family"]
"""What is left out together: files that depend on each other, or all of a family."""
FOLDS: Final = 5


def cross(
    dataset: Dataset,
    by: By,
    seeds: Sequence[int],
    progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """Train on all but a part of the data and judge by that part, until every part has been left out.

    Args:
        dataset: All rows, whatever their split.
        by: What a part is made of: a fifth of the files, or a family.
        seeds: Of the division and of the training, one round for each.
        progress: Told how many models are trained, and of how many.

    Returns:
        For each seed the figures over all rows, and where families are left out those of each.

    Raises:
        ConfigError: There are fewer files or families than parts, or LightGBM is not installed.
    """
    names = dataset.groups if by == "file" else dataset.table.families
    told = []
    for number, seed in enumerate(seeds):
        random = np.random.default_rng(seed)
        parts = divided(names, len(np.unique(names)) if by == "family" else FOLDS, random)
        predicted = np.full((len(dataset.table), len(dataset.table.actions), 3), np.nan)
        for part in range(parts.max() + 1):
            left_out = parts == part
            predicted[left_out] = predict_left_out(dataset, left_out, random, seed)
            progress(number * (parts.max() + 1) + part + 1, len(seeds) * (parts.max() + 1))
        chooser = partial(choose, predicted, dataset.table)
        found = outcomes(dataset.table, chooser)
        figures = {"seed": seed, **summary(found)}
        if by == "family":
            figures["families"] = by_family(found, dataset.table)
        told.append(figures)
    return told


def divided(names: NDArray[np.str_], parts: int, random: np.random.Generator) -> NDArray[np.intp]:
    """Give each row a part, the same to all rows of the same name."""
    unique, of = np.unique(names, return_inverse=True)
    if len(unique) < max(parts, 2):
        raise ConfigError(f"{len(unique)} files or families cannot be divided into {max(parts, 2)} parts")
    part: NDArray[np.intp] = (random.permutation(len(unique)) % parts)[of]
    return part


def predict_left_out(
    dataset: Dataset,
    left_out: NDArray[np.bool_],
    random: np.random.Generator,
    seed: int,
) -> NDArray[np.float64]:
    """Train without some rows and predict them; a fifth of the other files says when to stop."""
    fifth = divided(dataset.groups, FOLDS, random) == 0
    validation: NDArray[np.bool_] = np.logical_and(fifth, ~left_out)
    training: NDArray[np.bool_] = np.logical_and(~fifth, ~left_out)
    speeds = [(0.0, 0.0)] * len(dataset.table.actions)
    forest = train(dataset.table, training, validation, speeds, Settings(seed=seed))
    return predicted_logarithms(forest, rows_of(dataset.table, left_out))
