"""What a publisher holds: the version that the next one is told against, with the digests of its blocks."""

from collections.abc import Mapping
from dataclasses import dataclass

from dwcp_fast import delta
from dwcp_fast.versions.draft import Change, Masked, Sparse
from dwcp_fast.versions.layout import Layout
from dwcp_fast.versions.reading import WIDTH_NAMES
from dwcp_fast.versions.state import State, group_digests
from dwcp_fast.versions.tensors import TensorSpec

__all__ = ["Base", "Changes", "Coder", "begin_group"]

Changes = Mapping[str, tuple[TensorSpec, Change]]


@dataclass(frozen=True, slots=True)
class Coder:
    """How patches are made.

    Attributes:
        codec: Codec of what is told in full.
        block_bytes: Length of a block.
    """

    codec: str
    block_bytes: int

    def snapshot(self, data: bytes | bytearray | memoryview, width: int) -> delta.Snapshot:
        """Hold the bytes of a group. Weights do not move, so no content is looked for elsewhere."""
        return delta.Snapshot(
            data, dtype=WIDTH_NAMES[width], codec=self.codec, block_bytes=self.block_bytes, search=False
        )

    def anchor(self, data: memoryview, width: int) -> bytes:
        """Make the patch that makes a group from nothing."""
        return delta.encode(
            b"", data, dtype=WIDTH_NAMES[width], codec=self.codec, block_bytes=self.block_bytes, search=False
        )


class Base:
    """The tensors of a version, ready to become those of the next.

    Attributes:
        version: Its number.
        digest: Digest of its content, in hex.
        layout: Its tensors and groups.
        digests: Digest of each tensor, in hex.
    """

    def __init__(
        self,
        version: int,
        digest: str,
        layout: Layout,
        digests: tuple[str, ...],
        snapshots: tuple[delta.Snapshot, ...],
    ) -> None:
        """Hold it."""
        self.version = version
        self.digest = digest
        self.layout = layout
        self.digests = digests
        self.snapshots = snapshots

    @classmethod
    def hold(cls, state: State, coder: Coder) -> "Base":
        """Hold a version that was read back.

        Args:
            state: The version.
            coder: How patches are made.

        Returns:
            The base.
        """
        snapshots = tuple(
            coder.snapshot(held.view(), group.width)
            for held, group in zip(state.groups, state.layout.groups, strict=True)
        )
        return cls(state.version, state.digest, state.layout, state.digests, snapshots)

    def tensors(self) -> dict[str, memoryview]:
        """Give the bytes of its tensors by name."""
        return {
            self.layout.specs[index].name: self.snapshots[number].view()[place]
            for number, group in enumerate(self.layout.groups)
            for index, place in group.slices()
        }

    def advance(self, index: int, changes: Changes) -> tuple[bytes | None, list[str]]:
        """Turn a group into that of the next version, which reads what changed once.

        Args:
            index: Which group.
            changes: What was said about each tensor.

        Returns:
            The patch, None if nothing changed; and the digests of the tensors.
        """
        group = self.layout.groups[index]
        snapshot = self.snapshots[index]
        members = [(place, changes[self.layout.specs[number].name][1]) for number, place in group.slices()]
        known = list(self.digests[group.first : group.first + group.count])
        if all(change.keeps for _, change in members):
            return None, known
        before = snapshot.digest
        first = members[0][1]
        if len(members) > 1:
            patch = snapshot.advance(compose(snapshot.view(), members))
        elif isinstance(first, Sparse):
            patch = snapshot.advance_sparse(first.index, first.value)
        elif isinstance(first, Masked):
            patch = snapshot.advance_masked(first.value, first.mask)
        else:
            patch = snapshot.advance(b"" if first.whole is None else first.whole)
        if snapshot.digest == before:
            return None, known
        return patch, group_digests(self.layout, index, snapshot)


def compose(view: memoryview, members: list[tuple[slice, Change]]) -> bytes | bytearray:
    """Give the new bytes of a group of several tensors."""
    given = [change.whole for _, change in members if change.whole is not None]
    if len(given) == len(members):
        return b"".join(given)
    whole = bytearray(view)
    parts = memoryview(whole)
    for place, change in members:
        change.write_onto(parts[place])
    return whole


def begin_group(
    layout: Layout, index: int, changes: Changes, before: Mapping[str, memoryview], coder: Coder
) -> tuple[delta.Snapshot, list[str]]:
    """Hold a group of tensors that lie otherwise than before, or were not there.

    Args:
        layout: Where they lie.
        index: Which group.
        changes: What was said about each tensor.
        before: The tensors of the version before, by name, for those that are not told in full.
        coder: How patches are made.

    Returns:
        The group, and the digests of its tensors.
    """
    group = layout.groups[index]
    members = [(place, *changes[layout.specs[number].name]) for number, place in group.slices()]
    only = members[0][2].whole if len(members) == 1 else None
    if only is not None:
        snapshot = coder.snapshot(only, group.width)
    else:
        whole = bytearray(group.nbytes)
        view = memoryview(whole)
        for place, spec, change in members:
            if change.whole is None:
                view[place] = before[spec.name]
            change.write_onto(view[place])
        snapshot = coder.snapshot(whole, group.width)
    return snapshot, group_digests(layout, index, snapshot)
