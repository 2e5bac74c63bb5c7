"""What was found, and the files of a host in which it was looked for."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

__all__ = ["UNKNOWN", "Finding", "Host", "advise", "found", "unknown"]

UNKNOWN: Final = "not known here"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is, in a few words.
        value: What was found; :data:`UNKNOWN` where nothing could be.
        state: ``"ok"``, ``"advice"`` (transfers can gain from a change) or ``"unknown"``.
        why: What it means for transfers.
        change: How to change it; None unless it is advised.
    """

    name: str
    value: str
    state: Literal["ok", "advice", "unknown"]
    why: str
    change: str | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """The files in which Linux tells of itself.

    Attributes:
        root: Where they begin, another than ``/`` for tests.
    """

    root: Path = field(default=Path("/"))

    def text(self, path: str) -> str | None:
        """Give the content of a file, None if it cannot be read."""
        try:
            return (self.root / path.lstrip("/")).read_text(errors="replace").strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """Give the integer in a file, None if there is none."""
        text = self.text(path)
        try:
            return None if text is None else int(text)
        except ValueError:
            return None

    def names(self, path: str) -> list[str] | None:
        """Give the names in a directory, None if there is none."""
        try:
            return sorted(entry.name for entry in (self.root / path.lstrip("/")).iterdir())
        except OSError:
            return None


def found(name: str, value: str, why: str) -> Finding:
    """Say that something is as it should be."""
    return Finding(name, value, "ok", why)


def advise(name: str, value: str, why: str, change: str) -> Finding:
    """Say that transfers can gain from a change."""
    return Finding(name, value, "advice", why, change)


def unknown(name: str, why: str) -> Finding:
    """Say that nothing could be found out."""
    return Finding(name, UNKNOWN, "unknown", why)
