"""A v3 session that goes on in v1 when the kill switch ends it."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from dwcp_fast import _core
from dwcp_fast.buffers import BufferLike
from dwcp_fast.errors import DeadlineError, NegotiationError, V3StoppedError
from dwcp_fast.links import Events, Link, ScannedPaths, V1Link, V3Link
from dwcp_fast.options import SendOptions
from dwcp_fast.policy.choice import Choice
from dwcp_fast.policy.engine import Engine
from dwcp_fast.reports import Progress, SendReport
from dwcp_fast.trust import Trust

__all__ = ["SwitchingLink"]

LOG: Final = logging.getLogger(__name__)


class SwitchingLink:
    """What a session with protocol ``"auto"`` has: v3, and v1 once the kill switch is on.

    A transfer that is under way then is sent in v1 from its beginning; what v3 brought stays staged.
    """

    def __init__(
        self,
        target: str,
        trust: Trust | None,
        options: SendOptions,
        cancel: _core.Cancel,
        events: Events | None,
        engine: Choice[Any],
    ) -> None:
        """Connect."""
        self._target = target
        self._options = options
        self._events = events
        self._limited = False
        self._cancelled = False
        self._lock = threading.Lock()
        self._link: Link
        try:
            self._link = V3Link(target, trust, options, cancel, events, engine)
        except V3StoppedError as stopped:
            self._link = self._make_v1(stopped)

    def send(self, objects: Mapping[str, BufferLike]) -> SendReport:
        """Send named buffers."""
        return self._carry(lambda link: link.send(objects))

    def send_scan(self, scan: ScannedPaths) -> SendReport:
        """Send files."""
        return self._carry(lambda link: link.send_scan(scan))

    def engine(self) -> Engine:
        """Tell which engine is at work."""
        return self._link.engine()

    def progress(self) -> Progress:
        """Tell where the transfer stands."""
        return self._link.progress()

    def choices(self) -> list[Choice[Any]]:
        """Tell what was chosen and why."""
        return self._link.choices()

    def set_bandwidth_limit(self, bytes_per_s: int | None) -> None:
        """Set the rate of all lanes together."""
        self._link.set_bandwidth_limit(bytes_per_s)
        self._limited = bytes_per_s is not None

    def cancel(self) -> None:
        """Stop what is under way; the session is of no use afterwards."""
        with self._lock:
            self._cancelled = True
            link = self._link
        link.cancel()

    def close(self) -> None:
        """Part in peace."""
        self._link.close()

    def _carry(self, send: Callable[[Link], SendReport]) -> SendReport:
        began = time.monotonic()
        try:
            return send(self._link)
        except V3StoppedError as stopped:
            try:
                return self._carry_on(send, began, stopped)
            except NegotiationError as exc:
                # What v1 cannot carry or keep waits for v3.
                raise V3StoppedError(
                    f"{stopped}, and {exc}",
                    hint="lift the kill switch and run the same again",
                    resumable=stopped.resumable,
                ) from exc

    def _carry_on(
        self, send: Callable[[Link], SendReport], began: float, stopped: V3StoppedError
    ) -> SendReport:
        limit = self._options.timeout_s
        link = self._make_v1(stopped)
        if limit is not None:
            link.timeout_s = limit - (time.monotonic() - began)
            if link.timeout_s <= 0:
                raise DeadlineError(f"the transfer took longer than {limit} s") from stopped
        with self._lock:
            if self._cancelled:
                raise stopped
            old, self._link = self._link, link
        old.close()
        if self._events is not None:
            self._events({"type": "switched", "protocol": "v1", "why": str(stopped)})
        try:
            return send(link)
        finally:
            link.timeout_s = limit

    def _make_v1(self, stopped: V3StoppedError) -> V1Link:
        if self._limited:
            raise NegotiationError("v1 cannot keep the bandwidth limit that was set")
        engine: Choice[Any] = Choice("protocol", "v1", str(stopped))
        # A token of its own: that of v3 is used up.
        return V1Link(self._target, self._options, _core.Cancel(), engine)
