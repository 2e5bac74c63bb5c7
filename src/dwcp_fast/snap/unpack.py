"""Unpacking: the snapshot appears as a whole, verified, or not at all."""

import errno
import mmap
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Final

from dwcp_fast.delta import apply_files, info
from dwcp_fast.errors import BaseMismatchError, FormatError, IntegrityError, LimitExceededError
from dwcp_fast.snap.manifest import PackInfo, Part, Version, opened
from dwcp_fast.staging import sync_directory

__all__ = ["DEFAULT_MAX_BYTES", "UnpackReport", "unpack"]

DEFAULT_MAX_BYTES: Final = 1 << 40
COPY_BYTES: Final = 1 << 20

StrPath = str | PathLike[str]


@dataclass(frozen=True, slots=True)
class UnpackReport:
    """What was unpacked.

    Attributes:
        pack: What the pack says of itself.
        into: Where the snapshot is.
        bases: For each part with a base, the file that was used.
    """

    pack: PackInfo
    into: Path
    bases: dict[str, Path]

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as a dictionary of plain values."""
        bases = {name: str(path) for name, path in self.bases.items()}
        return {"into": str(self.into), "bases": bases, "pack": self.pack.to_dict()} | {
            "parts": [asdict(part) for part in self.pack.parts]
        }


def unpack(
    path: StrPath,
    into: StrPath,
    *,
    bases: Sequence[StrPath] = (),
    max_bytes: int = DEFAULT_MAX_BYTES,
    progress: Callable[[str], None] | None = None,
) -> UnpackReport:
    """Unpack a snapshot to a directory that does not exist yet.

    Every part is verified before the directory appears. The pack may come from anybody: names cannot lead out
    of the directory, and nothing is written beyond `max_bytes`.

    Args:
        path: The pack.
        into: The directory to make.
        bases: Files, or directories of files, among which the bases are looked for, by length and digest.
        max_bytes: Most bytes that all parts may have together.
        progress: Called with the name of each part before it is unpacked.

    Returns:
        What was unpacked, and from which bases.

    Raises:
        BaseMismatchError: A base is not among `bases`.
        FormatError: The pack is damaged; or a subclass that tells more.
        LimitExceededError: The parts are larger than `max_bytes`.
        FileExistsError: `into` exists.
        OSError: A file cannot be read or written.
    """
    target = Path(into)
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    with opened(path) as (file, pack):
        if pack.snapshot_bytes > max_bytes:
            raise LimitExceededError(
                f"{pack.snapshot_bytes} bytes are promised, over the limit of {max_bytes}"
            )
        candidates = Candidates(bases)
        used: dict[str, Path] = {}
        stage = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.part")
        stage.mkdir()
        try:
            patch, nothing = stage / ".patch", stage / ".nothing"
            tree = stage / "tree"
            tree.mkdir()
            nothing.touch()
            for part in pack.parts:
                if progress is not None:
                    progress(part.name)
                extract(file, part, patch)
                check_patch(part, patch)
                place = tree / part.name
                place.parent.mkdir(parents=True, exist_ok=True)
                if part.base.size_bytes == 0:
                    apply_files(patch, nothing, place)
                else:
                    used[part.name] = place_from_candidates(part, patch, candidates, place)
            # On disk with everything below it, before it appears.
            for folder, _, _ in os.walk(tree, topdown=False):
                sync_directory(Path(folder))
            tree.rename(target)
            sync_directory(target.parent)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return UnpackReport(pack, target, used)


class Candidates:
    """Files that may be bases, by length."""

    def __init__(self, places: Iterable[StrPath]) -> None:
        """Look what is there."""
        self._by_size: dict[int, list[Path]] = {}
        for place in map(Path, places):
            inner = sorted(place.rglob("*")) if place.is_dir() else [place]
            for path in inner:
                if place.is_dir() and (path.is_symlink() or not path.is_file()):
                    continue
                self._by_size.setdefault(path.stat().st_size, []).append(path)

    def of(self, part: Part) -> list[Path]:
        """Give the files with the right length, those with the part's name first."""
        found = self._by_size.get(part.base.size_bytes, [])
        return sorted(found, key=lambda path: path.name != part.name.rpartition("/")[2])


def place_from_candidates(part: Part, patch: Path, candidates: Candidates, place: Path) -> Path:
    """Make a part from the first file that is its base."""
    for path in candidates.of(part):
        try:
            apply_files(patch, path, place)
        except BaseMismatchError:
            continue
        return path
    raise BaseMismatchError(
        f"part {part.name!r} needs a base of {part.base.size_bytes} bytes with digest {part.base.digest}, "
        "which is not among the files given",
        hint="name the file, or the directory it is in, with --base",
    )


def check_patch(part: Part, patch: Path) -> None:
    """Hold a part's patch to what the manifest says, before it is let make anything."""
    if part.patch_bytes == 0:
        raise FormatError(f"part {part.name!r} has no patch")
    with patch.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        told = info(mapped)
    for what, said, was in (
        ("target", part.target, Version(told.target_bytes, told.target_digest)),
        ("base", part.base, Version(told.base_bytes, told.base_digest)),
    ):
        if said != was:
            raise IntegrityError(
                f"the {what} of part {part.name!r} is {was} in its patch and {said} in the manifest"
            )


def extract(file: BinaryIO, part: Part, patch: Path) -> None:
    """Copy a part's patch out of the pack."""
    file.seek(part.offset_bytes)
    left = part.patch_bytes
    with patch.open("wb") as out:
        while left and (piece := file.read(min(left, COPY_BYTES))):
            out.write(piece)
            left -= len(piece)
