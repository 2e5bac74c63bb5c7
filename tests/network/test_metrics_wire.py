"""What the metrics count of the wire is what the kernel and a packet capture count."""

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from .conftest import DWCP, MIB, WAIT_S, Machine, relay_to, wait_until_held

PROGRAM = Path(__file__).with_name("counted_wire.py")
STATE_BYTES = 64 << 20
TOLERANCE = 0.01


@pytest.mark.privileged
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare of util-linux")
def test_metrics_agree_with_the_kernel_and_a_packet_capture_within_one_percent() -> None:
    ended = subprocess.run(
        ["unshare", "--net", sys.executable, PROGRAM],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        env=dict(os.environ),
        check=False,
    )
    if ended.returncode and "Operation not permitted" in ended.stderr:
        pytest.skip("needs the right to make network namespaces")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["missed_packets"] == 0 and told["captured_packets"] > 100
    captured = told["captured_bytes"]
    fresh = captured - told["tcp_retransmitted_bytes"]
    assert told["wire_bytes"] >= STATE_BYTES
    assert told["tcp_sent_bytes"] == pytest.approx(captured, rel=TOLERANCE)
    assert told["wire_bytes"] == pytest.approx(fresh, rel=TOLERANCE)
    # The headers are in this one: they are small beside the segments of this interface.
    assert told["wire_bytes"] == pytest.approx(
        told["interface_bytes"] - told["tcp_retransmitted_bytes"], rel=TOLERANCE
    )


def scrape(url: str) -> dict[str, float]:
    """Read metrics as a scraper does."""
    with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
    }


def test_a_server_answers_scrapes_while_it_serves_and_ends_with_both(machine: Machine, state: Path) -> None:
    pytest.importorskip("prometheus_client", reason="the extra 'prometheus' is not installed")
    sent = 'dwcp_wire_bytes_total{direction="sent",protocol="v3"}'
    with machine.serve(state, "--metrics", "0") as server, relay_to(server) as relay:
        (url,) = [event["url"] for event in server.events if event["type"] == "metrics"]
        assert url.startswith("http://127.0.0.1:")
        relay.hold_after = 8 * MIB
        pulling = machine.start_pull(relay.reroute(server.pairing), machine.folder / "mine", "--json")
        wait_until_held(relay)
        during = scrape(url)
        assert during[sent] > 0 and during["dwcp_lanes_open"] >= 1
        assert during['dwcp_transfers_active{direction="sent",protocol="v3"}'] == 1
        relay.hold.set()
        pulled = machine.finish(pulling)
        assert pulled.code == 0, pulled.err
        server.wait_for("sent")
        after = scrape(url)
        assert after[sent] >= pulled.json["bytes_wire"]
        assert server.end() == 0 and "Traceback" not in server.err()
    with pytest.raises(OSError, match="refused"):
        scrape(url)


def test_an_address_for_metrics_that_is_taken_is_told_and_nothing_listens(machine: Machine) -> None:
    pytest.importorskip("prometheus_client", reason="the extra 'prometheus' is not installed")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [
            *DWCP,
            "recv",
            "--listen",
            "127.0.0.1:0",
            "--into",
            str(machine.folder / "in"),
            "--metrics",
            port,
        ]
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=WAIT_S, env=machine.env("x"), check=False
        )
    assert ended.returncode == 1 and f"127.0.0.1:{port}" in ended.stderr and "listening" not in ended.stdout
