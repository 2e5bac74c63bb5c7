"""Which way leads to the newest version, when a version is stored in full, and what may be removed."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

from dwcp_fast.policy.choice import Choice

__all__ = ["Form", "Retained", "Step", "choose_anchor", "choose_retained", "plan_route"]

Form = Literal["anchor", "delta"]


@dataclass(frozen=True, slots=True)
class Retained:
    """A version that a store holds, oldest first in its head.

    Attributes:
        version: Its number.
        digest: Digest of its content, in hex.
        manifest: Digest of its manifest, in hex.
        manifest_bytes: Length of its manifest.
        base: Digest of the content that its delta needs, None if it has no delta.
        delta_bytes: Length of its delta, 0 if it has none.
        anchor_bytes: Length of its anchor, which needs nothing; None if it has no anchor.
    """

    version: int
    digest: str
    manifest: str
    manifest_bytes: int
    base: str | None
    delta_bytes: int
    anchor_bytes: int | None


@dataclass(frozen=True, slots=True)
class Step:
    """One version to apply, and in which form.

    Attributes:
        entry: The version.
        form: ``"anchor"`` or ``"delta"``.
    """

    entry: Retained
    form: Form

    @property
    def bytes(self) -> int:
        """Length of what has to be read."""
        return self.entry.delta_bytes if self.form == "delta" else self.entry.anchor_bytes or 0


def plan_route(
    versions: Sequence[Retained], held: str | None, refused: AbstractSet[tuple[str, Form]] = frozenset()
) -> Choice[tuple[Step, ...] | None]:
    """Choose how to come to the newest version with the fewest bytes.

    Args:
        versions: What the store holds, oldest first; not empty.
        held: Digest of the content that is held, None for nothing.
        refused: Manifests and forms that turned out to be damaged.

    Returns:
        The steps, oldest first: none if the newest content is held, an anchor only as the first. None if no
        way is left.
    """
    newest = versions[-1]
    if held == newest.digest:
        return Choice("route", (), f"version {newest.version} has the content that is held")
    found: list[tuple[str, tuple[Step, ...]]] = []
    tail: tuple[Step, ...] = ()
    for index in range(len(versions) - 1, -1, -1):
        entry = versions[index]
        if entry.anchor_bytes is not None and (entry.manifest, "anchor") not in refused:
            found.append((f"from the anchor of version {entry.version}", (Step(entry, "anchor"), *tail)))
        if entry.base is None or (entry.manifest, "delta") in refused:
            break
        tail = (Step(entry, "delta"), *tail)
        if entry.base == held:
            found.append((f"{len(tail)} deltas from what is held", tail))
        if index == 0 or versions[index - 1].digest != entry.base:
            break
    if not found:
        return Choice("route", None, f"nothing leads to version {newest.version}")
    # On a tie the one found last needs an older version, which is what the deltas from the held one do.
    why, steps = min(reversed(found), key=lambda way: sum(step.bytes for step in way[1]))
    return Choice("route", steps, why)


def choose_anchor(
    versions: Sequence[Retained],
    *,
    base: str | None,
    same_tensors: bool,
    anchor_every: int,
    failure: str | None = None,
) -> Choice[bool]:
    """Choose whether the next version is stored in full too.

    Args:
        versions: What the store holds, oldest first.
        base: Digest of the content that the publisher holds as the base, None if it has none.
        same_tensors: Whether the next version has the names, types and shapes of that base.
        anchor_every: Most versions from one anchor to the next.
        failure: Why a receiver could not take the newest version, None if it told nothing like that.

    Returns:
        Whether an anchor is due.
    """
    if base is None or not versions:
        return Choice("anchor", True, "there is no base")
    if not same_tensors:
        return Choice("anchor", True, "names, types or shapes of tensors changed")
    if versions[-1].digest != base:
        return Choice("anchor", True, "the base held is not the newest version")
    # A receiver that cannot take an anchor either is not helped by another one.
    if failure is not None and versions[-1].anchor_bytes is None:
        return Choice("anchor", True, f"a receiver could not take the version before: {failure}")
    length = 0
    for deltas, entry in enumerate(reversed(versions)):
        if entry.anchor_bytes is not None:
            if deltas + 1 >= anchor_every:
                return Choice("anchor", True, f"{anchor_every} versions since the last anchor")
            if length > entry.anchor_bytes:
                return Choice("anchor", True, f"the {deltas} deltas since the last anchor are longer than it")
            return Choice("anchor", False, f"the anchor of version {entry.version} is near enough")
        length += entry.delta_bytes
    return Choice("anchor", True, "no anchor is left")


def choose_retained(versions: Sequence[Retained], keep: int) -> tuple[Retained, ...]:
    """Choose what stays: the newest `keep` versions, and what the oldest of them needs.

    Args:
        versions: What the store holds, oldest first.
        keep: How many versions shall stay reachable, 1 or more.

    Returns:
        The versions that stay, oldest first. The first one has an anchor, if any up to it has.
    """
    oldest = max(0, len(versions) - keep)
    for index in range(oldest, -1, -1):
        if versions[index].anchor_bytes is not None:
            return tuple(versions[index:])
    return tuple(versions)
