"""A QEMU as a move sees it; against a monitor that says what QEMU would."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dwcp_fast.errors import DeadlineError
from dwcp_fast.vm.machine import PAUSES_S, Machine
from monitor import Monitor, done


def becoming(path: Path, *statuses: str) -> Monitor:
    """A QEMU whose guest is found in one state after the other."""
    left = list(statuses)

    def answer(asked: dict[str, Any]) -> bytes:
        if asked["execute"] != "query-status":
            return done(asked)
        status = left.pop(0) if len(left) > 1 else left[0]
        return json.dumps({"return": {"status": status}}).encode() + b"\n"

    return Monitor(path, answer)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that this thread would have made; what others do meanwhile is not counted."""
    pauses: list[float] = []
    own, sleep = threading.get_ident(), time.sleep

    def pause(seconds: float) -> None:
        if threading.get_ident() == own:
            pauses.append(seconds)
        else:
            sleep(seconds)

    monkeypatch.setattr(time, "sleep", pause)
    return pauses


def test_a_guest_that_is_soon_where_it_is_to_be_is_not_kept_waiting(
    tmp_path: Path, slept: list[float]
) -> None:
    path = tmp_path / "qmp"
    statuses = ["finish-migrate"] * 3 + ["postmigrate"]
    with becoming(path, *statuses), Machine(str(path)) as machine:
        assert machine.wait_for(frozenset({"postmigrate"}), 20.0) == "postmigrate"
    assert len(slept) == 3 and sum(slept) < 0.01


def test_a_guest_that_takes_its_time_is_not_asked_without_a_pause(tmp_path: Path, slept: list[float]) -> None:
    path = tmp_path / "qmp"
    statuses = ["inmigrate"] * 50 + ["running"]
    with becoming(path, *statuses), Machine(str(path)) as machine:
        machine.wait_for(frozenset({"running"}), 20.0)
        assert len(slept) == 50 and slept[-1] == PAUSES_S[1] == max(slept)
        with pytest.raises(DeadlineError, match="running and not paused"):
            machine.wait_for(frozenset({"paused"}), 0.0)
