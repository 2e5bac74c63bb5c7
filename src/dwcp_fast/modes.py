"""Keeps the mode of a session that sends: looks at its link while data flow, and has it go by what is found.

The looking is done here, and not in the native threads, since what follows from it is policy; five looks a
second are enough to act within two, and with hundreds of sessions there are fewer. If this process has no
time for that, the session goes on as it was.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from dwcp_fast.engine import current_flags
from dwcp_fast.errors import DwcpError
from dwcp_fast.mode_watch import WATCH
from dwcp_fast.options import SendOptions
from dwcp_fast.policy.choice import Choice
from dwcp_fast.policy.link import LinkCounts, sample_between
from dwcp_fast.policy.mode import (
    KnownMode,
    ModeSwitch,
    Treatment,
    choose_mode,
    detector_for,
    explain_modes,
    treatment_of,
)

__all__ = ["ModeKeeper", "Movable"]

LOG: Final = logging.getLogger(__name__)
IDLE_S: Final = 1.0
"""Seconds without a transfer after which nobody looks any more, so that short ones start no thread each."""
MOST_SWITCHES: Final = 32
"""Of one transfer, as many are kept, the last ones."""


class Movable(Protocol):
    """A session as its mode sees it."""

    @property
    def is_far(self) -> bool:
        """Whether the peer was found to be far when the session began."""

    def counts(self) -> LinkCounts | None:
        """Tell what TCP has counted in the transfer; None while it tells nothing."""

    def relocate(self, treatment: Treatment, round_trip_s: float) -> None:
        """Go by another treatment from now on."""


class ModeKeeper:
    """The mode of one session, and what becomes of it."""

    def __init__(self, options: SendOptions, events: Callable[[dict[str, Any]], None] | None) -> None:
        """Begin with the mode that is asked for, or with none.

        Args:
            options: How the session sends.
            events: Is told each switch.

        Raises:
            ConfigError: The flags of the deployment forbid the mode, or cannot be used.
            OSError: The flags cannot be read.
        """
        flags = current_flags()
        self._options = options
        self._events = events
        self._choice = choose_mode(options.mode, flags=flags)
        self._detector = detector_for(options.mode, flags=flags)
        self._treatment: Treatment | None = None
        self._session: Movable | None = None
        self._seen: tuple[float, LinkCounts] | None = None
        self._idle_since_s: float | None = None
        self._lock = threading.Lock()
        self._began_s = time.monotonic()
        self._switches: list[ModeSwitch] = []
        self._forgotten = 0

    @property
    def choice(self) -> Choice[str]:
        """The mode at present, and how it came to that in the last transfer."""
        with self._lock:
            return explain_modes(self._choice, self._switches)

    def switches_since(self, count: int) -> tuple[ModeSwitch, ...]:
        """The switches of the last transfer but for the first `count` of the session; the last 32 of them."""
        with self._lock:
            return tuple(self._switches[max(0, count - self._forgotten) :])

    @contextmanager
    def keep(self, session: Movable) -> Iterator[int]:
        """Keep the mode while a transfer is under way; gives how many switches there were before."""
        with self._lock:
            # A session of a thousand transfers does not tell of all of them in each.
            self._forget(len(self._switches))
            count = self._forgotten
        if self._detector is None:
            yield count
            return
        if self._treatment is None:
            # What the handshake has chosen is what the mode of such a link means.
            self._treatment = self._meaning("internet" if session.is_far else "datacenter")
        self._session = session
        WATCH.add(self)
        try:
            yield count
        finally:
            self._session = None

    @property
    def is_busy(self) -> bool:
        """Whether a transfer is under way."""
        return self._session is not None

    def look(self) -> bool:
        """Look at the session, and tell whether to do so again: not if there was no transfer for a while."""
        session, now_s = self._session, time.monotonic()
        if session is not None:
            self._seen, self._idle_since_s = self._sample(session, self._seen), None
            return True
        self._seen, self._idle_since_s = None, self._idle_since_s or now_s
        return now_s - self._idle_since_s < IDLE_S

    def _sample(
        self, session: Movable, before: tuple[float, LinkCounts] | None
    ) -> tuple[float, LinkCounts] | None:
        """Look at a session, and act on what has become of it since the look before."""
        try:
            counts, now_s = session.counts(), time.monotonic() - self._began_s
            if counts is not None and before is not None:
                before_s, earlier = before
                self._compare(session, earlier, counts, now_s - before_s, now_s)
        except DwcpError as error:
            # The session was closed under it, or there is no thread for another lane.
            LOG.debug("the mode stays as it is: %s", error)
            return None
        return None if counts is None else (now_s, counts)

    def _compare(
        self, session: Movable, before: LinkCounts, after: LinkCounts, seconds: float, now_s: float
    ) -> None:
        """Take what was counted at two moments, and act on what it shows."""
        sample = sample_between(before, after, seconds=seconds, at_s=now_s)
        switch = self._detector.observe(sample) if self._detector and sample else None
        if switch is None:
            return
        with self._lock:
            self._switches.append(switch)
            self._forget(len(self._switches) - MOST_SWITCHES)
        LOG.info("the mode is %s now, and was %s: %s", switch.mode, switch.before, switch.why)
        # What is not known any more is no reason to do anything else.
        if switch.mode != "unknown":
            treatment = self._meaning(switch.mode)
            if treatment != self._treatment:
                session.relocate(treatment, (switch.rtt_ms or 0.0) / 1e3)
                self._treatment = treatment
        if self._events is not None:
            told = {"mode": switch.mode, "before": switch.before, "why": switch.why}
            self._events({"type": "mode-switched", **told})

    def _forget(self, count: int) -> None:
        """Keep of the first so many switches no more than what they led to."""
        if count > 0:
            self._choice = explain_modes(self._choice, self._switches[count - 1 : count])
            del self._switches[:count]
            self._forgotten += count

    def _meaning(self, mode: KnownMode) -> Treatment:
        return treatment_of(mode, self._options.streams, polite=self._options.polite)
