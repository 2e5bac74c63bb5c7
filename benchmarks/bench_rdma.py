"""What do lanes over RDMA cost above the verbs? Against perftest, on Soft-RoCE in an emulated guest.

Soft-RoCE is software and the guest is emulated: the ratios say what our layer costs where the verbs cost so
much, and nothing about the speed of RDMA. Ours hashes and verifies each block, the tools look at nothing.
Our memory is registered before, as theirs is: what is compared is the second transfer of a session, out of
and into buffers that stay. The first is told beside it.

    python benchmarks/bench_rdma.py
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

import harness
from rdma.guest import boot, why_missing

INSIDE = Path(__file__).with_name("rdma_inside.py")
TIMEOUT_S = 900.0


def main() -> None:
    """Boot, measure, tell the ratios."""
    given = harness.arguments(__doc__ or "", repeats=5)
    missing = why_missing()
    if missing is not None:
        sys.exit(f"no guest: {missing}")
    mib = 16 if given.quick else 64
    with tempfile.TemporaryDirectory() as folder:
        out = boot(Path(folder), INSIDE, TIMEOUT_S, {"how": f"{given.repeats} {mib}"})
        if not (out / "results").exists():
            sys.exit((out / "log").read_text(encoding="utf-8"))
        samples = json.loads((out / "results").read_text(encoding="utf-8"))
    ours = statistics.median(samples["ours over rdma"])
    claims = []
    for name, rates in samples.items():
        print(f"{name:<48} {statistics.median(rates):8.1f}{'' if 'processor' in name else ' MiB/s'}")
        if name in {"ib_send_bw", "ib_write_bw"}:
            claims.append(
                harness.claim("one lane over Soft-RoCE", ours / statistics.median(rates), 0.9, name)
            )
    harness.show(claims)
    if not given.quick:
        raw = {"message_bytes": 65_536, "mib": mib, "samples": samples}
        harness.publish("rdma", given.out, claims=claims, raw=raw)


if __name__ == "__main__":
    main()
