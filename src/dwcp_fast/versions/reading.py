"""From a store to a proven version: the head, manifests, patches, and nothing taken on trust."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Final

from dwcp_fast import delta
from dwcp_fast.delta import Snapshot
from dwcp_fast.errors import (
    BaseMismatchError,
    DeltaError,
    FormatError,
    IntegrityError,
    LimitExceededError,
)
from dwcp_fast.policy.versions import Form, Step
from dwcp_fast.versions.layout import Group, Layout
from dwcp_fast.versions.manifest import Manifest, Patches, Place, content_digest
from dwcp_fast.versions.spares import Spares
from dwcp_fast.versions.state import State, digests_of, is_tensor, run_over, verify
from dwcp_fast.versions.store import Source, manifest_key, pack_key

__all__ = ["WIDTH_NAMES", "Refusal", "Stopped", "follow", "follow_in_place", "read_manifest", "read_object"]

WIDTH_NAMES: Final = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64"}
"""What patches call elements of a width."""

SLACK_BYTES: Final = 4096
"""What a patch may have on top of an eighth more than the bytes it stands for, where nothing shrank."""


class Refusal(Exception):  # noqa: N818 - carries an error, and never reaches a caller
    """A step that cannot be taken, and why."""

    def __init__(self, step: Step, error: Exception) -> None:
        """Note both."""
        super().__init__(str(error))
        self.step = step
        self.error = error

    @property
    def key(self) -> tuple[str, Form]:
        """What not to try again."""
        return (self.step.entry.manifest, self.step.form)


class Stopped(Exception):  # noqa: N818 - a signal from a caller to itself
    """The caller wants no more of it."""


def read_object(source: Source, key: str, length: int, digest: str) -> bytes | memoryview:
    """Read an object and prove it.

    Args:
        source: Where it is.
        key: Its key.
        length: Its length.
        digest: Its digest, in hex.

    Returns:
        Its bytes.

    Raises:
        IntegrityError: It is not there, or not what it should be.
        OSError: It cannot be read.
        TransportError: The store cannot be reached.
    """
    try:
        data = source.read(key, length)
    except FileNotFoundError as exc:
        raise IntegrityError(f"object {key} is missing") from exc
    if len(data) != length:
        raise IntegrityError(f"object {key} does not have its {length} bytes")
    found = content_digest(data)
    if found != digest:
        raise IntegrityError(f"object {key} has digest {found}")
    return data


def read_manifest(source: Source, step: Step) -> Manifest:
    """Read the manifest of a version, and hold it to what the head says.

    Args:
        source: Where it is.
        step: The version and the form that is needed.

    Returns:
        The manifest; it has that form.

    Raises:
        FormatError: It is damaged, or says something else than the head.
        OSError: It cannot be read.
        TransportError: The store cannot be reached.
    """
    entry = step.entry
    data = read_object(source, manifest_key(entry.manifest), entry.manifest_bytes, entry.manifest)
    manifest = Manifest.load(bytes(data))
    if (manifest.version, manifest.digest, manifest.base) != (entry.version, entry.digest, entry.base):
        raise IntegrityError(f"the manifest of version {entry.version} says something else than the head")
    if (manifest.delta if step.form == "delta" else manifest.anchor) is None:
        raise IntegrityError(f"version {entry.version} has no {step.form}, which the head says it has")
    return manifest


def follow(
    source: Source,
    steps: Sequence[Step],
    held: State | None,
    *,
    threads: int,
    max_bytes: int,
    check: Callable[[], None] = lambda: None,
    spares: Spares | None = None,
) -> State:
    """Take steps from a version that is held to another, which is proven; `held` is not touched.

    Args:
        source: Where the versions are.
        steps: The steps, at least one.
        held: What is held; None if the first step is an anchor.
        threads: How many threads to use.
        max_bytes: Most bytes that a version may have.
        check: Called between parts of the work; what it raises ends it.
        spares: Memory for the version, None for fresh memory.

    Returns:
        The version that the last step makes.

    Raises:
        Refusal: A step cannot be taken; it says which and why.
        OSError: The store cannot be read.
        TransportError: The store cannot be reached.
    """
    now = None if held is None else held.digest
    layout = None if held is None else held.layout
    memory = Memory([] if held is None else list(held.groups), spares or Spares())
    manifest: Manifest | None = None

    def make(one: Told) -> tuple[int, Snapshot]:
        check()
        reuse = memory.spares.take(one.info.target_bytes)
        return one.number, memory.groups[one.number].fork(one.patch, reuse=reuse)

    with ExitStack() as looking:
        if held is not None:
            # Another thread may commit a version meanwhile, and give up the memory that is read here.
            for group in held.groups:
                looking.enter_context(group.view())
        for step in steps:
            check()
            try:
                manifest, patches = read_step(source, step, now, layout, max_bytes)
                if step.form == "anchor":
                    memory.start([Snapshot(b"") for _ in manifest.layout.groups])
                for told in read_patches(source, manifest, patches, memory.groups, check):
                    for number, made in run_over(threads, make, told):
                        memory.replace(number, made)
            except (FormatError, DeltaError, LimitExceededError) as exc:
                raise Refusal(step, exc) from exc
            now, layout = manifest.digest, manifest.layout
        if manifest is None:
            raise ValueError("there are no steps")
        check()
        try:
            return verify(manifest, memory.groups, threads, digests_of(held))
        except IntegrityError as exc:
            raise Refusal(steps[-1], exc) from exc


def follow_in_place(
    source: Source,
    step: Step,
    held: State,
    *,
    threads: int,
    max_bytes: int,
    check: Callable[[], None],
    spares: Spares,
    alone: AbstractContextManager[object],
    hold: Callable[[State], None],
) -> State:
    """Take one step, a delta, in the memory of the version that is held, where nobody looks at it.

    What cannot be changed there is made elsewhere and proven first. Then the other groups are changed: all of
    them, proven, or none.

    Args:
        source: As for :func:`follow`.
        step: The step.
        held: What is held. It is as it was if this raises, and not to be used any more otherwise.
        threads: As for :func:`follow`.
        max_bytes: As for :func:`follow`.
        check: As for :func:`follow`.
        spares: As for :func:`follow`.
        alone: What keeps others from beginning to look at `held`.
        hold: Called with the version that is held from then on, once it is reached.

    Returns:
        The version that the step makes.

    Raises:
        Refusal: The step cannot be taken.
        OSError: As for :func:`follow`.
        TransportError: As for :func:`follow`.
    """
    groups = list(held.groups)
    proven = digests_of(held)
    here: list[Told] = []
    try:
        manifest, patches = read_step(source, step, held.digest, held.layout, max_bytes)
        told = [one for some in read_patches(source, manifest, patches, groups, check) for one in some]
        with alone:
            for one in told:
                check()
                base = groups[one.number]
                if is_told_by_tensor(one, base, manifest.layout.groups[one.number]) and not base.is_viewed:
                    here.append(one)
                    # What the change is going to prove.
                    proven[id(base)] = [one.info.target_digest]
                else:
                    reuse = spares.take(one.info.target_bytes)
                    groups[one.number] = base.fork(one.patch, reuse=reuse, threads=threads)
            state = verify(manifest, groups, threads, proven)
            changes = [(groups[one.number], one.patch) for one in here]
            try:
                delta.apply_together(changes, threads=threads)
            finally:
                # Also where an interruption comes when all is done.
                if all(groups[one.number].digest == one.info.target_digest for one in here):
                    hold(state)
    except (FormatError, DeltaError, LimitExceededError) as exc:
        raise Refusal(step, exc) from exc
    return state


def is_told_by_tensor(one: "Told", base: Snapshot, group: Group) -> bool:
    """Tell whether a patch keeps the length of a group, and names its target as manifests name tensors."""
    kept = (one.info.base_bytes, one.info.block_bytes) == (group.nbytes, base.block_bytes)
    return kept and is_tensor(group, base)


class Memory:
    """The groups of a version on its way to the next: what was made on the way is used again."""

    def __init__(self, groups: list[Snapshot], spares: Spares) -> None:
        """Begin with groups that others hold too."""
        self.groups = groups
        self.spares = spares
        self._made: set[int] = set()

    def start(self, groups: list[Snapshot]) -> None:
        """Begin anew."""
        self.groups[:] = groups
        self._made = set()

    def replace(self, number: int, made: Snapshot) -> None:
        """Put another group in place of one; that is given up if it was made on the way."""
        if number in self._made:
            self.spares.give([self.groups[number]])
        self.groups[number] = made
        self._made.add(number)


@dataclass(frozen=True, slots=True)
class Told:
    """A patch of a group.

    Attributes:
        number: Which group.
        patch: The patch.
        info: What it says of itself.
    """

    number: int
    patch: memoryview
    info: delta.PatchInfo


def read_step(
    source: Source, step: Step, now: str | None, layout: Layout | None, max_bytes: int
) -> tuple[Manifest, Patches]:
    """Read what a step takes from the version of digest `now`, whose tensors lie as in `layout`."""
    manifest = read_manifest(source, step)
    if manifest.layout.nbytes > max_bytes:
        raise LimitExceededError(
            f"version {manifest.version} has {manifest.layout.nbytes} bytes, the limit is {max_bytes}"
        )
    if step.form == "delta" and (manifest.base != now or manifest.layout != layout):
        raise BaseMismatchError(f"version {manifest.version} needs base {manifest.base}, held is {now}")
    patches = manifest.anchor if step.form == "anchor" else manifest.delta
    assert patches is not None  # noqa: S101 - read_manifest proved it; this tells the type checker
    return manifest, patches


def read_patches(
    source: Source,
    manifest: Manifest,
    patches: Patches,
    groups: Sequence[Snapshot],
    check: Callable[[], None],
) -> Iterator[list[Told]]:
    """Read the patches of `groups`, those of one pack at a time."""
    layout = manifest.layout
    if patches.nbytes > layout.nbytes + layout.nbytes // 8 + SLACK_BYTES * (1 + len(layout.groups)):
        raise LimitExceededError(f"packs of {patches.nbytes} bytes stand for only {layout.nbytes}")
    by_pack: dict[int, list[tuple[int, Place]]] = {}
    for number, place in enumerate(patches.places):
        if place is not None:
            by_pack.setdefault(place.pack, []).append((number, place))
    for index in sorted(by_pack):
        check()
        pack = patches.packs[index]
        data = memoryview(read_object(source, pack_key(pack.digest), pack.length, pack.digest))
        told = []
        for number, place in by_pack[index]:
            patch = data[place.offset : place.offset + place.length]
            info = delta.info(patch)
            want = (groups[number].size, layout.groups[number].nbytes)
            # A chain could make anything in between.
            if info.patches != 1 or (info.base_bytes, info.target_bytes) != want:
                raise FormatError(
                    f"{info.patches} patches make {info.target_bytes} bytes of {info.base_bytes}, "
                    f"not {want[1]} of {want[0]}"
                )
            told.append(Told(number, patch, info))
        yield told
