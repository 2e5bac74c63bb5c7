"""For how long the guest stands still: what QEMU cannot know of that is told to it."""

from typing import Final

from dwcp_fast.vm.machine import Machine
from dwcp_fast.vm.relay_stats import RelayStats

__all__ = ["Switchover", "limit_for_qemu"]

LEAST_SHARE: Final = 0.05
"""Of the time that the guest may stand still, QEMU is left this much: else it might never stop it."""

WORTH_TELLING_S: Final = 0.02


def limit_for_qemu(max_downtime_s: float, behind_s: float, rtt_s: float) -> float:
    """Give for how long QEMU may send what is left, in seconds.

    QEMU divides what is left by how fast the relay has taken the last of it, and knows nothing of what lies
    between: what the relay took has to come and to be taken too, and then the two sides agree on where the
    guest runs.

    Args:
        max_downtime_s: For how long the guest may stand still.
        behind_s: How long ago a lane was given what the other side is to take next.
        rtt_s: The round trip; `behind_s` has one of the one and a half that pass until the guest runs.
    """
    return max(max_downtime_s - behind_s - rtt_s / 2, LEAST_SHARE * max_downtime_s)


class Switchover:
    """The limit by which QEMU decides when to stop the guest."""

    def __init__(self, machine: Machine, max_downtime_s: float) -> None:
        """Note what was agreed.

        Args:
            machine: The QEMU that the guest leaves, which has this limit.
            max_downtime_s: For how long the guest may stand still.
        """
        self._machine = machine
        self._max_downtime_s = max_downtime_s
        self._told_s = max_downtime_s

    def consider(self, stats: RelayStats | None) -> None:
        """Change the limit if what the relay tells now makes it another one.

        Args:
            stats: Where the relay stands; None where there is none.
        """
        if stats is None:
            return
        limit_s = limit_for_qemu(self._max_downtime_s, stats.behind_s, (stats.rtt_ms or 0.0) / 1e3)
        if abs(limit_s - self._told_s) >= WORTH_TELLING_S:
            self._machine.qmp.execute("migrate-set-parameters", {"downtime-limit": round(limit_s * 1000)})
            self._told_s = limit_s
