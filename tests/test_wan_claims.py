"""What the benchmark of long links says of fairness: neither failing nor giving everything away meets it."""

import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import bench_wan
import wan_cases
import wan_ends
from network.lab import Lab, Shape, Side
from wan_ends import PAYLOAD_SHARE, Sample

LINK_MBPS = wan_cases.RATE_BPS * PAYLOAD_SHARE / wan_cases.MBPS
LEAD_S = wan_cases.LEAD_S


def flow(beside_mbps: float, seconds: float) -> dict[str, Any]:
    """What iperf3 tells of a flow that had the link, and then so much of it."""
    times = [number / 2 for number in range(int(2 * (LEAD_S + seconds)))]
    rates = [LINK_MBPS if time < LEAD_S else beside_mbps for time in times]
    return {
        "intervals": [
            {"sum": {"start": time, "bits_per_second": rate * wan_cases.MBPS}}
            for time, rate in zip(times, rates, strict=True)
        ]
    }


def are_met(sample: Sample, beside_mbps: float) -> tuple[bool, bool]:
    """Whether the flow keeps its share beside a transfer, and whether the transfer carries one."""
    told = flow(beside_mbps, sample.seconds)
    run = asdict(sample) | wan_cases.shares(sample, told, LEAD_S + sample.seconds)
    names = ["dwcp", "dwcp, only cubic", *wan_cases.POLITE]
    claims = bench_wan.claims_of("fairness", {name: [run] for name in names})
    met = {claim["case"]: claim["met"] for claim in claims}
    return met["fairness: one cubic flow beside dwcp"], met["fairness: dwcp beside one cubic flow"]


def finished(share: float) -> Sample:
    return Sample(share * LINK_MBPS, None, 10.0, False, {})


@pytest.mark.parametrize(
    ("sample", "beside", "met"),
    [
        (finished(0.5), 0.5, (True, True)),
        (finished(0.02), 0.98, (True, False)),
        (finished(0.9), 0.1, (False, True)),
        # It came to nothing at once, and the flow has all of the link.
        (Sample(None, None, 0.0, False, {"error": "refused"}), 1.0, (False, False)),
        # What the link carried meanwhile was mostly the flow's.
        (Sample(0.99 * LINK_MBPS, None, 60.0, True, {}), 0.95, (False, False)),
    ],
)
def test_fairness_is_met_only_by_a_transfer_that_ends_and_leaves_and_takes_a_share(
    sample: Sample, beside: float, met: tuple[bool, bool]
) -> None:
    assert are_met(sample, beside * LINK_MBPS) == met


class NoLab(Lab):
    """A lab whose commands end at once, without a word."""

    def command(self, side: Side, command: Iterable[str | Path]) -> list[str]:
        return ["true"]

    def stats(self, *, path: int = 0) -> dict[str, dict[str, float]]:
        return {"ab": {"delivered_bytes": 0.0}}


def test_a_transfer_whose_processes_end_at_once_is_a_failed_run() -> None:
    lab = NoLab([Shape()])
    try:
        sample = wan_ends.dwcp(lab, 1, patience_s=10.0)
    finally:
        lab._end_children()
    assert sample.goodput_mbps is None and "ended" in sample.facts["error"]
