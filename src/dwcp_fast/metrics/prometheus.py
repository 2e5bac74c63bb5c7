"""Metrics for Prometheus; needs the extra ``prometheus``."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from dwcp_fast import _core
from dwcp_fast.closing import Closing
from dwcp_fast.errors import ConfigError
from dwcp_fast.metrics.families import FAMILIES
from dwcp_fast.metrics.meter import METER
from dwcp_fast.metrics.stats import Stats

try:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as missing:
    raise ConfigError(
        f"metrics for Prometheus need the package {missing.name}", hint="pip install 'dwcp-fast[prometheus]'"
    ) from missing

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["DwcpCollector", "MetricsServer"]

CLOSE_S = 5.0


class DwcpCollector(Collector):
    """Collects for a registry of prometheus_client; each scrape is one snapshot.

    Register it in the application's own registry: ``REGISTRY.register(DwcpCollector())``.
    """

    def __init__(self, snapshot: Callable[[], Stats] = METER.snapshot) -> None:
        """Note where snapshots come from."""
        self._snapshot = snapshot

    def collect(self) -> "Iterator[Metric]":
        """Give every metric, as of one moment."""
        stats = self._snapshot()
        for family in FAMILIES:
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = kind(family.name.removesuffix("_total"), family.help, labels=family.labels)
            for labels, value in family.samples(stats):
                metric.add_metric(labels, value)
            yield metric

    def describe(self) -> "Iterator[Metric]":
        """Give the names, for which nothing needs to be counted."""
        for family in FAMILIES:
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            yield kind(family.name.removesuffix("_total"), family.help, labels=family.labels)


class MetricsServer(Closing):
    """Answers scrapes over HTTP, to whoever can reach the address: it asks nobody who they are."""

    def __init__(self, address: str) -> None:
        """Serve.

        Args:
            address: ``HOST:PORT``; port 0 takes a free one.

        Raises:
            ConfigError: `address` is none.
            OSError: It cannot be listened on.
        """
        host, port = _core.split_address(address)
        registry = CollectorRegistry()
        registry.register(DwcpCollector())
        self._server, self._thread = start_http_server(port, host, registry)
        self._host = host

    @property
    def url(self) -> str:
        """Where the metrics are."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """Serve no more; a second time does nothing."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(CLOSE_S)
