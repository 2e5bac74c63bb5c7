"""Runs in the guest of bench_rdma.py: our lanes and the tools of perftest, in turn, over Soft-RoCE."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dwcp_fast import SendOptions
from dwcp_fast.options import Carrier

# The guest's cases, which the tests have too.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from rdma.inside import HOST, MIB, carry, noise, set_up

MESSAGE_BYTES: Final = 65_536
"""As long as one of ours."""
TOOL_S: Final = 60


def rate_of_tool(tool: str, total_bytes: int) -> float:
    """Have a tool of perftest send so much; gives MiB a second."""
    count = total_bytes // MESSAGE_BYTES
    common = [tool, "-R", "-F", "-s", str(MESSAGE_BYTES), "-n", str(count)]
    with subprocess.Popen(common, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            time.sleep(1)
            told = subprocess.run(
                [*common, HOST], capture_output=True, text=True, timeout=TOOL_S, check=True
            ).stdout
            server.wait(TOOL_S)
        finally:
            server.kill()
    found = re.search(rf"^\s*{MESSAGE_BYTES}\s+{count}\s+\S+\s+(\S+)", told, flags=re.MULTILINE)
    if found is None:
        raise ValueError(f"{tool} tells no rate: {told}")
    return float(found[1])


def rate_of_ours(port: int, state: dict[str, bytes], link: Carrier) -> float:
    """Send a state on one lane, verified; gives MiB a second."""
    options = SendOptions(link=link, codec="none", streams=1)
    sent, _ = carry(port, state, None, options, "rdma")
    return float(sent["bytes_raw"] / MIB / sent["seconds"])


def main() -> None:
    """Measure in turn, and leave the samples in ``results``."""
    out, repeats, mib = Path(sys.argv[1]), *map(int, (Path(sys.argv[1]) / "how").read_text().split())
    set_up()
    state = {"state": noise(mib * MIB, 1)}
    contenders: dict[str, Callable[[int], float]] = {
        "ours over rdma": lambda turn: rate_of_ours(7100 + turn, state, "rdma"),
        "ours over tcp": lambda turn: rate_of_ours(7200 + turn, state, "tcp"),
        "ib_send_bw": lambda _: rate_of_tool("ib_send_bw", mib * MIB),
        "ib_write_bw": lambda _: rate_of_tool("ib_write_bw", mib * MIB),
    }
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        names = list(contenders)[turn % len(contenders) :] + list(contenders)[: turn % len(contenders)]
        for name in names:
            rate = contenders[name](turn)
            if turn:
                samples[name].append(rate)
    (out / "results").write_text(json.dumps(samples), encoding="utf-8")


if __name__ == "__main__":
    main()
