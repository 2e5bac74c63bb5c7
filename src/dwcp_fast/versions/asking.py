"""What a subscriber asks a publisher for, over a session in which the subscriber dials."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from dwcp_fast.errors import FormatError
from dwcp_fast.record import Record, dump
from dwcp_fast.versions.store import is_key

__all__ = ["AHEAD_BYTES", "HEAD_NAME", "MAX_KEYS", "Question", "key_of", "name_of"]

KIND: Final = "dwcp-versions-question"
MAX_QUESTION_BYTES: Final = 1 << 16
MAX_KEYS: Final = 512
AHEAD_BYTES: Final = 64 << 20
"""Most bytes of objects that are sent before they are asked for."""

MAX_WAIT_S: Final = 60
MAX_TEXT: Final = 512
HEAD_NAME: Final = "head"
"""Name of the buffer with the head in an answer; empty if it is still the one that was seen."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked for, and how the asking side fares.

    Attributes:
        seen: Digest of the head that is known, None for none.
        held: Digest of the content that is held, None for nothing.
        version: Number of the version that is committed, None for none.
        failure: What went wrong with the newest version, None if nothing did.
        wait_s: Seconds for which the answer may wait for another head.
        keys: Objects that are wanted; with any, there is no waiting and no head in the answer.
    """

    seen: str | None = None
    held: str | None = None
    version: int | None = None
    failure: str | None = None
    wait_s: int = 0
    keys: tuple[str, ...] = ()

    def dump(self) -> bytes:
        """Write it."""
        return dump(
            {
                "format": KIND,
                "revision": 1,
                "seen": self.seen,
                "held": self.held,
                "version": self.version,
                "failure": None if self.failure is None else self.failure[:MAX_TEXT],
                "wait_s": self.wait_s,
                "keys": list(self.keys),
            }
        )

    @classmethod
    def load(cls, data: bytes) -> "Question":
        """Read one from a stranger.

        Args:
            data: What :meth:`dump` made.

        Returns:
            The question.

        Raises:
            FormatError: It is none.
            LimitExceededError: It is too long.
        """
        record = Record.parse(data, "the question", KIND, MAX_QUESTION_BYTES)
        keys = []
        for key in record.values("keys", MAX_KEYS):
            if not isinstance(key, str) or not is_key(key):
                raise record.fault("keys", "a list of keys of objects")
            keys.append(key)
        return cls(
            seen=record.digest("seen") if record.has("seen") else None,
            held=record.digest("held") if record.has("held") else None,
            version=record.number("version") if record.has("version") else None,
            failure=printable(record.text("failure")) if record.has("failure") else None,
            wait_s=record.number("wait_s", 0, MAX_WAIT_S),
            keys=tuple(keys),
        )


def printable(text: str) -> str:
    """Make the words of a stranger fit for a log."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:MAX_TEXT])


def name_of(key: str) -> str:
    """Name the buffer with an object in an answer."""
    return key.replace("/", ".")


def key_of(names: Iterable[str]) -> list[tuple[str, str]]:
    """Give each name that is an object's, with its key.

    Raises:
        FormatError: A name is neither an object's nor the head's.
    """
    found = []
    for name in names:
        key = name.replace(".", "/", 1)
        if is_key(key):
            found.append((name, key))
        elif name != HEAD_NAME:
            raise FormatError(f"the answer has a buffer {name[:80]!r}, which is no object")
    return found
