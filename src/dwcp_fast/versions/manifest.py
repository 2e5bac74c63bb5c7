"""The two documents of a store: a manifest for each version, and one head that says which versions there are.

Both are JSON, read with bounds; docs/guide/versions.md describes them field by field.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from dwcp_fast.codec import digest
from dwcp_fast.delta import DEFAULT_BLOCK_BYTES
from dwcp_fast.errors import ConfigError, FormatError, IntegrityError
from dwcp_fast.policy.versions import Retained
from dwcp_fast.record import Record, dump
from dwcp_fast.versions.layout import Layout
from dwcp_fast.versions.tensors import MAX_TENSORS, TensorSpec, check_spec

__all__ = [
    "MAX_HEAD_BYTES",
    "MAX_MANIFEST_BYTES",
    "MAX_VERSIONS",
    "TENSOR_BLOCK_BYTES",
    "Head",
    "Manifest",
    "Pack",
    "Patches",
    "Place",
    "content_digest",
    "tensor_digest",
    "version_digest",
]

MAX_HEAD_BYTES: Final = 1 << 21
MAX_MANIFEST_BYTES: Final = 1 << 26
MAX_VERSIONS: Final = 1 << 12
HEAD_KIND: Final = "dwcp-versions"
MANIFEST_KIND: Final = "dwcp-version"

TENSOR_BLOCK_BYTES: Final = DEFAULT_BLOCK_BYTES
"""Length of the blocks that make up the digest of a tensor, whatever patches have."""

TREE_DOMAIN: Final = b"dwcp-tree"
TREE_BLOCK_BYTES: Final = TENSOR_BLOCK_BYTES.to_bytes(4, "little")


def content_digest(data: bytes | bytearray | memoryview) -> str:
    """Give the digest of bytes, in hex: XXH3-128, which finds damage and not forgery."""
    return digest(data).hex()


def tensor_digest(data: memoryview) -> str:
    """Give the digest of a tensor, in hex: the tree digest of its bytes, in blocks of a fixed length.

    It is what patches with such blocks call their target, so that what was proven there is not hashed again.
    """
    leaves = [digest(data[at : at + TENSOR_BLOCK_BYTES]) for at in range(0, data.nbytes, TENSOR_BLOCK_BYTES)]
    return content_digest(
        b"".join([TREE_DOMAIN, data.nbytes.to_bytes(8, "little"), TREE_BLOCK_BYTES, *leaves])
    )


def version_digest(layout: Layout, digests: Iterable[str]) -> str:
    """Give the digest of a version: names, types, shapes and digests of all tensors, and how they lie.

    The same tensors in another order are another base for a delta, and so have another digest.

    Args:
        layout: The tensors and their groups.
        digests: Digests of the tensors, in their order.

    Returns:
        XXH3-128, in hex, of JSON: a list of ``[name, dtype, shape, digest]`` of each tensor, and one of how
        many tensors each group has.
    """
    tensors = [
        [spec.name, spec.dtype, list(spec.shape), told]
        for spec, told in zip(layout.specs, digests, strict=True)
    ]
    listed = [tensors, [group.count for group in layout.groups]]
    return content_digest(json.dumps(listed, ensure_ascii=False, separators=(",", ":")).encode())


@dataclass(frozen=True, slots=True)
class Pack:
    """An object with patches, one behind the other.

    Attributes:
        digest: Its digest, which is its name.
        length: Its length.
    """

    digest: str
    length: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where the patch of a group is.

    Attributes:
        pack: Index of the pack.
        offset: Where it begins.
        length: Its length.
    """

    pack: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Patches:
    """One patch for each group.

    Attributes:
        packs: The objects they are in.
        places: Where each is; None for a group that is as in the base.
    """

    packs: tuple[Pack, ...]
    places: tuple[Place | None, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all packs."""
        return sum(pack.length for pack in self.packs)

    def fields(self) -> dict[str, Any]:
        """Give it as plain values."""
        return {
            "packs": [{"digest": pack.digest, "bytes": pack.length} for pack in self.packs],
            "places": [
                [] if place is None else [place.pack, place.offset, place.length] for place in self.places
            ],
        }

    @classmethod
    def read(cls, record: Record, groups: int) -> "Patches":
        """Read it, and check that each place lies in its pack."""
        packs = tuple(
            Pack(one.digest("digest"), one.number("bytes", 1, 1 << 46))
            for one in record.records("packs", MAX_TENSORS)
        )
        places: list[Place | None] = []
        for value in record.values("places", MAX_TENSORS):
            if (
                not isinstance(value, list)
                or len(value) not in {0, 3}
                or any(type(n) is not int for n in value)
            ):
                raise record.fault("places", "a list of empty lists and of three integers each")
            if not value:
                places.append(None)
                continue
            pack, offset, length = value
            if not 0 <= pack < len(packs) or offset < 0 or length < 1 or offset + length > packs[pack].length:
                raise FormatError(f"place {value} does not lie in one of {len(packs)} packs")
            places.append(Place(pack, offset, length))
        if len(places) != groups:
            raise FormatError(f"there are places for {len(places)} groups, not {groups}")
        return cls(packs, tuple(places))


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a version is, and how to come to it.

    Attributes:
        version: Its number.
        layout: Its tensors and their groups.
        digests: Digest of each tensor, in hex.
        digest: Digest of the content.
        base: Digest of the content that the delta needs, None without a delta.
        delta: How the groups come from the base, None without one.
        anchor: How the groups come from nothing, None if that is not stored.
    """

    version: int
    layout: Layout
    digests: tuple[str, ...]
    digest: str
    base: str | None
    delta: Patches | None
    anchor: Patches | None

    def dump(self) -> bytes:
        """Write it."""
        fields: dict[str, Any] = {
            "format": MANIFEST_KIND,
            "revision": 1,
            "version": self.version,
            "digest": self.digest,
            "base": self.base,
            "tensors": [
                {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape), "digest": told}
                for spec, told in zip(self.layout.specs, self.digests, strict=True)
            ],
            "groups": [group.count for group in self.layout.groups],
            "delta": None if self.delta is None else self.delta.fields(),
            "anchor": None if self.anchor is None else self.anchor.fields(),
        }
        return dump(fields)

    @classmethod
    def load(cls, data: bytes) -> "Manifest":
        """Read one from a stranger.

        Args:
            data: What :meth:`dump` made.

        Returns:
            The manifest; its digest is that of its tensors.

        Raises:
            FormatError: It is not one, or contradicts itself.
            LimitExceededError: It is too long.
        """
        record = Record.parse(data, "the manifest", MANIFEST_KIND, MAX_MANIFEST_BYTES)
        specs, digests = [], []
        for one in record.records("tensors", MAX_TENSORS):
            shape = tuple(one.numbers("shape", 64))
            try:
                specs.append(check_spec(TensorSpec(one.text("name"), one.text("dtype"), shape)))
            except ConfigError as exc:
                raise FormatError(f"the manifest has a tensor that cannot be: {exc}") from exc
            digests.append(one.digest("digest"))
        if not specs or len({spec.name for spec in specs}) != len(specs):
            raise FormatError(f"the manifest has {len(specs)} tensors with names that are not all different")
        layout = Layout.build(specs, record.numbers("groups", MAX_TENSORS, 1))
        stated = record.digest("digest")
        if version_digest(layout, digests) != stated:
            raise IntegrityError(
                f"digest {stated} of version {record.number('version')} is not that of its tensors"
            )
        groups = len(layout.groups)
        delta = Patches.read(record.record("delta"), groups) if record.has("delta") else None
        anchor = Patches.read(record.record("anchor"), groups) if record.has("anchor") else None
        base = record.digest("base") if record.has("base") else None
        if (delta is None) != (base is None):
            raise FormatError("the manifest has a delta without a base, or a base without a delta")
        if anchor is not None and any(
            place is None and group.nbytes for place, group in zip(anchor.places, layout.groups, strict=True)
        ):
            raise FormatError("the anchor of the manifest lacks a group")
        return cls(record.number("version"), layout, tuple(digests), stated, base, delta, anchor)

    def objects(self) -> set[str]:
        """Give the digests of all packs it needs."""
        return {
            pack.digest
            for patches in (self.delta, self.anchor)
            if patches is not None
            for pack in patches.packs
        }


@dataclass(frozen=True, slots=True)
class Head:
    """What a store holds; the one object of it that changes.

    Attributes:
        publisher: Who may change it: a random name, taken anew by each publisher that opens the store.
        versions: The versions, oldest first.
    """

    publisher: str
    versions: tuple[Retained, ...] = ()

    @property
    def newest(self) -> Retained | None:
        """The newest version."""
        return self.versions[-1] if self.versions else None

    def dump(self) -> bytes:
        """Write it."""
        fields = {
            "format": HEAD_KIND,
            "revision": 1,
            "publisher": self.publisher,
            "versions": [
                {
                    "version": entry.version,
                    "digest": entry.digest,
                    "manifest": entry.manifest,
                    "manifest_bytes": entry.manifest_bytes,
                    "base": entry.base,
                    "delta_bytes": entry.delta_bytes,
                    "anchor_bytes": entry.anchor_bytes,
                }
                for entry in self.versions
            ],
        }
        return dump(fields)

    @classmethod
    def load(cls, data: bytes) -> "Head":
        """Read one from a stranger.

        Args:
            data: What :meth:`dump` made.

        Returns:
            The head; version numbers rise.

        Raises:
            FormatError: It is not one.
            LimitExceededError: It is too long.
        """
        record = Record.parse(data, "the head", HEAD_KIND, MAX_HEAD_BYTES)
        versions = [read_retained(one) for one in record.records("versions", MAX_VERSIONS)]
        check_order(versions)
        return cls(record.digest("publisher"), tuple(versions))


def read_retained(one: Record) -> Retained:
    """Read one version of a head."""
    return Retained(
        version=one.number("version"),
        digest=one.digest("digest"),
        manifest=one.digest("manifest"),
        manifest_bytes=one.number("manifest_bytes", 1, MAX_MANIFEST_BYTES),
        base=one.digest("base") if one.has("base") else None,
        delta_bytes=one.number("delta_bytes"),
        anchor_bytes=one.number("anchor_bytes") if one.has("anchor_bytes") else None,
    )


def check_order(versions: Sequence[Retained]) -> None:
    """Refuse versions whose numbers do not rise."""
    for before, after in pairwise(versions):
        if after.version <= before.version:
            raise FormatError(f"version {after.version} of the head stands behind version {before.version}")
