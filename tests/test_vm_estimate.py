"""How fast a guest writes, as QEMU measures it."""

import json
from pathlib import Path
from typing import Any

from dwcp_fast.vm.estimate import measure_dirty_bytes
from dwcp_fast.vm.machine import Machine
from monitor import Monitor, done


def test_a_measurement_that_did_not_get_its_turn_yet_is_waited_for(tmp_path: Path) -> None:
    states = iter(["unstarted", "unstarted", "measuring", "measured"])

    def answer(asked: dict[str, Any]) -> bytes:
        if asked["execute"] != "query-dirty-rate":
            return done(asked)
        return json.dumps({"return": {"status": next(states), "dirty-rate": 3}}).encode() + b"\n"

    with Monitor(tmp_path / "qmp", answer) as monitor, Machine(monitor.address) as machine:
        assert measure_dirty_bytes(machine, 1) == 3 << 20
