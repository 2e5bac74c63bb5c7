"""What a collection has measured so far, so that one that was stopped goes on where it was."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from dwcp_fast.errors import ConfigError, FormatError

__all__ = ["Journal"]

VERSION: Final = 1


@dataclass(slots=True)
class Journal:
    """What is measured so far: a line for each file, which counts when it is whole.

    Attributes:
        path: The file.
        entries: For each file what is told of it in the manifest, and its rows or why there are none.
    """

    path: Path
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def resume(cls, path: Path, settings: dict[str, Any]) -> Self:
        """Read what an earlier run left, or begin.

        Raises:
            ConfigError: The earlier run measured something else.
            FormatError: It is no journal.
            OSError: It cannot be read or written.
        """
        journal = cls(path)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            data = b""
        # Whatever follows the last end of a line was being written when the run was stopped.
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        lines = whole.splitlines()
        if not lines:
            journal.append({"version": VERSION, "settings": settings})
            return journal
        try:
            header, *entries = (json.loads(line) for line in lines)
            journal.entries = {entry["id"]: entry for entry in entries}
            begun = {"version": header["version"], **header["settings"]}
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{path.name} cannot be read: {error}") from error
        expected = {"version": VERSION, **settings}
        differing = [key for key in expected if begun.get(key) != expected[key]]
        if differing:
            raise ConfigError(
                f"{path.name} was begun with other {', '.join(differing)}",
                hint=f"remove {path.name} to begin again",
            )
        return journal

    def append(self, entry: dict[str, Any]) -> None:
        """Write a line to the disk.

        Raises:
            OSError: It cannot be written.
        """
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        with self.path.open("ab", buffering=0) as out:
            if out.write(line) != len(line):
                raise OSError(0, "was written only in part")
            os.fsync(out.fileno())
