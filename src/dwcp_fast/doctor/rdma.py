"""What a host's RDMA devices can have at most, as they tell it."""

from collections.abc import Mapping, Sequence
from typing import Final

from dwcp_fast.doctor.finding import Finding, advise, found

__all__ = ["rdma_limits"]

ENOUGH_LOCKED_BYTES: Final = 64 << 20
"""Four lanes have 17 MiB."""


def rdma_limits(
    devices: Sequence[Mapping[str, object]], fault: str | None, locked_bytes: int | None
) -> Finding:
    """Tell the limits of the devices, and of the memory that they can be given.

    Args:
        devices: Each device with its name and limits.
        fault: Why there is none.
        locked_bytes: How much memory this process may lock; None for any.
    """
    name, why = "RDMA limits", "a lane over RDMA has 4.25 MiB of locked memory"
    if fault is not None:
        return found(name, fault, why)
    told = [
        " ".join(
            [f"{device['name']}:", *(f"{key} {value}" for key, value in device.items() if key != "name")]
        )
        for device in devices
    ]
    value = "; ".join([*told, f"{'any' if locked_bytes is None else locked_bytes} bytes may be locked"])
    if locked_bytes is None or locked_bytes >= ENOUGH_LOCKED_BYTES:
        return found(name, value, why)
    return advise(name, value, why, "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit, as root")
