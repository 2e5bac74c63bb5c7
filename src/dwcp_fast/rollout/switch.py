"""The kill switch: which v3 sessions of this process are open, and their end when v1 is forced.

``force_v1`` acts at once. The flags are looked at twice a second while there is a session, from one thread
that ends with the last of them.
"""

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from dwcp_fast.errors import ConfigError, DwcpError, V3StoppedError
from dwcp_fast.policy.engine import explain_kill
from dwcp_fast.policy.rollout import RolloutFlags
from dwcp_fast.rollout.flags import current_flags

__all__ = ["SWITCH", "Guard", "KillSwitch"]

LOG: Final = logging.getLogger(__name__)
LOOK_S: Final = 0.5


class KillSwitch:
    """Knows the v3 sessions that are open, and ends them when v3 is not to be used any more."""

    def __init__(
        self, flags: Callable[[], RolloutFlags | None] = current_flags, *, look_s: float = LOOK_S
    ) -> None:
        """Watch nothing yet.

        Args:
            flags: Gives the flags in force.
            look_s: Seconds from one look at them to the next.
        """
        self._flags = flags
        self._look_s = look_s
        self._forced = False
        self._lock = threading.Lock()
        self._guards: weakref.WeakSet[Guard] = weakref.WeakSet()
        self._thread: threading.Thread | None = None

    @property
    def forced(self) -> bool:
        """Whether v1 is forced by a call."""
        return self._forced

    def force(self, on: bool) -> None:
        """Force v1 or do not any more; if so, every open v3 session ends."""
        self._forced = on
        if on:
            self.look()

    def explain(self) -> str | None:
        """Say why v3 is not to be used, None if it may be.

        Raises:
            DwcpError: The flags cannot be used, and never could be.
            OSError: The flags cannot be read, and never could be.
        """
        return explain_kill(forced_v1=True, flags=None) if self._forced else self._explain_flags()

    def refusal(self) -> str | None:
        """Say why no v3 session is let in, None if it is; flags that never could be read forbid nothing."""
        try:
            return self.explain()
        except Exception as exc:  # noqa: BLE001 - a source of flags raises what it likes
            LOG.debug("the flags cannot be read: %s", exc)
            return None

    def guard(self, stop: Callable[[], object]) -> "Guard":
        """Have something ended when v3 is not to be used any more.

        Args:
            stop: Ends it; called once at most, in a thread of its own if there is one to be had. It must
                not hold what holds the guard.

        Returns:
            What tells whether that happened. It is watched until it is released, or nobody holds it.

        Raises:
            ConfigError: No thread can be started.
        """
        guard = Guard(stop, self.look)
        with self._lock:
            self._guards.add(guard)
            if self._thread is None:
                self._thread = threading.Thread(target=self._follow, name="dwcp-kill-switch", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError as exc:
                    self._thread = None
                    raise ConfigError(f"the kill switch cannot be watched: {exc}") from exc
        # It may have been forced since the engine was chosen.
        if self._forced:
            self.look()
        return guard

    def look(self) -> None:
        """End what is to be ended, if v3 is not to be used any more."""
        with self._lock:
            guards = [guard for guard in self._guards if not guard.is_over]
        if not guards:
            return
        why = self.refusal()
        if why is not None:
            for guard in guards:
                guard.fire(why)

    def renew(self) -> None:
        """Forget the sessions: after a fork they are the parent's."""
        self._lock = threading.Lock()
        self._guards = weakref.WeakSet()
        self._thread = None

    def _explain_flags(self) -> str | None:
        return explain_kill(forced_v1=False, flags=self._flags())

    def _follow(self) -> None:
        # No name in here may hold a guard: it would be watched for ever.
        while self._has_sessions():
            time.sleep(self._look_s)
            try:
                self.look()
            except Exception:
                # Without this thread no switch reaches a session any more.
                LOG.exception("the kill switch could not be looked at")

    def _has_sessions(self) -> bool:
        """Forget what was released, and tell whether anything is left; the thread ends if not."""
        with self._lock:
            for guard in [guard for guard in self._guards if guard.is_over]:
                self._guards.discard(guard)
            if not self._guards:
                self._thread = None
            return self._thread is not None


class Guard:
    """One v3 session under the kill switch; made by :meth:`KillSwitch.guard`."""

    def __init__(self, stop: Callable[[], object], look: Callable[[], None]) -> None:
        """Note how it is ended, and how the switch is looked at before it does so by itself."""
        self._stop = stop
        self._look = look
        self._lock = threading.Lock()
        self._released = False
        self.why: str | None = None
        """Why it was ended, None if it was not."""

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to end."""
        return self._released or self.why is not None

    def fire(self, why: str) -> None:
        """End it; a second time does nothing."""
        with self._lock:
            if self.is_over:
                return
            self.why = why
        LOG.warning("a v3 session is stopped: %s", why)
        # Parting may take a moment, and a hundred sessions are to end as soon as one.
        try:
            threading.Thread(target=self._run, name="dwcp-stop", daemon=True).start()
        except RuntimeError as exc:
            LOG.debug("no thread to stop a session in: %s", exc)
            self._run()

    def release(self) -> None:
        """Have it watched no more."""
        self._released = True

    def _run(self) -> None:
        try:
            self._stop()
        except DwcpError as exc:
            # It ended by itself meanwhile.
            LOG.debug("a session that was to be stopped: %s", exc)
        except Exception:
            LOG.exception("a session could not be stopped")

    @contextmanager
    def told(self) -> Iterator[None]:
        """Have what the session raises when the switch ended it say so.

        Raises:
            V3StoppedError: The switch ended it.
        """
        try:
            yield
        except DwcpError as exc:
            if exc.code == "peer-failed":
                # A peer with the same flags may have read them first, and turns away what is to end here too.
                self._look()
            if self.why is None or exc.code not in {"cancelled", "closed", "peer-failed"}:
                raise
            raise V3StoppedError(
                f"this v3 session was stopped: {self.why}",
                hint="run the same again: with protocol auto it uses v1 while the kill switch is on",
                resumable=exc.resumable,
            ) from exc


SWITCH: Final = KillSwitch()
os.register_at_fork(after_in_child=SWITCH.renew)
