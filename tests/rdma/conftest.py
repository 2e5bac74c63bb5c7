"""The guest of this folder, booted once for all tests; or why there can be none."""

import json
from pathlib import Path
from typing import Any

import pytest

from .guest import boot, why_missing

INSIDE = Path(__file__).resolve().parent / "inside.py"
GUEST_S = 300.0


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of each case in the guest, by name."""
    missing = why_missing()
    if missing is not None:
        pytest.skip(missing)
    out = boot(tmp_path_factory.mktemp("rdma"), INSIDE, GUEST_S)
    lines = (out / "results").read_text(encoding="utf-8").splitlines()
    return {told["case"]: told for told in map(json.loads, lines)}
