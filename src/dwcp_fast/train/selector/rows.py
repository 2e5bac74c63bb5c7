"""Parts of tables, and tables put together."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dwcp_fast.errors import ConfigError
from dwcp_fast.train.selector.table import CostTable

__all__ = ["joined", "rows_of"]

NAMES = frozenset({"feature_names", "actions"})
"""What a table has once, and not for each row."""


def rows_of(table: CostTable, chosen: NDArray[np.bool_]) -> CostTable:
    """Give some of the rows of a table."""
    columns: dict[str, Any] = {name: getattr(table, name)[chosen] for name in column_names(table)}
    return replace(table, **columns)


def joined(tables: Sequence[CostTable]) -> CostTable:
    """Put tables together.

    Raises:
        ConfigError: They do not have the same features and actions.
    """
    first = tables[0]
    for other in tables[1:]:
        for what in ("feature_names", "actions"):
            ours, theirs = getattr(first, what), getattr(other, what)
            if ours != theirs:
                odd = ", ".join(sorted(set(ours) ^ set(theirs))) or "their order"
                raise ConfigError(f"the tables differ in {what.replace('_', ' ')}: {odd}")
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(one, name) for one in tables]) for name in column_names(first)
    }
    return replace(first, **columns)


def column_names(table: CostTable) -> list[str]:
    """Give the names of what a table has for each row."""
    return [field.name for field in fields(table) if field.name not in NAMES]
