"""The settings of v1, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from dwcp_fast.errors import ConfigError

__all__ = [
    "DEFAULT_MAX_BYTES",
    "MAX_CHUNK_BYTES",
    "MAX_STREAMS",
    "MAX_TRANSFER_BYTES",
    "Generation",
    "PayloadFormat",
    "Tier",
    "V1Options",
    "check_choice",
    "check_range",
]

Generation: TypeAlias = Literal["A", "B", "C"]
PayloadFormat: TypeAlias = Literal["raw", "hde"]
Tier: TypeAlias = Literal["none", "local", "regional", "global"]

DEFAULT_MAX_BYTES: Final = 1 << 30
MAX_TRANSFER_BYTES: Final = (1 << 32) - 1
"""The largest transfer v1 can name: its fields are 32 bits wide and upstream lets them wrap."""
MAX_CHUNK_BYTES: Final = 16 << 20
MAX_STREAMS: Final = 256


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside its range, or one that is not a number.

    Args:
        name: The option, as the caller spells it.
        value: What was given.
        low: The smallest value allowed.
        high: The largest value allowed.

    Raises:
        ConfigError: `value` is not in `low` to `high`.
    """
    if isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{name} {value} is not in {low} to {high}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not among the choices.

    Args:
        name: The option, as the caller spells it.
        value: What was given.
        choices: The words allowed.

    Raises:
        ConfigError: `value` is not one of `choices`.
    """
    if value not in choices:
        raise ConfigError(f"{name} {value!r} is not one of {', '.join(choices)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class V1Options:
    """How v1 peers are read.

    Attributes:
        generation: Which of the three incompatible v1 packet layouts the peers write; the wire does not say.
        payload_format: "hde" when a transfer is one HDE packet, "raw" when it is the data itself.
        strict: Refuse a packet whose delta flag is set although it holds no delta, instead of reading it as a
            full state. Generation A sets that flag wrongly.
        baseline_key: The key under which this receiver holds each peer's last state, such as "vm-1_memory".
            With None, deltas are refused: full packets do not say which key they belong to.
        max_bytes: The largest transfer and the largest content of a packet, and the most bytes that all
            unfinished transfers may hold together.
        max_baseline_bytes: The most bytes of baselines held over all peers; the least recently used go first.
        idle_timeout_s: How long a transfer may make no progress, and a connection send nothing.
        deadline_s: How long one transfer may take from its first chunk to its last.
        settle_s: How long to wait for further connections when all known ones ended before the transfer did.
        max_connections_per_peer: The most connections one address may have open.
        max_transfers: The most transfers in progress at once, over all peers.
    """

    generation: Generation = "A"
    payload_format: PayloadFormat = "hde"
    strict: bool = True
    baseline_key: str | None = None
    max_bytes: int = DEFAULT_MAX_BYTES
    max_baseline_bytes: int = DEFAULT_MAX_BYTES // 4
    idle_timeout_s: float = 60.0
    deadline_s: float = 3600.0
    settle_s: float = 1.0
    max_connections_per_peer: int = 64
    max_transfers: int = 8

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: A field is out of range, or not one of its choices.
        """
        check_choice("generation", self.generation, get_args(Generation))
        check_choice("payload_format", self.payload_format, get_args(PayloadFormat))
        if self.baseline_key is not None and (not self.baseline_key or "\0" in self.baseline_key):
            raise ConfigError(f"baseline_key {self.baseline_key!r} is empty or holds a zero byte")
        check_range("max_bytes", self.max_bytes, 1, MAX_TRANSFER_BYTES)
        check_range("max_baseline_bytes", self.max_baseline_bytes, 0, 1 << 40)
        check_range("idle_timeout_s", self.idle_timeout_s, 0.01, 86_400)
        check_range("deadline_s", self.deadline_s, 0.01, 604_800)
        check_range("settle_s", self.settle_s, 0, 60)
        check_range("max_connections_per_peer", self.max_connections_per_peer, 1, MAX_STREAMS)
        check_range("max_transfers", self.max_transfers, 1, 1024)
