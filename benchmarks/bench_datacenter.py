"""Does a verified transfer keep up with one host: through TCP, through memory, as a delta, and when small?

Every byte is hashed on both sides, which cannot be turned off; iperf3 moves bytes that nobody reads, writes
or checks. Contenders take turns, round after round, in one run. iperf3 has to be installed; rsync, rclone
and NIXL are measured where they are.
"""

import shutil
import statistics
import tempfile
from typing import Any

import datacenter_ends as ends
import harness
from nixl_ends import nixl

LANES = (1, 4)
Raw = dict[str, dict[str, list[Any]]]
Claims = list[dict[str, Any]]

PLAIN, TLS = "plain", "TLS"
OF_IPERF_BARE = 1.0
OF_IPERF_WITH_DIGESTS = 0.9
SHM_OF_IPERF = 2.0
SHM_OF_COPY = 0.5
DELTA_OF_SLOWER = 1.2
ADDED_US = 10.0
RIVALS = {"rsync": ends.rsync, "rclone": ends.rclone, "NIXL": nixl}


def name_of(kind: str, lanes: int) -> str:
    return f"dwcp, {kind}, {lanes} lanes" if lanes > 1 else f"dwcp, {kind}, 1 lane"


def transfer(
    sender: ends.End, receiver: ends.End, *, plain: bool, lanes: int, link: str, rounds: int
) -> list[dict[str, Any]]:
    """What both ends told of each transfer but the first."""
    receiver.tell("transfers", plain=plain)
    target = receiver.told()["target"]
    sender.tell("transfers", plain=plain, target=target, lanes=lanes, link=link, rounds=rounds)
    sent, received = sender.told()["facts"][1:], receiver.told()["facts"][1:]
    return [
        {
            "seconds": one["seconds"],
            "sender_cpu_s": one["cpu_s"],
            "receiver_cpu_s": other["cpu_s"],
            "transport": one["transport"],
        }
        for one, other in zip(sent, received, strict=True)
    ]


def messages(sender: ends.End, receiver: ends.End, command: str, count: int, **how: Any) -> float:
    receiver.tell(command, **({"plain": how["plain"]} if how else {}))
    sender.tell(command, target=receiver.told()["target"], count=count, **how)
    taken: float = sender.told()["p50_us"]
    receiver.told()
    return taken


def deltas(sender: ends.End, receiver: ends.End, rounds: int) -> list[dict[str, float]]:
    """What was told of each version but the first."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        base = f"{folder}/base.npy"
        sender.tell("make_base", base=base)
        sender.told()
        receiver.tell("versions", base=base)
        target = receiver.told()["target"]
    sender.tell("versions", target=target, rounds=rounds)
    found = []
    for _ in range(rounds + 1):
        facts, applied = sender.told(), receiver.told()
        assert facts.pop("digests") == applied["digests"]
        found.append(facts | {"seconds": applied["applied_at"] - facts["began_at"]})
    sender.told()
    receiver.told()
    return found[1:]


def note(raw: Raw, name: str, facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        raw.setdefault(name, {}).setdefault(key, []).append(value)


def measure(options: Any, size: int) -> Raw:
    raw: Raw = {}
    with ends.End("send", size) as sender, ends.End("receive", size) as receiver:

        def ours(kind: str, lanes: int, *, plain: bool, link: str) -> None:
            for facts in transfer(sender, receiver, plain=plain, lanes=lanes, link=link, rounds=2):
                note(raw, name_of(kind, lanes), facts)

        for turn in range(options.repeats):
            contenders: dict[str, Any] = {}
            for lanes in LANES:
                contenders |= {
                    f"iperf3 -P {lanes}": lambda lanes=lanes: note(
                        raw, f"iperf3 -P {lanes}", ends.iperf3(size, lanes)
                    ),
                    name_of(PLAIN, lanes): lambda lanes=lanes: ours(PLAIN, lanes, plain=True, link="tcp"),
                    name_of(TLS, lanes): lambda lanes=lanes: ours(TLS, lanes, plain=False, link="tcp"),
                    name_of("shm", lanes): lambda lanes=lanes: ours("shm", lanes, plain=False, link="shm"),
                }
            for name in harness.in_turn(contenders, turn):
                contenders[name]()
            sender.tell("copy")
            note(raw, "copy", {"seconds": statistics.median(sender.told()["seconds"])})
            for name, rival in RIVALS.items():
                if (taken := rival(size // 2)) is not None:
                    note(raw, name, {"seconds": 2 * taken})
            count = 200 if options.quick else 2000
            note(raw, "raw 4 KiB", {"p50_us": messages(sender, receiver, "raw_messages", count)})
            for kind, link in (("tcp", "tcp"), ("shm", "shm")):
                taken = messages(sender, receiver, "messages", count, plain=True, link=link)
                note(raw, f"4 KiB, {kind}", {"p50_us": taken})
        for facts in deltas(sender, receiver, options.repeats):
            note(raw, "delta", facts)
    return raw


def median(raw: Raw, name: str, field: str = "seconds") -> float:
    found: float = statistics.median(raw[name][field])
    return found


def claims_of(raw: Raw) -> Claims:
    """What came out, against what was aimed at."""
    found: Claims = []
    for lanes in LANES:
        against = f"iperf3 -P {lanes}"
        for kind in (PLAIN, TLS):
            ratio = median(raw, against) / median(raw, name_of(kind, lanes))
            case = f"loopback TCP, {kind}, {lanes} lanes, with digests"
            found.append(harness.claim(case, ratio, OF_IPERF_WITH_DIGESTS, against))
        ratio = median(raw, against) / median(raw, name_of(PLAIN, lanes))
        case = f"loopback TCP, {lanes} lanes, held with digests against the bar without"
        found.append(harness.claim(case, ratio, OF_IPERF_BARE, against))
        shm = median(raw, name_of("shm", lanes))
        found.append(
            harness.claim(f"shared memory, {lanes} lanes", median(raw, against) / shm, SHM_OF_IPERF, against)
        )
        found.append(
            harness.claim(f"shared memory, {lanes} lanes", median(raw, "copy") / shm, SHM_OF_COPY, "memcpy")
        )
    slower = max(median(raw, "delta", "copy_s"), median(raw, "delta", "encode_s"))
    found.append(
        harness.claim(
            "1 % delta, encoded, sent over loopback and applied",
            median(raw, "delta") / slower,
            DELTA_OF_SLOWER,
            "the slower of encoding and memcpy alone",
            lower_is_better=True,
        )
    )
    plain = median(raw, "raw 4 KiB", "p50_us")
    for kind in ("tcp", "shm"):
        added = median(raw, f"4 KiB, {kind}", "p50_us") - plain
        what = f"added microseconds of a 4 KiB state, {kind}"
        found.append(harness.claim(what, added, ADDED_US, "a raw socket", lower_is_better=True))
    return found


def table(raw: Raw, size: int) -> str:
    """Throughput of everybody, and what it cost."""
    rows = ["| | GB/s | CPU s per GB, sender | receiver |", "|---" * 4 + "|"]
    for name, facts in raw.items():
        if "seconds" not in facts or name == "delta":
            continue
        seconds = median(raw, name)
        used = [
            f"{1e9 * median(raw, name, f'{side}_cpu_s') / size:.3f}" if f"{side}_cpu_s" in facts else ""
            for side in ("sender", "receiver")
        ]
        rows.append(f"| {name} | {size / seconds / 1e9:.2f} | {used[0]} | {used[1]} |")
    return "\n".join(rows)


def main() -> None:
    options = harness.arguments(__doc__ or "", repeats=7)
    if shutil.which("iperf3") is None:
        raise SystemExit("iperf3 is not installed; it is what this is measured against")
    size = (64 if options.quick else 1024) << 20
    raw = measure(options, size)
    claims = claims_of(raw)
    missing = [name for name in RIVALS if name not in raw]
    path = harness.publish(
        "datacenter", options.out, claims=claims, raw={"bytes": size, "not installed": missing} | raw
    )
    harness.show(claims)
    print(table(raw, size))
    print(f"raw samples: {path}")


if __name__ == "__main__":
    main()
