"""A publisher that listens, as a source: the subscriber dials, asks, and waits for the answer."""

import logging
import threading
import time
from typing import Final

from dwcp_fast.errors import DeadlineError, FormatError, LimitExceededError, TransportError
from dwcp_fast.options import ReceiveOptions, SendOptions
from dwcp_fast.session import Session, connect
from dwcp_fast.trust import Trust
from dwcp_fast.versions.asking import HEAD_NAME, Question, key_of
from dwcp_fast.versions.manifest import MAX_HEAD_BYTES, content_digest
from dwcp_fast.versions.store import Stamp

__all__ = ["PeerSource"]

LOG: Final = logging.getLogger(__name__)
WAIT_S: Final = 20
ANSWER_S: Final = 30.0
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0


class PeerSource:
    """The versions of a publisher that listens."""

    def __init__(self, target: str, trust: Trust | None, *, max_bytes: int, retry_s: float = 60.0) -> None:
        """Note whom to dial; it is dialled when something is asked for.

        Args:
            target: ``HOST:PORT`` or a pairing string.
            trust: How to know the publisher.
            max_bytes: Most bytes of one answer.
            retry_s: Seconds for which a publisher that cannot be reached is tried again.
        """
        self._target = target
        self._trust = trust
        self._receive = ReceiveOptions(max_total_bytes=max_bytes)
        self._retry_s = retry_s
        self._session: Session | None = None
        self._ahead: dict[str, memoryview] = {}
        self._told: tuple[int | None, str | None] = (None, None)
        self._stop = threading.Event()

    def read_head(self) -> Stamp | None:
        """Read the head; see :meth:`.store.Source.read_head`."""
        return self._head_from(None, None, 0)

    def wait_head(self, seen: Stamp | None, held: str | None, timeout_s: float) -> Stamp | None:
        """Wait for another head; see :meth:`.store.Source.wait_head`."""
        wait_s = min(WAIT_S, int(timeout_s))
        stamp = self._head_from(seen, held, wait_s)
        # A question tells whole seconds; what is left of one is waited for here.
        if stamp is None and wait_s == 0 and self._stop.wait(min(timeout_s, FIRST_PAUSE_S)):
            self._stop.clear()
        return stamp

    def read(self, key: str, length: int) -> memoryview:
        """Read an object; see :meth:`.store.Source.read`."""
        if key in self._ahead:
            return self._ahead[key]
        found = self._ask(Question(keys=(key,))).get(key)
        if found is None:
            raise FileNotFoundError(key)
        return found[: length + 1]

    def tell(self, version: int | None, failure: str | None) -> None:
        """Note how this side fares; it is told with the next question."""
        self._told = (version, failure)

    def interrupt(self) -> None:
        """End a wait; see :meth:`.store.Source.interrupt`."""
        self._stop.set()
        session = self._session
        if session is not None:
            # Ends a question that is under way, and tells the publisher so.
            session.close()

    def close(self) -> None:
        """Part from the publisher; a second time does nothing."""
        self._drop()

    def _head_from(self, seen: Stamp | None, held: str | None, wait_s: int) -> Stamp | None:
        version, failure = self._told
        token = None if seen is None else seen.token
        try:
            answer = self._ask(Question(token, held, version, failure, wait_s))
        finally:
            # Cleared here and not before, so that an interruption that came too early counts.
            self._stop.clear()
        head = bytes(answer.pop(HEAD_NAME, b""))
        if not head:
            return None
        if len(head) > MAX_HEAD_BYTES:
            raise LimitExceededError(f"the head has {len(head)} bytes, the limit is {MAX_HEAD_BYTES}")
        self._ahead = answer
        return Stamp(head, content_digest(head))

    def _ask(self, question: Question) -> dict[str, memoryview]:
        """Ask, dialling as often as it takes; answers are small but for packs."""
        until = time.monotonic() + self._retry_s
        pause = FIRST_PAUSE_S
        while True:
            try:
                if self._session is None:
                    self._session = connect(
                        self._target, trust=self._trust, options=SendOptions(), receive=self._receive
                    )
                if self._stop.is_set():
                    return {}
                found = self._session.fetch(question.dump(), timeout_s=question.wait_s + ANSWER_S)
                answer = {key: found[name] for name, key in key_of(found)}
                if HEAD_NAME in found:
                    answer[HEAD_NAME] = found[HEAD_NAME]
                return answer
            except FormatError:
                self._drop()
                raise
            except (TransportError, DeadlineError, OSError) as exc:
                self._drop()
                if self._stop.is_set():
                    return {}
                if time.monotonic() + pause > until or not getattr(exc, "retryable", True):
                    raise
                LOG.info("the publisher %s cannot be asked, trying again: %s", self._target, exc)
                self._stop.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            except BaseException:
                # Cancelled, or refused: of no use any more.
                self._drop()
                if self._stop.is_set():
                    return {}
                raise

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()
