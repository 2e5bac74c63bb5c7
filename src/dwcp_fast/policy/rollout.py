"""Rollout flags: which nodes use v3 while both engines run, by the rules v1 deployments already use.

Pure functions over text and frozen values; reading files and acting on the answer is the caller's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Final

from dwcp_fast.errors import ConfigError

__all__ = [
    "COMPONENTS",
    "RolloutFlags",
    "bucket_of",
    "component_uses_v3",
    "disable_all",
    "enable_all",
    "fnv1a_32",
    "format_flags",
    "is_component_enabled",
    "merge_flags",
    "parse_changes",
    "parse_flags",
    "uses_v3",
]

FNV_OFFSET: Final = 0x811C9DC5
FNV_PRIME: Final = 0x01000193
BUCKETS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutFlags:
    """The flags of a deployment, under the names its JSON file uses.

    Attributes:
        enableV3Transport: Use the v3 transport.
        enableV3Compression: Use v3 compression.
        enableV3Prediction: Use v3 prediction.
        enableV3StateSync: Use v3 state synchronisation.
        enableV3Consensus: Use v3 consensus.
        enableV3Placement: Use v3 placement.
        v3RolloutPercentage: Share of nodes that use v3, in percent, 0 to 100.
        forceV1Mode: Kill switch: no node uses v3, whatever the percentage.
        enableHybridMode: Allow the hybrid mode.
        enableModeDetection: Let measurements choose the mode.
    """

    enableV3Transport: bool = False  # noqa: N815
    enableV3Compression: bool = False  # noqa: N815
    enableV3Prediction: bool = False  # noqa: N815
    enableV3StateSync: bool = False  # noqa: N815
    enableV3Consensus: bool = False  # noqa: N815
    enableV3Placement: bool = False  # noqa: N815
    v3RolloutPercentage: int = 0  # noqa: N815
    forceV1Mode: bool = False  # noqa: N815
    enableHybridMode: bool = True  # noqa: N815
    enableModeDetection: bool = True  # noqa: N815

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: A field has another type, or the percentage is not in 0 to 100.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            wanted = int if field.name == "v3RolloutPercentage" else bool
            if type(value) is not wanted:
                raise ConfigError(
                    f"{field.name} {value!r} is not {'a whole number' if wanted is int else 'a boolean'}"
                )
        if not 0 <= self.v3RolloutPercentage <= 100:
            raise ConfigError(f"v3RolloutPercentage {self.v3RolloutPercentage} is not in 0 to 100")


COMPONENTS: Final[Mapping[str, str]] = {
    "transport": "enableV3Transport",
    "amst": "enableV3Transport",
    "compression": "enableV3Compression",
    "hde": "enableV3Compression",
    "prediction": "enableV3Prediction",
    "pba": "enableV3Prediction",
    "statesync": "enableV3StateSync",
    "ass": "enableV3StateSync",
    "consensus": "enableV3Consensus",
    "acp": "enableV3Consensus",
    "placement": "enableV3Placement",
    "itp": "enableV3Placement",
}
"""The flag of each component, by its long and its short name."""


def fnv1a_32(text: str) -> int:
    """Hash the UTF-8 bytes of a name with FNV-1a.

    Args:
        text: The name.

    Returns:
        The 32-bit hash.
    """
    value = FNV_OFFSET
    for byte in text.encode("utf-8", "surrogateescape"):
        value = ((value ^ byte) * FNV_PRIME) & 0xFFFFFFFF
    return value


def bucket_of(node: str) -> int:
    """Give the rollout bucket of a node.

    Args:
        node: The node's name.

    Returns:
        A number from 0 to 99 that never changes for a name.
    """
    return fnv1a_32(node) % BUCKETS


def uses_v3(flags: RolloutFlags, node: str) -> bool:
    """Decide whether a node uses v3.

    Args:
        flags: The flags in force.
        node: The node's name.

    Returns:
        False under `forceV1Mode`, else whether the node's bucket is below the percentage.
    """
    return not flags.forceV1Mode and bucket_of(node) < flags.v3RolloutPercentage


def is_component_enabled(flags: RolloutFlags, component: str) -> bool:
    """Tell whether a component's v3 flag is set, by its long or short lower-case name.

    The percentage plays no part in this.

    Args:
        flags: The flags in force.
        component: Such as "transport" or "amst".

    Returns:
        The flag; False for an unknown name and under `forceV1Mode`.
    """
    name = COMPONENTS.get(component)
    return name is not None and not flags.forceV1Mode and bool(getattr(flags, name))


def component_uses_v3(flags: RolloutFlags, component: str, node: str) -> bool:
    """Decide whether a component of a node uses v3: its flag and the percentage must both allow it.

    Args:
        flags: The flags in force.
        component: Its long or short lower-case name, such as "transport" or "amst".
        node: The node's name.

    Returns:
        The decision; False for an unknown component. A larger percentage never takes v3 from a node.
    """
    return uses_v3(flags, node) and is_component_enabled(flags, component)


def parse_flags(text: str | bytes) -> RolloutFlags:
    """Read a flag file's text; names it leaves out take their defaults.

    Args:
        text: One JSON object.

    Returns:
        The flags.

    Raises:
        ConfigError: Not a JSON object, an unknown or repeated name, a wrong type, or a percentage out of
            range.
    """
    return merge_flags(RolloutFlags(), parse_changes(text))


def parse_changes(text: str | bytes, what: str = "flag file") -> dict[str, object]:
    """Read the flags that a text names, and no others.

    Args:
        text: One JSON object.
        what: Name of the text in errors.

    Returns:
        The values by name, each checked.

    Raises:
        ConfigError: As for :func:`parse_flags`.
    """
    try:
        parsed = json.loads(text, object_pairs_hook=_collect_once)
    except ConfigError:
        raise
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{what} is not JSON: {exc}") from exc
    if not isinstance(parsed, dict):
        raise ConfigError(f"{what} holds {type(parsed).__name__}, not an object")
    merge_flags(RolloutFlags(), parsed)
    return parsed


def _collect_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse a name that is given twice, of which JSON would keep the last without a word."""
    collected: dict[str, object] = {}
    for name, value in pairs:
        if name in collected:
            raise ConfigError(f"flag {name} is given twice")
        collected[name] = value
    return collected


def merge_flags(flags: RolloutFlags, changes: Mapping[str, object]) -> RolloutFlags:
    """Change the flags that are named and keep all others.

    Args:
        flags: The flags in force.
        changes: New values by JSON name.

    Returns:
        The new flags.

    Raises:
        ConfigError: An unknown name, another type, or a percentage out of range.
    """
    known = {field.name for field in fields(RolloutFlags)}
    for name in changes:
        if name not in known:
            raise ConfigError(f"unknown flag {name!r}; known are {', '.join(sorted(known))}")
    return replace(flags, **changes)  # type: ignore[arg-type]  # the constructor checks every type


def format_flags(flags: RolloutFlags) -> str:
    """Write flags as the JSON text :func:`parse_flags` reads.

    Args:
        flags: The flags.

    Returns:
        One JSON object, two spaces of indentation, no newline at the end.
    """
    return json.dumps({field.name: getattr(flags, field.name) for field in fields(flags)}, indent=2)


def enable_all(flags: RolloutFlags, percentage: int) -> RolloutFlags:
    """Turn every v3 component on for a share of the nodes, and the kill switch off.

    Args:
        flags: The flags in force.
        percentage: Share of nodes, 0 to 100.

    Returns:
        The new flags.

    Raises:
        ConfigError: `percentage` is out of range.
    """
    changes: dict[str, object] = dict.fromkeys(COMPONENTS.values(), True)
    return merge_flags(flags, {**changes, "v3RolloutPercentage": percentage, "forceV1Mode": False})


def disable_all(flags: RolloutFlags) -> RolloutFlags:
    """Set the kill switch and turn every v3 component, hybrid mode and mode detection off.

    Args:
        flags: The flags in force.

    Returns:
        The new flags.
    """
    changes: dict[str, object] = dict.fromkeys(COMPONENTS.values(), False)
    off = {
        "v3RolloutPercentage": 0,
        "forceV1Mode": True,
        "enableHybridMode": False,
        "enableModeDetection": False,
    }
    return merge_flags(flags, {**changes, **off})
