"""What a person would write instead of a model: rules, and hindsight that no rule has."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dwcp_fast.train.selector.choosing import AS_IT_IS, costs_of
from dwcp_fast.train.selector.costs import Situation
from dwcp_fast.train.selector.table import CostTable

__all__ = ["BASELINES", "FALLBACK", "HINDSIGHT"]

FALLBACK: Final = "zstd:1"
"""What a fixed choice does with a block for which its action does not exist."""
INCOMPRESSIBLE_ABOVE: Final = 0.95
"""Wire bytes per byte from which compressing is taken to be in vain."""
ENTROPY_FEATURE: Final = "entropy"
NOISE_ABOVE: Final = 0.95
"""Share of the highest entropy seen from which the rule of entropy takes a block for noise."""

Choices = NDArray[np.intp]
Baseline = Callable[[CostTable, CostTable, Sequence[Situation]], Choices]
"""Chooses for the rows of the first table, situations x rows; the second has those it may learn from."""


def fixed(action: str) -> Baseline:
    """Make the rule that always takes one action."""

    def choose(table: CostTable, _learned: CostTable, situations: Sequence[Situation]) -> Choices:
        return np.full((len(situations), len(table)), table.actions.index(action), np.intp)

    return choose


def unless_incompressible(action: str) -> Baseline:
    """Make the rule that takes an action where level 1 really shrinks the block: a probe without error."""

    def choose(table: CostTable, _learned: CostTable, situations: Sequence[Situation]) -> Choices:
        row = np.where(incompressible(table), *numbers(table, AS_IT_IS, action))
        return np.tile(row, (len(situations), 1))

    return choose


def by_entropy(table: CostTable, _learned: CostTable, situations: Sequence[Situation]) -> Choices:
    """Take zstd:3 unless the block's bytes look like noise."""
    entropy = table.features[:, table.feature_names.index(ENTROPY_FEATURE)]
    row = np.where(entropy > NOISE_ABOVE * entropy.max(), *numbers(table, AS_IT_IS, "zstd:3"))
    return np.tile(row, (len(situations), 1))


def by_link(table: CostTable, learned: CostTable, situations: Sequence[Situation]) -> Choices:
    """Take the one action that was best for the link and the CPU on the files that could be learned from."""
    best = [int(static_seconds(learned, at).sum(axis=0).argmin()) for at in situations]
    return available(table, np.tile(np.array(best, np.intp)[:, None], (1, len(table))))


def by_link_unless_incompressible(
    table: CostTable, learned: CostTable, situations: Sequence[Situation]
) -> Choices:
    """Take that action, but send as it is what level 1 really does not shrink."""
    chosen = by_link(table, learned, situations)
    return np.where(incompressible(table), table.actions.index(AS_IT_IS), chosen)


def best_static(table: CostTable, _learned: CostTable, situations: Sequence[Situation]) -> Choices:
    """Take the one action that turns out best for the link and the CPU on these very files."""
    return by_link(table, table, situations)


def ideal_adapt(table: CostTable, _learned: CostTable, situations: Sequence[Situation]) -> Choices:
    """Take the best level of zstd for every block, which is more than `zstd --adapt` can know."""
    levels = [number for number, action in enumerate(table.actions) if action.startswith("zstd:")]
    costs = costs_of(table)
    chosen = [np.array(levels)[costs.seconds(at)[:, levels].argmin(axis=1)] for at in situations]
    return np.array(chosen, np.intp)


BASELINES: Final[dict[str, Baseline]] = {
    "none": fixed(AS_IT_IS),
    "lz4": fixed("lz4"),
    "zstd:1": fixed("zstd:1"),
    "zstd:3": fixed("zstd:3"),
    "entropy": by_entropy,
    "zstd:1 unless incompressible": unless_incompressible("zstd:1"),
    "best for the link in training": by_link,
    "the same unless incompressible": by_link_unless_incompressible,
    "best for the link in hindsight": best_static,
    "zstd --adapt, ideal": ideal_adapt,
}
HINDSIGHT: Final = frozenset({"best for the link in hindsight", "zstd --adapt, ideal"})
"""Those that know what they could not know."""


def incompressible(table: CostTable) -> NDArray[np.bool_]:
    """Tell which blocks level 1 really does not shrink."""
    told: NDArray[np.bool_] = (
        table.sizes[:, table.actions.index(FALLBACK)] / table.raw_bytes > INCOMPRESSIBLE_ABOVE
    )
    return told


def static_seconds(table: CostTable, situation: Situation) -> NDArray[np.float64]:
    """Give the seconds of every action for every row, those of FALLBACK where it does not exist."""
    seconds = costs_of(table).seconds(situation)
    return np.where(np.isinf(seconds), seconds[:, [table.actions.index(FALLBACK)]], seconds)


def available(table: CostTable, chosen: Choices) -> Choices:
    """Replace an action by FALLBACK in the rows for which it does not exist."""
    there = np.isfinite(table.sizes)[np.arange(len(table))[None, :], chosen]
    return np.where(there, chosen, table.actions.index(FALLBACK))


def numbers(table: CostTable, *actions: str) -> tuple[int, ...]:
    """Give the places of actions in a table."""
    return tuple(table.actions.index(action) for action in actions)
