"""Whether disks were mirrored to their end is believed only of what QEMU says."""

import json
from pathlib import Path
from typing import Any

import pytest

from dwcp_fast.errors import QmpError
from dwcp_fast.vm.machine import Disk, Machine
from dwcp_fast.vm.mirrors import Mirrors
from dwcp_fast.vm.watch import Watch
from monitor import Monitor, done

DISKS = [Disk("one", "one", 4096), Disk("two", "two", 4096)]


class Jobs:
    """Block jobs of a QEMU, each of which ends as it is told to when it is asked to."""

    def __init__(self, ends: dict[str, dict[str, Any] | None]) -> None:
        self._ends = ends
        self._at_work: list[str] = []

    def answer(self, asked: dict[str, Any]) -> bytes:
        arguments = asked.get("arguments", {})
        match asked["execute"]:
            case "blockdev-mirror":
                self._at_work.append(arguments["job-id"])
            case "block-job-cancel":
                self._at_work.remove(arguments["device"])
                end = self._ends[arguments["device"]]
                if end is not None:
                    data = {"device": arguments["device"], "type": "mirror", "speed": 0} | end
                    event = {"event": "BLOCK_JOB_COMPLETED", "data": data}
                    # As with QEMU, it comes between a question and its answer.
                    return json.dumps(event).encode() + b"\n" + done(asked)
            case "query-block-jobs":
                jobs = [{"device": job, "offset": 1, "len": 1, "ready": True} for job in self._at_work]
                return json.dumps({"return": jobs}).encode() + b"\n"
            case "query-migrate":
                return b'{"return": {}}\n'
        return done(asked)


WHOLE = {"offset": 4096, "len": 4096}


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (WHOLE, None),
        (WHOLE | {"error": "No space left on device"}, "No space left on device"),
        ({"offset": 512, "len": 4096}, "bytes are missing"),
        ({}, "bytes are missing"),
        (None, "its end was not told"),
    ],
)
def test_a_disk_that_was_not_mirrored_to_its_end_is_told(
    tmp_path: Path, second: dict[str, Any] | None, why: str | None
) -> None:
    jobs = Jobs({"dwcp-mirror-0": WHOLE, "dwcp-mirror-1": second})
    with (
        Monitor(tmp_path / "qmp", jobs.answer) as monitor,
        Machine(monitor.address) as machine,
    ):
        mirrors = Mirrors(machine, DISKS, tmp_path / "disks")
        watch = Watch(machine, None, lambda _: None)
        mirrors.start()
        assert mirrors.progress()[2]
        watch.look()
        if why is None:
            mirrors.complete(watch.seen)
            return
        with pytest.raises(QmpError, match=why):
            mirrors.complete(watch.seen)
