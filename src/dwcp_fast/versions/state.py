"""The content of a version in memory, and how it is proven."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from dwcp_fast.delta import Snapshot
from dwcp_fast.errors import IntegrityError
from dwcp_fast.versions.layout import Group, Layout
from dwcp_fast.versions.manifest import TENSOR_BLOCK_BYTES, Manifest, tensor_digest
from dwcp_fast.versions.tensors import Tensor

__all__ = ["State", "Tensors", "digests_of", "group_digests", "is_tensor", "run_over", "verify"]

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class State:
    """A version that is held.

    Attributes:
        version: Its number.
        digest: Digest of its content, in hex.
        layout: Its tensors and groups.
        digests: Digest of each tensor, in hex.
        groups: The bytes of each group.
    """

    version: int
    digest: str
    layout: Layout
    digests: tuple[str, ...]
    groups: tuple[Snapshot, ...]

    def tensors(self) -> "Tensors":
        """Give its tensors by name."""
        return Tensors(self)


class Tensors(Mapping[str, Tensor]):
    """The tensors of a version by name, in the order in which they are stored.

    Memory that is looked at is never changed: as long as this is there, the version is.
    """

    def __init__(self, state: State) -> None:
        """View a version."""
        self._state = state
        self._views = [group.view() for group in state.groups]
        self._places = {
            state.layout.specs[index].name: (index, number, place)
            for number, group in enumerate(state.layout.groups)
            for index, place in group.slices()
        }

    def __getitem__(self, name: str) -> Tensor:
        """Give a tensor."""
        index, number, place = self._places[name]
        return Tensor(self._state.layout.specs[index], self._views[number][place])

    def __iter__(self) -> Iterator[str]:
        """Give the names."""
        return iter(self._places)

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self._places)


def run_over(threads: int, call: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Call a function for each item, in a number of threads; results come in order.

    Args:
        threads: How many, 1 runs here.
        call: The function; native work in it releases the interpreter.
        items: What it is called with.

    Yields:
        What it returns.
    """
    if threads == 1:
        yield from map(call, items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="dwcp-versions") as pool:
        running: deque[Future[R]] = deque()
        try:
            for item in items:
                # No further ahead than this: results wait in memory.
                if len(running) > threads:
                    yield running.popleft().result()
                running.append(pool.submit(call, item))
            while running:
                yield running.popleft().result()
        finally:
            for left in running:
                left.cancel()


def group_digests(layout: Layout, number: int, group: Snapshot) -> list[str]:
    """Give the digests of the tensors of a group.

    Args:
        layout: Where they lie.
        number: Which group.
        group: Its bytes.

    Returns:
        Their digests, in hex.
    """
    if is_tensor(layout.groups[number], group):
        return [group.digest]
    view = group.view()
    return [tensor_digest(view[place]) for _, place in layout.groups[number].slices()]


def is_tensor(place: Group, group: Snapshot) -> bool:
    """Tell whether the digest of a group is that of its only tensor."""
    return place.count == 1 and group.block_bytes == TENSOR_BLOCK_BYTES


def digests_of(held: State | None) -> dict[int, list[str]]:
    """Give the digests of the tensors of groups that do not know them, by the identity of the group.

    A group that is one tensor knows its own, and not only what the version says of it.
    """
    if held is None:
        return {}
    return {
        id(group): [held.digests[index] for index in place.indices]
        for group, place in zip(held.groups, held.layout.groups, strict=True)
        if not is_tensor(place, group)
    }


def verify(
    manifest: Manifest, groups: Sequence[Snapshot], threads: int, proven: Mapping[int, list[str]]
) -> State:
    """Prove that groups, whose bytes were proven to be what their snapshots say of them, are a version.

    Args:
        manifest: What the version is.
        groups: Its bytes.
        threads: How many threads to use.
        proven: The digests of the tensors of groups where they are known, by the identity of the group.

    Returns:
        The version.

    Raises:
        IntegrityError: A tensor is another one.
    """
    layout = manifest.layout

    def check(number: int) -> None:
        group = groups[number]
        found = proven.get(id(group)) or group_digests(layout, number, group)
        for index, is_now in zip(layout.groups[number].indices, found, strict=True):
            should_be = manifest.digests[index]
            if is_now != should_be:
                raise IntegrityError(
                    f"tensor {layout.specs[index].name!r} of version {manifest.version} has digest {is_now}, "
                    f"not {should_be}"
                )

    for _ in run_over(threads, check, range(len(groups))):
        pass
    return State(manifest.version, manifest.digest, layout, manifest.digests, tuple(groups))
