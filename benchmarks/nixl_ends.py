"""NIXL over UCX and TCP beside us in `bench_datacenter.py`: a process writes its memory into another's.

NIXL moves bytes between registered buffers and proves nothing of them. It runs where `nixl-cu13` is
installed; `python nixl_ends.py receive BYTES` is the receiver, which speaks in lines with its parent.
"""

import base64
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import harness

ROUNDS = 3
TIMEOUT_S = 60.0


def agent(name: str) -> Any:
    """An agent that goes over TCP of this host, whatever else UCX finds."""
    # Where there is a GPU, NIXL refuses to begin without what copies to it.
    os.environ["UCX_TLS"] = "tcp,cuda_copy" if Path("/dev/nvidia0").exists() else "tcp"
    os.environ["UCX_NET_DEVICES"] = "lo"
    os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")
    api = importlib.import_module("nixl_cu13")
    return api.nixl_agent(name, api.nixl_agent_config(backends=["UCX"]))


def memory(data: np.ndarray[Any, Any]) -> list[tuple[int, int, int, str]]:
    """The memory of an array as NIXL registers it."""
    return [(data.ctypes.data, data.nbytes, 0, "")]


def receive(size: int) -> None:
    """Lend zeroed memory to whoever learns of it, and tell at the end what stands in it."""
    here, target = agent("receiver"), np.zeros(size, np.uint8)
    here.register_memory(memory(target), mem_type="DRAM")
    for known in (here.get_agent_metadata(), str(target.ctypes.data).encode()):
        print(base64.b64encode(known).decode(), flush=True)
    sys.stdin.readline()
    print(int(np.add.reduce(target.view(np.uint64))), flush=True)


def send(data: np.ndarray[Any, Any], receiver: subprocess.Popen[str]) -> float:
    """Seconds of the median of some rounds, the first of which warms up."""
    assert receiver.stdin is not None and receiver.stdout is not None
    metadata, address = (base64.b64decode(receiver.stdout.readline()) for _ in range(2))
    here = agent("sender")
    here.register_memory(memory(data), mem_type="DRAM")
    there = here.add_remote_agent(metadata)
    local = here.get_xfer_descs([(data.ctypes.data, data.nbytes, 0)], mem_type="DRAM")
    remote = here.get_xfer_descs([(int(address), data.nbytes, 0)], mem_type="DRAM")
    request = here.initialize_xfer("WRITE", local, remote, there)

    def move() -> None:
        state, end = here.transfer(request), time.monotonic() + TIMEOUT_S
        while state != "DONE":
            assert state == "PROC" and time.monotonic() < end, state
            state = here.check_xfer_state(request)

    taken = [harness.seconds(move) for _ in range(ROUNDS + 1)][1:]
    receiver.stdin.write("\n")
    receiver.stdin.flush()
    # It does not say of itself that all has arrived.
    assert int(receiver.stdout.readline()) == int(np.add.reduce(data.view(np.uint64)))
    return statistics.median(taken)


def nixl(size: int) -> float | None:
    """Seconds for `size` bytes from memory to memory; None where NIXL is not installed."""
    if importlib.util.find_spec("nixl_cu13") is None:
        return None
    data = np.frombuffer(harness.incompressible(size), np.uint8)
    command = [sys.executable, __file__, "receive", str(size)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as receiver:
        try:
            return send(data, receiver)
        finally:
            receiver.terminate()


if __name__ == "__main__":
    receive(int(sys.argv[2]))
