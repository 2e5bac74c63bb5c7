"""Does a transfer fill a long link as well as the best way of running iperf3, not told which that is?

Root only: the link is a user-space one between two network namespaces (docs/link-lab.md; `make lab`).
Contenders take turns, round after round, over the same link. A way of running iperf3 that gets less than half
of the best of its congestion control in the first round is not run in later ones. Who takes three times as
long as the best, or more than a minute, is stopped, and what the link carried until then counts. "dwcp" may
choose among what the kernel offers, from the system's default; "dwcp, only cubic" is refused everything else.
A full run takes two to three hours; with `--resume` a run goes on where an earlier one ended.
"""

import argparse
import fnmatch
import json
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import harness
import wan_cases
from network.lab import why_missing
from wan_cases import CASES, CROWD, CROWD_BPS, LOSSES, RTTS_MS, SESSIONS, Samples, cell_name, goodputs

OF_BEST = 0.98
OF_BEST_CUBIC = 0.95
FLAT = 0.9
OF_FLUID = 0.9
KEPT = 0.25
KEPT_POLITE = 0.45
# Half of a link is the fair share of each of two; a transfer that gives way to all of it moves nothing.
CARRIED = 0.25
UNCOLLAPSED = 0.5
RISE_S = 5 * 0.3 + 2
# A short state in an open session takes no more round trips than a message.
OF_MESSAGE = 1.1

Claims = list[dict[str, Any]]


def median(samples: Samples, name: str, field: str = "goodput_mbps") -> float:
    """0 if a run failed."""
    values = [run[field] for run in samples.get(name, [])]
    return statistics.median(values) if values and None not in values else 0.0


def best(samples: Samples, *families: str) -> tuple[str, float]:
    """The best way of running iperf3."""
    found = {name: rate for family in families for name, rate in goodputs(samples, family).items()}
    return max(found.items(), key=lambda item: item[1], default=("none", 0.0))


def claims_of_cell(case: str, samples: Samples) -> Claims:
    found = []
    for name, families, target in (
        ("dwcp", ("bbr", "cubic"), OF_BEST),
        ("dwcp, only cubic", ("cubic",), OF_BEST_CUBIC),
    ):
        against, rate = best(samples, *families)
        if rate:
            found.append(
                harness.claim(f"{case}: {name}", median(samples, name) / rate, target, f"iperf3 {against}")
            )
    return found


def claims_of(case: str, samples: Samples) -> Claims:
    """The claims of a case that was measured."""
    found: Claims = []
    if case == "steps":
        for name in ("dwcp", "dwcp, only cubic"):
            rise = statistics.median(wan_cases.rise_s(run) for run in samples[name])
            least = statistics.median(wan_cases.least_after_fall(run) for run in samples[name])
            what = f"steps: {name}, seconds to 80 % of 900 Mbps"
            found.append(harness.claim(what, rise, RISE_S, "5 round trips and 2 s", lower_is_better=True))
            what = f"steps: {name}, least second after the fall to 100 Mbps"
            found.append(harness.claim(what, least, UNCOLLAPSED, "the new rate"))
    elif case.startswith("two paths"):
        share = median(samples, "dwcp", "of_bound")
        found.append(harness.claim(case, share, OF_FLUID, "the fluid bound"))
    elif case == "fairness":
        for name in ("dwcp", "dwcp, only cubic", *wan_cases.POLITE):
            kept = median(samples, name, "kept")
            least = KEPT_POLITE if name in wan_cases.POLITE else KEPT
            found.append(
                harness.claim(f"fairness: one cubic flow beside {name}", kept, least, "the whole link")
            )
            carried = median(samples, name, "carried")
            found.append(
                harness.claim(f"fairness: {name} beside one cubic flow", carried, CARRIED, "the whole link")
            )
    elif case == "sessions":
        one = median(samples, "1 sessions")
        for sessions in SESSIONS[1:]:
            share = median(samples, f"{sessions} sessions") / one if one else 0.0
            found.append(harness.claim(f"sessions: {sessions} at once", share, FLAT, "one session"))
    elif case == "crowd":
        share = median(samples, "dwcp", "of_link")
        what = f"crowd: {CROWD} sessions at once over {CROWD_BPS / 1e6:g} Mbps"
        found.append(harness.claim(what, share, FLAT, "the whole link"))
    elif case == "states":
        times = median(samples, "dwcp", "seconds") / median(samples, "raw", "seconds")
        what = "states: 4 KiB over 100 ms"
        against = "a message and its answer on a socket"
        found.append(harness.claim(what, times, OF_MESSAGE, against, lower_is_better=True))
    else:
        found = claims_of_cell(case, samples)
    return found


def table(measured: dict[str, Samples]) -> str:
    """The cells, in Mbps."""
    rows = ["| case | best iperf3 | dwcp | with connecting | of it | best cubic | only cubic | of it |"]
    rows.append("|---" * 8 + "|")
    for rtt_ms in RTTS_MS:
        for loss in LOSSES:
            case = cell_name(rtt_ms, loss)
            samples = measured.get(case)
            if samples:
                rows.append(row(case, samples))
    return "\n".join(rows)


def row(case: str, samples: Samples) -> str:
    way, rate = best(samples, "bbr", "cubic")
    cubic_way, cubic_rate = best(samples, "cubic")
    ours, connected = median(samples, "dwcp"), median(samples, "dwcp", "with_connect_mbps")
    cubic = median(samples, "dwcp, only cubic")
    return (
        f"| {case} | {rate:.0f} ({way}) | {ours:.0f} | {connected:.0f} | {ours / (rate or 1):.2f} "
        f"| {cubic_rate:.0f} ({cubic_way}) | {cubic:.0f} | {cubic / (cubic_rate or 1):.2f} |"
    )


def memory_per_session(samples: Samples) -> dict[str, float]:
    """MiB that each further session takes on either side, its data not counted."""
    few, many = SESSIONS[1:]
    slopes = {}
    for side, key in (("sender", "mib"), ("receiver", "receiver_mib")):
        taken = []
        for sessions in (few, many):
            runs = samples.get(f"{sessions} sessions", [])
            if not runs or any(key not in run["facts"] for run in runs):
                break
            # All sessions of the sender send the same memory.
            data = runs[0]["size"] / 2**20 / (sessions if side == "sender" else 1)
            taken.append(statistics.median(run["facts"][key] for run in runs) - data)
        if len(taken) == 2:
            slopes[side] = round((taken[1] - taken[0]) / (many - few), 3)
    return slopes


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--case", action="append", metavar="PATTERN", help="only these cases, such as '100 ms*'"
    )
    parser.add_argument("--mib", type=int, help="size of a transfer (default 512, or 128 with --quick)")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--resume", action="store_true", help="keep what an interrupted run has measured")


def load(path: Path, resume: bool, how: dict[str, Any]) -> dict[str, Samples]:
    """What an earlier run of the same kind left."""
    if not resume or not path.exists():
        return {}
    told = json.loads(path.read_text())
    if told["how"] != how:
        raise SystemExit(f"--resume: {path} was measured with {told['how']}, not with {how}")
    measured: dict[str, Samples] = told["measured"]
    return measured


def main() -> None:
    options = harness.arguments(__doc__ or "", repeats=3, extend=add_options)
    wanted = [case for case in CASES if any(fnmatch.fnmatch(case.name, one) for one in options.case or ["*"])]
    if options.list or not wanted:
        print("\n".join(case.name for case in CASES))
        return
    if reason := why_missing():
        raise SystemExit(reason)
    size_mib = options.mib or (128 if options.quick else 512)
    # So that the lab is taken down.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    how = {"quick": options.quick, "mib": size_mib, "commit": harness.machine()["commit"]}
    kept = options.out / "wan.unfinished.json"
    options.out.mkdir(parents=True, exist_ok=True)
    measured = load(kept, options.resume, how)
    missing = {case.name: case.why_not for case in wanted if case.why_not}
    for turn in range(options.repeats):
        for case in wanted:
            samples = measured.setdefault(case.name, {})
            done = max((len(runs) for runs in samples.values()), default=0)
            if case.why_not or done > turn:
                continue
            begin = time.monotonic()
            case.measure(samples, wan_cases.Round(turn, size_mib << 20, 5.0 if options.quick else 8.0))
            print(f"round {turn + 1}, {case.name}: {time.monotonic() - begin:.0f} s", flush=True)
            kept.write_text(json.dumps({"how": how, "measured": measured}))
    measured = {name: samples for name, samples in measured.items() if samples}
    claims = [one for name, samples in measured.items() for one in claims_of(name, samples)]
    raw: dict[str, Any] = {"MiB of a transfer": size_mib, "measured": measured, "not measured": missing}
    if "sessions" in measured:
        raw["MiB for each further session"] = memory_per_session(measured["sessions"])
    whole = len(wanted) == len(CASES) and not missing
    path = harness.publish("wan" if whole else "wan_part", options.out, claims=claims, raw=raw)
    kept.unlink(missing_ok=True)
    harness.show(claims)
    print(table(measured))
    for key in ("MiB for each further session", "not measured"):
        if raw.get(key):
            print(f"{key}: {raw[key]}")
    print(f"raw samples: {path}")


if __name__ == "__main__":
    main()
