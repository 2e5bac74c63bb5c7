"""HDE packets of v1: a 16-byte header and a zstd frame, full or as a delta of 4096-byte blocks.

Three generations share one name and no version byte, so the generation is always the caller's setting.
Writing is conservative: full packets unless deltas are asked for, never quantized, never with a
dictionary. A delta names its baseline only by a key, with no hash, so encoder and decoder must see the
same packets in the same order; nothing on the wire detects a lost one.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Final, get_args

from dwcp_fast.errors import (
    BaseMismatchError,
    ConfigError,
    DwcpError,
    FormatError,
    LimitExceededError,
    UnsupportedFormatError,
)
from dwcp_fast.v1._v1engine import apply_block_delta, encode_block_delta
from dwcp_fast.v1.options import DEFAULT_MAX_BYTES, Generation, Tier, check_choice, check_range
from dwcp_fast.v1.payload import decode_zstd, encode_zstd, view_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Buffer

__all__ = [
    "HDE_HEADER_BYTES",
    "MAX_PACKET_CONTENT_BYTES",
    "BaselineStore",
    "HdeDecoder",
    "HdeEncoder",
    "HdePacket",
    "guess_generation",
]

HDE_HEADER_BYTES: Final = 16
MAX_PACKET_CONTENT_BYTES: Final = 256 << 20
"""What upstream decoders accept in one packet under their default memory limit."""

HEADER = Struct(">BB2xIQ")
RESERVED = slice(2, 4)
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
TIERS: Final[Mapping[str, tuple[Tier, ...]]] = {
    "A": ("local", "regional", "global"),
    "B": ("local", "regional", "global"),
    "C": ("none", "local", "regional", "global"),
}
LEVELS: Final[Mapping[str, int]] = {"local": 1, "regional": 3, "global": 9}


@dataclass(frozen=True, slots=True)
class HdePacket:
    """What one HDE packet held.

    Attributes:
        payload: The state, with any delta applied.
        tier: The compression tier the packet names.
        is_delta: Whether a delta was applied; False when the flag was set on a full state.
        flagged: The delta flag as it stood in the packet.
        wire_bytes: Length of the packet, header included.
    """

    payload: bytes
    tier: Tier
    is_delta: bool
    flagged: bool
    wire_bytes: int


class BaselineStore:
    """States held by key, as copies, bounded by bytes; the least recently used go first. Thread-safe."""

    def __init__(self, max_bytes: int = DEFAULT_MAX_BYTES // 4) -> None:
        """Make an empty store.

        Args:
            max_bytes: The most bytes of states to hold; 0 holds none.
        """
        check_range("max_bytes", max_bytes, 0, 1 << 62)
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._states: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """Bytes of states held now."""
        return self._held_bytes

    def __len__(self) -> int:
        """Count the states held."""
        return len(self._states)

    def put(self, key: str, state: Buffer) -> None:
        """Hold a copy of `state` as the newest one of `key`.

        A state larger than the whole store is not held, and the older one of its key is dropped: applying
        a later delta to it would give wrong data.

        Args:
            key: The baseline key.
            state: The state; copied unless it is already immutable bytes.
        """
        view = view_bytes(state)
        with self._lock:
            self._held_bytes -= len(self._states.pop(key, b""))
            if len(view) > self._max_bytes:
                return
            copy = state if isinstance(state, bytes) else bytes(view)
            self._states[key] = copy
            self._held_bytes += len(copy)
            while self._held_bytes > self._max_bytes:
                _, dropped = self._states.popitem(last=False)
                self._held_bytes -= len(dropped)

    def find(self, key: str) -> bytes | None:
        """Give the state of `key` and mark it as used, or None.

        Args:
            key: The baseline key.

        Returns:
            The state, or None when none is held.
        """
        with self._lock:
            state = self._states.get(key)
            if state is not None:
                self._states.move_to_end(key)
            return state

    def drop(self, key: str) -> None:
        """Forget the state of `key`, if one is held.

        Args:
            key: The baseline key.
        """
        with self._lock:
            self._held_bytes -= len(self._states.pop(key, b""))


class HdeEncoder:
    """Writes HDE packets of one generation."""

    def __init__(
        self,
        generation: Generation = "A",
        *,
        deltas: bool = False,
        baselines: BaselineStore | None = None,
        max_content_bytes: int = MAX_PACKET_CONTENT_BYTES,
    ) -> None:
        """Set up an encoder.

        Args:
            generation: The layout the peer reads.
            deltas: Send a delta where one is smaller than half of the state. The peer must apply deltas,
                which upstream generations A and B do not do and C refuses.
            baselines: Where the last state of each key is held; a store of its own when None.
            max_content_bytes: The largest state to put into one packet.

        Raises:
            ConfigError: An argument is out of range, or deltas are asked of generation C.
        """
        check_choice("generation", generation, get_args(Generation))
        check_range("max_content_bytes", max_content_bytes, 1, 1 << 40)
        if deltas and generation == "C":
            raise ConfigError("deltas cannot be sent to generation C: its peers refuse them")
        self._generation: Generation = generation
        self._deltas = deltas
        self._baselines = baselines if baselines is not None else BaselineStore()
        self._max_content_bytes = max_content_bytes

    def encode(self, state: Buffer, *, tier: Tier = "regional", key: str | None = None) -> bytes:
        """Write one packet.

        Args:
            state: The whole state; not empty.
            tier: "local", "regional" or "global"; generation C also has "none", which sends it raw.
            key: The baseline key, such as "vm-1_memory"; needed for deltas and ignored without them.

        Returns:
            The packet.

        Raises:
            ConfigError: The tier is not one of this generation, or a key is missing or holds a zero byte.
            FormatError: The state is empty, which v1 cannot say.
            LimitExceededError: The state is above `max_content_bytes`.
        """
        check_choice("tier", tier, TIERS[self._generation])
        view = view_bytes(state)
        if not view:
            raise FormatError("state is empty: v1 has no empty packet")
        if len(view) > self._max_content_bytes:
            raise LimitExceededError(
                f"state of {len(view)} bytes is above the packet limit of {self._max_content_bytes}"
            )
        body = None
        if self._deltas:
            # What is sent and what is held must be the same bytes, even if the caller changes them meanwhile.
            held = state if isinstance(state, bytes) else bytes(view)
            body = self._delta_body(held, key)
            view = memoryview(held)
        plain = view if body is None else body
        payload = bytes(plain) if tier == "none" else encode_zstd(plain, LEVELS[tier])
        number = TIERS[self._generation].index(tier)
        return HEADER.pack(body is not None, number, 0, len(payload)) + payload

    def _delta_body(self, state: bytes, key: str | None) -> bytes | None:
        """Make the delta body if one is worth it, and advance the baseline as the peer will."""
        if not key or "\0" in key:
            raise ConfigError(f"baseline key {key!r} is empty or holds a zero byte")
        base = self._baselines.find(key)
        # Upstream sends a delta only below one half of the state; at or above it peers expect a full packet.
        body = None if base is None else encode_block_delta(key.encode(), base, state, (len(state) - 1) // 2)
        self._baselines.put(key, state)
        return body


class HdeDecoder:
    """Reads HDE packets of one generation."""

    def __init__(
        self,
        generation: Generation = "A",
        *,
        strict: bool = True,
        max_bytes: int = DEFAULT_MAX_BYTES,
        baselines: BaselineStore | None = None,
        dictionaries: Mapping[int, bytes] | None = None,
        double_wrap: bool = False,
        scope: str = "",
    ) -> None:
        """Set up a decoder.

        Args:
            generation: The layout the peer writes.
            strict: Refuse a packet whose delta flag is set but which holds no delta for the key. When False
                such a packet is read as a full state, which generation A needs and which can be silently
                wrong when a full state happens to look like a delta.
            max_bytes: The most bytes of content to allow.
            baselines: Where the last state of each key is held; a store of its own when None.
            dictionaries: zstd dictionaries held, by ID.
            double_wrap: Generation B only: when the content is itself a zstd frame that names a dictionary
                held, decode it again. Wrong for data that is such a file, so it is a setting.
            scope: Put in front of every key in `baselines`, so that decoders of several peers can share one
                store and no peer can touch the states of another.

        Raises:
            ConfigError: An argument is out of range, or `double_wrap` is set for another generation.
        """
        check_choice("generation", generation, get_args(Generation))
        check_range("max_bytes", max_bytes, 1, 1 << 40)
        if double_wrap and generation != "B":
            raise ConfigError(f"double_wrap is only for generation B, not {generation}")
        self._generation: Generation = generation
        self._strict = strict
        self._max_bytes = max_bytes
        self._baselines = baselines if baselines is not None else BaselineStore()
        self._dictionaries = dict(dictionaries or {})
        self._double_wrap = double_wrap
        self._scope = scope

    def decode(self, packet: Buffer, *, key: str | None = None) -> HdePacket:
        """Read one packet, and hold its state as the baseline of `key`.

        A packet that is refused takes the baseline of its key with it, since a delta on the state it held
        could not be told from one on the older state.

        Args:
            packet: The whole packet.
            key: The baseline key the packet belongs to; full packets do not carry it. With None nothing is
                held and deltas are refused.

        Returns:
            The state and what the header said.

        Raises:
            FormatError: The packet is malformed, or (strict) is flagged as a delta and is none.
            UnsupportedFormatError: A tier or dictionary of another generation, or a delta for generation C.
            BaseMismatchError: A delta for a baseline that is not held.
            IntegrityError: The zstd checksum does not match.
            LimitExceededError: The content is above `max_bytes`.
        """
        try:
            return self._decode(view_bytes(packet), key)
        except DwcpError:
            # The sender has moved on to a state that is not held here: a later delta must find no baseline.
            if key is not None:
                self._baselines.drop(self._scope + key)
            raise

    def _decode(self, view: memoryview, key: str | None) -> HdePacket:
        """Read one packet and hold its state."""
        flagged, tier, dictionary_id = self._read_header(view)
        payload = view[HDE_HEADER_BYTES:]
        if tier == "none":
            if len(payload) > self._max_bytes:
                raise LimitExceededError(
                    f"payload of {len(payload)} bytes is above the limit of {self._max_bytes}"
                )
            content = bytes(payload)
        else:
            content = decode_zstd(payload, self._max_bytes, self._dictionaries)
        if dictionary_id and dictionary_id not in self._dictionaries:
            raise UnsupportedFormatError(f"packet needs dictionary {dictionary_id:#010x}, which is not held")
        if self._double_wrap:
            content = self._unwrap(content)
        if not content:
            raise FormatError("packet holds an empty state")
        applied = self._apply(content, key) if flagged else None
        state = content if applied is None else applied
        if key is not None:
            self._baselines.put(self._scope + key, state)
        return HdePacket(state, tier, applied is not None, flagged, len(view))

    def _read_header(self, view: memoryview) -> tuple[bool, Tier, int]:
        """Check the 16 bytes in front of the payload."""
        if len(view) < HDE_HEADER_BYTES:
            raise FormatError(f"packet of {len(view)} bytes is shorter than its header of {HDE_HEADER_BYTES}")
        flag, number, dictionary_id, length = HEADER.unpack_from(view)
        tiers = TIERS[self._generation]
        hint = None
        if self._generation != "C" and (number == 3 or dictionary_id):
            hint = "the peer may write generation C"
        if flag > 1:
            raise FormatError(f"delta flag {flag} is neither 0 nor 1")
        if number >= len(tiers):
            raise UnsupportedFormatError(
                f"tier {number} is above {len(tiers) - 1} in generation {self._generation}", hint=hint
            )
        if any(view[RESERVED]) or (dictionary_id and self._generation != "C"):
            raise UnsupportedFormatError(
                f"reserved header bytes are {bytes(view[2:8]).hex()} in generation {self._generation}",
                hint=hint,
            )
        if length != len(view) - HDE_HEADER_BYTES:
            raise FormatError(
                f"header names {length} payload bytes, {len(view) - HDE_HEADER_BYTES} are there"
            )
        if length == 0:
            raise FormatError("packet has no payload")
        if flag and self._generation == "C":
            raise UnsupportedFormatError("generation C does not accept delta packets")
        return bool(flag), tiers[number], dictionary_id

    def _unwrap(self, content: bytes) -> bytes:
        """Undo the second, unflagged frame that generation B puts around dictionary frames."""
        if not content.startswith(ZSTD_MAGIC):
            return content
        try:
            return decode_zstd(content, self._max_bytes, self._dictionaries)
        except UnsupportedFormatError:
            return content

    def _apply(self, body: bytes, key: str | None) -> bytes | None:
        """Apply a delta body, or give None where the tolerant reading takes it for a full state."""
        try:
            if key is None:
                raise BaseMismatchError("packet is flagged as a delta, and no baseline key is set")
            base = self._baselines.find(self._scope + key)
            if base is None:
                raise BaseMismatchError(f"delta for baseline {key!r}, which is not held")
            return apply_block_delta(body, key.encode(), base, self._max_bytes)
        except (FormatError, BaseMismatchError) as exc:
            if not self._strict:
                return None
            exc.hint = "generation A also sets the delta flag on full states; strict=False reads them"
            raise


def guess_generation(packet: Buffer) -> Generation | None:
    """Guess which generation wrote a packet, as an aid for a person who must configure it.

    Generations A and B cannot be told apart; "A" stands for both.

    Args:
        packet: The packet, or at least its first 20 bytes.

    Returns:
        "C", "A", or None where the bytes do not say.
    """
    view = view_bytes(packet)
    if len(view) < HDE_HEADER_BYTES + len(ZSTD_MAGIC):
        return None
    number, dictionary_id = view[1], int.from_bytes(view[4:8], "big")
    if dictionary_id or number == 3:
        return "C"
    if number == 0:
        return "A" if bytes(view[HDE_HEADER_BYTES : HDE_HEADER_BYTES + 4]) == ZSTD_MAGIC else "C"
    return None
