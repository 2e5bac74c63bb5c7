"""Answering subscribers that dial: each has a thread of its own, and a slow one holds up nobody else."""

import logging
import threading
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from dwcp_fast.buffers import BufferLike
from dwcp_fast.errors import DeadlineError, DwcpError, FormatError, LimitExceededError, PeerError
from dwcp_fast.incoming import IncomingSession
from dwcp_fast.listener import listen
from dwcp_fast.options import ReceiveOptions, SendOptions
from dwcp_fast.policy.versions import plan_route
from dwcp_fast.trust import Insecure, MutualTls
from dwcp_fast.versions.asking import AHEAD_BYTES, HEAD_NAME, Question, name_of
from dwcp_fast.versions.manifest import Head, Manifest, content_digest
from dwcp_fast.versions.store import Stamp, Store, manifest_key, pack_key

__all__ = ["PeerStatus", "Server"]

LOG: Final = logging.getLogger(__name__)
ACCEPT_S: Final = 0.5
CACHE_BYTES: Final = 256 << 20
"""Most bytes of objects that are kept for the next subscriber."""

LONGEST_OBJECT: Final = 1 << 46


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """How a subscriber that is connected fares.

    Attributes:
        peer: Its address.
        version: Number of the version it has committed, None if none or not known.
        failure: What it said went wrong with the newest version, None if nothing.
    """

    peer: str
    version: int | None
    failure: str | None

    def holds(self, version: int) -> bool:
        """Tell whether it has committed that version or a later one."""
        return self.version is not None and self.version >= version

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as a dictionary of plain values."""
        return asdict(self)


class Server:
    """Listens, and answers from a store."""

    def __init__(
        self,
        address: str,
        store: Store,
        trust: MutualTls | Insecure | None,
        clients: int | None,
        max_peers: int,
    ) -> None:
        """Listen; nothing is answered before :meth:`show` was called."""
        self._store = store
        self._listener = listen(
            address,
            trust=trust,
            options=ReceiveOptions(max_sessions=max_peers),
            serve=SendOptions(codec="none", base="none"),
            receive=False,
            clients=clients,
        )
        self._changed = threading.Condition()
        self._shown: tuple[bytes, str, Head] | None = None
        self._peers: dict[int, PeerStatus] = {}
        self._sessions: dict[int, IncomingSession] = {}
        self._cache: OrderedDict[str, bytes | memoryview] = OrderedDict()
        self._cached_bytes = 0
        self._next = 0
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="dwcp-publisher", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where it listens, as ``HOST:PORT``."""
        return self._listener.address

    @property
    def pairing(self) -> str | None:
        """The pairing string, None without pairing. It is a secret."""
        return self._listener.pairing

    def peers(self) -> tuple[PeerStatus, ...]:
        """Tell who is connected, and how they fare."""
        with self._changed:
            return tuple(self._peers.values())

    def show(self, stamp: Stamp, head: Head) -> None:
        """Let subscribers see a head."""
        with self._changed:
            # What was told so far was about the head before.
            self._peers = {at: replace(peer, failure=None) for at, peer in self._peers.items()}
            self._shown = (stamp.data, content_digest(stamp.data), head)
            self._changed.notify_all()

    def wait_confirmed(self, version: int, everybody: bool, timeout_s: float) -> tuple[str, ...]:
        """Wait until subscribers hold a version.

        Args:
            version: Its number.
            everybody: Whether all that are connected, then and now, must hold it; else one of them.
            timeout_s: Seconds to wait.

        Returns:
            Those that hold it.

        Raises:
            DeadlineError: It took too long.
            PeerError: A subscriber that is waited for could not take it.
        """
        until = time.monotonic() + timeout_s
        with self._changed:
            asked = set(self._peers)
            while True:
                left = asked & set(self._peers)
                having = {one for one in left if self._peers[one].holds(version)}
                failed = [self._peers[one] for one in left - having if self._peers[one].failure is not None]
                if (having or not asked) if not everybody else having == left:
                    return tuple(self._peers[one].peer for one in having)
                if failed and (everybody or len(failed) == len(left)):
                    raise PeerError(
                        f"version {version} is published, but {failed[0].peer} could not take it: "
                        f"{failed[0].failure}",
                        hint="the next version is stored in full too",
                    )
                wait_s = until - time.monotonic()
                if wait_s <= 0:
                    raise DeadlineError(
                        f"version {version} is published, but {len(left - having)} of {len(left)} "
                        f"subscribers did not confirm it within {timeout_s:.3g} s"
                    )
                self._changed.wait(wait_s)

    def close(self) -> None:
        """Part from everybody; a second time does nothing."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            sessions = list(self._sessions.values())
            self._changed.notify_all()
        for session in sessions:
            session.close()
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                session = self._listener.accept(ACCEPT_S)
            except (DwcpError, OSError):
                LOG.exception("the publisher does not let in subscribers any more")
                return
            if session is None:
                continue
            with self._changed:
                number = self._next
                self._next += 1
                self._sessions[number] = session
                self._peers[number] = PeerStatus(session.peer, None, None)
            threading.Thread(
                target=self._serve, args=(number, session), name="dwcp-publisher-peer", daemon=True
            ).start()

    def _serve(self, number: int, session: IncomingSession) -> None:
        try:
            with session:
                while not self._closed:
                    request = session.next_request(None)
                    if request is None:
                        return
                    try:
                        question = Question.load(request)
                    except (FormatError, LimitExceededError) as exc:
                        LOG.warning("subscriber %s asks for what cannot be: %s", session.peer, exc)
                        session.refuse(str(exc))
                        return
                    session.send(self._answer(number, question))
        except (DwcpError, OSError) as exc:
            LOG.info("subscriber %s is gone: %s", session.peer, exc)
        finally:
            with self._changed:
                self._sessions.pop(number, None)
                self._peers.pop(number, None)
                self._changed.notify_all()

    def _answer(self, number: int, question: Question) -> dict[str, BufferLike]:
        if question.keys:
            found = ((key, self._object(key)) for key in question.keys)
            answer: dict[str, BufferLike] = {name_of(key): data for key, data in found if data is not None}
            return answer or {HEAD_NAME: b""}
        until = time.monotonic() + question.wait_s
        with self._changed:
            self._peers[number] = PeerStatus(self._peers[number].peer, question.version, question.failure)
            self._changed.notify_all()
            while self._shown is None or self._shown[1] == question.seen:
                left = until - time.monotonic()
                if left <= 0 or self._closed:
                    return {HEAD_NAME: b""}
                self._changed.wait(left)
            data, _, head = self._shown
        answer = {HEAD_NAME: data}
        if head.versions:
            answer.update(self._ahead(head, question.held))
        return answer

    def _ahead(self, head: Head, held: str | None) -> dict[str, BufferLike]:
        """Give what the subscriber will ask for next, as far as it is not too much."""
        found: dict[str, BufferLike] = {}
        left = AHEAD_BYTES
        for step in plan_route(head.versions, held).value or ():
            key = manifest_key(step.entry.manifest)
            data = self._object(key)
            if data is None or len(data) > left:
                break
            found[name_of(key)] = data
            left -= len(data)
            try:
                manifest = Manifest.load(bytes(data))
            except DwcpError:
                break
            patches = manifest.delta if step.form == "delta" else manifest.anchor
            for pack in () if patches is None else patches.packs:
                content = self._object(pack_key(pack.digest)) if pack.length <= left else None
                if content is None:
                    return found
                found[name_of(pack_key(pack.digest))] = content
                left -= len(content)
        return found

    def _object(self, key: str) -> bytes | memoryview | None:
        """Read an object, which several subscribers ask for at about the same time."""
        with self._changed:
            known = self._cache.get(key)
            if known is not None:
                self._cache.move_to_end(key)
                return known
        try:
            data = self._store.read(key, LONGEST_OBJECT)
        except FileNotFoundError:
            return None
        with self._changed:
            if len(data) <= CACHE_BYTES and key not in self._cache:
                self._cache[key] = data
                self._cached_bytes += len(data)
                while self._cached_bytes > CACHE_BYTES:
                    _, old = self._cache.popitem(last=False)
                    self._cached_bytes -= len(old)
        return data
