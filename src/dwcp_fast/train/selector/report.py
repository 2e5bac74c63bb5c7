"""Figures as a card beside the model, and as tables for people."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Final

from dwcp_fast.train.selector.dataset import Dataset
from dwcp_fast.train.selector.forest import Forest
from dwcp_fast.train.selector.training import Settings

__all__ = ["card", "tables"]

TARGETS: Final = {
    "efficiency_sequential": 0.98,
    "efficiency_pipelined": 0.98,
    "worst_link": 0.96,
    "within_5pct": 0.98,
}
"""What the model is meant to reach, at least."""
MOST_GUARD: Final = 1.02
CELLS: Final = {
    "sequential": "efficiency_sequential",
    "pipelined": "efficiency_pipelined",
    "worst link": "worst_link",
    "within 5 %": "within_5pct",
    "best or tied": "top1",
}
"""What ways to choose are compared by, and the figures that say so."""


def card(
    forest: Forest, dataset: Dataset, settings: Settings, data: bytes, figures: dict[str, Any]
) -> dict[str, Any]:
    """Give what is to be known of a model: what it was made of, how, and how good it is.

    Args:
        forest: The model.
        dataset: What it was trained on.
        settings: How.
        data: Its bytes.
        figures: Its evaluation on held-out files.
    """
    trees, nodes = forest.size()
    return {
        "model": {
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
            "trees": trees,
            "nodes": nodes,
            "features": list(forest.features),
            "actions": list(forest.actions),
        },
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "with": {name: metadata.version(name) for name in ("dwcp-fast", "lightgbm", "numpy")},
        "tables": list(dataset.sources),
        "files": {
            split: len(set(map(str, dataset.table.files[dataset.splits == split])))
            for split in map(str, sorted(set(dataset.splits)))
        },
        "settings": asdict(settings),
        "held_out": figures,
    }


def tables(figures: dict[str, Any]) -> Iterator[str]:
    """Give an evaluation as lines of Markdown, what is lost first."""
    yield from losses(figures)
    yield ""
    yield from beside(figures)
    yield ""
    yield from grid_of("link", figures["by_link"], rate)
    yield ""
    yield from grid_of("cores at each end", figures["by_cpu_share"], str)
    yield ""
    yield from families(figures["by_family"])
    if figures.get("streams"):
        yield ""
        yield from streams(figures["streams"])
    if figures.get("cross"):
        yield ""
        yield from crossed(figures["cross"])


def losses(figures: dict[str, Any]) -> Iterator[str]:
    """Give the figures beside their targets, those that miss them first."""
    rows = []
    for key, target in TARGETS.items():
        rows.append((figures[key] >= target, f"| {key} | {percent(figures[key])} | >= {percent(target)} |"))
    guard = figures["guard_worst"]
    rows.append((guard <= MOST_GUARD, f"| guard_worst | {guard:.3f} | <= {MOST_GUARD} |"))
    yield "| figure | measured | target |"
    yield "|---|---|---|"
    yield from (line for met, line in sorted(rows, key=lambda row: row[0]))
    for overlap in ("sequential", "pipelined"):
        low, high = figures[f"efficiency_{overlap}_interval"]
        yield f"| 95 % interval over files, {overlap} | {percent(low)} - {percent(high)} | |"
    yield f"| top1 | {percent(figures['top1'])} | noise ceiling {percent(figures['noise_ceiling']['top1'])} |"
    yield f"| regret, mean | {figures['regret_mean_s_per_gb']:.3f} s/GB | |"
    yield f"| regret, 99th percentile | {figures['regret_p99_s_per_gb']:.2f} s/GB | |"
    yield f"| guard, all files together | {figures['guard_worst_overall']:.3f} | |"
    for blocks, part in figures["guard_by_blocks"].items():
        yield (
            f"| guard, {part['files']} files of {blocks} blocks | {part['worst']:.3f}, "
            f"{percent(part['over_2pct'])} over 2 % | |"
        )
    yield f"| guard, share of files and situations over 2 % | {percent(figures['guard_over_2pct'])} | |"


def beside(figures: dict[str, Any]) -> Iterator[str]:
    """Give the model among what needs no model."""
    yield f"| choice | {' | '.join(CELLS)} |"
    yield "|---|---|---|---|---|---|"
    named = {
        "**this model**": figures,
        "without correction": figures["without_correction"],
        "links never seen": figures["unseen_links"],
        "a tenth of a core": figures["throttled"],
        **{f"told the {name}": told for name, told in figures["informed"].items()},
        "the oracle, measured again": figures["noise_ceiling"],
        **figures["baselines"],
    }
    for name, told in named.items():
        hindsight = " (hindsight)" if told.get("hindsight") else ""
        yield f"| {name}{hindsight} | {cells_of(told)} |"


def grid_of(what: str, told: dict[str, dict[str, float]], name: Callable[[str], str]) -> Iterator[str]:
    """Give the efficiency along one axis."""
    places = list(told["sequential"])
    yield f"| {what} | " + " | ".join(name(place) for place in places) + " |"
    yield "|---|" + "---|" * len(places)
    for overlap, by in told.items():
        yield f"| {overlap} | " + " | ".join(percent(by[place]) for place in places) + " |"


def families(told: dict[str, dict[str, float]]) -> Iterator[str]:
    """Give the efficiency for each family, the worst first."""
    yield "| family | blocks | sequential | pipelined |"
    yield "|---|---|---|---|"
    for family, by in sorted(told.items(), key=lambda pair: pair[1]["pipelined"]):
        yield f"| {family} | {by['rows']} | {percent(by['sequential'])} | {percent(by['pipelined'])} |"


def streams(told: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Give whole transfers in virtual time."""
    columns = ("stream", "link", "oracle", "this model", "blind controller", "best blind mixture")
    yield f"| {' | '.join(columns)} | gain over blind | the oracle's |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in told:
        yield (
            f"| {one['family']} | {rate(one['link_bps'])} | {one['oracle_mb_per_s']:.0f} MB/s | "
            f"{percent(one['share_of_oracle'])} | {percent(one['blind_share_of_oracle'])} | "
            f"{percent(one['ideal_blind_share_of_oracle'])} | {one['gain_over_blind']:.2f} | "
            f"{1 / one['blind_share_of_oracle']:.2f} |"
        )


def crossed(told: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Give the figures of models that were trained without a part of the data."""
    yield f"| left out | seed | {' | '.join(CELLS)} |"
    yield "|---|---|---|---|---|---|---|"
    for by, rounds in told.items():
        for one in rounds:
            yield f"| {by} | {one['seed']} | {cells_of(one)} |"
    for one in told.get("family", [])[:1]:
        yield ""
        yield from families(one["families"])


def cells_of(told: dict[str, Any]) -> str:
    """Write the figures of one way to choose, below CELLS."""
    return " | ".join(percent(told[key]) for key in CELLS.values())


def percent(share: float) -> str:
    """Write a share."""
    return f"{100 * share:.1f} %"


def rate(bps: float | str) -> str:
    """Write a rate of bits."""
    number = float(bps)
    return f"{number / 1e9:g} Gbps" if number >= 1e9 else f"{number / 1e6:g} Mbps"
