"""The model that comes with the package, against the table it was made from."""

import hashlib
import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dwcp_fast._core import select_actions, select_feature_names
from dwcp_fast.errors import FormatError, IntegrityError, LimitExceededError, UnsupportedFormatError
from dwcp_fast.models import SELECTOR_CARD, read_selector, selector_bytes
from dwcp_fast.train.selector.choosing import predicted_logarithms
from dwcp_fast.train.selector.dataset import Dataset, read_dataset
from dwcp_fast.train.selector.evaluation import evaluate
from dwcp_fast.train.selector.forest import Forest
from dwcp_fast.train.selector.modelfile import read_forest, write_forest


@pytest.fixture(scope="module")
def dataset(repository: Path) -> Dataset:
    return read_dataset([repository / "data/selector/table.csv.xz"])


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    told = resources.files("dwcp_fast.models").joinpath(SELECTOR_CARD).read_text("utf-8")
    read: dict[str, Any] = json.loads(told)
    return read


@pytest.fixture(scope="module")
def forest() -> Forest:
    return read_forest(selector_bytes())


@pytest.fixture(scope="module")
def figures(forest: Forest, dataset: Dataset) -> dict[str, Any]:
    return evaluate(forest, dataset.part("held-out"), dataset.part("train"))


def test_card_is_that_of_the_model_and_of_the_table(card: dict[str, Any], dataset: Dataset) -> None:
    assert card["model"]["sha256"] == hashlib.sha256(selector_bytes()).hexdigest()
    assert [table["sha256"] for table in card["tables"]] == [one["sha256"] for one in dataset.sources]


def test_model_was_made_for_the_features_and_actions_of_this_release(forest: Forest) -> None:
    assert list(forest.features) == select_feature_names()
    assert list(forest.actions) == select_actions()


def test_python_and_native_code_predict_the_same(forest: Forest, dataset: Dataset) -> None:
    rows = dataset.table.features[:: max(1, len(dataset.table) // 400)]
    native = read_selector()
    there = np.array([native.predict([float(value) for value in row]) for row in rows])
    np.testing.assert_allclose(there, forest.predict(rows), rtol=1e-5)


def test_no_file_and_none_that_depends_on_it_is_in_two_splits(dataset: Dataset) -> None:
    for names in (dataset.groups, dataset.table.files):
        for name in np.unique(names):
            assert len(set(dataset.splits[names == name])) == 1, name
    assert {"train", "validation", "held-out"} == set(dataset.splits)


def test_model_beats_every_rule_on_files_it_has_not_seen(figures: dict[str, Any]) -> None:
    rules = {name: told for name, told in figures["baselines"].items() if not told["hindsight"]}
    assert len(rules) >= 6
    for key in ("efficiency_sequential", "efficiency_pipelined", "within_5pct", "worst_link"):
        best = max(told[key] for told in rules.values())
        assert figures[key] > best, (key, figures[key], best)


def test_figures_of_the_card_are_those_that_the_table_gives(
    figures: dict[str, Any], card: dict[str, Any]
) -> None:
    told = card["held_out"]
    for key in ("efficiency_sequential", "efficiency_pipelined", "worst_link", "within_5pct", "guard_worst"):
        assert told[key] == pytest.approx(figures[key], rel=1e-4), key


def test_a_model_of_shuffled_features_is_found_to_be_worse(forest: Forest, dataset: Dataset) -> None:
    held_out = dataset.part("held-out")
    order = np.random.default_rng(1).permutation(len(forest.features))
    shuffled = replace(forest, features=tuple(forest.features[place] for place in order))
    worse = evaluate(shuffled, held_out, dataset.part("train"))
    rules = worse["baselines"]["best for the link in training"]
    assert worse["efficiency_sequential"] < rules["efficiency_sequential"]


def test_the_width_of_an_element_is_needed_for_byte_planes(forest: Forest, dataset: Dataset) -> None:
    held_out = dataset.part("held-out")
    predicted = predicted_logarithms(forest, held_out)
    planes = held_out.actions.index("planes")
    assert np.isnan(predicted[held_out.widths == 0, planes]).all()
    assert np.isfinite(predicted[held_out.widths > 0, planes]).all()


def test_files_that_are_no_model_for_this_release_are_refused(tmp_path: Path, forest: Forest) -> None:
    path = tmp_path / "model.dwsm"
    good = selector_bytes()
    foreign = write_forest(replace(forest, features=("surprise", *forest.features[1:])))
    for data, error in (
        (b"", FormatError),
        (b"\x80\x04\x95" + bytes(64), FormatError),
        (good[:-40], IntegrityError),
        (good[:5000] + bytes([good[5000] ^ 1]) + good[5001:], IntegrityError),
        (good[:4] + b"\x02" + good[5:], UnsupportedFormatError),
        (foreign, UnsupportedFormatError),
        (bytes((16 << 20) + 1), LimitExceededError),
    ):
        path.write_bytes(data)
        with pytest.raises(error):
            read_selector(path)
    path.write_bytes(good)
    assert read_selector(path).digest == read_selector().digest
