"""What was received, and the report of it."""

from collections.abc import Iterator, Mapping
from typing import Any

from typing_extensions import Buffer

from dwcp_fast.policy.lanes import LaneChange
from dwcp_fast.reports import CodecShare, ReceiveReport
from dwcp_fast.told import ReceiveTold

__all__ = ["Received", "receive_report", "received_buffers"]


class Received(Mapping[str, memoryview]):
    """Buffers that were received, by name, and the report.

    Attributes:
        report: What was done.
    """

    def __init__(self, objects: dict[str, memoryview], report: ReceiveReport) -> None:
        """Hold both."""
        self._objects = objects
        self.report = report

    def __getitem__(self, name: str) -> memoryview:
        """Give a buffer; it is the receiver's to keep and to write to."""
        return self._objects[name]

    def __iter__(self) -> Iterator[str]:
        """Give the names."""
        return iter(self._objects)

    def __len__(self) -> int:
        """Count the buffers."""
        return len(self._objects)


def received_buffers(buffers: list[tuple[str, Buffer]], told: ReceiveTold, security: str) -> Received:
    """Make of what the native side gives what callers get."""
    return Received({name: memoryview(buffer) for name, buffer in buffers}, receive_report(told, security))


def receive_report(told: ReceiveTold, security: str) -> ReceiveReport:
    """Make a report of what the native side tells, of peers that speak ``"tls"`` or ``"tcp"`` over TCP."""
    shares = tuple(CodecShare(**share) for share in told["codec_mix"])
    changes = tuple(LaneChange(**change) for change in told["lane_changes"])
    plain: dict[str, Any] = {**told, "codec_mix": shares, "lane_changes": changes}
    link = plain.pop("link")
    return ReceiveReport(transport=security if link == "tcp" else link, **plain)
