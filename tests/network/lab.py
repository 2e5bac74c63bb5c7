"""Two network namespaces joined by links like those of the internet, made in user space (docs/link-lab.md).

::

    with Lab([Shape(delay_ms=50, rate_bps=500e6, loss=0.001)]) as lab:
        server = lab.start(RIGHT, ["iperf3", "-s", "-1"])
        lab.run(LEFT, ["iperf3", "-c", lab.address(RIGHT)])
        lab.change("both", loss=0.01)

Needs root, ``/dev/net/tun``, ``ip`` and the program ``dwcp-linklab`` (``make lab``); `why_missing` says what
is not there. Several labs may run at once. Everything is taken down at the end, also after a failure.
"""

import fcntl
import ipaddress
import itertools
import json
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

Side = Literal["left", "right"]
Sense = Literal["ab", "ba", "both"]
LEFT: Side = "left"
RIGHT: Side = "right"
SIDES: tuple[Side, Side] = (LEFT, RIGHT)
# TEST-NET-2 of RFC 5737: never an address of the machine itself, and none of loopback: peers count as remote.
FIRST_ADDRESS = ipaddress.IPv4Address("198.51.100.0")
MAX_PATHS = 60
FIRST_TABLE = 100
REPOSITORY = Path(__file__).resolve().parents[2]
WAIT_S = 10.0

# From linux/if_tun.h.
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08
# The link drops what is too much, never the device in front of it.
DEVICE_QUEUE_PACKETS = 100_000
# Of a wire: what may pass at once after a pause, which has to bridge the time until the kernel looks again.
WIRE_BURST_S = 0.004

_numbers = itertools.count()


class LabError(RuntimeError):
    """The lab cannot be set up, or the link refused what it was told."""


@dataclass(frozen=True)
class Shape:
    """What both directions of a path are like at first; `Lab.change` takes the same names, and `cut`.

    Attributes:
        rate_bps: Bits per second of IP packets; None for no limit.
        trace: File with lines of ``seconds bits/s``, or with mahimahi's milliseconds; instead of `rate_bps`.
        queue_ms: What the drop-tail queue holds, in milliseconds of the present rate.
        queue_bytes: The same in bytes; instead of `queue_ms`.
        delay_ms: One way.
        jitter_ms: Most that is added to the delay; without reordering.
        loss: Share of packets lost in the good state, in either direction.
        loss_bad: Share lost in the bad state of bursty loss.
        to_bad: Chance at each packet that the good state ends.
        to_good: Chance at each packet that the bad state ends.
        reorder: Share of packets that later ones overtake.
        reorder_ms: By how much those are held back.
        seed: Of all that is random.
    """

    rate_bps: float | None = None
    trace: Path | None = None
    queue_ms: float | None = None
    queue_bytes: int | None = None
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    loss_bad: float = 0.0
    to_bad: float = 0.0
    to_good: float = 0.0
    reorder: float = 0.0
    reorder_ms: float = 0.0
    seed: int = 1

    def words(self) -> list[str]:
        """What the link is told."""
        return words({name: value for name, value in vars(self).items() if value is not None})


def words(settings: Mapping[str, object]) -> list[str]:
    """Settings as the link reads them; None for a rate means no limit."""
    return [f"{name}={'none' if value is None else format_value(value)}" for name, value in settings.items()]


def format_value(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def link_program() -> Path | None:
    """The newest ``dwcp-linklab`` that was built here."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    built = [target / kind / "dwcp-linklab" for kind in ("release", "debug")]
    there = [path for path in built if path.is_file()]
    return max(there, key=lambda path: path.stat().st_mtime) if there else None


@cache
def why_missing() -> str | None:
    """Why there can be no lab here; None if there can."""
    if os.geteuid() != 0:
        return "the link lab needs root"
    if shutil.which("ip") is None:
        return "the link lab needs the program ip (iproute2)"
    if link_program() is None:
        return "the link lab needs dwcp-linklab: make lab"
    try:
        os.close(open_tun(f"dwl{os.getpid():x}t", offload=False))
    except OSError as fault:
        return f"the link lab needs /dev/net/tun: {fault.strerror}"
    name = f"dwl{os.getpid():x}t"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"the link lab needs network namespaces: {made.stderr.strip()}"
    ip(f"netns del {name}")
    return None


def open_tun(name: str, *, offload: bool) -> int:
    """Make a TUN device, which lives as long as the descriptor.

    Raises:
        OSError: No such device can be made here.
    """
    number = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
        fcntl.ioctl(number, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        if offload:
            fcntl.ioctl(number, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN)
    except OSError:
        os.close(number)
        raise
    return number


def ip(arguments: str) -> None:
    """Run ``ip``.

    Raises:
        LabError: It failed.
    """
    execute(f"ip {arguments}")


def execute(line: str) -> None:
    """Run a program.

    Raises:
        LabError: It is not there, or failed.
    """
    try:
        done = subprocess.run(line.split(), capture_output=True, text=True, check=False)
    except FileNotFoundError as fault:
        raise LabError(f"{line}: {fault.strerror}") from None
    if done.returncode:
        raise LabError(f"{line}: {done.stderr.strip()}")


class Lab:
    """Two namespaces and the paths between them.

    Args:
        paths: What each path is like; each has a device and an address of its own on both sides.
        mtu: Of all paths, in bytes.
        sysctls: Set in both namespaces, such as ``{"net.ipv4.tcp_congestion_control": "cubic"}``.
        offload: Whether packets are handed over in bundles of segments, which is cheaper.
        quantum_us: Busy directions wake no more often than this.
        urgent: Whether what runs in the lab goes before what else this machine is busy with. An end that
            waits for its turn answers late, and TCP cannot tell that from a long way.

    Raises:
        LabError: It cannot be set up.
    """

    def __init__(
        self,
        paths: Sequence[Shape],
        *,
        mtu: int = 1500,
        sysctls: Mapping[str, str] | None = None,
        offload: bool = True,
        quantum_us: int = 100,
        urgent: bool = False,
    ) -> None:
        if not 0 < len(paths) <= MAX_PATHS:
            raise LabError(f"{len(paths)} paths, allowed are 1 to {MAX_PATHS}")
        self._paths = paths
        self._mtu = mtu
        self._sysctls = dict(sysctls or {})
        self._offload = offload
        self._quantum_us = quantum_us
        self._urgent = urgent
        self._mark = f"dwl{os.getpid():x}x{next(_numbers)}"
        self._stack = ExitStack()
        self._children: list[subprocess.Popen[Any]] = []
        self._link: subprocess.Popen[str] | None = None
        self._wired: set[int] = set()
        self._ways: dict[tuple[Side, int], str] = {}
        self.is_realtime = False

    def __enter__(self) -> Self:
        if reason := why_missing():
            raise LabError(reason)
        with self._stack:
            self._set_up()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def namespace(self, side: Side) -> str:
        """Name of a namespace."""
        return f"{self._mark}-{side}"

    def address(self, side: Side, path: int = 0) -> str:
        """Address of a side on a path."""
        return str(FIRST_ADDRESS + 4 * path + 1 + SIDES.index(side))

    def command(self, side: Side, command: Iterable[str | Path]) -> list[str]:
        """The command that runs a command in a namespace."""
        # Without the right to it `nice` says so and goes on.
        first = ["nice", "-n", "-15"] if self._urgent else []
        return ["ip", "netns", "exec", self.namespace(side), *first, *map(str, command)]

    def run(
        self, side: Side, command: Iterable[str | Path], *, timeout_s: float = 60.0, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; text is captured.

        Raises:
            subprocess.SubprocessError: It failed, or took longer than `timeout_s`.
        """
        options = {"capture_output": True, "text": True, "check": True} | options
        return subprocess.run(self.command(side, command), timeout=timeout_s, **options)

    def start(self, side: Side, command: Iterable[str | Path], **options: Any) -> subprocess.Popen[Any]:
        """Start a command; it is killed at the end of the lab, if it still runs."""
        child = subprocess.Popen(self.command(side, command), **options)
        self._children.append(child)
        return child

    def kill(self, child: subprocess.Popen[Any]) -> None:
        """End a command that was started, if it still runs, and forget it."""
        self._children.remove(child)
        child.kill()
        child.wait(WAIT_S)
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def change(self, sense: Sense = "both", *, path: int = 0, **settings: object) -> None:
        """Change a path while it runs: from left to right (``ab``), back, or both.

        Raises:
            LabError: The link refused it.
        """
        self._tell(f"set {path} {sense} {' '.join(words(settings))}")

    def cut(self, *, path: int = 0) -> None:
        """Let nothing pass any more, without a word to either side."""
        self.change(path=path, cut=True)

    def mend(self, *, path: int = 0) -> None:
        """Let packets pass again."""
        self.change(path=path, cut=False)

    def bypass(self, rate_bps: float, *, path: int = 0) -> None:
        """Have a path go over a wire of the kernel's own from now on, of connections that are up too.

        The link carries no more than this machine's processors let it, which is less than 1 Gbit/s where
        others use them; the wire carries any rate, and has next to no delay. What the link has of the path
        still arrives. `rejoin` takes the path back to the link.

        Raises:
            LabError: There can be no such wire.
        """
        wires = [self._wire(side, path) for side in SIDES]
        if path not in self._wired:
            left, right = map(self.namespace, SIDES)
            ip(f"-n {left} link add {wires[0]} type veth peer name {wires[1]} netns {right}")
            self._wired.add(path)
            for side, wire in zip(SIDES, wires, strict=True):
                ip(f"-n {self.namespace(side)} link set {wire} addrgenmode none")
                ip(f"-n {self.namespace(side)} link set {wire} mtu {self._mtu} up")
        burst = max(256 << 10, round(rate_bps / 8 * WIRE_BURST_S))
        for side, wire in zip(SIDES, wires, strict=True):
            shape = f"tbf rate {round(rate_bps)} burst {burst} latency 10ms"
            execute(f"tc -n {self.namespace(side)} qdisc replace dev {wire} root {shape}")
        self._go_over(path, wires)

    def rejoin(self, *, path: int = 0) -> None:
        """Have a path go over the link again; see `bypass`."""
        self._go_over(path, [self._device(side, path) for side in SIDES])

    def _go_over(self, path: int, devices: Sequence[str]) -> None:
        for side, device in zip(SIDES, devices, strict=True):
            self._ways[side, path] = device
            for route in self._routes(side, path):
                ip(f"-n {self.namespace(side)} route replace {route}")

    def lock_congestion(self, name: str | None, side: Side = LEFT) -> None:
        """Leave new connections from a side no congestion control but this one; None leaves them all.

        A program that asks for another gets the same refusal (EPERM) as one that may not use it. Which there
        are and which are allowed are matters of the whole machine, so it is the route that says it.

        Raises:
            LabError: The kernel does not know it.
        """
        for path in range(len(self._paths)):
            for route in self._routes(side, path):
                lock = f"congctl lock {name}" if name else ""
                ip(f"-n {self.namespace(side)} route replace {route} {lock}")

    def stats(self, *, path: int = 0) -> dict[str, dict[str, float]]:
        """What happened since the start, for each direction; packets are those of the line.

        Raises:
            LabError: The link has ended.
        """
        told: dict[str, dict[str, float]] = self._tell("stats")[str(path)]
        return told

    def device_drops(self, *, path: int = 0) -> int:
        """Packets that a device dropped before the link saw them: more than 0 spoils a measurement."""
        names = [(side, f"/sys/class/net/{self._device(side, path)}/statistics/tx_dropped") for side in SIDES]
        # `ip netns exec` mounts the /sys of the namespace.
        return sum(int(self.run(side, ["cat", name]).stdout) for side, name in names)

    def _device(self, side: Side, path: int) -> str:
        return f"{side}{path}"

    def _wire(self, side: Side, path: int) -> str:
        return f"{side}{path}wire"

    def _set_up(self) -> None:
        for side in SIDES:
            space = self.namespace(side)
            ip(f"netns add {space}")
            self._stack.callback(ip, f"netns del {space}")
            ip(f"-n {space} link set lo up")
            for name, value in self._sysctls.items():
                file = "/proc/sys/" + name.replace(".", "/")
                done = self.run(side, ["tee", file], input=value, check=False)
                if done.returncode:
                    raise LabError(f"{name}={value}: {done.stderr.strip()}")
        program = link_program()
        assert program is not None
        with ExitStack() as ours:
            numbers = []
            for path in range(len(self._paths)):
                for side in SIDES:
                    number = self._add_device(side, path)
                    ours.callback(os.close, number)
                    numbers.append(number)
            self._link = subprocess.Popen(
                [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=numbers
            )
            self._stack.callback(self._end_link, self._link)
        self._stack.callback(self._end_children)
        # On a busy machine a link that waits for its turn would be a slower link.
        with suppress(PermissionError):
            os.sched_setscheduler(self._link.pid, os.SCHED_FIFO, os.sched_param(10))
            self.is_realtime = True
        for path, shape in enumerate(self._paths):
            left, right = numbers[2 * path : 2 * path + 2]
            self._tell(f"link {path} {left} {right} quantum_us={self._quantum_us}")
            self._tell(f"set {path} both {' '.join(shape.words())}")
            # Or the same packets are lost in both directions.
            self._tell(f"set {path} ba seed={shape.seed + 1}")

    def _add_device(self, side: Side, path: int) -> int:
        made = f"{self._mark}{side[0]}{path}"[:15]
        number = open_tun(made, offload=self._offload)
        try:
            device, space = self._device(side, path), self.namespace(side)
            here = self.address(side, path)
            ip(f"link set {made} netns {space} name {device}")
            ip(f"-n {space} address add {here}/32 dev {device}")
            # No words of IPv6 among the packets that are counted.
            ip(f"-n {space} link set {device} addrgenmode none")
            ip(f"-n {space} link set {device} mtu {self._mtu} txqueuelen {DEVICE_QUEUE_PACKETS} up")
            for route in self._routes(side, path):
                ip(f"-n {space} route replace {route}")
            if side == LEFT:
                # The source address chooses the path, whatever the destination. The answers come back by
                # their destination, so on the same path.
                ip(f"-n {space} rule add from {here} lookup {FIRST_TABLE + path}")
        except LabError:
            os.close(number)
            raise
        return number

    def _routes(self, side: Side, path: int) -> list[str]:
        device = self._ways.get((side, path), self._device(side, path))
        here = self.address(side, path)
        there = self.address(SIDES[1 - SIDES.index(side)], path)
        return [f"{there} dev {device} src {here}", f"default dev {device} table {FIRST_TABLE + path}"]

    def _tell(self, line: str) -> dict[str, Any]:
        link = self._link
        assert link is not None and link.stdin is not None and link.stdout is not None
        if link.stdin.closed:
            raise LabError("the link has ended")
        try:
            link.stdin.write(line + "\n")
            link.stdin.flush()
        except BrokenPipeError:
            raise LabError("the link has ended") from None
        answer = link.stdout.readline()
        if not answer:
            raise LabError("the link has ended")
        told: dict[str, Any] = json.loads(answer)
        if "error" in told:
            raise LabError(f"{line}: {told['error']}")
        return told

    def _end_link(self, link: "subprocess.Popen[str]") -> None:
        with suppress(BrokenPipeError, subprocess.TimeoutExpired):
            link.communicate(timeout=WAIT_S)
        if link.poll() is None:
            link.kill()
            link.communicate()

    def _end_children(self) -> None:
        for child in list(self._children):
            self.kill(child)


def wait_for_port(lab: Lab, side: Side, port: int) -> None:
    """Wait until something listens on a port.

    Raises:
        LabError: Nothing does after `WAIT_S`.
    """
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if lab.run(side, ["ss", "-Hltn", f"sport = :{port}"]).stdout.strip():
            return
        time.sleep(0.02)
    raise LabError(f"nothing listens on port {port} after {WAIT_S:g} s")
