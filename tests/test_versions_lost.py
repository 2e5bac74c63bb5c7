"""A fault at every exchange with a subscriber that dials: versions arrive exactly, or an error is told."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from dwcp_fast import INSECURE
from dwcp_fast.errors import DwcpError, TransportError
from dwcp_fast.incoming import IncomingSession
from dwcp_fast.session import Session, connect
from dwcp_fast.versions import DeltaPublisher, DeltaSubscriber, peer
from versions_double import Counter, damaged, is_exactly, publish, version_arrays

FAULTS: Final = ("refused", "lost answer", "flipped")
VERSIONS: Final = 4
WAIT_S: Final = 20.0


class Exchanges:
    """Dialling, asking, waiting for a question and answering, one of which goes wrong."""

    def __init__(self, patch: pytest.MonkeyPatch, counter: Counter) -> None:
        self._counter = counter
        self._lock = threading.Lock()
        patch.setattr(peer, "connect", self._faulty("dial", connect))
        patch.setattr(Session, "fetch", self._faulty("ask", Session.fetch))
        patch.setattr(IncomingSession, "next_request", self._faulty("listen", IncomingSession.next_request))
        patch.setattr(IncomingSession, "send", self._faulty("answer", IncomingSession.send))

    def _faulty(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            with self._lock:
                fault = self._counter(name)
            if fault == "refused":
                raise TransportError(f"{name} is refused")
            if fault == "flipped" and name == "answer":
                session, objects = given
                given = (session, {key: damaged(bytes(data), fault) for key, data in objects.items()})
            done = real(*given, **named)
            if fault == "lost answer":
                raise TransportError(f"the outcome of {name} is lost")
            return done

        return call


def follow_all(directory: Path) -> int:
    """Publish and follow versions; give how many errors were told."""
    told = 0
    with (
        DeltaPublisher(directory, anchor_every=3, keep=2, listen="127.0.0.1:0", trust=INSECURE) as opened,
        DeltaSubscriber(str(opened.address), trust=INSECURE) as subscriber,
    ):
        for number in range(1, VERSIONS + 2):
            publish(opened, number)
            try:
                staged = subscriber.wait(WAIT_S)
                assert staged is not None
                assert is_exactly(staged.tensors(), version_arrays(staged.version))
                staged.commit()
            except DwcpError:
                told += 1
            if subscriber.version is not None:
                assert is_exactly(subscriber.tensors(), version_arrays(subscriber.version))
        # The fault was in an earlier version: the last one heals it.
        assert subscriber.version == VERSIONS + 1
    return told


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_every_exchange_never_diverges_silently(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "FIRST_PAUSE_S", 0.01)
    with monkeypatch.context() as patch:
        counter = Counter()
        Exchanges(patch, counter)
        assert follow_all(tmp_path / "clean") == 0
    # The last version's exchanges are left alone: they are to heal what went wrong before.
    last = len(counter.names) - 1 - counter.names[::-1].index("answer")
    points = counter.names[: last - 1]
    assert len(points) >= 12
    tried = told = 0
    for at in range(len(points)):
        counter = Counter(at, fault)
        with monkeypatch.context() as patch:
            Exchanges(patch, counter)
            told += follow_all(tmp_path / str(at)) > 0
        tried += counter.count > at
    assert tried >= 12
    print(f"{tried} faults of exchanges ({fault}), {told} of them told as errors, none silent")
