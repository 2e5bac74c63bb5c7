"""The two ends of a measured link for short states, run by `wan_cases.py`.

Each goes in a session that is open, beside a message and its answer on a socket that is open as well.
"""

import socket
import sys
import threading

import dwcp_fast
import harness
from wan_ends import tell

STATE_BYTES = 4096
TURNS = 20
PEER_S = 60.0
NAME = "state"


def receive(address: str) -> None:
    """Take states and messages until the sender has no more."""
    with (
        socket.create_server((address, 0)) as server,
        dwcp_fast.listen(f"{address}:0") as listener,
    ):
        answering = (server, STATE_BYTES)
        threading.Thread(target=harness.answer_messages, args=answering, daemon=True).start()
        tell(pairing=listener.pairing, port=server.getsockname()[1])
        into = bytearray(STATE_BYTES)
        with listener.accept(timeout_s=PEER_S) as session:  # type: ignore[union-attr]
            while session.receive_into({NAME: into}, timeout_s=PEER_S) is not None:
                pass


def send(pairing: str, address: str, port: int) -> None:
    """Send states and messages by turns; tells the seconds that each took."""
    data = harness.incompressible(STATE_BYTES)
    message = memoryview(data).cast("B")
    seconds: dict[str, list[float]] = {"raw": [], "dwcp": []}
    with (
        harness.asking((address, port), message) as ask,
        dwcp_fast.connect(pairing, options=dwcp_fast.SendOptions(base="none")) as session,
    ):
        for turn in range(TURNS + 1):
            taken = {
                "raw": harness.seconds(ask),
                "dwcp": harness.seconds(lambda: session.send({NAME: data})),
            }
            if turn > 0:
                for name, one in taken.items():
                    seconds[name].append(one)
    tell(seconds=seconds)


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(sys.argv[2])
    else:
        send(sys.argv[2], sys.argv[3], int(sys.argv[4]))
