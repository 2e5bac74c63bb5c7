"""From a store to a proven version: the head, manifests, patches, and nothing taken on trust."""

from collections.abc import Callable, Sequence
from typing import Final

from dwcp_fast import delta
from dwcp_fast.errors import (
    BaseMismatchError,
    DeltaError,
    FormatError,
    IntegrityError,
    LimitExceededError,
)
from dwcp_fast.policy.versions import Form, Step
from dwcp_fast.versions.manifest import Manifest, Patches, Place, content_digest
from dwcp_fast.versions.spares import Spares
from dwcp_fast.versions.state import State, run_over, verify
from dwcp_fast.versions.store import Source, manifest_key, pack_key

__all__ = ["WIDTH_NAMES", "Refusal", "Stopped", "follow", "read_manifest", "read_object"]

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
    groups = [] if held is None else list(held.groups)
    manifest: Manifest | None = None
    memory = Memory(groups, spares or Spares())
    for step in steps:
        check()
        try:
            manifest = read_manifest(source, step)
            if manifest.layout.nbytes > max_bytes:
                raise LimitExceededError(
                    f"version {manifest.version} has {manifest.layout.nbytes} bytes, the limit is {max_bytes}"
                )
            if step.form == "anchor":
                memory.start([b"" for _ in manifest.layout.groups])
                patches = manifest.anchor
            else:
                if manifest.base != now or manifest.layout != layout:
                    raise BaseMismatchError(
                        f"version {manifest.version} needs base {manifest.base}, held is {now}"
                    )
                patches = manifest.delta
            assert patches is not None  # noqa: S101 - read_manifest proved it; this tells the type checker
            apply_patches(source, manifest, patches, memory, threads, check)
        except (FormatError, DeltaError, LimitExceededError) as exc:
            raise Refusal(step, exc) from exc
        now, layout = manifest.digest, manifest.layout
    if manifest is None:
        raise ValueError("there are no steps")
    check()
    try:
        return verify(manifest, memory.groups, threads, held)
    except IntegrityError as exc:
        raise Refusal(steps[-1], exc) from exc


class Memory:
    """The groups of a version on its way to the next: what was made on the way is used again."""

    def __init__(self, groups: list[bytes | bytearray], spares: Spares) -> None:
        """Begin with groups that others hold too."""
        self.groups = groups
        self.spares = spares
        self._made: set[int] = set()

    def start(self, groups: list[bytes | bytearray]) -> None:
        """Begin anew."""
        self.groups = groups
        self._made = set()

    def replace(self, number: int, made: bytearray) -> None:
        """Put another group in place of one; that is given up if it was made on the way."""
        if number in self._made:
            old = self.groups[number]
            self.groups[number] = made
            self.spares.give([old])
        self.groups[number] = made
        self._made.add(number)


def apply_patches(
    source: Source,
    manifest: Manifest,
    patches: Patches,
    memory: Memory,
    threads: int,
    check: Callable[[], None],
) -> None:
    """Replace groups by what patches make of them; one pack is in memory at a time."""
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

        def make(item: tuple[int, Place], data: memoryview = data) -> tuple[int, bytearray]:
            check()
            number, place = item
            base = memory.groups[number]
            patch = data[place.offset : place.offset + place.length]
            told = delta.info(patch)
            want = (len(base), layout.groups[number].nbytes)
            # A chain could make anything in between.
            if told.patches != 1 or (told.base_bytes, told.target_bytes) != want:
                raise FormatError(
                    f"{told.patches} patches make {told.target_bytes} bytes of {told.base_bytes}, "
                    f"not {want[1]} of {want[0]}"
                )
            out = memory.spares.take(want[1])
            delta.apply_onto(patch, base, out)
            return number, out

        for number, made in run_over(threads, make, by_pack[index]):
            memory.replace(number, made)
