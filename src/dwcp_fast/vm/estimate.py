"""Whether a guest would arrive, told before it leaves."""

import time
from dataclasses import asdict, dataclass
from typing import Any, Final

from dwcp_fast.errors import DeadlineError
from dwcp_fast.options import check_bandwidth, check_int, check_seconds
from dwcp_fast.policy.precopy import Forecast, fit_writing, forecast
from dwcp_fast.vm.machine import Machine

__all__ = ["Estimate", "estimate"]

PROBE_S: Final = 1
MAX_PROBE_S: Final = 30
SAMPLES: Final = 4096
"""Pages looked at for each GiB."""
GRACE_S: Final = 30.0
POLL_S: Final = 0.05
DEFAULT_RATIO: Final = 1.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What moving a guest would take.

    Attributes:
        forecast: How it would go.
        memory_bytes: Memory of the guest; zero pages, which cost next to nothing, are not told apart.
        dirty_bytes_per_s: How fast the guest wrote memory while it was looked at.
        working_set_bytes: Memory that it writes again and again.
        probe_s: For how long it was looked at first, in seconds; then for twice as long.
        link_bytes_per_s: What the link was said to carry.
        ratio: Bytes of memory for each byte on the link that were reckoned with.
        rtt_s: Round trip that was reckoned with, in seconds.
        max_downtime_s: For how long the guest may stand still, in seconds.
    """

    forecast: Forecast
    memory_bytes: int
    dirty_bytes_per_s: float
    working_set_bytes: float
    probe_s: float
    link_bytes_per_s: float
    ratio: float
    rtt_s: float
    max_downtime_s: float

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        told = asdict(self)
        return {**told.pop("forecast"), **told}


def estimate(
    qmp: str,
    *,
    link_bits_per_s: int,
    rtt_s: float = 0.0,
    ratio: float = DEFAULT_RATIO,
    max_downtime_s: float = 0.3,
    probe_s: int = PROBE_S,
) -> Estimate:
    """Say whether a guest would arrive, in what time, and why.

    QEMU samples pages of the guest while it runs, over a time and over twice that time: how much less than
    twice as
    many pages changed tells how much is written again and again.

    Args:
        qmp: Monitor of the guest's QEMU.
        link_bits_per_s: What the link carries.
        rtt_s: Its round trip, in seconds.
        ratio: Bytes of memory for each byte on the link; 1 where nothing is known of the content.
        max_downtime_s: For how long the guest may stand still, in seconds.
        probe_s: For how long it is looked at, 1 to 30 seconds.

    Returns:
        The estimate.

    Raises:
        ConfigError: A number cannot be used.
        QmpError: QEMU cannot look.
        DeadlineError: QEMU does not end looking.
    """
    check_bandwidth("link_bits_per_s", link_bits_per_s)
    check_seconds("rtt_s", rtt_s, zero=True)
    check_seconds("ratio", ratio)
    check_seconds("max_downtime_s", max_downtime_s)
    check_int("probe_s", probe_s, 1, MAX_PROBE_S)
    with Machine(qmp) as machine:
        memory = machine.memory_bytes()
        once, twice = (measure_dirty_bytes(machine, seconds) for seconds in (probe_s, 2 * probe_s))
    dirty, working_set = fit_writing(once, twice, probe_s, memory)
    return Estimate(
        forecast=forecast(
            memory_bytes=memory,
            dirty_bytes_per_s=dirty,
            working_set_bytes=working_set,
            link_bytes_per_s=link_bits_per_s / 8,
            ratio=ratio,
            rtt_s=rtt_s,
            max_downtime_s=max_downtime_s,
        ),
        memory_bytes=memory,
        dirty_bytes_per_s=dirty,
        working_set_bytes=working_set,
        probe_s=probe_s,
        link_bytes_per_s=link_bits_per_s / 8,
        ratio=ratio,
        rtt_s=rtt_s,
        max_downtime_s=max_downtime_s,
    )


def measure_dirty_bytes(machine: Machine, probe_s: int) -> float:
    """Let QEMU look at the guest, and give the bytes that another content stood in afterwards."""
    # Of its ways this one works everywhere; the one by bitmap ends a QEMU without KVM.
    machine.qmp.execute("calc-dirty-rate", {"calc-time": probe_s, "sample-pages": SAMPLES})
    deadline = time.monotonic() + probe_s + GRACE_S
    while (told := machine.qmp.execute("query-dirty-rate"))["status"] != "measured":
        # "unstarted" is said, too, until the thread that measures gets its turn.
        if time.monotonic() > deadline:
            raise DeadlineError(f"QEMU is {told['status']} and not measured {GRACE_S:g} s after it should be")
        time.sleep(POLL_S)
    return float(told["dirty-rate"]) * 2**20 * probe_s
