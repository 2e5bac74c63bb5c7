"""How tensors lie in groups: a group is one buffer with one patch, so that small tensors share one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from dwcp_fast.errors import FormatError
from dwcp_fast.versions.tensors import TensorSpec

__all__ = ["Group", "Layout", "arrange"]

ALONE_BYTES: Final = 1 << 20
"""A tensor from this length on is a group by itself, and is read where it lies."""

GROUP_BYTES: Final = 8 << 20
"""Length up to which smaller tensors share a group."""


@dataclass(frozen=True, slots=True)
class Group:
    """Some tensors, one behind the other.

    Attributes:
        width: Bytes of their elements.
        first: Index of the first of them.
        offsets: Where each begins, and where the last ends.
    """

    width: int
    first: int
    offsets: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many tensors there are."""
        return len(self.offsets) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return self.offsets[-1]

    @property
    def indices(self) -> range:
        """Indices of the tensors."""
        return range(self.first, self.first + self.count)

    def slices(self) -> Iterable[tuple[int, slice]]:
        """Give each tensor's index and its place."""
        for position, index in enumerate(self.indices):
            yield index, slice(self.offsets[position], self.offsets[position + 1])


@dataclass(frozen=True, slots=True)
class Layout:
    """All tensors of a version in their order, and their groups.

    Attributes:
        specs: The tensors.
        groups: The groups; each tensor is in exactly one.
    """

    specs: tuple[TensorSpec, ...]
    groups: tuple[Group, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(group.nbytes for group in self.groups)

    @classmethod
    def build(cls, specs: Sequence[TensorSpec], counts: Sequence[int]) -> "Layout":
        """Make a layout from how many tensors each group has.

        Args:
            specs: The tensors in order.
            counts: Number of tensors of each group.

        Returns:
            The layout.

        Raises:
            FormatError: The groups do not hold exactly the tensors, or one mixes element widths.
        """
        if sum(counts) != len(specs) or any(count < 1 for count in counts):
            raise FormatError(f"groups of {sum(counts)} tensors do not fit {len(specs)} tensors")
        groups = []
        first = 0
        for count in counts:
            members = specs[first : first + count]
            if len({spec.width for spec in members}) != 1:
                raise FormatError(f"a group from tensor {first} on mixes elements of different widths")
            offsets = tuple(accumulate((spec.nbytes for spec in members), initial=0))
            groups.append(Group(members[0].width, first, offsets))
            first += count
        return cls(tuple(specs), tuple(groups))


def arrange(specs: Iterable[TensorSpec]) -> Layout:
    """Put tensors into groups; the result depends on nothing but the tensors and their order.

    Args:
        specs: The tensors.

    Returns:
        Where each lies.
    """
    large = []
    small: dict[int, list[TensorSpec]] = {}
    for spec in specs:
        if spec.nbytes >= ALONE_BYTES:
            large.append(spec)
        else:
            small.setdefault(spec.width, []).append(spec)
    ordered = list(large)
    counts = [1] * len(large)
    for width in sorted(small):
        length = count = 0
        for spec in small[width]:
            if count and length + spec.nbytes > GROUP_BYTES:
                counts.append(count)
                length = count = 0
            ordered.append(spec)
            length += spec.nbytes
            count += 1
        counts.append(count)
    return Layout.build(ordered, counts)
