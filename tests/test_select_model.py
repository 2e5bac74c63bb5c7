"""The selector's training and judging: costs, choices, the model file, transfers in virtual time."""

import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash

from dwcp_fast.errors import ConfigError, FormatError, UnsupportedFormatError
from dwcp_fast.train.selector import simulate
from dwcp_fast.train.selector.choosing import Rule, choose, costs_of, measured_logarithms
from dwcp_fast.train.selector.costs import Costs, Situation, grid
from dwcp_fast.train.selector.dataset import read_dataset
from dwcp_fast.train.selector.evaluation import evaluate, noise_ceiling, outcomes, summary
from dwcp_fast.train.selector.forest import LEAF, Ensemble, Forest, Tree
from dwcp_fast.train.selector.modelfile import read_forest, write_forest
from dwcp_fast.train.selector.rows import joined, rows_of
from dwcp_fast.train.selector.table import CostTable, Row, write_manifest, write_table
from dwcp_fast.train.selector.training import (
    Settings,
    reference_of,
    single_below,
    straight,
    targets_of,
    train,
)

ACTIONS = ("none", "lz4", "zstd:1", "zstd:3", "planes")
MIB = 1 << 20


def made_table(files: int = 12, blocks: int = 8, seed: int = 1) -> CostTable:
    """Blocks whose ratio is a function of the only two features; every second file has elements."""
    random = np.random.default_rng(seed)
    count = files * blocks
    entropy = random.uniform(0.05, 1.0, count).astype(np.float32)
    file = np.repeat(np.arange(files), blocks)
    ratio = np.stack([np.ones(count), entropy**0.5, entropy**0.8, entropy**0.9, entropy], axis=1)
    speed = np.array([0.05, 0.8, 2.0, 4.0, 1.5]) * (0.5 + entropy[:, None])
    sizes, compress = np.ceil(ratio * MIB), speed * MIB
    decompress = compress / 3
    again = compress * random.uniform(0.97, 1.03, compress.shape)
    for column in (sizes, compress, decompress, again):
        column[file % 2 == 0, 4] = np.nan
    return CostTable(
        files=np.array([f"file-{n:02}" for n in file]),
        families=np.array([("guest", "disk", "text")[n % 3] for n in file]),
        blocks=np.tile(np.arange(blocks), files),
        raw_bytes=np.full(count, MIB),
        widths=np.where(file % 2 == 0, 0, 2),
        feature_names=("entropy", "noise"),
        features=np.stack([entropy, random.random(count).astype(np.float32)], axis=1),
        actions=ACTIONS,
        sizes=sizes,
        compress_ns=compress,
        decompress_ns=decompress,
        again_ns=again,
    )


@pytest.fixture(scope="module")
def table() -> CostTable:
    return made_table()


def made_forest(seed: int = 3) -> Forest:
    """A model with random trees of which no two are alike, and with references in both directions."""
    random = np.random.default_rng(seed)

    def tree() -> Tree:
        threshold = random.random(3, np.float32)
        inner = [(0, threshold[0], 1, 4, 0.0), (1, threshold[1], 2, 3, 0.0)]
        return Tree.of([*inner, *((LEAF, 0.0, 0, 0, value) for value in random.normal(0, 0.3, 3))])

    def ensemble(reference: int | None) -> Ensemble:
        base = float(np.float32(random.normal(-0.5, 0.1)))
        slope = float(np.float32(random.normal(0.5, 0.2)))
        return Ensemble(reference, base, slope, 1, tuple(tree() for _ in range(random.integers(0, 4))))

    order: Sequence[int | None] = (None, 0, None, 1, 3)
    ensembles = tuple((ensemble(at), ensemble(at), ensemble(None)) for at in order)
    return Forest(("entropy", "noise"), ACTIONS, tuple((float(n), n / 2) for n in range(5)), ensembles)


# --- costs and choices


def test_stages_add_up_one_after_the_other_and_hide_behind_the_longest_when_they_overlap() -> None:
    costs = Costs.of(np.array([[1e6, np.nan]]), np.array([[4e6, 1.0]]), np.array([[1e6, 1.0]]))
    sequential = costs.seconds(Situation(1e9, 0.5, "sequential"))
    pipelined = costs.seconds(Situation(1e9, 0.5, "pipelined"))
    assert sequential[0, 0] == pytest.approx(0.008 + 0.008 + 0.002)
    assert pipelined[0, 0] == pytest.approx(0.008)
    assert np.isinf(sequential[0, 1]) and np.isinf(pipelined[0, 1])


def test_perfect_predictions_choose_what_the_oracle_chooses(table: CostTable) -> None:
    exact = Rule(sharpness=200.0)
    found = outcomes(table, lambda at: choose(measured_logarithms(table), table, at, exact))
    figures = summary(found)
    assert figures["within_5pct"] == figures["top1"] == 1
    assert figures["worst_cell"] == pytest.approx(1, abs=1e-6)


def test_a_choice_knows_nothing_of_its_own_block_and_of_those_after_it(table: CostTable) -> None:
    situations = grid("pipelined")
    predicted = np.where(np.isnan(table.sizes)[..., None], np.nan, measured_logarithms(table).mean(0))
    before = choose(predicted, table, situations)
    late = table.blocks >= 4
    slower = replace(table, compress_ns=np.where(late[:, None], table.compress_ns * 50, table.compress_ns))
    after = choose(predicted, slower, situations)
    assert (before[:, table.blocks <= 4] == after[:, table.blocks <= 4]).all()
    assert (before != after).any()


def test_an_action_that_does_not_exist_for_a_block_is_never_chosen(table: CostTable) -> None:
    cheap = np.zeros((len(table), len(ACTIONS), 3))
    cheap[:, 4] = -9
    cheap[np.isnan(table.sizes)] = np.nan
    chosen = choose(cheap, table, grid("sequential"), corrected=False)
    assert (chosen[:, table.widths > 0] == 4).all()
    assert (chosen[:, table.widths == 0] != 4).all()


def test_noise_ceiling_falls_with_the_noise(table: CostTable) -> None:
    noise = np.random.default_rng(2).uniform(0.5, 2, table.again_ns.shape)
    noisy = replace(table, again_ns=table.compress_ns * noise)
    assert noise_ceiling(replace(table, again_ns=table.compress_ns))["top1"] == 1
    assert noise_ceiling(noisy)["top1"] < noise_ceiling(table)["top1"] <= 1


# --- transfers in virtual time


def test_no_transfer_beats_the_oracle_and_perfect_predictions_come_near(table: CostTable) -> None:
    guest = rows_of(table, (table.families == "guest") & (table.widths == 0))
    order = np.tile(np.arange(len(guest)), 40)
    costs = costs_of(guest).rows(order)
    actual = measured_logarithms(guest)
    link = 10e9
    guesses = simulate.Guesses(actual.mean(0), 0, Rule(), blind=False)
    best = simulate.oracle_seconds(costs, link)
    taken = simulate.run(guest, order, actual, guesses, link)
    fixed = [simulate.stages(costs, link)[:, :, action].sum(axis=1).max() for action in range(4)]
    assert best <= min(fixed) * 1.0001
    assert best <= simulate.blind_seconds(costs, link) <= min(fixed) * 1.0001
    assert best <= taken <= 1.15 * best


def test_a_queue_holds_back_what_does_not_fit() -> None:
    queue = simulate.Queue()
    for until in (10.0, 20.0, 30.0):
        queue.put(simulate.QUEUED_BYTES / 2, until)
    assert queue.room_at(1.0) == 10.0
    assert queue.room_at(11.0) == 11.0


# --- training


def test_an_action_refers_to_the_one_before_it_that_tells_it_best() -> None:
    random = np.random.default_rng(5)
    x = random.uniform(0.1, 1, (200, 2)).astype(np.float32)
    unseen = random.normal(0, 1, 200)
    near = unseen + random.normal(0, 0.1, 200)
    told = 2 * np.log(x[:, 1]).astype(np.float64)
    target = np.stack([np.zeros(200), unseen, near, near + told, told], axis=1)
    target[:50, 3] = np.nan
    assert [reference_of(action, target, x) for action in range(5)] == [None, None, 1, 2, None]
    left, _, slope, feature = straight(x, target[:, 4])
    assert feature == 1
    assert left == pytest.approx(0, abs=1e-9) and slope == pytest.approx(2, abs=1e-4)


def test_blocks_of_one_value_are_not_learned_from(table: CostTable) -> None:
    sizes = table.sizes.copy()
    sizes[:10] = 1
    told = targets_of(replace(table, sizes=sizes))
    assert np.isnan(told[:10]).all()
    assert np.isfinite(told[10:, :4]).all()


def test_no_single_compares_otherwise_with_a_rounded_threshold() -> None:
    random = np.random.default_rng(6)
    for threshold in random.random(1000):
        low = np.float32(single_below(threshold))
        above = np.nextafter(low, np.float32(np.inf))
        assert float(low) <= threshold < float(above)


def test_training_is_repeatable_and_better_than_any_fixed_choice(table: CostTable) -> None:
    pytest.importorskip("lightgbm")
    number = np.array([int(name[-2:]) for name in table.files])
    training, validation = number < 6, (number >= 6) & (number < 9)
    speeds = [(1.0, 0.5)] * len(ACTIONS)
    one = train(table, training, validation, speeds)
    two = train(table, training, validation, speeds)
    other = train(table, training, validation, speeds, Settings(seed=2))
    assert write_forest(one) == write_forest(two) != write_forest(other)
    figures = evaluate(one, rows_of(table, number >= 9), rows_of(table, training))
    assert figures["efficiency_sequential"] > 0.97 and figures["efficiency_pipelined"] > 0.95
    rules = [told for told in figures["baselines"].values() if not told["hindsight"]]
    for key in ("efficiency_sequential", "efficiency_pipelined"):
        assert figures[key] > max(told[key] for told in rules)


def test_training_without_lightgbm_says_what_to_install(
    table: CostTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lightgbm", None)
    half = np.arange(len(table)) % 2 == 0
    with pytest.raises(ConfigError, match="LightGBM") as caught:
        train(table, half, ~half, [(1.0, 0.5)] * len(ACTIONS))
    assert caught.value.hint == "pip install 'dwcp-fast[train]'"


# --- tables


def test_tables_that_do_not_fit_together_are_refused_by_name(table: CostTable) -> None:
    assert len(joined([table, table])) == 2 * len(table)
    with pytest.raises(ConfigError, match="surprise"):
        joined([table, replace(table, feature_names=("entropy", "surprise"))])


def written(folder: Path, splits: dict[str, str]) -> Path:
    folder.mkdir()
    row = Row(0, MIB, None, (0.5,), {"none": (MIB, 10, 10, 10)})
    files = [(name, "text", [row]) for name in ("a", "b")]
    write_table(folder / "table.csv.xz", ["entropy"], ["none"], files)
    listed = [{"id": name, "family": "text", "split": split} for name, split in splits.items()]
    write_manifest(
        folder / "manifest.json", {"files": listed, "calibration_ns_per_byte": {"none": [0.25, 0.5]}}
    )
    return folder / "table.csv.xz"


def test_a_file_without_a_split_or_in_two_is_refused_by_name(tmp_path: Path) -> None:
    good = written(tmp_path / "good", {"a": "train", "b": "held-out"})
    dataset = read_dataset([good])
    assert list(dataset.splits) == ["train", "held-out"] and dataset.reference_ns_per_byte == ((0.25, 0.5),)
    with pytest.raises(FormatError, match="file b "):
        read_dataset([written(tmp_path / "short", {"a": "train"})])
    with pytest.raises(ConfigError, match="file b is in split held-out and in split train"):
        read_dataset([good, written(tmp_path / "other", {"a": "train", "b": "train"})])


# --- the model file


def test_a_model_is_what_it_was_after_writing_and_reading() -> None:
    forest = made_forest()
    again = read_forest(write_forest(forest))
    x = np.random.default_rng(7).random((500, 2), np.float32)
    assert (again.features, again.actions) == (forest.features, forest.actions)
    assert again.reference_ns_per_byte == forest.reference_ns_per_byte
    np.testing.assert_array_equal(again.logarithms(x), forest.logarithms(x))
    assert write_forest(again) == write_forest(forest)


def test_a_model_that_is_cut_or_changed_anywhere_is_refused() -> None:
    data = write_forest(made_forest())
    for length in range(len(data)):
        with pytest.raises(FormatError):
            read_forest(data[:length])
    for at in range(0, len(data), 3):
        with pytest.raises(FormatError):
            read_forest(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])


def sealed(body: bytes) -> bytes:
    return body + xxhash.xxh3_128_digest(body)


def test_a_model_of_another_version_is_told_from_a_damaged_one() -> None:
    body = bytearray(write_forest(made_forest())[:-16])
    body[4] = 2
    with pytest.raises(UnsupportedFormatError, match="version 2"):
        read_forest(sealed(bytes(body)))


def test_a_well_sealed_model_that_contradicts_itself_is_refused() -> None:
    data = write_forest(made_forest())[:-16]
    # The first tree of five nodes, and the first sum, which can refer to no action before it.
    tree = data.index(struct.pack("<HB", 5, 0)) + 2
    three = made_forest().ensembles[0]
    first = data.index(struct.pack("<Bff", 255, three[0].base, three[0].slope))
    nan = struct.pack("<f", float("nan"))
    for place, value in (
        (tree, b"\x07"),
        (tree + 1, nan),
        (tree + 5, b"\0\0"),
        (tree + 7, b"\5\0"),
        (first, b"\0"),
        (first + 5, nan),
        (first + 9, b"\2"),
    ):
        broken = data[:place] + value + data[place + len(value) :]
        with pytest.raises(FormatError, match="malformed"):
            read_forest(sealed(broken))
    for tail in (b"\0", b"\0" * 40):
        with pytest.raises(FormatError, match="follow the last part"):
            read_forest(sealed(data + tail))
