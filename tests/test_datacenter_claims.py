"""What the benchmark of fast links says: slower than a bar is missed, whichever way the bar goes."""

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import bench_datacenter
from bench_datacenter import LANES, PLAIN, TLS, name_of


def samples(*, ours_s: float, shm_s: float, delta_s: float, added_us: float) -> bench_datacenter.Raw:
    """A round in which iperf3 takes a second, and a copy a quarter of one."""
    raw: dict[str, dict[str, list[Any]]] = {"copy": {"seconds": [0.25]}, "raw 4 KiB": {"p50_us": [20.0]}}
    for lanes in LANES:
        raw[f"iperf3 -P {lanes}"] = {"seconds": [1.0]}
        for kind, seconds in ((PLAIN, ours_s), (TLS, ours_s), ("shm", shm_s)):
            raw[name_of(kind, lanes)] = {"seconds": [seconds]}
    raw["delta"] = {"seconds": [delta_s], "copy_s": [0.25], "encode_s": [1.0]}
    for kind in ("tcp", "shm"):
        raw[f"4 KiB, {kind}"] = {"p50_us": [20.0 + added_us]}
    return raw


def met(raw: bench_datacenter.Raw) -> set[bool]:
    return {claim["met"] for claim in bench_datacenter.claims_of(raw)}


def test_every_bar_can_be_met_and_every_bar_can_be_missed() -> None:
    assert met(samples(ours_s=0.9, shm_s=0.4, delta_s=1.1, added_us=9.0)) == {True}
    assert met(samples(ours_s=1.2, shm_s=0.6, delta_s=1.3, added_us=11.0)) == {False}


def test_the_bar_without_digests_is_higher_than_that_with_them() -> None:
    claims = bench_datacenter.claims_of(samples(ours_s=1.05, shm_s=0.4, delta_s=1.1, added_us=9.0))
    missed = {claim["case"] for claim in claims if not claim["met"]}
    assert len(missed) == len(LANES) and all("bar without" in case for case in missed)
