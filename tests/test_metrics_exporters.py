"""Metrics as others read them: names are an interface, labels are few, and a scrape is one moment."""

import contextlib
import json
import re
import subprocess
import sys
import threading
import urllib.request
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

import dwcp_fast as dwcp
from dwcp_fast import errors, metrics
from dwcp_fast.metrics.families import FAMILIES
from dwcp_fast.metrics.meter import ERROR_CODES, Meter
from dwcp_fast.metrics.stats import DIRECTIONS, PROTOCOLS, ROLES
from test_metrics import Job, check_sums
from two_ends import LOCAL, WAIT_S, accepted, meanwhile, pairing_of

NEEDS_PROMETHEUS = "the extra 'prometheus' is not installed"
NEEDS_OTEL = "the extra 'otel' is not installed"
LABELS_OF_OTHERS = {"instance", "job", "le"}


def test_names_units_and_labels_are_those_that_dashboards_rely_on(repository: Path) -> None:
    listed = (repository / "tests" / "golden" / "metrics.txt").read_text(encoding="utf-8").splitlines()
    told = [
        f"{family.name} {family.kind} {family.dotted_name} {family.unit} {','.join(family.labels) or '-'}"
        for family in FAMILIES
    ]
    assert sorted(told) == listed
    assert len({family.dotted_name for family in FAMILIES}) == len(FAMILIES)
    assert all((family.kind == "counter") == family.name.endswith("_total") for family in FAMILIES)


def test_the_dashboard_shows_every_metric_and_no_other(repository: Path) -> None:
    dashboard = json.loads((repository / "docs" / "grafana" / "dwcp.json").read_text(encoding="utf-8"))
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    variables = [entry["query"] for entry in dashboard["templating"]["list"]]
    known = {family.name: set(family.labels) for family in FAMILIES}
    assert {name for expr in shown + variables for name in re.findall(r"\bdwcp_\w+", expr)} == set(known)
    for expr in shown:
        names = re.findall(r"\bdwcp_\w+", expr)
        labels = set.intersection(*(known[name] for name in names)) | LABELS_OF_OTHERS
        for group in re.findall(r"by \(([^)]*)\)", expr):
            assert set(re.split(r",\s*", group)) <= labels, expr
        for name, matched in re.findall(r"\b(dwcp_\w+)\{([^}]*)\}", expr):
            assert set(re.findall(r"(\w+)\s*=~?", matched)) <= known[name] | LABELS_OF_OTHERS, expr


SESSIONS: Final = 10_000
AT_ONCE: Final = 8
FIRST: Final = 200
ALLOWED: Final[dict[str, set[str]]] = {
    "role": {*ROLES},
    "direction": {*DIRECTIONS},
    "protocol": {*PROTOCOLS},
    "outcome": {"completed", "failed"},
    "reason": {"held", "same"},
    "phase": {"connect", "transfer"},
    "code": set(ERROR_CODES),
    "kind": {"plain", "fill", "planes", "difference", "sparse", "runs"},
    "codec": {"none", "lz4", "zstd", "zstd+dict"},
}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_labels_stay_few_after_ten_thousand_sessions_of_peers_that_differ() -> None:
    pytest.importorskip("prometheus_client", reason=NEEDS_PROMETHEUS)
    from prometheus_client import CollectorRegistry, generate_latest

    from dwcp_fast.metrics.prometheus import DwcpCollector

    registry = CollectorRegistry()
    registry.register(DwcpCollector())

    def series() -> set[str]:
        lines = generate_latest(registry).decode().splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}

    def attend(incoming: dwcp.IncomingSession) -> None:
        with incoming:
            while incoming.fetches and (request := incoming.next_request(WAIT_S)) is not None:
                if request.startswith(b"refuse"):
                    incoming.refuse(f"never heard of {request.decode()}")
                    return
                incoming.send({"state": request})
            while not incoming.fetches and incoming.receive(WAIT_S) is not None:
                pass

    def attend_all() -> None:
        with ThreadPoolExecutor(2 * AT_ONCE) as attending, contextlib.suppress(dwcp.ClosedError):
            while (incoming := listener.accept()) is not None:
                attending.submit(attend, incoming)

    def meet(number: int) -> None:
        # An address of its own for each, and words that nobody else says.
        address = f"127.{1 + number // 60_000}.{number // 250 % 240}.{1 + number % 250}"
        sends, told = plain(local_addresses=(address,)), f"{number}".encode()
        match number % 10:
            case 0:
                with contextlib.suppress(dwcp.TransportError, OSError):
                    dwcp.connect("127.0.0.1:1", trust=dwcp.INSECURE, options=sends)
            case 1 | 2:
                with dwcp.connect(at, trust=dwcp.INSECURE, options=sends, receive=takes) as fetching:
                    refused = number % 10 == 1
                    with pytest.raises(dwcp.PeerError) if refused else contextlib.nullcontext():
                        fetching.fetch((b"refuse " if refused else b"") + told)
            case _:
                with dwcp.connect(at, trust=dwcp.INSECURE, options=sends) as sending:
                    assert sending.send({f"state {number}": told}).verified

    def opened() -> int:
        return sum(row.opened for row in metrics.snapshot().sessions)

    takes = dwcp.ReceiveOptions(max_sessions=8 * AT_ONCE)
    before = opened()
    with (
        dwcp.listen(LOCAL, trust=dwcp.INSECURE, options=takes, serve=plain()) as listener,
        meanwhile(attend_all) as attending,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        at = listener.address
        deque(pool.map(meet, range(FIRST)), 0)
        few = series()
        deque(pool.map(meet, range(FIRST, SESSIONS * 10 // 9 + 10)), 0)
        listener.close()
        attending.result(WAIT_S)
    many, stats = series(), metrics.snapshot()
    # Both ends are in this process.
    assert opened() - before >= 2 * SESSIONS
    assert few == many and len(many) < 150
    for family in FAMILIES:
        for labels, _ in family.samples(stats):
            for name, value in zip(family.labels, labels, strict=True):
                assert value in ALLOWED[name]


def plain(**more: Any) -> dwcp.SendOptions:
    """Options with as little to do as there can be."""
    return dwcp.SendOptions(streams=1, codec="none", base="none", link_memory=False, **more)


def test_an_error_that_only_a_peer_knows_has_no_label_of_its_own() -> None:
    meter = Meter()
    for number in range(100):
        error = errors.DwcpError(f"trouble {number}")
        error.code = f"trouble-{number}"  # type: ignore[misc]
        meter.count_error("connect", error)
    assert [(told.code, told.count) for told in meter.snapshot().errors] == [("other", 100)]


def test_every_scrape_is_one_moment() -> None:
    pytest.importorskip("prometheus_client", reason=NEEDS_PROMETHEUS)
    from prometheus_client import CollectorRegistry

    from dwcp_fast.metrics.prometheus import DwcpCollector

    meter, stop = Meter(), threading.Event()
    registry = CollectorRegistry()
    registry.register(DwcpCollector(meter.snapshot))

    def work() -> None:
        while not stop.is_set():
            job = Job(90, fails=False)
            meter.measure("sent", "v3", job.run)

    with meanwhile(work) as working:
        try:
            for _ in range(300):
                found = {
                    (sample.name, *sorted(sample.labels.items())): sample.value
                    for metric in registry.collect()
                    for sample in metric.samples
                }
                flow = (("direction", "sent"), ("protocol", "v3"))
                done = found["dwcp_transfers_total", flow[0], ("outcome", "completed"), flow[1]]
                assert found["dwcp_transfer_seconds_total", *flow] == done * 0.25
                assert found["dwcp_state_bytes_total", *flow] == done * 180
        finally:
            stop.set()
        working.result(WAIT_S)


def test_prometheus_reads_what_a_real_transfer_did() -> None:
    pytest.importorskip("prometheus_client", reason=NEEDS_PROMETHEUS)
    from prometheus_client.parser import text_string_to_metric_families

    from dwcp_fast.metrics.prometheus import MetricsServer

    def scrape(url: str) -> dict[tuple[Any, ...], float]:
        with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
            text = answer.read().decode()
        return {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    with MetricsServer("127.0.0.1:0") as server:
        before = scrape(server.url)
        with dwcp.listen(LOCAL) as listener, meanwhile(lambda: receive(listener)) as arriving:
            with dwcp.connect(pairing_of(listener)) as sending:
                report = sending.send({"state": b"state " * 99_999})
            arriving.result(WAIT_S)
        after = scrape(server.url)
        assert {key[0] for key in after} <= {family.name for family in FAMILIES}
        for name, grown in (("state", report.bytes_raw), ("wire", report.bytes_wire)):
            key = (f"dwcp_{name}_bytes_total", ("direction", "sent"), ("protocol", "v3"))
            assert after[key] - before[key] == grown
    server.close()
    with pytest.raises(OSError, match="refused"):
        scrape(server.url)


def receive(listener: dwcp.Listener) -> dwcp.Received | None:
    with accepted(listener) as incoming:
        return incoming.receive(WAIT_S)


def test_open_telemetry_collects_one_moment_with_names_and_units() -> None:
    pytest.importorskip("opentelemetry.sdk", reason=NEEDS_OTEL)
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from dwcp_fast.metrics.otel import export_metrics

    meter, reader, taken = Meter(), InMemoryMetricReader(), []

    def snapshot() -> metrics.Stats:
        # Between any two looks something happens.
        job = Job(90, fails=False)
        meter.measure("sent", "v3", job.run)
        taken.append(meter.snapshot())
        return taken[-1]

    provider = MeterProvider([reader])
    try:
        export_metrics(provider, snapshot)
        for collection in (1, 2):
            data = reader.get_metrics_data()
            assert data is not None and len(taken) == collection
            (told,) = data.resource_metrics[0].scope_metrics
            points = {metric.name: metric for metric in told.metrics}
            silent = {"dwcp.round.trip", "dwcp.errors"}
            assert set(points) == {family.dotted_name for family in FAMILIES} - silent
            assert {name: metric.unit for name, metric in points.items()} == {
                family.dotted_name: family.unit for family in FAMILIES if family.dotted_name not in silent
            }
            (state,) = [
                getattr(point, "value", None)
                for point in points["dwcp.state"].data.data_points
                if dict(point.attributes or {}) == {"direction": "sent", "protocol": "v3"}
            ]
            assert state == taken[-1].flow("sent").state_bytes == 180 * collection
            check_sums(taken[-1])
    finally:
        provider.shutdown()


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [("prometheus", "prometheus_client", "prometheus"), ("otel", "opentelemetry", "otel")],
)
def test_a_missing_library_is_named_with_its_extra(module: str, missing: str, extra: str) -> None:
    program = f"""
import sys
sys.modules[{missing!r}] = None
from dwcp_fast.errors import ConfigError
try:
    import dwcp_fast.metrics.{module}
except ConfigError as error:
    print(error, error.hint)
"""
    told = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=WAIT_S
    ).stdout
    assert missing in told and f"dwcp-fast[{extra}]" in told
