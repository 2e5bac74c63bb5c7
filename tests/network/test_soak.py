"""Many faults during one transfer: it goes on where it was, and who survives keeps nothing of them."""

import random

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


def test_a_short_soak_finds_nothing_and_its_seed_says_what_it_does() -> None:
    kinds = soak.KINDS
    assert soak.plan(random.Random(5), 40, kinds) == soak.plan(random.Random(5), 40, kinds)
    assert soak.soak(seed=27, minutes=0) == 1
