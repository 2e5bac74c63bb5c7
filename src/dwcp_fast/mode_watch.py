"""The thread that looks at the links of all sessions that send, for their modes."""

import logging
import os
import threading
import time
from typing import Final, Protocol

from dwcp_fast.policy.mode import SAMPLE_S

__all__ = ["WATCH", "ModeWatch", "Watched"]

LOG: Final = logging.getLogger(__name__)
REST: Final = 20.0
"""How many times as long as its looks took the thread rests: the interpreter is for those who send."""


class Watched(Protocol):
    """A session whose link is to be looked at."""

    @property
    def is_busy(self) -> bool:
        """Whether a transfer is under way."""

    def look(self) -> bool:
        """Look, and tell whether to do so again."""


class ModeWatch:
    """One thread for all sessions of the process; it ends when there is nothing to look at.

    With one for each, hundreds of them would wait for the interpreter, and their sessions behind them.
    """

    def __init__(self) -> None:
        """Watch nothing yet."""
        self._lock = threading.Lock()
        self._watched: set[Watched] = set()
        self._thread: threading.Thread | None = None

    def add(self, watched: Watched) -> None:
        """Have a session that is busy looked at, until it does not want it any more."""
        with self._lock:
            self._watched.add(watched)
            if self._thread is not None:
                return
            self._thread = threading.Thread(target=self._follow, name="dwcp-mode", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:
                # The interpreter is about to end, or the system has no threads left.
                self._thread = None
                LOG.debug("the mode stays as it is: %s", error)

    def renew(self) -> None:
        """Forget the sessions: after a fork they are the parent's."""
        self._lock = threading.Lock()
        self._watched = set()
        self._thread = None

    def _follow(self) -> None:
        pause_s = SAMPLE_S
        while True:
            time.sleep(pause_s)
            with self._lock:
                watched = list(self._watched)
            began_s = time.monotonic()
            ended = [one for one in watched if not self._look_at(one)]
            pause_s = max(SAMPLE_S, REST * (time.monotonic() - began_s))
            # No name in here may hold a session while the thread rests.
            del watched
            with self._lock:
                # What is busy again has been added again.
                self._watched.difference_update([one for one in ended if not one.is_busy])
                del ended
                if not self._watched:
                    self._thread = None
                    return

    def _look_at(self, one: Watched) -> bool:
        """Look at a session; one that fails at it is not looked at again in this transfer."""
        try:
            return one.look()
        except Exception:
            LOG.exception("the mode of a session stays as it is")
            with self._lock:
                self._watched.discard(one)
            return True


WATCH: Final = ModeWatch()
os.register_at_fork(after_in_child=WATCH.renew)
