"""Lanes over real verbs: Soft-RoCE of Debian's kernel, in a guest; inside.py has the cases."""

import ast
from typing import Any

import pytest

from .conftest import GUEST_S, INSIDE


def case_names() -> list[str]:
    """Name the cases, without running what has them."""
    functions = [
        node
        for node in ast.parse(INSIDE.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    ]
    return [
        node.name
        for node in functions
        if any(getattr(mark, "id", "") == "case" for mark in node.decorator_list)
    ]


# Whichever is first boots the guest, which has a deadline of its own.
@pytest.mark.timeout(GUEST_S + 60)
@pytest.mark.parametrize("name", case_names())
def test_over_rdma(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    assert name in outcomes, "the guest has ended before"
    failure = outcomes[name]["failure"]
    assert failure is None, failure
