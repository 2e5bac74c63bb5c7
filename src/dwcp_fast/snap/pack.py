"""Making packs."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Final

from dwcp_fast.delta import DEFAULT_BLOCK_BYTES, diff_files
from dwcp_fast.errors import ConfigError, LimitExceededError
from dwcp_fast.snap.manifest import (
    MAX_PARTS,
    PackInfo,
    Part,
    Version,
    check_name,
    encode,
    opened,
    within_another,
)
from dwcp_fast.staging import staged

__all__ = ["info", "pack"]

COPY_BYTES: Final = 1 << 20

StrPath = str | PathLike[str]


def pack(
    out: StrPath,
    parts: Mapping[str, StrPath],
    *,
    bases: Mapping[str, StrPath] | None = None,
    codec: str = "zstd:1",
    progress: Callable[[str], None] | None = None,
) -> PackInfo:
    """Pack the files of a snapshot into one; it appears under its name only when it is complete.

    Files are read block by block, whatever their length. They must not change meanwhile.

    Args:
        out: File to write.
        parts: Files by their names in the snapshot.
        bases: For some of the parts, the file that whoever unpacks will hold: the snapshot before, a golden
            image.
        codec: Codec of what is told in full: ``"none"``, ``"lz4"``,
            ``"lz4:ACCELERATION"``, ``"zstd"`` or ``"zstd:LEVEL"``.
        progress: Called with the name of each part before it is packed.

    Returns:
        What the pack says of itself.

    Raises:
        ConfigError: A name or the codec cannot be used, or a base belongs to no part.
        LimitExceededError: There are more than 4096 parts.
        OSError: A file cannot be read or written.
    """
    bases = bases or {}
    if unknown := sorted(set(bases) - set(parts)):
        raise ConfigError(f"base {unknown[0]!r} belongs to no part")
    if len(parts) > MAX_PARTS:
        raise LimitExceededError(f"{len(parts)} parts are over the limit of {MAX_PARTS}")
    for name in parts:
        check_name(name)
        if (outer := within_another(name, parts)) is not None:
            raise ConfigError(f"part {name!r} lies within part {outer!r}")
    target = Path(out)
    # Beside the pack, where there is room for it.
    with (
        tempfile.TemporaryDirectory(prefix=f".{target.name[:100]}.", dir=target.parent) as scratch,
        staged(target) as whole,
    ):
        nothing = Path(scratch, "nothing")
        nothing.touch()
        made: list[Part] = []
        patches: list[Path] = []
        end = 0
        for name in sorted(parts):
            if progress is not None:
                progress(name)
            patch = Path(scratch, f"patch-{len(patches)}")
            told = diff_files(
                bases.get(name, nothing), parts[name], patch, codec=codec, block_bytes=DEFAULT_BLOCK_BYTES
            )
            target_version = Version(told.target_bytes, told.target_digest)
            base_version = Version(told.base_bytes, told.base_digest)
            made.append(Part(name, target_version, base_version, end, told.patch_bytes))
            patches.append(patch)
            end += told.patch_bytes
        with whole.open("r+b") as file:
            file.write(encode(made, DEFAULT_BLOCK_BYTES))
            for patch in patches:
                with patch.open("rb") as source:
                    shutil.copyfileobj(source, file, COPY_BYTES)
                # What is in the pack need not take room twice.
                patch.unlink()
        return info(whole)


def info(path: StrPath) -> PackInfo:
    """Read what a pack says of itself.

    Args:
        path: The pack.

    Returns:
        Its parts and what they need.

    Raises:
        OSError: It cannot be read.
        FormatError: It is no pack, or damaged; or a subclass that tells more.
        LimitExceededError: It has more parts than a pack may have.
    """
    with opened(path) as (_, told):
        return told
