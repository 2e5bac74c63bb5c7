"""Changing state to move: a memory-like image, bf16 weights and a disk-like image.

Every builder is a pure function of ``(seed, size_bytes)``, except that the disk image is filled with
the source files of the running Python, so its bytes also depend on the Python that runs the demo.
The memory image and the weights are synthetic, and their descriptions say so.
What is claimed about a state (share of changed bytes, share of zeros, ratio) is measured from its
bytes by :func:`measure_facts`, never copied from the builder's constants.
"""

import os
import struct
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import zstandard

__all__ = [
    "ChangingState",
    "StateFacts",
    "build_bf16_weights",
    "build_disk_image",
    "build_memory_image",
    "build_states",
    "measure_facts",
]

DEFAULT_SIZE_BYTES = 16 * 1024 * 1024
PAGE_BYTES = 4096

_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ChangingState:
    """One object in two versions.

    Attributes:
        name: file name of the object.
        description: what it imitates, and whether it is synthetic.
        version_0: the bytes the receiver gets first.
        version_1: the bytes after the change; not always of the same length.
    """

    name: str
    description: str
    version_0: bytes
    version_1: bytes


@dataclass(frozen=True)
class StateFacts:
    """Measured properties of one state.

    Attributes:
        name: name of the state.
        bytes_0: length of version 0.
        bytes_1: length of version 1.
        zero_share: share of zero bytes in version 0.
        changed_byte_share: share of version 1's bytes that differ from version 0 at the same offset.
        changed_page_share: share of version 1's 4 KiB pages that hold at least one such byte.
        changed_pair_share: share of version 1's aligned 16-bit words that differ (bf16 values).
        zstd1_ratio_0: length of version 0 over its length under one-shot zstd level 1.
        zstd1_ratio_1: the same for version 1.
    """

    name: str
    bytes_0: int
    bytes_1: int
    zero_share: float
    changed_byte_share: float
    changed_page_share: float
    changed_pair_share: float
    zstd1_ratio_0: float
    zstd1_ratio_1: float


def build_states(seed: int, size_bytes: int = DEFAULT_SIZE_BYTES) -> list[ChangingState]:
    """Build the three states of the demo, each about ``size_bytes`` long."""
    return [
        build_memory_image(seed, size_bytes),
        build_bf16_weights(seed, size_bytes),
        build_disk_image(seed, size_bytes),
    ]


def measure_facts(state: ChangingState) -> StateFacts:
    """Measure a state from its bytes.

    Bytes of version 1 beyond the end of version 0 count as changed.
    """
    old = np.frombuffer(state.version_0, np.uint8)
    new = np.frombuffer(state.version_1, np.uint8)
    shared = min(old.size, new.size)
    changed = np.ones(new.size, np.bool_)
    np.not_equal(old[:shared], new[:shared], out=changed[:shared])
    compressor = zstandard.ZstdCompressor(level=1)
    return StateFacts(
        name=state.name,
        bytes_0=old.size,
        bytes_1=new.size,
        zero_share=_share(old == 0),
        changed_byte_share=_share(changed),
        changed_page_share=_share(_any_in_groups(changed, PAGE_BYTES)),
        changed_pair_share=_share(_any_in_groups(changed, 2)),
        zstd1_ratio_0=old.size / len(compressor.compress(state.version_0)),
        zstd1_ratio_1=new.size / len(compressor.compress(state.version_1)),
    )


def _share(mask: npt.NDArray[np.bool_]) -> float:
    return int(np.count_nonzero(mask)) / max(1, mask.size)


def _any_in_groups(mask: npt.NDArray[np.bool_], group: int) -> npt.NDArray[np.bool_]:
    padded = np.zeros(-(-mask.size // group) * group, np.bool_)
    padded[: mask.size] = mask
    hits = np.count_nonzero(padded.reshape(-1, group), axis=1)
    found: npt.NDArray[np.bool_] = np.greater(hits, 0)
    return found


def build_memory_image(seed: int, size_bytes: int = DEFAULT_SIZE_BYTES) -> ChangingState:
    """Build a synthetic image of a virtual machine's memory.

    Pages come in runs of one kind: zero, text, arrays of pointers, heap structures, random.
    The change touches about 4 % of the pages with small writes and gives about 0.5 % new content.
    """
    rng = np.random.default_rng([seed, 1])
    pages = max(16, size_bytes // PAGE_BYTES)
    kinds = _page_kinds(rng, pages)
    image = np.zeros((pages, PAGE_BYTES), np.uint8)
    for kind, fill in enumerate(_PAGE_FILLS):
        where = np.flatnonzero(kinds == kind)
        if where.size:
            image[where] = fill(rng, where.size)

    changed = image.copy()
    for page in rng.choice(pages, max(1, pages // 25), replace=False):
        for _ in range(int(rng.integers(1, 9))):
            length = int(rng.integers(8, 65))
            offset = int(rng.integers(0, (PAGE_BYTES - length) // 8)) * 8
            changed[page, offset : offset + length] = rng.integers(0, 256, length, np.uint8)
    renewed = rng.choice(pages, max(1, pages // 200), replace=False)
    for page, kind in zip(renewed, rng.integers(1, len(_PAGE_FILLS), renewed.size), strict=True):
        changed[page] = _PAGE_FILLS[int(kind)](rng, 1)[0]
    return ChangingState(
        "memory.img",
        "synthetic memory of a virtual machine: zero, text, pointer, heap and random pages; "
        "small writes to a few percent of the pages, a few new pages",
        image.tobytes(),
        changed.tobytes(),
    )


def _page_kinds(rng: np.random.Generator, pages: int) -> npt.NDArray[np.int64]:
    runs = rng.geometric(1 / 12, pages)
    kinds = rng.choice(len(_PAGE_FILLS), pages, p=[0.30, 0.17, 0.18, 0.22, 0.13])
    return np.repeat(kinds, runs)[:pages].astype(np.int64)


def _zero_pages(_rng: np.random.Generator, count: int) -> _Bytes:
    return np.zeros((count, PAGE_BYTES), np.uint8)


def _text_pages(rng: np.random.Generator, count: int) -> _Bytes:
    text = _draw_text(rng, count * PAGE_BYTES)
    return np.frombuffer(text, np.uint8).reshape(count, PAGE_BYTES)


def _pointer_pages(rng: np.random.Generator, count: int) -> _Bytes:
    arenas = 0x7F00_0000_0000 + rng.integers(0, 1 << 20, (count, 1), np.int64) * 0x10_0000
    slots = rng.integers(0, 1 << 16, (count, PAGE_BYTES // 8), np.int64) * 16
    return (arenas + slots).astype("<i8").view(np.uint8).reshape(count, PAGE_BYTES)


def _heap_pages(rng: np.random.Generator, count: int) -> _Bytes:
    """Objects of 64 bytes: type pointer, count, length, hash, two links, padding."""
    objects = np.zeros((count, PAGE_BYTES // 64, 8), "<i8")
    shape = objects.shape[:2]
    objects[..., 0] = 0x5600_0000_0000 + rng.integers(0, 40, shape) * 408
    objects[..., 1] = rng.geometric(0.4, shape)
    objects[..., 2] = rng.geometric(0.05, shape)
    objects[..., 3] = rng.integers(-(1 << 63), (1 << 63) - 1, shape)
    objects[..., 4] = 0x7F12_3400_0000 + rng.integers(0, 1 << 18, shape) * 64
    objects[..., 5] = np.where(rng.random(shape) < 0.5, 0, objects[..., 4] + 64)
    return objects.view(np.uint8).reshape(count, PAGE_BYTES)


def _random_pages(rng: np.random.Generator, count: int) -> _Bytes:
    return rng.integers(0, 256, (count, PAGE_BYTES), np.uint8)


_PAGE_FILLS: tuple[Callable[[np.random.Generator, int], _Bytes], ...] = (
    _zero_pages,
    _text_pages,
    _pointer_pages,
    _heap_pages,
    _random_pages,
)


def _draw_text(rng: np.random.Generator, length: int) -> bytes:
    """Draw words of a made-up vocabulary by a Zipf-like law until ``length`` bytes are filled."""
    letters = np.frombuffer(b"etaoinshrdlucmfwypvbgkjqxz", np.uint8)
    sizes = rng.integers(2, 11, 2000)
    words = [letters[np.minimum(rng.geometric(0.12, n) - 1, 25)].tobytes() + b" " for n in sizes]
    text = bytearray()
    while len(text) < length:
        ranks = np.minimum(rng.zipf(1.3, 8192) - 1, len(words) - 1)
        text += b"".join([words[rank] for rank in ranks.tolist()])
    return bytes(text[:length])


_LEARNING_RATE = 5e-7


def build_bf16_weights(seed: int, size_bytes: int = DEFAULT_SIZE_BYTES) -> ChangingState:
    """Build synthetic bf16 weights and the same weights after one optimiser step.

    The float32 master copy is drawn from N(0, 0.02). The step is Adam-shaped (a sign-like update of
    the size of the learning rate, 5e-7, as in reinforcement fine-tuning); most of its updates vanish
    when the master copy is rounded to bf16 again, which is why few values change.
    """
    rng = np.random.default_rng([seed, 2])
    count = max(2048, size_bytes // 2)
    master = rng.standard_normal(count, np.float32) * np.float32(0.02)
    gradient = rng.standard_normal(count, np.float32)
    step = (np.float32(_LEARNING_RATE) * gradient / (np.abs(gradient) + np.float32(0.3))).astype(np.float32)
    return ChangingState(
        "weights.bf16",
        "synthetic bf16 weights, N(0, 0.02), before and after one Adam-like step at learning rate 5e-7",
        _round_to_bf16(master).tobytes(),
        _round_to_bf16(master - step).tobytes(),
    )


def _round_to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round finite float32 values to bf16, ties to even."""
    bits = values.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype("<u2")


_GROUP_BLOCKS = 1024
_META_BLOCKS = 34  # superblock copy, bitmap and 32 blocks of inodes
_INODE_BYTES = 128


def build_disk_image(seed: int, size_bytes: int = DEFAULT_SIZE_BYTES) -> ChangingState:
    """Build a sparse disk image: block groups with ext-like metadata, real files, holes.

    The files are the sources of the running Python, every third one deflated (generated text where
    they cannot be read).
    The change appends to some files, rewrites some with a line inserted (which shifts what follows),
    and adds a few new ones; inodes and bitmaps follow.
    """
    rng = np.random.default_rng([seed, 3])
    blocks = max(_META_BLOCKS + 64, size_bytes // PAGE_BYTES)
    disk = _Disk(blocks)
    usable = blocks - disk.groups * _META_BLOCKS
    target = int(usable * 0.62)
    for content in _file_contents(rng):
        if disk.used_blocks >= target:
            break
        if len(content) > PAGE_BYTES * 64:
            continue
        # A gap before some files leaves the holes that deletions leave on a real disk.
        gap = int(rng.geometric(0.3)) * int(rng.random() < 0.4)
        disk.add_file(content, gap)
    before = disk.image.tobytes()

    lines = _draw_text(rng, 1 << 16)
    for index in rng.choice(len(disk.files), max(1, len(disk.files) // 25), replace=False):
        content = disk.file_bytes(int(index))
        start = int(rng.integers(0, len(lines) - 512))
        line = lines[start : start + int(rng.integers(20, 200))] + b"\n"
        if rng.random() < 0.6:
            disk.rewrite_file(int(index), content + line)
        else:
            cut = content.find(b"\n", int(rng.integers(0, max(1, len(content)))))
            disk.rewrite_file(int(index), content[: cut + 1] + line + content[cut + 1 :])
    for _ in range(max(1, len(disk.files) // 60)):
        length = int(rng.integers(500, 20_000))
        start = int(rng.integers(0, len(lines) - length))
        disk.add_file(lines[start : start + length], 0)
    return ChangingState(
        "disk.img",
        "sparse disk image with ext-like metadata, filled with the source files of this Python, "
        "a third of them deflated; files appended to, rewritten with a line inserted, and added",
        before,
        disk.image.tobytes(),
    )


@dataclass
class _File:
    first_block: int
    room_blocks: int
    length: int


class _Disk:
    """Files laid out one after another over block groups, with a superblock, bitmap and inodes each."""

    def __init__(self, blocks: int) -> None:
        self.image = np.zeros(blocks * PAGE_BYTES, np.uint8)
        self.blocks = blocks
        self.groups = -(-blocks // _GROUP_BLOCKS)
        self.files: list[_File] = []
        self.used_blocks = 0
        self._next_block = _META_BLOCKS
        self._time = 1_700_000_000
        for group in range(self.groups):
            superblock = struct.pack("<IIIIHH", blocks, _GROUP_BLOCKS, group, 12, 0xEF53, 1)
            self._write(group * _GROUP_BLOCKS, 0, superblock)

    def add_file(self, content: bytes, gap_blocks: int) -> None:
        """Place a file at the next place that holds it whole; drop it when the disk is full."""
        room = max(1, -(-len(content) // PAGE_BYTES))
        first = self._next_block + gap_blocks
        if first % _GROUP_BLOCKS + room > _GROUP_BLOCKS or first % _GROUP_BLOCKS < _META_BLOCKS:
            # A file never straddles two groups: the next one starts behind its own metadata.
            first = -(-first // _GROUP_BLOCKS) * _GROUP_BLOCKS + _META_BLOCKS
        if first + room > self.blocks:
            return
        self._next_block = first + room
        self.used_blocks += room
        self.files.append(_File(first, room, 0))
        self.rewrite_file(len(self.files) - 1, content)

    def rewrite_file(self, index: int, content: bytes) -> None:
        """Write a file's bytes in its own room; what does not fit is cut, as a full disk would."""
        file = self.files[index]
        content = content[: file.room_blocks * PAGE_BYTES]
        file.length = len(content)
        self._time += 7
        self._write(file.first_block, 0, content.ljust(file.room_blocks * PAGE_BYTES, b"\0"))
        group = file.first_block // _GROUP_BLOCKS
        bitmap = (group * _GROUP_BLOCKS + 1) * PAGE_BYTES
        for block in range(file.first_block, file.first_block + file.room_blocks):
            bit = block % _GROUP_BLOCKS
            self.image[bitmap + bit // 8] |= 1 << (bit % 8)
        inode = struct.pack(
            "<HHIIIIQ12I",
            0o100644,
            1000,
            file.length,
            self._time,
            self._time,
            file.room_blocks * 8,
            index + 12,
            *(file.first_block + n if n < file.room_blocks else 0 for n in range(12)),
        )
        slots = (_META_BLOCKS - 2) * PAGE_BYTES // _INODE_BYTES
        self._write(group * _GROUP_BLOCKS + 2, index % slots * _INODE_BYTES, inode)

    def file_bytes(self, index: int) -> bytes:
        """The present content of a file."""
        file = self.files[index]
        start = file.first_block * PAGE_BYTES
        return self.image[start : start + file.length].tobytes()

    def _write(self, block: int, offset: int, data: bytes) -> None:
        start = block * PAGE_BYTES + offset
        self.image[start : start + len(data)] = np.frombuffer(data, np.uint8)


def _file_contents(rng: np.random.Generator) -> Iterator[bytes]:
    """Contents of this Python's sources in a seeded order, then generated text without end."""
    paths = _source_paths(Path(sysconfig.get_paths()["stdlib"]))
    for position, index in enumerate(rng.permutation(len(paths))):
        try:
            content = paths[int(index)].read_bytes()
        except OSError:
            continue
        # Disks also hold what is compressed already; here every third file is.
        yield zlib.compress(content, 6) if position % 3 == 0 else content
    while True:
        yield _draw_text(rng, int(rng.integers(2000, 60_000)))


def _source_paths(root: Path) -> list[Path]:
    found: list[Path] = []
    kinds = (".py", ".txt", ".so", ".c", ".h")
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - {"__pycache__", "site-packages", "dist-packages"})
        found += [Path(folder, name) for name in sorted(names) if name.endswith(kinds)]
    return found
