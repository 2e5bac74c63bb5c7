"""Follows a schedule of rates by the clock of the wall, from a thread of its own."""

import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final, Protocol

from dwcp_fast.errors import ConfigError, DwcpError
from dwcp_fast.options import BandwidthSchedule, SendOptions, check_bandwidth, parse_schedule

__all__ = ["Throttle", "Throttled", "bandwidth_now", "check_rate", "follow_schedule"]

LOG: Final = logging.getLogger(__name__)
MINUTE_S: Final = 60.0


class Throttled(Protocol):
    """What has a rate that can be set while it works."""

    def set_rate(self, bytes_per_s: int | None) -> None:
        """Set the rate, or take it away."""


def minute_of_day() -> int:
    """Give the minutes since midnight, local time."""
    now = time.localtime()
    return now.tm_hour * 60 + now.tm_min


def seconds_to_next_minute() -> float:
    """Give the seconds until the clock shows another minute."""
    return MINUTE_S - time.time() % MINUTE_S


class Throttle:
    """Sets the rate of something anew whenever the schedule says so, until it is stopped or that is gone."""

    def __init__(
        self,
        target: Throttled,
        schedule: BandwidthSchedule,
        *,
        minute: Callable[[], int] = minute_of_day,
        pause_s: Callable[[], float] = seconds_to_next_minute,
    ) -> None:
        """Begin to follow.

        Args:
            target: What to throttle; held weakly. Its rate is set to what holds now at once.
            schedule: What holds when.
            minute: Tells the minutes since midnight.
            pause_s: Tells the seconds after which to look at the clock again. Looking once a minute also
                notices a clock that was set.
        """
        self._target = weakref.ref(target)
        self._schedule = schedule
        self._minute = minute
        self._pause_s = pause_s
        self._stopped = threading.Event()
        self._rate = schedule.rate_at(minute())
        target.set_rate(bytes_of(self._rate))
        self._thread = threading.Thread(target=self._follow, name="dwcp-throttle", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leave the rate as it is from now on."""
        self._stopped.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(1)

    def _follow(self) -> None:
        while not self._stopped.wait(self._pause_s()) and self._adjust():
            pass

    def _adjust(self) -> bool:
        """Set the rate if another one holds now, and tell whether there will be a next time."""
        # Held no longer than this call lasts: a pause must not keep alive what it throttles.
        target = self._target()
        if target is None or self._stopped.is_set():
            return False
        rate = self._schedule.rate_at(self._minute())
        if rate == self._rate:
            return True
        try:
            target.set_rate(bytes_of(rate))
        except DwcpError as error:
            # It was closed under it, which is the end of the schedule and nothing else.
            LOG.debug("the schedule ends: %s", error)
            return False
        LOG.info("the bandwidth limit is %s now", "off" if rate is None else f"{rate} bit/s")
        self._rate = rate
        return True


def bytes_of(bits_per_s: int | None) -> int | None:
    """Give a rate in bytes per second."""
    return None if bits_per_s is None else bits_per_s // 8


def check_rate(bits_per_s: int | None) -> int | None:
    """Check a rate in bits per second, and give it in bytes per second.

    Raises:
        ConfigError: It is out of range.
    """
    if bits_per_s is not None:
        check_bandwidth("bits_per_s", bits_per_s)
    return bytes_of(bits_per_s)


def bandwidth_now(options: SendOptions) -> int | None:
    """Give the rate in bytes per second with which to begin."""
    if options.bandwidth_schedule is None:
        return bytes_of(options.bandwidth_bits_per_s)
    return bytes_of(parse_schedule(options.bandwidth_schedule).rate_at(minute_of_day()))


def follow_schedule(target: Throttled, options: SendOptions | None) -> Throttle | None:
    """Have a target follow the schedule of its options, if there is one.

    Raises:
        ConfigError: No thread can be started.
    """
    if options is None or options.bandwidth_schedule is None:
        return None
    try:
        return Throttle(target, parse_schedule(options.bandwidth_schedule))
    except RuntimeError as exc:
        raise ConfigError(f"the schedule cannot be followed: {exc}") from exc
