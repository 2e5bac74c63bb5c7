"""Metrics for OpenTelemetry; needs the extra ``otel``."""

import threading
from collections.abc import Callable, Iterable

from dwcp_fast.errors import ConfigError
from dwcp_fast.metrics.families import FAMILIES, Family
from dwcp_fast.metrics.meter import METER
from dwcp_fast.metrics.stats import Stats

try:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter_provider
except ImportError as missing:
    raise ConfigError(
        f"metrics for OpenTelemetry need the package {missing.name}", hint="pip install 'dwcp-fast[otel]'"
    ) from missing

__all__ = ["export_metrics"]


class Shared:
    """A snapshot that all instruments of one collection have in common.

    They are asked one after the other, and none knows of a beginning: one that is asked a second time begins
    the next collection.
    """

    def __init__(self, snapshot: Callable[[], Stats]) -> None:
        """Note where snapshots come from."""
        self._snapshot = snapshot
        self._lock = threading.Lock()
        self._stats: Stats | None = None
        self._asked: set[str] = set()

    def read(self, name: str) -> Stats:
        """Give the snapshot for an instrument."""
        with self._lock:
            if self._stats is None or name in self._asked:
                self._stats = self._snapshot()
                self._asked.clear()
            self._asked.add(name)
            return self._stats


def export_metrics(
    provider: MeterProvider | None = None, snapshot: Callable[[], Stats] = METER.snapshot
) -> None:
    """Make an observable instrument of each metric. Call it once for each provider.

    Args:
        provider: Where they are made; None takes the global one.
        snapshot: Where their values come from.
    """
    meter = (provider or get_meter_provider()).get_meter("dwcp_fast")
    shared = Shared(snapshot)
    for family in FAMILIES:
        make = meter.create_observable_counter if family.kind == "counter" else meter.create_observable_gauge
        make(family.dotted_name, [observe(family, shared)], unit=family.unit, description=family.help)


def observe(family: Family, shared: Shared) -> Callable[[CallbackOptions], Iterable[Observation]]:
    """Make what an instrument calls for its values."""

    def read(_options: CallbackOptions) -> Iterable[Observation]:
        for labels, value in family.samples(shared.read(family.name)):
            yield Observation(value, dict(zip(family.labels, labels, strict=True)))

    return read
