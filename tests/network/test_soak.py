"""Many faults during one transfer: it goes on where it was, and who survives keeps nothing of them."""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from . import soak
from .conftest import MIB, Machine

FAULTS = 50
SIZE = 100 * MIB


@pytest.mark.parametrize("survivor", ["receiver", "sender"])
def test_fifty_faults_cost_no_more_than_what_was_under_way(machine: Machine, survivor: str) -> None:
    state = machine.folder / "state"
    state.write_bytes(np.random.default_rng(9).bytes(SIZE))
    killed = soak.KILL_SENDER if survivor == "receiver" else soak.KILL_RECEIVER
    kinds = [killed, "cut-one", "cut-one", "cut-all", "reset-one"]
    faults = soak.plan(random.Random(11), FAULTS, kinds, spacing=(MIB, 3 * MIB))
    assert sum(fault.cost for fault in faults) < sum(fault.after for fault in faults) * 2 // 3
    trial = soak.Trial(machine, state)
    try:
        trial.run(faults)
        trial.finish()
    finally:
        trial.close()
    assert sum(len(seen) for seen in trial.footprints.values()) == 2 * FAULTS
    assert FAULTS in {len(seen) for seen in trial.footprints.values()}
    trial.check_cost(faults)
    trial.check_growth()


class Recorded:
    """In place of a trial: notes what is sent, what the receiver has, and the faults, and succeeds."""

    seen: ClassVar[list[object]] = []
    passed = 0

    def __init__(self, machine: Machine, state: Path) -> None:
        self.breaker = self
        self._content = state.read_bytes()
        self._held = machine.folder / soak.INBOX / state.name
        self._before = self._held.read_bytes() if self._held.exists() else b""

    def run(self, faults: Sequence[soak.Fault]) -> int:
        digests = [hashlib.sha256(data).digest() for data in (self._content, self._before)]
        self.seen.append((digests, list(faults)))
        return len(faults)

    def finish(self) -> dict[str, object]:
        self._held.parent.mkdir(exist_ok=True)
        self._held.write_bytes(self._content)
        return {"sessions": 1, "lanes_lost": 0}

    def check_cost(self, faults: Sequence[soak.Fault]) -> None:
        pass

    def check_growth(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_round_that_is_done_alone_is_the_round_of_the_soak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "Trial", Recorded)
    monkeypatch.setattr(Recorded, "seen", [])
    content = b""
    for number in range(4):
        content = soak.one_round(tmp_path, 27, number, content)
    rounds = list(Recorded.seen)
    assert rounds[0] != rounds[1]
    for number in range(4):
        assert soak.soak(seed=27, minutes=0, only=number) == 1
        assert Recorded.seen[-1] == rounds[number], number


def test_a_short_soak_finds_nothing_and_its_seed_says_what_it_does() -> None:
    kinds = soak.KINDS
    assert soak.plan(random.Random(5), 40, kinds) == soak.plan(random.Random(5), 40, kinds)
    assert soak.soak(seed=27, minutes=0) == 1
