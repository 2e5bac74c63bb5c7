"""A transfer over a loopback interface of its own, counted by the metrics, the kernel and a packet capture.

Run in a network namespace that is new, so that nothing else goes over the interface.
"""

import fcntl
import json
import os
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dwcp_fast as dwcp
from dwcp_fast import metrics

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
SOL_PACKET, PACKET_STATISTICS = 263, 6
SO_RCVBUFFORCE, ETH_P_IP = 33, 0x0800
STATE_BYTES = 64 << 20
WAIT_S = 30.0


def raise_interface() -> None:
    """Bring the loopback interface up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def interface_bytes() -> int:
    """Bytes that the interface has sent, headers included, as the kernel counts them."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    (counters,) = [line.partition(":")[2].split() for line in lines if line.strip().startswith("lo:")]
    return int(counters[8])


class Capture:
    """Adds up the TCP payload that goes to a port."""

    def __init__(self, port: int) -> None:
        self.port, self.payload, self.packets = port, 0, 0
        # A socket for one protocol sees packets when they come, and not a second time when they go.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._socket.settimeout(0.2)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> int:
        """End when nothing more comes, and give the packets that were missed."""
        self._done.set()
        self._thread.join(WAIT_S)
        told = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        self._socket.close()
        return int(struct.unpack("II", told)[1])

    def _run(self) -> None:
        while True:
            try:
                head = self._socket.recv(128)
            except TimeoutError:
                if self._done.is_set():
                    return
                continue
            if head[9] != socket.IPPROTO_TCP:
                continue
            ip_bytes = (head[0] & 15) * 4
            length, to = int.from_bytes(head[2:4]), int.from_bytes(head[ip_bytes + 2 : ip_bytes + 4])
            if to == self.port:
                self.payload += length - ip_bytes - (head[ip_bytes + 12] >> 4) * 4
                self.packets += 1


def main() -> None:
    """Make the transfer and print what each has counted."""
    raise_interface()
    state = os.urandom(STATE_BYTES)
    options = dwcp.SendOptions(codec="none", streams=2, link="tcp")
    with dwcp.listen("127.0.0.1:0") as listener, ThreadPoolExecutor(1) as pool:
        capture = Capture(int(listener.address.rpartition(":")[2]))
        before = interface_bytes()

        def receive() -> None:
            with listener.accept(WAIT_S) as incoming:  # type: ignore[union-attr]
                incoming.receive(WAIT_S)

        receiving = pool.submit(receive)
        with dwcp.connect(listener.pairing or "", options=options) as session:
            session.send({"state": state})
        receiving.result(WAIT_S)
    missed = capture.stop()
    flow = metrics.snapshot().flow("sent")
    told = {
        "wire_bytes": flow.wire_bytes,
        "tcp_sent_bytes": flow.tcp_sent_bytes,
        "tcp_retransmitted_bytes": flow.tcp_retransmitted_bytes,
        "captured_bytes": capture.payload,
        "captured_packets": capture.packets,
        "missed_packets": missed,
        "interface_bytes": interface_bytes() - before,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
