"""What QEMU is told of the time for which a guest may stand still."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dwcp_fast.vm.machine import Machine
from dwcp_fast.vm.relay_stats import make_stats
from dwcp_fast.vm.switchover import Switchover, limit_for_qemu


@pytest.mark.parametrize(
    ("behind_s", "rtt_s", "limit_s"),
    [(0.0, 0.0, 0.3), (0.1, 0.1, 0.15), (0.25, 0.1, 0.015), (9.0, 0.2, 0.015)],
)
def test_what_is_under_way_is_taken_from_the_time_that_qemu_has(
    behind_s: float, rtt_s: float, limit_s: float
) -> None:
    assert limit_for_qemu(0.3, behind_s, rtt_s) == pytest.approx(limit_s)


def test_qemu_is_told_of_a_change_that_matters_and_when_that_is_over() -> None:
    told: list[dict[str, int]] = []

    def execute(command: str, arguments: dict[str, int]) -> None:
        assert command == "migrate-set-parameters"
        told.append(arguments)

    machine = cast("Machine", SimpleNamespace(qmp=SimpleNamespace(execute=execute)))
    switchover = Switchover(machine, 0.3)
    switchover.consider(None)
    near: Any = replace(make_stats(None), behind_s=0.001, rtt_ms=0.1)
    far = replace(near, behind_s=0.12, rtt_ms=100.0)
    for stats in (near, far, far, replace(far, behind_s=0.13), near):
        switchover.consider(stats)
    assert told == [{"downtime-limit": 130}, {"downtime-limit": 299}]
