"""How an action is chosen: the smallest expected cost, corrected by what came of the last blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dwcp_fast.train.selector.costs import Costs, Situation
from dwcp_fast.train.selector.forest import Forest
from dwcp_fast.train.selector.table import CostTable

__all__ = [
    "AS_IT_IS",
    "Rule",
    "choose",
    "costs_of",
    "expected_seconds",
    "measured_logarithms",
    "predicted_logarithms",
    "stream_order",
]

AS_IT_IS: Final = "none"
"""The action whose outcome is known beforehand."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rule:
    """How choices are made.

    Attributes:
        sharpness: How far apart two overlapping stages must be for the shorter one to count for nothing. The
            expected maximum of two guesses is more than the larger one, most so where they are close.
        gain: How much of the last error is taken into the correction.
        share: How much of an action's error the other actions are taken to have.
        least_ratio: A block of which less than this is left, or was expected to be, teaches nothing: how far
            off the logarithm of next to nothing is says nothing about a full block.
        most_error: Errors of logarithms count as no more than this.
    """

    sharpness: float = 6.0
    gain: float = 0.2
    share: float = 0.9
    least_ratio: float = 1 / 16
    most_error: float = 1.0

    def correct(
        self, errors: Floats, chosen: NDArray[np.intp], actual: Floats, expected: Floats, as_it_is: int
    ) -> None:
        """Learn from what came of a block.

        Args:
            errors: The corrections believed in, situations x actions x quantities, which are changed.
            chosen: The action that was taken in each situation.
            actual: Logarithms of what comes of the block, actions x quantities; those of other actions than
                the one taken are not looked at.
            expected: Likewise what the model predicted.
            as_it_is: Number of the action from which there is nothing to learn.
        """
        every = np.arange(len(errors))
        actual, expected = actual[chosen], expected[chosen]
        teaches = np.minimum(actual[:, :1], expected[:, :1]) >= np.log(self.least_ratio)
        apart = np.clip(actual - expected - errors[every, chosen], -self.most_error, self.most_error)
        apart[~teaches[:, 0] | (chosen == as_it_is)] = 0
        weight = np.full(errors.shape[:2], self.share)
        weight[every, chosen] = 1
        weight[:, as_it_is] = 0
        errors += self.gain * weight[..., None] * apart[:, None, :]


def predicted_logarithms(forest: Forest, table: CostTable) -> Floats:
    """Give what a model predicts for the rows of a table, rows x the table's actions x quantities.

    NaN where the action was not offered.

    Raises:
        ConfigError: The table lacks a feature of the model.
    """
    x = table.features[:, forest.columns(table.feature_names)]
    out = np.full((len(table), len(table.actions), 3), np.nan)
    known = forest.logarithms(x).astype(np.float64)
    for place, action in enumerate(table.actions):
        if action in forest.actions:
            out[:, place] = known[:, forest.actions.index(action)]
    out[np.isnan(table.sizes)] = np.nan
    return out


def measured_logarithms(table: CostTable) -> Floats:
    """Give what was measured in the same form."""
    columns = np.stack([table.sizes, table.compress_ns, table.decompress_ns], axis=2)
    return np.log(np.maximum(columns, 1e-3) / table.raw_bytes[:, None, None])


def expected_seconds(
    logarithms: Floats, raw_bytes: Floats | float, situations: Sequence[Situation], as_it_is: int, rule: Rule
) -> Floats:
    """Give the expected cost of each action.

    Args:
        logarithms: Predictions, ... x actions x quantities; the leading axis is that of the situations.
        raw_bytes: Length of the blocks.
        situations: One for each place on the leading axis; all with the same overlap.
        as_it_is: Number of the action whose outcome is known.
        rule: How uncertain the predictions are taken to be.

    Returns:
        Seconds, infinite where an action is not offered.
    """
    amounts = np.exp(logarithms) * np.asarray(raw_bytes)[..., None, None]
    shape = (-1,) + (1,) * (amounts.ndim - 2)
    wire = amounts[..., 0] * np.array([8 / at.link_bps for at in situations]).reshape(shape)
    per_ns = np.array([1e-9 / at.cpu_share for at in situations]).reshape(shape)
    compress, decompress = amounts[..., 1] * per_ns, amounts[..., 2] * per_ns
    if situations[0].overlap == "sequential":
        seconds = compress + wire + decompress
    else:
        longest = np.maximum(np.maximum(compress, wire), decompress)
        stages = sum((stage / longest) ** rule.sharpness for stage in (compress, wire, decompress))
        seconds = longest * stages ** (1 / rule.sharpness)
        seconds[..., as_it_is] = longest[..., as_it_is]
    return np.where(np.isnan(seconds), np.inf, seconds)


def choose(
    predicted: Floats,
    table: CostTable,
    situations: Sequence[Situation],
    rule: Rule | None = None,
    *,
    corrected: bool = True,
) -> NDArray[np.intp]:
    """Choose an action for every row in every situation.

    Args:
        predicted: Logarithms, rows x actions x quantities.
        table: The rows, and what they really give: a correction sees of it only what was chosen, and only
            when later blocks of the same file are chosen for.
        situations: Where; all with the same overlap.
        rule: How.
        corrected: Whether there is a correction at all.

    Returns:
        Numbers of actions, situations x rows.
    """
    rule = rule or Rule()
    as_it_is = table.actions.index(AS_IT_IS)
    count = len(situations)
    chosen = np.empty((count, len(table)), np.intp)
    actual = measured_logarithms(table)
    errors = np.zeros((count, len(table.actions), 3))
    previous: tuple[str, int] | None = None
    for row in stream_order(table):
        stream = (str(table.files[row]), int(table.widths[row]))
        if stream != previous:
            errors[:] = 0
            previous = stream
        guess = predicted[row] + errors if corrected else np.broadcast_to(predicted[row], errors.shape).copy()
        guess[..., 0] = np.minimum(guess[..., 0], 0)
        seconds = expected_seconds(guess, float(table.raw_bytes[row]), situations, as_it_is, rule)
        best = seconds.argmin(axis=1)
        chosen[:, row] = best
        if corrected:
            rule.correct(errors, best, actual[row], predicted[row], as_it_is)
    return chosen


def stream_order(table: CostTable) -> NDArray[np.intp]:
    """Give the rows file by file, blocks in their order."""
    return np.lexsort((table.blocks, table.widths, table.files))


def costs_of(table: CostTable) -> Costs:
    """Give the measured costs of a table."""
    return Costs.of(table.sizes, table.compress_ns, table.decompress_ns)
