"""The content of a version in memory, and how it is proven."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from dwcp_fast.errors import IntegrityError
from dwcp_fast.versions.layout import Layout
from dwcp_fast.versions.manifest import Manifest, content_digest
from dwcp_fast.versions.tensors import Tensor

__all__ = ["State", "Tensors", "run_over", "tensor_digests", "verify"]

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
    groups: tuple[bytes | bytearray, ...]

    def tensors(self) -> "Tensors":
        """Give its tensors by name."""
        return Tensors(self)


class Tensors(Mapping[str, Tensor]):
    """The tensors of a version by name, in the order in which they are stored."""

    def __init__(self, state: State) -> None:
        """View a version."""
        self._state = state
        self._places = {
            state.layout.specs[index].name: (index, number, place)
            for number, group in enumerate(state.layout.groups)
            for index, place in group.slices()
        }

    def __getitem__(self, name: str) -> Tensor:
        """Give a tensor."""
        index, number, place = self._places[name]
        data = memoryview(self._state.groups[number]).toreadonly()[place]
        return Tensor(self._state.layout.specs[index], data)

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


def tensor_digests(layout: Layout, number: int, group: bytes | bytearray | memoryview) -> list[str]:
    """Compute the digests of the tensors of a group.

    Args:
        layout: Where they lie.
        number: Which group.
        group: Its bytes.

    Returns:
        Their digests, in hex.
    """
    view = memoryview(group)
    return [content_digest(view[place]) for _, place in layout.groups[number].slices()]


def verify(
    manifest: Manifest, groups: Sequence[bytes | bytearray], threads: int, held: State | None = None
) -> State:
    """Prove that bytes are a version.

    Args:
        manifest: What the version is.
        groups: Its bytes.
        threads: How many threads to use.
        held: A version proven before. Groups that are the very same objects in it are not read again.

    Returns:
        The version.

    Raises:
        IntegrityError: A tensor is another one.
    """
    layout = manifest.layout
    proven = dict(zip(map(id, held.groups), held_digests(held), strict=True)) if held is not None else {}

    def check(number: int) -> None:
        indices = layout.groups[number].indices
        told = [manifest.digests[index] for index in indices]
        group = groups[number]
        if group and proven.get(id(group)) == told:
            return
        found = tensor_digests(layout, number, group)
        for index, is_now, should_be in zip(indices, found, told, strict=True):
            if is_now != should_be:
                raise IntegrityError(
                    f"tensor {layout.specs[index].name!r} of version {manifest.version} has digest {is_now}, "
                    f"not {should_be}"
                )

    for _ in run_over(threads, check, range(len(groups))):
        pass
    return State(manifest.version, manifest.digest, layout, manifest.digests, tuple(groups))


def held_digests(held: State) -> Iterator[list[str]]:
    """Give the digests of each group of a version."""
    for group in held.layout.groups:
        yield [held.digests[index] for index in group.indices]
