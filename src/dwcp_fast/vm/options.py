"""How a machine is moved."""

from dataclasses import dataclass
from pathlib import Path

from dwcp_fast.options import check_bandwidth, check_codec, check_congestion, check_int, check_seconds
from dwcp_fast.vm.relay import MAX_CACHE_BYTES, MAX_LANES

__all__ = ["AcceptOptions", "MigrateOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateOptions:
    """How the side that a guest leaves moves it.

    Attributes:
        max_downtime_s: For how long the guest may stand still, in seconds.
        disks: Whether its disks are mirrored too; otherwise both sides have to see the same ones.
        bandwidth_bits_per_s: Most that is sent; None for no limit.
        streams: Number of lanes; None finds it.
        codec: How pages are compressed: ``"auto"``, ``"none"``, ``"lz4"`` or ``"zstd:N"``.
        congestion: Congestion control of the lanes, as for :class:`~dwcp_fast.SendOptions`.
        page_cache_bytes: Memory, on either side, for pages that were sent, against which later ones are
            coded.
        multifd: Connections over which QEMU itself spreads memory; 0 for one, whose pages are understood.
        keep: Directory into which the guest's memory is written as it is sent; a base for its way back.
        timeout_s: Most that the whole move may take, in seconds; None for no limit.
        stall_s: Longest time in which nothing may go on, in seconds.
        patience_rounds: Rounds without gain after which the move is given up.
        settle_s: Seconds in which a lost link is looked for again when the guest has stopped here already.
        connect_timeout_s: Seconds to reach the other side.
        idle_timeout_s: Longest silence of a lane, in seconds.
        socket_dir: Where the Unix sockets are made that QEMU connects to; None for a new private directory.
    """

    max_downtime_s: float = 0.3
    disks: bool = False
    bandwidth_bits_per_s: int | None = None
    streams: int | None = None
    codec: str = "auto"
    congestion: str = "auto"
    page_cache_bytes: int = 256 << 20
    multifd: int = 0
    keep: Path | None = None
    timeout_s: float | None = None
    stall_s: float = 60.0
    patience_rounds: int = 8
    settle_s: float = 60.0
    connect_timeout_s: float = 10.0
    idle_timeout_s: float = 30.0
    socket_dir: Path | None = None

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: One cannot be used.
        """
        check_seconds("max_downtime_s", self.max_downtime_s)
        if self.bandwidth_bits_per_s is not None:
            check_bandwidth("bandwidth_bits_per_s", self.bandwidth_bits_per_s)
        if self.streams is not None:
            check_int("streams", self.streams, 1, MAX_LANES)
        check_codec(self.codec)
        check_congestion(self.congestion)
        check_int("page_cache_bytes", self.page_cache_bytes, 0, MAX_CACHE_BYTES)
        check_int("multifd", self.multifd, 0, MAX_LANES)
        if self.timeout_s is not None:
            check_seconds("timeout_s", self.timeout_s)
        check_seconds("stall_s", self.stall_s)
        check_int("patience_rounds", self.patience_rounds, 2, 1000)
        check_seconds("settle_s", self.settle_s)
        check_seconds("connect_timeout_s", self.connect_timeout_s)
        check_seconds("idle_timeout_s", self.idle_timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptOptions:
    """How the side that a guest comes to takes it.

    Attributes:
        base: Directory with an earlier copy of the guest's memory, as `keep` wrote it.
        keep: Directory into which the guest's memory is written as it comes; a base for its next way here.
        max_page_cache_bytes: Most memory that the other side may ask for, for pages that were sent.
        settle_s: Seconds in which the other side may come back when the guest is here and it is not known
            whether it may run.
        idle_timeout_s: Longest silence of a lane, in seconds.
        socket_dir: Where Unix sockets are made that QEMU listens on; None for a new private directory.
    """

    base: Path | None = None
    keep: Path | None = None
    max_page_cache_bytes: int = 4 << 30
    settle_s: float = 600.0
    idle_timeout_s: float = 30.0
    socket_dir: Path | None = None

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: One cannot be used.
        """
        check_int("max_page_cache_bytes", self.max_page_cache_bytes, 0, MAX_CACHE_BYTES)
        check_seconds("settle_s", self.settle_s)
        check_seconds("idle_timeout_s", self.idle_timeout_s)
