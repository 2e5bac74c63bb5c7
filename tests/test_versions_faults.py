"""A fault at every operation of publishing and following: a published version is held, or an error told."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from dwcp_fast.errors import DwcpError
from dwcp_fast.versions import DeltaPublisher, DeltaSubscriber, layout
from versions_double import (
    STORE_FAULTS,
    SYSTEM_FAULTS,
    Counter,
    FaultySystem,
    Killed,
    MemoryStore,
    is_exactly,
    publish,
    take_newest,
    version_arrays,
)

VERSIONS = 7
REOPENED_AT = 4
ANCHOR_EVERY = 3
TOLD = (OSError, DwcpError)


@pytest.fixture(autouse=True)
def several_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "ALONE_BYTES", 4096)


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A folder to be made, in memory if there is such a place: replacing a file can wait for a disk."""
    with TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        yield Path(name) / "folder"


class Run:
    """Versions published and followed, step by step, whatever fails; each failure is one that was told."""

    def __init__(self, store: Callable[[], object], into: Path | None) -> None:
        self.told = 0
        self.published: set[int] = set()
        self._store = store
        self._into = into

    def go(self) -> None:
        publisher: DeltaPublisher | None = None
        subscriber: DeltaSubscriber | None = None
        try:
            for number in range(1, VERSIONS + 1):
                if number == REOPENED_AT:
                    for end in (publisher, subscriber):
                        if end is not None:
                            end.close()
                    publisher = subscriber = None
                try:
                    publisher = publisher or DeltaPublisher(self._store(), anchor_every=ANCHOR_EVERY, keep=2)  # type: ignore[arg-type]
                    publish(publisher, number)
                    self.published.add(number)
                except TOLD:
                    self.told += 1
                try:
                    subscriber = subscriber or DeltaSubscriber(self._store(), self._into)  # type: ignore[arg-type]
                    # Both ways to a version; the second changes memory where it is.
                    staged = subscriber.wait(0) if self._into is not None or number % 2 else None
                    if self._into is None and not number % 2:
                        subscriber.follow(0)
                    if staged is not None:
                        # Staged is proven before it is committed.
                        assert is_exactly(staged.tensors(), version_arrays(staged.version)), staged.version
                        staged.commit()
                except TOLD:
                    self.told += 1
                if subscriber is not None and subscriber.version is not None:
                    assert is_exactly(subscriber.tensors(), version_arrays(subscriber.version))
        finally:
            for end in (publisher, subscriber):
                if end is not None:
                    end.close()


def check_healed(store: Callable[[], object], into: Path | None, run: Run, fault: str) -> None:
    """What is committed after the fault is a version, what was published is there, and the next one comes.

    Where the store has damaged what it keeps, it may take until the next anchor.
    """
    tries = ANCHOR_EVERY if fault in {"flipped", "cut"} else 1
    if into is not None and (into / "model.safetensors").exists():
        with DeltaSubscriber(store(), into) as again:  # type: ignore[arg-type]
            assert again.version is not None
            assert is_exactly(again.tensors(), version_arrays(again.version))
    with DeltaPublisher(store(), anchor_every=ANCHOR_EVERY, keep=2) as publisher:  # type: ignore[arg-type]
        if run.published:
            assert publisher.newest is not None and publisher.newest >= max(run.published)
        for number in range(VERSIONS + 1, VERSIONS + 1 + tries):
            publish(publisher, number)
    for place in {into, None}:
        version, tensors = take_newest(store(), place)
        assert version == VERSIONS + tries and is_exactly(tensors, version_arrays(version))


def test_a_fault_at_every_operation_of_a_store_never_diverges_silently() -> None:
    clean = MemoryStore()
    counter = Counter()
    clean.before = counter
    Run(lambda: clean, None).go()
    tried = told = 0
    for fault in STORE_FAULTS:
        for at in range(counter.count):
            store = MemoryStore()
            store.before = Counter(at, fault)
            run = Run(lambda store=store: store, None)  # type: ignore[misc]
            run.go()
            store.before = Counter()
            check_healed(lambda store=store: store, None, run, fault)  # type: ignore[misc]
            tried += 1
            told += run.told > 0
    assert tried >= 300 and told >= tried // 3, (tried, told)
    print(f"{tried} faults of a store, {told} of them told as errors, none silent")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", SYSTEM_FAULTS)
def test_a_fault_at_every_call_of_the_system_never_diverges_silently(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is synced is kept in mind where faults are injected; elsewhere nothing is lost.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    counter = Counter()
    with folder_in_memory() as root:
        clean = Run(lambda: root / "store", root / "held")
        with FaultySystem(root, counter)():
            clean.go()
    assert counter.count >= 200 and clean.told == 0
    told = 0
    for at in range(counter.count):
        with folder_in_memory() as root:
            store, into = root / "store", root / "held"
            run = Run(lambda store=store: store, into)  # type: ignore[misc]
            system = FaultySystem(root, Counter(at, fault))
            try:
                with system():
                    run.go()
            except Killed:
                run.told += 1
            assert system.fault_told == fault
            check_healed(lambda store=store: store, into, run, fault)  # type: ignore[misc]
            told += run.told > 0
    assert fault == "flipped" or told >= counter.count // 2, (told, counter.count)
    print(f"{counter.count} faults of the system ({fault}), {told} of them told as errors, none silent")
