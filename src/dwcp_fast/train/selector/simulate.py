"""Whole transfers in virtual time: encoder, link and decoder side by side, and a price for the processor."""

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dwcp_fast.train.selector.choosing import (
    AS_IT_IS,
    Rule,
    costs_of,
    measured_logarithms,
    predicted_logarithms,
    stream_order,
)
from dwcp_fast.train.selector.costs import Costs
from dwcp_fast.train.selector.forest import Forest
from dwcp_fast.train.selector.rows import rows_of
from dwcp_fast.train.selector.table import CostTable

__all__ = ["blind_seconds", "oracle_seconds", "streams"]

STREAM_LINKS_BPS: Final = (10e9, 25e9)
QUEUED_BYTES: Final = 16 << 20
"""Wire bytes that may wait between two stages."""
PATIENCE_BLOCKS: Final = 16.0
BLIND_PATIENCE_BLOCKS: Final = 8.0
"""How many mean blocks the processor must be behind the link to move the odds of the price e-fold, with a
model and without one: each with what is best for it. That 16 is better with a model was first seen on the
held-out files, and then confirmed on those for training and validation."""
ODDS_LIMIT: Final = 8.0
MEMORY: Final = 0.05
"""Weight of the last block in averages."""
BLOCKS: Final = 512
"""Blocks of a stream, at least: shorter ones are sent over and over."""
FEATURES_NS: Final = 10_000.0
TREE_NS: Final = 9.5
"""What a decision takes, measured: the features of a block of 1 MiB, and each tree."""

NEVER_S: Final = 1e30

Floats = NDArray[np.float64]


def stages(costs: Costs, link_bps: float) -> Floats:
    """Give the seconds of encoder, link and decoder, 3 x blocks x actions; next to for ever for no action."""
    seconds = np.stack(
        [costs.compress_ns * 1e-9, costs.wire_bytes * 8 / link_bps, costs.decompress_ns * 1e-9]
    )
    # Unlike the infinite, a price of 0 makes nothing of it, and not NaN.
    return np.minimum(seconds, NEVER_S)


def oracle_seconds(costs: Costs, link_bps: float) -> float:
    """Give the time that no choice of actions can beat, blocks in any order and queues without end.

    It is the largest, over all prices of the three stages that add up to one, of the sum over the blocks of
    their cheapest action.
    """
    seconds = stages(costs, link_bps)
    return highest_price(lambda prices: float(np.tensordot(prices, seconds, 1).min(axis=1).sum()))


def blind_seconds(costs: Costs, link_bps: float) -> float:
    """Give the time of the best mixture of actions when nothing is known of a block."""
    totals = stages(costs, link_bps).sum(axis=1)
    return highest_price(lambda prices: float((prices @ totals).min()))


def highest_price(value: Callable[[Floats], float]) -> float:
    """Find the largest value of a concave function of three prices that add up to one."""

    def along(decoder: float) -> float:
        return highest(lambda p: value(np.array([p * (1 - decoder), (1 - p) * (1 - decoder), decoder])))

    return highest(along)


def highest(value: Callable[[float], float]) -> float:
    """Find the largest value of a concave function on 0 to 1 by golden section."""
    golden = (math.sqrt(5) - 1) / 2
    low, high = 0.0, 1.0
    left, right = high - golden, low + golden
    at_left, at_right = value(left), value(right)
    for _ in range(40):
        if at_left < at_right:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = value(right)
        else:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = value(left)
    return max(at_left, at_right)


class Guesses:
    """What is believed of the next block: a model's predictions, corrected, or averages without a model."""

    def __init__(self, start: Floats, as_it_is: int, rule: Rule, *, blind: bool) -> None:
        self.errors = np.zeros_like(start)
        self.average = start.copy()
        self.as_it_is = as_it_is
        self.rule = rule
        self.blind = blind

    def of(self, predicted: Floats) -> Floats:
        """Give actions x quantities."""
        guess = self.average.copy() if self.blind else predicted + self.errors
        guess[:, 0] = np.minimum(guess[:, 0], 0)
        return guess

    def observe(self, action: int, predicted: Floats, actual: Floats) -> None:
        """Take in what came of an action."""
        if action == self.as_it_is:
            return
        if self.blind:
            self.average[action] += MEMORY * (actual[action] - self.average[action])
            return
        self.rule.correct(self.errors[None], np.array([action]), actual, predicted, self.as_it_is)

    def another_file(self) -> None:
        """Forget what held for the last file alone."""
        self.errors[:] = 0


class Price:
    """What processor time is worth against link time, moved by which of the two has had more to do.

    What came of a block counts at once, and not when a queue runs full or empty, by which time many more
    blocks would have been decided.
    """

    def __init__(self, patience_blocks: float) -> None:
        self.patience_blocks = patience_blocks
        self.odds = 0.0
        self.mean_s = 0.0

    def of_cpu(self) -> float:
        """Give the price of a second of the processor, 0 to 1; that of the link is the rest."""
        return 1 / (1 + math.exp(-self.odds))

    def spent(self, cpu_s: float, wire_s: float) -> None:
        """Take in what a block took of both."""
        longer = max(cpu_s, wire_s)
        self.mean_s += (longer - self.mean_s) * (MEMORY if self.mean_s else 1)
        self.odds += (cpu_s - wire_s) / (self.patience_blocks * self.mean_s)
        self.odds = min(max(self.odds, -ODDS_LIMIT), ODDS_LIMIT)


class Queue:
    """Bytes between two stages, and until when they fill it."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[float, float]] = deque()
        self.bytes = 0.0

    def room_at(self, now: float) -> float:
        """Give the time from which there is room."""
        while self.bytes > QUEUED_BYTES or (self.waiting and self.waiting[0][0] <= now):
            until, length = self.waiting.popleft()
            self.bytes -= length
            now = max(now, until)
        return now

    def put(self, length: float, until: float) -> None:
        """Add bytes that leave at a time."""
        self.waiting.append((until, length))
        self.bytes += length


def run(
    table: CostTable,
    order: NDArray[np.intp],
    predicted: Floats,
    guesses: Guesses,
    link_bps: float,
    deciding_ns: float = 0.0,
) -> float:
    """Send blocks and give the seconds until the last one is decoded.

    Args:
        table: What comes of them.
        order: Their rows.
        predicted: What a model says of each row.
        guesses: What is made of that.
        link_bps: Rate of where they go; there is one core at each end.
        deciding_ns: CPU time of each choice.
    """
    actual = measured_logarithms(table)
    wire_per_byte, cpu_per_ns = 8 / link_bps, 1e-9
    price = Price(BLIND_PATIENCE_BLOCKS if guesses.blind else PATIENCE_BLOCKS)
    to_link, to_decoder = Queue(), Queue()
    encoded = sent = decoded = 0.0
    file = ""
    for row in order:
        if table.files[row] != file:
            file = str(table.files[row])
            guesses.another_file()
        amounts = np.exp(guesses.of(predicted[row])) * table.raw_bytes[row]
        worth = price.of_cpu()
        cost = worth * amounts[:, 1] * cpu_per_ns + (1 - worth) * amounts[:, 0] * wire_per_byte
        action = int(np.where(np.isnan(cost), np.inf, cost).argmin())
        guesses.observe(action, predicted[row], actual[row])
        length = table.sizes[row, action]
        cpu_s, wire_s = (table.compress_ns[row, action] + deciding_ns) * cpu_per_ns, length * wire_per_byte
        price.spent(cpu_s, wire_s)
        encoded = to_link.room_at(encoded) + cpu_s
        begin = to_decoder.room_at(max(encoded, sent))
        sent = begin + wire_s
        to_link.put(length, begin)
        decoding = max(sent, decoded)
        decoded = decoding + table.decompress_ns[row, action] * cpu_per_ns
        to_decoder.put(length, decoding)
    return decoded


def streams(
    forest: Forest, table: CostTable, learned: CostTable, families: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Send the blocks of each of some families over fast links with one core at each end.

    Args:
        forest: The model.
        table: Rows that it has not seen.
        learned: Rows that it was fitted to: what a controller without a model starts from.
        families: Which; those without rows are left out.

    Returns:
        For each family and link the rates as shares of the oracle's, and the gain over choosing blindly.
    """
    rule = Rule()
    deciding_ns = FEATURES_NS + TREE_NS * forest.size()[0]
    start = np.nansum(measured_logarithms(learned), axis=0) / np.maximum(offers(learned), 1)
    told = []
    for family in families:
        chosen = (table.families == family) & (table.widths == 0)
        rows = rows_of(table, chosen)
        if not chosen.any():
            continue
        predicted = predicted_logarithms(forest, rows)
        begin = np.where(offers(rows) > 0, start, np.nan)
        order = stream_order(rows)
        order = np.tile(order, max(1, -(-BLOCKS // len(order))))
        costs = costs_of(rows).rows(order)
        as_it_is = rows.actions.index(AS_IT_IS)
        for bps in STREAM_LINKS_BPS:
            best = oracle_seconds(costs, bps)
            sighted = Guesses(begin, as_it_is, rule, blind=False)
            by_model = run(rows, order, predicted, sighted, bps, deciding_ns)
            by_none = run(rows, order, predicted, Guesses(begin, as_it_is, rule, blind=True), bps)
            ideal = blind_seconds(costs, bps)
            told.append(
                {
                    "family": family,
                    "link_bps": bps,
                    "blocks": len(rows),
                    "files": len(np.unique(rows.files)),
                    "oracle_mb_per_s": float(rows.raw_bytes[order].sum() / best / 1e6),
                    "share_of_oracle": best / by_model,
                    "blind_share_of_oracle": best / by_none,
                    "ideal_blind_share_of_oracle": best / ideal,
                    "gain_over_blind": by_none / by_model,
                    "gain_over_ideal_blind": ideal / by_model,
                }
            )
    return told


def offers(table: CostTable) -> NDArray[np.intp]:
    """Count the rows in which each action was offered, as a column."""
    counted: NDArray[np.intp] = np.count_nonzero(np.isfinite(table.sizes), axis=0)[:, None]
    return counted
