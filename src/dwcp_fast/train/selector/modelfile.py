"""A model as bytes, as the specification of files in `docs/format-files.md` has it."""

import struct
from typing import Final

import numpy as np
import xxhash

from dwcp_fast.errors import FormatError, IntegrityError, LimitExceededError, UnsupportedFormatError
from dwcp_fast.train.selector.forest import LEAF, QUANTITIES, Ensemble, Forest, Tree

__all__ = ["read_forest", "write_forest"]

MAGIC: Final = b"DWSM"
VERSION: Final = 1
HEADER: Final = struct.Struct("<4sB3xHHI")
ENSEMBLE: Final = struct.Struct("<BxHf")
NODE: Final = np.dtype(
    {
        "names": ["feature", "value", "left", "right"],
        "formats": ["u1", "<f4", "<u2", "<u2"],
        "offsets": [0, 4, 8, 10],
        "itemsize": 12,
    }
)
DIGEST_BYTES: Final = 16
NO_REFERENCE: Final = 255
MOST_NAMES: Final = 64
MOST_NAME_BYTES: Final = 63
MOST_TREES: Final = 1024
MOST_NODES: Final = 1 << 20


def write_forest(forest: Forest) -> bytes:
    """Give the bytes of a model.

    Raises:
        LimitExceededError: It has more features, actions, trees or nodes than a model may.
    """
    trees, nodes = forest.size()
    most = max(len(ensemble.trees) for three in forest.ensembles for ensemble in three)
    for what, count, limit in (
        ("features", len(forest.features), MOST_NAMES),
        ("actions", len(forest.actions), MOST_NAMES),
        ("trees in an ensemble", most, MOST_TREES),
        (f"nodes in {trees} trees", nodes, MOST_NODES),
    ):
        if count > limit:
            raise LimitExceededError(f"{count} {what}, over the limit of {limit}")
    parts = [HEADER.pack(MAGIC, VERSION, len(forest.features), len(forest.actions), nodes)]
    parts += [bytes([len(name)]) + name.encode("ascii") for name in (*forest.features, *forest.actions)]
    parts.append(np.array(forest.reference_ns_per_byte, "<f4").tobytes())
    for three in forest.ensembles:
        for ensemble in three:
            reference = NO_REFERENCE if ensemble.reference is None else ensemble.reference
            parts.append(ENSEMBLE.pack(reference, len(ensemble.trees), ensemble.base))
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


def read_forest(data: bytes) -> Forest:
    """Read a model.

    Args:
        data: The bytes.

    Raises:
        FormatError: They are no model, or one that contradicts itself.
        IntegrityError: They are damaged.
        UnsupportedFormatError: They are a model of another version.
    """
    if len(data) < HEADER.size + DIGEST_BYTES or data[:4] != MAGIC:
        raise FormatError(
            f"{len(data)} bytes that begin with {data[:4]!r} are no model: those begin with {MAGIC!r}"
        )
    if data[4] != VERSION:
        raise UnsupportedFormatError(f"a model of version {data[4]}, not {VERSION}")
    body = data[:-DIGEST_BYTES]
    if xxhash.xxh3_128_digest(body) != data[-DIGEST_BYTES:]:
        raise IntegrityError(f"the {len(data)} bytes of the model do not have the digest at their end")
    reader = Reader(body)
    try:
        forest = reader.forest()
    except (struct.error, IndexError, ValueError) as error:
        raise FormatError(f"the model is malformed at byte {reader.at}: {error}") from error
    if reader.at != len(body):
        raise FormatError(f"the model is followed by {len(body) - reader.at} bytes")
    return forest


class Reader:
    """Takes a model apart; what it reads is no longer than what it is given."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def forest(self) -> Forest:
        """Read all of it."""
        _, _, feature_count, action_count, _ = HEADER.unpack_from(self.data)
        self.at = HEADER.size
        features, actions = self.names(feature_count), self.names(action_count)
        speeds = np.frombuffer(self.data, "<f4", action_count, self.at)
        self.at += speeds.nbytes
        ensembles = []
        for action in range(action_count):
            three = [self.ensemble(len(features), action, action_count) for _ in QUANTITIES]
            ensembles.append((three[0], three[1], three[2]))
        forest = Forest(features, actions, tuple(map(float, speeds)), tuple(ensembles))
        for quantity in range(len(QUANTITIES)):
            list(forest.in_order(quantity))
        return forest

    def names(self, count: int) -> tuple[str, ...]:
        """Read names."""
        found = []
        for _ in range(count):
            end = self.at + 1 + self.data[self.at]
            found.append(self.data[self.at + 1 : end].decode("ascii"))
            self.at = end
        return tuple(found)

    def ensemble(self, features: int, action: int, actions: int) -> Ensemble:
        """Read an ensemble."""
        reference, trees, base = ENSEMBLE.unpack_from(self.data, self.at)
        self.at += ENSEMBLE.size
        if reference != NO_REFERENCE and (reference >= actions or reference == action):
            raise ValueError(f"action {action} refers to action {reference}")
        return Ensemble(
            None if reference == NO_REFERENCE else reference,
            base,
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
        lost = ~leaf & (
            (nodes["feature"] >= features) | (branches <= here).any(0) | (branches >= count).any(0)
        )
        value = nodes["value"].astype(np.float32)
        if count == 0 or lost.any() or not np.isfinite(value).all():
            raise ValueError(f"a tree of {count} nodes with {int(lost.sum())} that lead nowhere")
        return Tree(
            nodes["feature"].copy(),
            np.where(leaf, np.float32(0), value),
            nodes["left"].astype(np.uint16),
            nodes["right"].astype(np.uint16),
            np.where(leaf, value, np.float32(0)),
        )
