"""The rivals of the demo as real processes: what they move is exact, what is damaged is refused."""

import os
from pathlib import Path

import pytest

from dwcp_fast.demo.link import Link, LinkShape
from dwcp_fast.demo.methods import WorkerMethod, run_cell
from dwcp_fast.demo.v3 import reroute
from dwcp_fast.errors import FormatError, TransportError

FAST = LinkShape(rate_bps=2e9, delay_s=0.001)


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    path = tmp_path / "payload.bin"
    path.write_bytes(os.urandom(700_000) + bytes(2_000_000) + b"tail")
    return path


@pytest.mark.parametrize("name", ["raw", "zstd-1", "v1"])
def test_a_rival_moves_exact_bytes_time_after_time(name: str, tmp_path: Path, payload: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    with Link(FAST) as link, WorkerMethod(name, into) as method:
        for _ in range(2):
            cell = run_cell(method, link, "fast", "version 0", payload, None)
            assert cell.verified and cell.seconds > 0
            whole = payload.stat().st_size
            assert whole < cell.wire_bytes < whole + 200 if name == "raw" else cell.wire_bytes < whole / 2


@pytest.mark.parametrize("change", [0, 5, -5])
def test_xor_sends_a_change_against_the_base_also_when_the_length_differs(
    change: int, tmp_path: Path, payload: Path
) -> None:
    into = tmp_path / "into"
    into.mkdir()
    old = payload.read_bytes()
    base = tmp_path / "base.bin"
    base.write_bytes(old)
    payload.write_bytes((old[:1000] + b"changed" + old[1007:] + bytes(max(0, change)))[: len(old) + change])
    with Link(FAST) as link, WorkerMethod("xor-zstd-1", into) as method:
        cell = run_cell(method, link, "fast", "change", payload, base)
        assert cell.verified and cell.wire_bytes < 2000
        with pytest.raises(TransportError, match="no base"):
            method.send(link, payload, None)


@pytest.mark.parametrize("name", ["raw", "zstd-1"])
def test_a_flipped_bit_fails_the_transfer_and_the_rival_serves_on(
    name: str, tmp_path: Path, payload: Path
) -> None:
    into = tmp_path / "into"
    into.mkdir()
    with Link(FAST) as link, WorkerMethod(name, into) as method:
        link.flip_byte(300_000)
        with pytest.raises(TransportError):
            method.send(link, payload, None)
        assert run_cell(method, link, "fast", "version 0", payload, None).verified


def test_an_empty_file_is_moved_too(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    into = tmp_path / "into"
    into.mkdir()
    for name in ("raw", "zstd-1"):
        with Link(FAST) as link, WorkerMethod(name, into) as method:
            assert run_cell(method, link, "fast", "version 0", empty, None).verified


def test_a_pairing_string_is_pointed_at_the_link_and_keeps_its_secret_part() -> None:
    assert reroute("dwcp://10.0.0.7:7443#ab12.tok-en_", 5001) == (
        "dwcp://127.0.0.1:5001#ab12.tok-en_",
        ("10.0.0.7", 7443),
    )
    assert reroute("dwcp://[::1]:7443#ab.t", 9) == ("dwcp://127.0.0.1:9#ab.t", ("::1", 7443))
    assert reroute("dwcp://127.0.0.1:7443#ab.t", 9, "127.0.0.2")[0] == "dwcp://127.0.0.2:9#ab.t"
    with pytest.raises(FormatError, match="not a pairing string"):
        reroute("http://10.0.0.7:7443", 5001)
