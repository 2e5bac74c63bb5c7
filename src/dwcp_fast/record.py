"""Fields of JSON from a stranger: present, of the right type, and within bounds."""

import json
import re
from typing import Any, Final

from dwcp_fast.errors import FormatError, LimitExceededError, UnsupportedFormatError

__all__ = ["MAX_NUMBER", "Record", "dump"]

MAX_NUMBER: Final = (1 << 63) - 1
DIGEST: Final = re.compile(r"[0-9a-f]{32}")


def dump(fields: dict[str, Any]) -> bytes:
    """Write fields as JSON, the same bytes for the same fields."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


class Record:
    """A JSON object, read field by field."""

    def __init__(self, fields: object, what: str) -> None:
        """Take an object; `what` names it in errors."""
        if not isinstance(fields, dict):
            raise FormatError(f"{what} is no object")
        self._fields: dict[str, object] = fields
        self._what = what

    @classmethod
    def parse(cls, data: bytes, what: str, kind: str, limit: int) -> "Record":
        """Read a document of one kind, revision 1.

        Args:
            data: The document.
            what: Its name in errors.
            kind: What its field ``format`` must say.
            limit: Most bytes it may have.

        Returns:
            Its fields.

        Raises:
            LimitExceededError: It is too long.
            UnsupportedFormatError: It is of another revision.
            FormatError: It is not such a document.
        """
        if len(data) > limit:
            raise LimitExceededError(f"{what} has {len(data)} bytes, the limit is {limit}")
        try:
            record = cls(json.loads(data.decode()), what)
        except (ValueError, RecursionError) as exc:
            if isinstance(exc, FormatError):
                raise
            raise FormatError(f"{what} is not JSON") from exc
        if record.text("format") != kind:
            raise FormatError(f"{what} has format {record.text('format')[:40]!r}, not {kind!r}")
        if record.number("revision") != 1:
            raise UnsupportedFormatError(f"{what} has revision {record.number('revision')}, known is 1")
        return record

    def check_fields(self, *names: str) -> None:
        """Refuse an object that has not exactly these fields."""
        if set(self._fields) != set(names):
            raise FormatError(f"{self._what} must have exactly the fields {', '.join(names)}")

    def fault(self, field: str, must: str) -> FormatError:
        """Say what is wrong with a field."""
        return FormatError(
            f"{field} of {self._what} is {str(self._fields.get(field))[:60]!r}: it must be {must}"
        )

    def number(self, field: str, low: int = 0, high: int = MAX_NUMBER) -> int:
        """Give an integer within bounds."""
        value = self._fields.get(field)
        if type(value) is not int or not low <= value <= high:
            raise self.fault(field, f"an integer from {low} to {high}")
        return value

    def text(self, field: str) -> str:
        """Give a string."""
        value = self._fields.get(field)
        if not isinstance(value, str):
            raise self.fault(field, "a string")
        return value

    def digest(self, field: str) -> str:
        """Give a digest in hex."""
        value = self.text(field)
        if not DIGEST.fullmatch(value):
            raise self.fault(field, "32 hexadecimal digits")
        return value

    def has(self, field: str) -> bool:
        """Tell whether a field is there and not null."""
        return self._fields.get(field) is not None

    def values(self, field: str, limit: int) -> list[object]:
        """Give a list of a bounded length."""
        value = self._fields.get(field)
        if not isinstance(value, list) or len(value) > limit:
            raise self.fault(field, f"a list of at most {limit}")
        return value

    def numbers(self, field: str, limit: int, low: int = 0, high: int = MAX_NUMBER) -> list[int]:
        """Give a list of integers within bounds."""
        found: list[int] = []
        for value in self.values(field, limit):
            if type(value) is not int or not low <= value <= high:
                raise self.fault(field, f"a list of integers from {low} to {high}")
            found.append(value)
        return found

    def records(self, field: str, limit: int) -> list["Record"]:
        """Give a list of objects of a bounded length."""
        return [Record(value, f"an item of {field} of {self._what}") for value in self.values(field, limit)]

    def record(self, field: str) -> "Record":
        """Give an object."""
        return Record(self._fields.get(field), f"{field} of {self._what}")
