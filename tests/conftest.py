"""What every test shares: where the repository is, and settings that make failures repeatable."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

import dwcp_fast
from messages import MESSAGES

# Times are never asserted: this suite shares its machine with builds.
settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("search", deadline=None, max_examples=1_000, print_blob=True)
settings.load_profile("search" if os.environ.get("DWCP_TEST_SEARCH") else "repeatable")

# A shell has what it starts in the background ignore Ctrl-C, and so would the processes interrupted here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Say which installation is under test: sources picked up by accident would hide packaging faults."""
    return f"dwcp_fast from {Path(dwcp_fast.__file__).parent}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what needs a right that this user does not have."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("privileged"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout or unpacked source archive that these tests are part of."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def common() -> dwcp_fast.Dictionary:
    """A dictionary of what the messages have in common."""
    return dwcp_fast.Dictionary.train(MESSAGES[:500], max_bytes=4096)


@pytest.fixture(autouse=True)
def no_settings_from_outside(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Remove the DWCP_* variables of whoever runs the tests, and keep off their state and settings."""
    for name in list(os.environ):
        if name.startswith("DWCP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DWCP_STATE_DIR", str(tmp_path_factory.mktemp("state")))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
