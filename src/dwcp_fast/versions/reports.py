"""What publishing and following a version did."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["CommitReport", "PublishReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport:
    """What publishing one version did.

    Attributes:
        version: Its number.
        digest: Digest of its content, in hex.
        base: Digest of the content that its delta was made from, None if there is no delta.
        kind: ``"anchor"``, ``"delta"``, ``"both"``, or ``"again"`` where the newest version had this number
            and content already.
        why: What was chosen and the reason, by the name of the choice.
        tensors: How many tensors it has.
        bytes_raw: Bytes of all tensors.
        bytes_delta: Bytes of the delta, None if there is none.
        bytes_anchor: Bytes of the anchor, None if there is none.
        ratio: How many times smaller than the tensors is what a receiver of the version before reads; None
            if that is nothing.
        groups_changed: Groups of tensors that changed.
        groups: Groups of tensors.
        removed: Versions that were removed.
        confirmed: Peers that hold the version, by name; see `confirm` of the publisher.
        seconds: From the end of the ``with`` block to the version's being durable.
        seconds_confirm: Seconds that were waited for peers after that.
    """

    version: int
    digest: str
    base: str | None
    kind: str
    why: Mapping[str, str]
    tensors: int
    bytes_raw: int
    bytes_delta: int | None
    bytes_anchor: int | None
    ratio: float | None
    groups_changed: int
    groups: int
    removed: tuple[int, ...]
    seconds: float
    confirmed: tuple[str, ...] = ()
    seconds_confirm: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as a dictionary of plain values."""
        return {**asdict(self), "why": dict(self.why)}


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitReport:
    """What it took to come to one version.

    Attributes:
        version: Its number.
        digest: Digest of its content, in hex; proven.
        kind: ``"anchor"``, ``"delta"`` (one or more), ``"anchor+delta"`` or ``"same"``.
        why: What was chosen and the reason, by the name of the choice.
        healed: What went wrong with other ways to it, empty if nothing did.
        steps: Manifests that were followed.
        tensors: How many tensors it has.
        bytes_raw: Bytes of all tensors.
        bytes_read: Bytes of the manifests and packs that were followed.
        ratio: `bytes_raw` by `bytes_read`, None if nothing was read.
        seconds: From the head that named it to its being proven.
        seconds_commit: Seconds that the commit took; 0 before it.
    """

    version: int
    digest: str
    kind: str
    why: Mapping[str, str]
    healed: tuple[str, ...]
    steps: int
    tensors: int
    bytes_raw: int
    bytes_read: int
    ratio: float | None
    seconds: float
    seconds_commit: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as a dictionary of plain values."""
        return {**asdict(self), "why": dict(self.why)}
