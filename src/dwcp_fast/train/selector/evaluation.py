"""How good choices are: cost against a measured oracle, and against what needs no model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from dwcp_fast.train.selector.baselines import BASELINES, FALLBACK, HINDSIGHT
from dwcp_fast.train.selector.choosing import (
    AS_IT_IS,
    choose,
    costs_of,
    measured_logarithms,
    predicted_logarithms,
)
from dwcp_fast.train.selector.costs import Costs, Overlap, Situation, grid
from dwcp_fast.train.selector.forest import Forest
from dwcp_fast.train.selector.table import CostTable

__all__ = ["Outcome", "by_family", "evaluate", "outcomes", "summary"]

OVERLAPS: Final[tuple[Overlap, Overlap]] = ("sequential", "pipelined")
TIE: Final = 1.02
"""Actions that cost up to this much of the best one's are as right as it is."""
CLOSE: Final = 1.05
BOOTSTRAPS: Final = 1000
GUARDED: Final = (AS_IT_IS, FALLBACK)
"""What choosing must never be much worse than."""
GUARDED_FROM_BLOCKS: Final = (1, 2, 4, 16)
"""Least blocks of the files that are compared with GUARDED together: more blocks are more to learn from."""
INFORMED: Final = {"sizes": (0,), "times to code": (1,), "sizes and times to code": (0, 1)}
"""Quantities of which a choice may be told the truth, to see what it costs not to know them."""
UNSEEN_LINKS_BPS: Final = (33e6, 730e6, 3.3e9, 7e9, 17e9)
THROTTLED: Final = (0.1,)

Floats = NDArray[np.float64]
Choices = NDArray[np.intp]
Chooser = Callable[[Sequence[Situation]], Choices]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What choices cost.

    Attributes:
        situations: Where they were taken.
        files: The file of each row.
        raw_bytes: Its length.
        chosen: Seconds of the choice, situations x rows.
        best: Seconds of the best action there, likewise.
        guarded: Seconds of each of GUARDED, each likewise.
    """

    situations: tuple[Situation, ...]
    files: NDArray[np.str_]
    raw_bytes: Floats
    chosen: Floats
    best: Floats
    guarded: Floats

    @classmethod
    def of(cls, table: CostTable, situations: Sequence[Situation], choices: Choices) -> "Outcome":
        """Look up what choices cost."""
        costs = costs_of(table)
        rows = np.arange(len(table))
        seconds = [costs.seconds(at) for at in situations]
        return cls(
            tuple(situations),
            table.files,
            table.raw_bytes.astype(np.float64),
            np.array([of[rows, taken] for of, taken in zip(seconds, choices, strict=True)]),
            np.array([of.min(axis=1) for of in seconds]),
            np.array([[of[:, table.actions.index(name)] for of in seconds] for name in GUARDED]),
        )

    def efficiency(self, rows: NDArray[np.bool_] | slice = slice(None)) -> Floats:
        """Give, for each situation, the oracle's total cost by that of the choices, at most 1."""
        efficiency: Floats = self.best[:, rows].sum(axis=1) / self.chosen[:, rows].sum(axis=1)
        return efficiency

    def along(self, axis: Literal["link_bps", "cpu_share"]) -> dict[float, float]:
        """Give the efficiency for each link, or for each CPU share, the mean of the other axis."""
        places = np.array([getattr(at, axis) for at in self.situations])
        efficiency = self.efficiency()
        return {float(place): float(efficiency[places == place].mean()) for place in np.unique(places)}

    def within(self, factor: float) -> float:
        """Give the share of decisions that cost at most `factor` of the best one."""
        return float((self.chosen <= factor * self.best).mean())

    def regret_s_per_gb(self) -> Floats:
        """Give the seconds lost by each decision for each gigabyte, situations x rows."""
        return (self.chosen - self.best) / self.raw_bytes * 1e9

    def against_guarded(self, groups: NDArray[np.str_]) -> Floats:
        """Give, for each situation and group of rows, the cost by that of the better of GUARDED."""
        sums = [
            np.array([part[:, groups == group].sum(axis=1) for group in np.unique(groups)]).T
            for part in (self.chosen, *self.guarded)
        ]
        ratio: Floats = sums[0] / np.minimum(sums[1], sums[2])
        return ratio

    def interval(self, seed: int) -> tuple[float, float]:
        """Give the 95 % interval of the mean efficiency, by drawing files again."""
        names, of = np.unique(self.files, return_inverse=True)
        best = np.array([np.bincount(of, row, len(names)) for row in self.best])
        chosen = np.array([np.bincount(of, row, len(names)) for row in self.chosen])
        drawn = np.random.default_rng(seed).multinomial(len(names), [1 / len(names)] * len(names), BOOTSTRAPS)
        means = ((drawn @ best.T) / (drawn @ chosen.T)).mean(axis=1)
        low, high = np.quantile(means, (0.025, 0.975))
        return float(low), float(high)


def outcomes(table: CostTable, chooser: Chooser, **axes: Sequence[float]) -> dict[Overlap, Outcome]:
    """Let a chooser choose everywhere on the grid, for both overlaps."""
    found = {}
    for overlap in OVERLAPS:
        situations = grid(overlap, **axes)
        found[overlap] = Outcome.of(table, situations, chooser(situations))
    return found


def summary(found: dict[Overlap, Outcome]) -> dict[str, Any]:
    """Give the figures of one way to choose."""
    links = {overlap: outcome.along("link_bps") for overlap, outcome in found.items()}
    overlap, link = min(
        ((overlap, link) for overlap, by in links.items() for link in by), key=lambda at: links[at[0]][at[1]]
    )
    cells = np.concatenate([outcome.efficiency() for outcome in found.values()])
    return {
        "efficiency_sequential": float(found["sequential"].efficiency().mean()),
        "efficiency_pipelined": float(found["pipelined"].efficiency().mean()),
        "worst_link": links[overlap][link],
        "worst_link_at": {"link_bps": link, "overlap": overlap},
        "worst_cell": float(cells.min()),
        "within_5pct": float(np.mean([outcome.within(CLOSE) for outcome in found.values()])),
        "top1": float(np.mean([outcome.within(TIE) for outcome in found.values()])),
    }


def regrets(found: dict[Overlap, Outcome]) -> dict[str, float]:
    """Give mean and 99th percentile of the seconds lost for each gigabyte."""
    lost = np.concatenate([outcome.regret_s_per_gb().ravel() for outcome in found.values()])
    raw = np.concatenate([np.tile(o.raw_bytes, len(o.situations)) for o in found.values()])
    return {
        "regret_mean_s_per_gb": float(np.average(lost, weights=raw)),
        "regret_p99_s_per_gb": float(np.quantile(lost, 0.99)),
    }


def guarding(found: dict[Overlap, Outcome], table: CostTable) -> dict[str, Any]:
    """Compare with always none and always zstd:1, file by file and over everything."""
    worst: tuple[float, dict[str, Any]] = (0.0, {})
    ratios = []
    names, counts = np.unique(table.files, return_counts=True)
    for overlap, outcome in found.items():
        ratio = outcome.against_guarded(table.files)
        ratios.append(ratio)
        at, file = np.unravel_index(int(ratio.argmax()), ratio.shape)
        place = outcome.situations[int(at)]
        where = {
            "file": str(names[file]),
            "rows": int((table.files == names[file]).sum()),
            "link_bps": place.link_bps,
            "cpu_share": place.cpu_share,
            "overlap": overlap,
        }
        worst = max(worst, (float(ratio.max()), where), key=lambda pair: pair[0])
    every = np.concatenate(ratios)
    by_blocks = {}
    for least, below in zip(GUARDED_FROM_BLOCKS, (*GUARDED_FROM_BLOCKS[1:], np.inf), strict=True):
        files = (counts >= least) & (counts < below)
        if files.any():
            part = every[:, files]
            by_blocks[f"{least} - {counts[files].max()}" if least > 1 else "1"] = {
                "files": int(files.sum()),
                "worst": float(part.max()),
                "over_2pct": float((part > TIE).mean()),
            }
    return {
        "guard_worst": worst[0],
        "guard_worst_at": worst[1],
        "guard_over_2pct": float((every > TIE).mean()),
        "guard_by_blocks": by_blocks,
        "guard_worst_overall": guard_worst_overall(found),
    }


def guard_worst_overall(found: dict[Overlap, Outcome]) -> float:
    """Compare with always none and always zstd:1 over everything, in the worst situation."""
    every = [outcome.against_guarded(np.zeros(len(outcome.files), "U1")) for outcome in found.values()]
    return float(np.max(every))


def noise_ceiling(table: CostTable) -> dict[str, Any]:
    """Let the oracle choose by a second measurement, and judge it by the first: nobody can do better."""
    again = Costs.of(table.sizes, table.again_ns, table.decompress_ns)

    def chooser(situations: Sequence[Situation]) -> Choices:
        return np.array([again.seconds(at).argmin(axis=1) for at in situations], np.intp)

    figures = summary(outcomes(table, chooser))
    del figures["worst_link_at"]
    return figures


def informed(predicted: Floats, table: CostTable) -> dict[str, dict[str, Any]]:
    """Let choices know the truth about some quantities and believe the model about the others."""
    told = {}
    measured = measured_logarithms(table)
    for name, quantities in INFORMED.items():
        known = predicted.copy()
        known[..., quantities] = measured[..., quantities]
        found = outcomes(table, partial(choose, known, table))
        told[name] = {**summary(found), "guard_worst": guarding(found, table)["guard_worst"]}
    return told


def evaluate(forest: Forest, table: CostTable, learned: CostTable, *, seed: int = 1) -> dict[str, Any]:
    """Judge a model.

    Args:
        forest: The model.
        table: Rows that it has not seen.
        learned: Rows that it was fitted to: what the baselines that need any may learn from.
        seed: Of the intervals.

    Returns:
        The figures, ready for JSON.

    Raises:
        ConfigError: The table lacks a feature of the model.
    """
    predicted = predicted_logarithms(forest, table)

    by_model = partial(choose, predicted, table)
    uncorrected = partial(choose, predicted, table, corrected=False)
    found = outcomes(table, by_model)
    intervals = {
        f"efficiency_{overlap}_interval": outcome.interval(seed) for overlap, outcome in found.items()
    }
    baselines = {}
    for name, baseline in BASELINES.items():
        ruled = outcomes(table, partial(baseline, table, learned))
        baselines[name] = {
            **summary(ruled),
            "hindsight": name in HINDSIGHT,
            "guard_worst_overall": guard_worst_overall(ruled),
        }
    return {
        "rows": len(table),
        "files": len(np.unique(table.files)),
        "families": len(np.unique(table.families)),
        **summary(found),
        **intervals,
        **regrets(found),
        **guarding(found, table),
        "noise_ceiling": noise_ceiling(table),
        "informed": informed(predicted, table),
        "without_correction": summary(outcomes(table, uncorrected)),
        "by_link": {
            overlap: {f"{link:.0f}": e for link, e in o.along("link_bps").items()}
            for overlap, o in found.items()
        },
        "by_cpu_share": {
            overlap: {f"{share:g}": e for share, e in o.along("cpu_share").items()}
            for overlap, o in found.items()
        },
        "by_family": by_family(found, table),
        "unseen_links": summary(outcomes(table, by_model, links_bps=UNSEEN_LINKS_BPS)),
        "throttled": summary(outcomes(table, by_model, cpu_shares=THROTTLED)),
        "baselines": baselines,
    }


def by_family(found: dict[Overlap, Outcome], table: CostTable) -> dict[str, dict[str, float]]:
    """Give the efficiency for each family."""
    told: dict[str, dict[str, float]] = {}
    for family in np.unique(table.families):
        rows = table.families == family
        told[str(family)] = {
            overlap: float(outcome.efficiency(rows).mean()) for overlap, outcome in found.items()
        } | {"rows": int(rows.sum())}
    return told
