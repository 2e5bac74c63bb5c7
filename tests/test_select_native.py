"""What the native code tells of blocks, and that it reads models and predicts as Python does."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from dwcp_fast import _core
from dwcp_fast.errors import ConfigError, DwcpError, FormatError, IntegrityError, UnsupportedFormatError
from dwcp_fast.train.selector.forest import LEAF, Ensemble, Forest, Tree
from dwcp_fast.train.selector.modelfile import write_forest

MIB = 1 << 20


def blocks() -> list[tuple[bytes, int | None]]:
    """Blocks of many kinds, with the width of their elements where they have any."""
    random = np.random.default_rng(11)
    noise = random.bytes(MIB)
    weights = random.normal(0, 0.02, MIB // 4).astype("<f4").tobytes()
    words = [b"lane ", b"block ", b"frame ", b"entry "]
    text = b"".join(words[n] for n in random.integers(0, 4, MIB // 8))
    return [
        (noise, None),
        (weights, 4),
        (weights, None),
        (text, None),
        (bytes(MIB // 2) + noise[: MIB // 2], None),
        (noise[:65536] * 16, None),
        (b"\0" * MIB, 8),
        (b"x", None),
        (noise[:777], 2),
    ]


def random_tree(random: np.random.Generator, x: NDArray[np.float32], depth: int) -> Tree:
    """A tree whose thresholds are values that its features have, which is where comparisons could differ."""
    nodes: list[tuple[int, float, int, int, float]] = []

    def grow(left: int) -> int:
        place = len(nodes)
        nodes.append((LEAF, 0.0, 0, 0, float(random.normal(0, 0.1))))
        if left and random.random() < 0.9:
            feature = int(random.integers(x.shape[1]))
            threshold = float(random.choice(x[:, feature]))
            nodes[place] = (feature, threshold, grow(left - 1), grow(left - 1), 0.0)
        return place

    grow(depth)
    return Tree.of(nodes)


def made_forest(x: NDArray[np.float32], seed: int) -> Forest:
    random = np.random.default_rng(seed)
    actions = _core.select_actions()

    def ensemble(action: int) -> Ensemble:
        depth = int(random.integers(0, 9))
        return Ensemble(
            int(random.integers(action)) if action and random.random() < 0.5 else None,
            float(np.float32(random.normal())),
            float(np.float32(random.choice([0, 1, 0.3]))),
            int(random.integers(x.shape[1])),
            tuple(random_tree(random, x, depth) for _ in range(random.integers(0, 30))),
        )

    return Forest(
        tuple(_core.select_feature_names()),
        tuple(actions),
        tuple((0.5 * n, 0.25 * n) for n in range(len(actions))),
        tuple((ensemble(n), ensemble(n), ensemble(n)) for n in range(len(actions))),
    )


def features() -> NDArray[np.float32]:
    return np.array([_core.select_features(block, width) for block, width in blocks()], np.float32)


def test_features_have_names_and_are_the_same_for_any_buffer_of_these_bytes() -> None:
    names = _core.select_feature_names()
    assert len(set(names)) == len(names)
    for block, width in blocks():
        told = _core.select_features(block, width)
        assert len(told) == len(names)
        assert np.isfinite(told).all()
        assert told == _core.select_features(memoryview(bytearray(block)), width)
        assert told[names.index("width")] == (width or 0)


@pytest.mark.parametrize("seed", range(5))
def test_native_predictions_are_those_of_python(seed: int) -> None:
    x = features()
    forest = made_forest(x, seed)
    model = _core.SelectorModel(write_forest(forest))
    assert (tuple(model.features), tuple(model.actions)) == (forest.features, forest.actions)
    assert tuple(model.reference) == forest.reference_ns_per_byte
    predicted = np.array([model.predict(row.tolist()) for row in x])
    np.testing.assert_allclose(predicted, forest.predict(x), rtol=1e-5)


def test_models_that_are_damaged_newer_or_for_other_features_are_refused_by_kind() -> None:
    forest = made_forest(features(), 1)
    data = write_forest(forest)
    changed = data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]
    renamed = replace(forest, features=("entropies", *forest.features[1:]))
    refusals: list[tuple[bytes, type[DwcpError], str]] = [
        (b"", FormatError, "magic"),
        (b"PK" + data[2:], FormatError, "not a DWSM model"),
        (data[:4] + b"\2" + data[5:], UnsupportedFormatError, "version 2"),
        (changed, IntegrityError, "digest"),
        (data[:1000], IntegrityError, "digest"),
        (write_forest(renamed), UnsupportedFormatError, '"entropies"'),
    ]
    for refused, kind, text in refusals:
        with pytest.raises(kind, match=text):
            _core.SelectorModel(refused)


def test_other_than_as_many_features_as_there_are_is_refused() -> None:
    model = _core.SelectorModel(write_forest(made_forest(features(), 2)))
    needed = len(model.features)
    with pytest.raises(ConfigError, match=f"{needed + 1} features are given, {needed} are needed"):
        model.predict([0.0] * (needed + 1))
