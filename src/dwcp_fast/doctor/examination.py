"""All that is looked at, in the order in which it is told."""

from collections.abc import Callable
from functools import partial
from typing import Final

from dwcp_fast.doctor import machine, network
from dwcp_fast.doctor.finding import Finding, Host

__all__ = ["examine"]

EXAMINATIONS: Final[tuple[Callable[[Host], Finding], ...]] = (
    network.congestion,
    partial(network.tcp_buffers, name="TCP receive buffer", file="tcp_rmem", side="a receiver"),
    partial(network.tcp_buffers, name="TCP send buffer", file="tcp_wmem", side="a sender"),
    partial(network.socket_buffers, name="socket receive buffer", file="rmem_max"),
    partial(network.socket_buffers, name="socket send buffer", file="wmem_max"),
    network.idle_restart,
    network.kernel_tls,
    network.rdma,
    machine.processors,
    machine.cpu_features,
    machine.memory_limit,
    machine.huge_pages,
    machine.descriptors,
    machine.io_uring,
    machine.clock_source,
    machine.extras,
)


def examine(host: Host | None = None) -> tuple[Finding, ...]:
    """Look at a host.

    Args:
        host: Where to look; None looks at this one.

    Returns:
        What was found, always the same things in the same order.
    """
    return tuple(examination(host or Host()) for examination in EXAMINATIONS)
