"""Runs in the guest of bench_rdma.py: our lanes and the tools of perftest, in turn, over Soft-RoCE."""

import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from dwcp_fast import INSECURE, ReceiveOptions, RegisteredBuffer, SendOptions, connect, listen
from dwcp_fast.options import Carrier

# The guest's cases, which the tests have too.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from rdma.inside import HOST, MIB, PATIENCE_S, Side, noise, set_up

MESSAGE_BYTES: Final = 65_536
"""As long as one of ours."""
OTHER_SIZES: Final = (262_144,)
TOOL_S: Final = 60


def rate_of_tool(tool: str, total_bytes: int, message_bytes: int = MESSAGE_BYTES) -> float:
    """Have a tool of perftest send so much; gives MiB a second."""
    count = total_bytes // message_bytes
    common = [tool, "-R", "-F", "-s", str(message_bytes), "-n", str(count)]
    with subprocess.Popen(common, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            time.sleep(1)
            told = subprocess.run(
                [*common, HOST], capture_output=True, text=True, timeout=TOOL_S, check=True
            ).stdout
            server.wait(TOOL_S)
        finally:
            server.kill()
    found = re.search(rf"^\s*{message_bytes}\s+{count}\s+\S+\s+(\S+)", told, flags=re.MULTILINE)
    if found is None:
        raise ValueError(f"{tool} tells no rate: {told}")
    return float(found[1])


def processor_s() -> float:
    """Tell how much processor time this process has used, that of the kernel for it included."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def take(tell: Callable[[Any], None], port: int, length: int) -> float:
    """Receive a state twice into the same memory; gives the processor time of the second."""
    with listen(f"{HOST}:{port}", trust=INSECURE, options=ReceiveOptions(link="rdma")) as listener:
        tell(listener.address)
        session = listener.accept(timeout_s=PATIENCE_S)
        assert session is not None
        with session, RegisteredBuffer(length) as buffer:
            session.receive_into({"state": buffer}, timeout_s=PATIENCE_S)
            began = processor_s()
            session.receive_into({"state": buffer}, timeout_s=PATIENCE_S)
            return processor_s() - began


def give(tell: Callable[[Any], None], port: int, state: bytes, link: Carrier) -> tuple[float, float, float]:
    """Send a state twice on one lane; gives the seconds of both, and the processor time of the second."""
    tell("ready")
    options = SendOptions(link=link, codec="none", streams=1)
    with (
        RegisteredBuffer.of(state) as buffer,
        connect(f"{HOST}:{port}", trust=INSECURE, options=options) as session,
    ):
        first = session.send({"state": buffer})
        began = processor_s()
        second = session.send({"state": buffer})
        return first.seconds, second.seconds, processor_s() - began


def ours(port: int, state: bytes, link: Carrier) -> dict[str, float]:
    """Send a state twice on one lane, verified; gives MiB a second, and processor time for a GiB."""
    with Side(take, port, len(state)) as taker:
        taker.next()
        with Side(give, port, state, link) as giver:
            giver.next()
            first_s, second_s, sending_s = giver.next()
        receiving_s = taker.next()
    mib = len(state) / MIB
    return {
        f"ours over {link}": mib / second_s,
        f"ours over {link}, first transfer": mib / first_s,
        f"sender's processor s/GiB, {link}": sending_s * 1024 / mib,
        f"receiver's processor s/GiB, {link}": receiving_s * 1024 / mib,
    }


def main() -> None:
    """Measure in turn, and leave the samples in ``results``."""
    out, repeats, mib = Path(sys.argv[1]), *map(int, (Path(sys.argv[1]) / "how").read_text().split())
    set_up()
    state = noise(mib * MIB, 1)

    def tools(message_bytes: int, suffix: str = "") -> dict[str, float]:
        return {
            f"{tool}{suffix}": rate_of_tool(tool, mib * MIB, message_bytes)
            for tool in ("ib_send_bw", "ib_write_bw")
        }

    contenders: list[Callable[[int], dict[str, float]]] = [
        lambda turn: ours(7100 + turn, state, "rdma"),
        lambda _: tools(MESSAGE_BYTES),
        lambda turn: ours(7200 + turn, state, "tcp"),
    ]
    samples: dict[str, list[float]] = {}
    for turn in range(repeats + 1):
        at = turn % len(contenders)
        for contender in contenders[at:] + contenders[:at]:
            for name, value in contender(turn).items():
                if turn:
                    samples.setdefault(name, []).append(value)
    # What SEND and WRITE carry where messages are longer than ours: claimed by nobody.
    for _ in range(min(repeats, 3)):
        for message_bytes in OTHER_SIZES:
            for name, value in tools(message_bytes, f", messages of {message_bytes} bytes").items():
                samples.setdefault(name, []).append(value)
    (out / "results").write_text(json.dumps(samples), encoding="utf-8")


if __name__ == "__main__":
    main()
