"""Metrics: what this process does, as one snapshot, and its exporters.

:func:`snapshot` needs nothing but this package. :mod:`dwcp_fast.metrics.prometheus` needs the extra
``prometheus``, :mod:`dwcp_fast.metrics.otel` the extra ``otel``.

>>> from dwcp_fast import metrics
>>> sent = metrics.snapshot().flow("sent")
>>> sent.started == sent.active + sent.completed + sent.failed
True
"""

from dwcp_fast.metrics.families import FAMILIES, Family
from dwcp_fast.metrics.meter import METER
from dwcp_fast.metrics.stats import (
    ErrorCount,
    FlowRates,
    FlowStats,
    LaneStats,
    SessionStats,
    Stats,
    rates_between,
)

__all__ = [
    "FAMILIES",
    "ErrorCount",
    "Family",
    "FlowRates",
    "FlowStats",
    "LaneStats",
    "SessionStats",
    "Stats",
    "rates_between",
    "set_enabled",
    "snapshot",
]


def snapshot() -> Stats:
    """Give what this process has done so far."""
    return METER.snapshot()


def set_enabled(on: bool) -> None:
    """Count from now on, which is the default, or no more.

    Args:
        on: Whether to count. Sessions that are open keep to what held when they were opened.
    """
    METER.set_enabled(on)
