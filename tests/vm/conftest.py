"""A guest to move, built once for all tests of this folder; or why there can be none."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dwcp_fast.demo.guest import build_initramfs, why_missing

from .moves import Pair


@pytest.fixture(scope="session")
def initramfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the guests boot."""
    missing = why_missing()
    if missing is not None:
        pytest.skip(missing)
    return build_initramfs(tmp_path_factory.mktemp("guest"))


@pytest.fixture
def pair(initramfs: Path, tmp_path: Path) -> Iterator[Pair]:
    """A guest that has written its memory, and a QEMU that waits for it."""
    with Pair(tmp_path, initramfs) as made:
        yield made
