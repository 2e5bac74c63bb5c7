"""What links carried is kept from one session to the next."""

import json
import logging
import os
import stat
import threading
from pathlib import Path

import pytest

import dwcp_fast as dwcp
from dwcp_fast import link_memory
from dwcp_fast.link_memory import KnownLink, recall_link, remember_link
from dwcp_fast.state import kept_links

SLOW = KnownLink(6_250_000.0, was_limit=True)


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DWCP_STATE_DIR", str(tmp_path / "state"))


def test_what_was_found_out_is_told_again_for_that_address_only() -> None:
    assert recall_link("host:1") is None
    remember_link("host:1", KnownLink(1e9, was_limit=False))
    remember_link("host:2", KnownLink(5e8, was_limit=False))
    remember_link("host:1", SLOW)
    assert recall_link("host:1") == SLOW
    assert recall_link("host:2") == KnownLink(5e8, was_limit=False)
    assert recall_link("host:3") is None
    assert stat.S_IMODE(kept_links().stat().st_mode) == 0o600


def test_of_many_links_those_of_the_longest_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000
    monkeypatch.setattr("time.time", lambda: float(now))
    for number in range(link_memory.MOST_LINKS + 3):
        now += 1
        remember_link(f"{'h' * 150}{number}:7443", SLOW)
    assert kept_links().stat().st_size <= link_memory.MOST_BYTES
    assert recall_link(f"{'h' * 150}2:7443") is None
    assert recall_link(f"{'h' * 150}3:7443") == SLOW
    assert recall_link(f"{'h' * 150}258:7443") == SLOW


def test_what_is_old_or_of_the_future_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10_000_000.0
    monkeypatch.setattr("time.time", lambda: now)
    remember_link("host:1", SLOW)
    for later in (31 * 86_400, -10):
        monkeypatch.setattr("time.time", lambda later=later: now + later)
        assert recall_link("host:1") is None


ENTRY = {"bytes_per_s": 5, "was_limit": True, "at_s": 5}


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"[]",
        b"null",
        b"[" * 60_000,
        b"\xff\x00",
        b" " * (64 << 10) + b"{}",
        json.dumps({"version": 2, "links": {}}).encode(),
        json.dumps({"version": 1, "links": []}).encode(),
        json.dumps({"version": 1, "links": {"host:1": 5}}).encode(),
        *(
            json.dumps({"version": 1, "links": {"host:1": {**ENTRY, **wrong}}}).encode()
            for wrong in (
                {"bytes_per_s": 0},
                {"bytes_per_s": float("nan")},
                {"bytes_per_s": True},
                {"bytes_per_s": 10**400},
                {"was_limit": 1},
                {"at_s": -1},
                {"at_s": "now"},
            )
        ),
    ],
)
def test_file_that_makes_no_sense_is_logged_and_replaced(
    damaged: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    kept_links().write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert recall_link("host:1") is None
    assert "cannot be used" in caplog.text
    remember_link("host:1", SLOW)
    assert recall_link("host:1") == SLOW


def test_session_goes_on_where_nothing_can_be_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept_links().mkdir()
    with caplog.at_level(logging.WARNING):
        remember_link("host:1", SLOW)
    assert "not remembered" in caplog.text


def send(options: dwcp.SendOptions) -> tuple[str, dwcp.SendReport]:
    """Send over a link that the sender takes for one to another machine."""
    with dwcp.listen("127.0.0.2:0", trust=dwcp.INSECURE) as listener:

        def serve() -> None:
            session = listener.accept(timeout_s=20)
            assert session is not None
            with session:
                session.receive(timeout_s=20)

        thread = threading.Thread(target=serve)
        thread.start()
        address = listener.address
        with dwcp.connect(address, trust=dwcp.INSECURE, options=options) as session:
            report = session.send({"state": os.urandom(4 << 20)})
        thread.join(20)
    return address, report


def test_session_keeps_what_it_found_out_unless_it_is_told_not_to() -> None:
    address, report = send(dwcp.SendOptions())
    assert report.selection is not None
    kept = recall_link(address)
    assert kept is not None and kept.bytes_per_s == round(report.selection.link_bytes_per_s or 0)
    assert report.selection.known_bytes_per_s is None
    kept_links().unlink()
    for unasked in (
        dwcp.SendOptions(link_memory=False),
        dwcp.SendOptions(codec="lz4"),
        dwcp.SendOptions(bandwidth_bits_per_s=10**9),
    ):
        send(unasked)
        assert not kept_links().exists()
