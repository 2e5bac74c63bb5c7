"""A model as bytes: "Selector model" of `docs/format-files.md`."""

import struct
from typing import Final

import numpy as np
import xxhash

from dwcp_fast.errors import FormatError, IntegrityError, LimitExceededError, UnsupportedFormatError
from dwcp_fast.train.selector.forest import LEAF, QUANTITIES, Ensemble, Forest, Tree

__all__ = ["read_forest", "write_forest"]

MAGIC: Final = b"DWSM"
VERSION: Final = 1
SUM: Final = struct.Struct("<BffBBH")
NODE: Final = np.dtype([("feature", "u1"), ("value", "<f4"), ("left", "<u2"), ("right", "<u2")])
DIGEST_BYTES: Final = 16
NO_REFERENCE: Final = 255
MOST_NAMES: Final = 64
MOST_TREES: Final = 256
MOST_DEPTH: Final = 8


def write_forest(forest: Forest) -> bytes:
    """Give the bytes of a model.

    Raises:
        LimitExceededError: It has more features, actions or trees than a model may, or deeper ones.
    """
    ensembles = [ensemble for three in forest.ensembles for ensemble in three]
    for what, count, limit in (
        ("features", len(forest.features), MOST_NAMES),
        ("actions", len(forest.actions), MOST_NAMES),
        ("trees in a sum", max(len(ensemble.trees) for ensemble in ensembles), MOST_TREES),
        ("comparisons to a leaf", max(map(depth_of, ensembles)), MOST_DEPTH),
    ):
        if count > limit:
            raise LimitExceededError(f"{count} {what}, over the limit of {limit}")
    parts = [MAGIC, bytes([VERSION])]
    for names in (forest.features, forest.actions):
        parts.append(bytes([len(names)]))
        parts += [bytes([len(name)]) + name.encode("ascii") for name in names]
    parts.append(np.array(forest.reference_ns_per_byte, "<f4").tobytes())
    for ensemble in ensembles:
        reference = NO_REFERENCE if ensemble.reference is None else ensemble.reference
        line = (ensemble.base, ensemble.slope, ensemble.feature)
        parts.append(SUM.pack(reference, *line, depth_of(ensemble), len(ensemble.trees)))
        for tree in ensemble.trees:
            parts += [struct.pack("<H", len(tree)), nodes_of(tree)]
    body = b"".join(parts)
    return body + xxhash.xxh3_128_digest(body)


def nodes_of(tree: Tree) -> bytes:
    """Give the bytes of a tree."""
    nodes = np.zeros(len(tree), NODE)
    nodes["feature"] = tree.feature
    nodes["value"] = np.where(tree.feature == LEAF, tree.value, tree.threshold)
    nodes["left"] = tree.left
    nodes["right"] = tree.right
    return nodes.tobytes()


def depth_of(ensemble: Ensemble) -> int:
    """Count the comparisons from a root to the leaf that is furthest from it."""
    deepest = 0
    for tree in ensemble.trees:
        depths = np.zeros(len(tree), np.intp)
        # A node comes after the one that leads to it.
        for node in np.flatnonzero(tree.feature != LEAF):
            depths[[tree.left[node], tree.right[node]]] = depths[node] + 1
        deepest = max(deepest, int(depths.max()))
    return deepest


def read_forest(data: bytes) -> Forest:
    """Read a model, whatever its features and actions are called.

    Args:
        data: The bytes.

    Raises:
        FormatError: They are no model, or one that contradicts itself.
        IntegrityError: They are damaged.
        UnsupportedFormatError: They are a model of another version.
    """
    if len(data) < len(MAGIC) + 1 + DIGEST_BYTES or data[: len(MAGIC)] != MAGIC:
        raise FormatError(
            f"{len(data)} bytes that begin with {data[:4]!r} are no model: {MAGIC!r} is missing"
        )
    if data[4] != VERSION:
        raise UnsupportedFormatError(f"model version {data[4]} is not supported, the only known is {VERSION}")
    body = data[:-DIGEST_BYTES]
    if xxhash.xxh3_128_digest(body) != data[-DIGEST_BYTES:]:
        raise IntegrityError(f"the {len(data)} bytes of the model do not have the digest at their end")
    reader = Reader(body)
    try:
        forest = reader.forest()
    except (struct.error, IndexError, ValueError) as error:
        raise FormatError(f"the model is malformed at byte {reader.at}: {error}") from error
    if reader.at != len(body):
        raise FormatError(f"{len(body) - reader.at} bytes follow the last part of the model")
    return forest


class Reader:
    """Takes a model apart; what it makes is no longer than what it is given."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = len(MAGIC) + 1

    def forest(self) -> Forest:
        """Read all of it."""
        features, actions = self.names(), self.names()
        speeds = np.frombuffer(self.data, "<f4", 2 * len(actions), self.at)
        self.at += speeds.nbytes
        pairs = tuple((float(one), float(other)) for one, other in speeds.reshape(-1, 2))
        ensembles = []
        for action in range(len(actions)):
            three = [self.ensemble(len(features), action) for _ in QUANTITIES]
            ensembles.append((three[0], three[1], three[2]))
        return Forest(features, actions, pairs, tuple(ensembles))

    def names(self) -> tuple[str, ...]:
        """Read names."""
        count = self.data[self.at]
        self.at += 1
        found = []
        for _ in range(count):
            end = self.at + 1 + self.data[self.at]
            found.append(self.data[self.at + 1 : end].decode("ascii"))
            self.at = end
        return tuple(found)

    def ensemble(self, features: int, action: int) -> Ensemble:
        """Read a sum."""
        reference, base, slope, feature, _, trees = SUM.unpack_from(self.data, self.at)
        self.at += SUM.size
        if reference != NO_REFERENCE and reference >= action:
            raise ValueError(f"action {action} refers to action {reference}, which is not before it")
        if feature >= features or not np.isfinite([base, slope]).all():
            raise ValueError(f"base {base} and slope {slope} of feature {feature}")
        return Ensemble(
            None if reference == NO_REFERENCE else reference,
            base,
            slope,
            feature,
            tuple(self.tree(features) for _ in range(trees)),
        )

    def tree(self, features: int) -> Tree:
        """Read a tree; its branches lead only to nodes that come later, so that every walk ends."""
        (count,) = struct.unpack_from("<H", self.data, self.at)
        nodes = np.frombuffer(self.data, NODE, count, self.at + 2)
        self.at += 2 + nodes.nbytes
        leaf = nodes["feature"] == LEAF
        here = np.arange(count)
        branches = np.stack([nodes["left"], nodes["right"]])
        nowhere = (branches <= here).any(0) | (branches >= count).any(0)
        lost = ~leaf & (nowhere | (nodes["feature"] >= features))
        value = nodes["value"].astype(np.float32)
        if count == 0 or lost.any() or not np.isfinite(value).all():
            raise ValueError(f"a tree of {count} nodes, {int(lost.sum())} of which lead nowhere")
        return Tree(
            nodes["feature"].copy(),
            np.where(leaf, np.float32(0), value),
            nodes["left"].astype(np.uint16),
            nodes["right"].astype(np.uint16),
            np.where(leaf, value, np.float32(0)),
        )
