"""What a decision looks like."""

from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Choice"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Choice(Generic[T]):
    """A value and why it was chosen.

    Attributes:
        name: What was decided, such as ``"codec"``.
        value: What was chosen.
        why: The reason, for people.
    """

    name: str
    value: T
    why: str
