"""What a pack says of itself: reading it trusts nothing."""

import json
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, BinaryIO, Final

from dwcp_fast import _core
from dwcp_fast.errors import (
    ConfigError,
    FormatError,
    IntegrityError,
    LimitExceededError,
    UnsupportedFormatError,
)
from dwcp_fast.record import Record

__all__ = [
    "MAX_PARTS",
    "PackInfo",
    "Part",
    "Version",
    "check_name",
    "encode",
    "opened",
    "read",
    "within_another",
]

MAGIC: Final = b"DWCS"
VERSION: Final = 1
HEADER_BYTES: Final = 32
MAX_MANIFEST_BYTES: Final = 4 << 20
MAX_PARTS: Final = 4096
MAX_NAME_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Version:
    """An exact content.

    Attributes:
        size_bytes: Its length.
        digest: Its tree digest with the pack's block length, in hex.
    """

    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a snapshot.

    Attributes:
        name: Its name: components joined by ``/``.
        target: What it is.
        base: What its patch applies to; an empty file if the part is told in full.
        offset_bytes: Where its patch begins in the pack.
        patch_bytes: Length of its patch.
    """

    name: str
    target: Version
    base: Version
    offset_bytes: int
    patch_bytes: int


@dataclass(frozen=True, slots=True)
class PackInfo:
    """What a pack says of itself.

    Attributes:
        digest: The name of the pack: the digest of its header and manifest, which name the content of all
            parts.
        block_bytes: Length of a block, as in the tree digests.
        parts: The files of the snapshot, by name.
        pack_bytes: Length of the pack.
    """

    digest: str
    block_bytes: int
    parts: tuple[Part, ...]
    pack_bytes: int

    @property
    def snapshot_bytes(self) -> int:
        """Length of all parts together."""
        return sum(part.target.size_bytes for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as a dictionary of plain values."""
        return asdict(self) | {"snapshot_bytes": self.snapshot_bytes}


@contextmanager
def opened(path: str | PathLike[str]) -> Iterator[tuple[BinaryIO, PackInfo]]:
    """Open a pack and read what it says of itself; raises what :func:`read` raises, and :class:`OSError`."""

    def without_waiting(name: str, flags: int) -> int:
        # A pipe that nobody writes to would otherwise be waited for.
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", opener=without_waiting) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise FormatError(f"{os.fspath(path)} is no regular file")
        yield file, read(file, about.st_size)


def check_name(name: str) -> None:
    """Refuse a name that could lead out of a directory.

    Raises:
        ConfigError: It is empty, too long, absolute, or has a component that is empty, ``.`` or ``..``.
    """
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") and len(part.encode(errors="replace")) <= 255 for part in parts)
    odd = any(ord(letter) < 32 or letter in "\\\x7f" or "\ud800" <= letter <= "\udfff" for letter in name)
    if not plain or odd or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise ConfigError(
            f"{name[:100]!r} is no name of a part: write components without . or .., joined by /"
        )


def within_another(name: str, names: Collection[str]) -> str | None:
    """Give the part that a part with this name would lie within, if there is one among `names`."""
    folders = (name[:end] for end, letter in enumerate(name) if letter == "/")
    return next((folder for folder in folders if folder in names), None)


def encode(parts: Sequence[Part], block_bytes: int) -> bytes:
    """Give the header and the manifest of a pack; offsets count from the end of the manifest."""
    body = json.dumps(
        {"block_bytes": block_bytes, "parts": [asdict(part) for part in parts]},
        sort_keys=True,
        separators=(",", ":"),
    ).encode()
    if len(body) > MAX_MANIFEST_BYTES:
        raise LimitExceededError(f"a manifest of {len(body)} bytes is over the limit of {MAX_MANIFEST_BYTES}")
    head = MAGIC + bytes([VERSION, 0, 0, 0]) + len(body).to_bytes(4, "little") + bytes(4)
    return head + _core.digest(head + body) + body


def read(file: BinaryIO, pack_bytes: int) -> PackInfo:
    """Read header and manifest, and check that the parts lie in the pack one behind the other.

    Args:
        file: The pack, at its beginning.
        pack_bytes: Its length.

    Returns:
        What it says, with offsets that count from the beginning of the file.

    Raises:
        FormatError: It is no pack, is cut short, or says what cannot be.
        UnsupportedFormatError: It is of a later version.
        IntegrityError: Header or manifest were altered.
        LimitExceededError: The manifest or the number of parts is over its limit.
    """
    head = file.read(HEADER_BYTES)
    if head[:4] != MAGIC:
        raise FormatError(f"not a DWCS pack: it begins with {head[:4].hex(' ')}")
    if len(head) < HEADER_BYTES:
        raise FormatError(f"a pack of {pack_bytes} bytes is shorter than its header of {HEADER_BYTES} bytes")
    if head[4] != VERSION:
        raise UnsupportedFormatError(
            f"pack version {head[4]} is not supported, the highest known is {VERSION}"
        )
    if any(head[5:8]) or any(head[12:16]):
        raise FormatError("reserved bytes of the pack's header are not zero")
    length = int.from_bytes(head[8:12], "little")
    if length > MAX_MANIFEST_BYTES:
        raise LimitExceededError(f"a manifest of {length} bytes is over the limit of {MAX_MANIFEST_BYTES}")
    body = file.read(length)
    if len(body) < length:
        raise FormatError(f"a pack of {pack_bytes} bytes is shorter than its manifest of {length} bytes")
    digest = _core.digest(head[:16] + body)
    if digest != head[16:]:
        raise IntegrityError(f"digest of header and manifest is {digest.hex()}, expected {head[16:].hex()}")
    try:
        told = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the manifest is no JSON: {error}") from error
    block_bytes, parts = parse(told, HEADER_BYTES + length)
    end = parts[-1].offset_bytes + parts[-1].patch_bytes if parts else HEADER_BYTES + length
    if end != pack_bytes:
        raise FormatError(f"the parts end at byte {end} of a pack of {pack_bytes} bytes")
    return PackInfo(digest.hex(), block_bytes, parts, pack_bytes)


def parse(told: object, start: int) -> tuple[int, tuple[Part, ...]]:
    """Check the manifest's values, one by one."""
    manifest = Record(told, "the manifest")
    manifest.check_fields("block_bytes", "parts")
    # No more than the manifest has room for; too many of them are an error of their own.
    count = len(manifest.values("parts", MAX_MANIFEST_BYTES))
    if count > MAX_PARTS:
        raise LimitExceededError(f"{count} parts are over the limit of {MAX_PARTS}")
    parts: list[Part] = []
    names: set[str] = set()
    offset = 0
    for part in manifest.records("parts", MAX_PARTS):
        part.check_fields("name", "target", "base", "offset_bytes", "patch_bytes")
        name = part.text("name")
        try:
            check_name(name)
        except ConfigError as error:
            raise FormatError(str(error)) from error
        if parts and name <= parts[-1].name:
            raise FormatError(f"part {name!r} does not come behind {parts[-1].name!r}")
        # Whatever a name begins with comes before it.
        if (outer := within_another(name, names)) is not None:
            raise FormatError(f"part {name!r} lies within part {outer!r}")
        names.add(name)
        if part.number("offset_bytes") != offset:
            raise FormatError(f"part {name!r} does not begin at byte {offset}, where the one before ends")
        length = part.number("patch_bytes")
        target, base = (read_version(part.record(which)) for which in ("target", "base"))
        parts.append(Part(name, target, base, start + offset, length))
        offset += length
    return manifest.number("block_bytes"), tuple(parts)


def read_version(record: Record) -> Version:
    """Read a size and a digest."""
    record.check_fields("size_bytes", "digest")
    return Version(record.number("size_bytes"), record.digest("digest"))
