"""Whatever is published, lost, delayed, removed, restarted or damaged, receivers hold a published version."""

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from dwcp_fast.errors import ConflictError, DwcpError
from dwcp_fast.versions import DeltaPublisher, DeltaSubscriber, StagedVersion, layout
from dwcp_fast.versions.manifest import Head
from versions_double import Arrays, MemoryStore, is_exactly

SHAPES = {"a": (40, 5), "b": (700,), "c": (3,)}


class Mirror(MemoryStore):
    """A store that lags: what was written to its origin arrives when told to, in any order."""

    def __init__(self, origin: MemoryStore) -> None:
        super().__init__()
        self._origin = origin

    def copy_objects(self, share: float, seed: int) -> None:
        names = sorted(self._origin.objects)
        chosen = np.random.default_rng(seed).random(len(names)) < share
        for name, taken in zip(names, chosen, strict=True):
            if taken:
                self.objects[name] = self._origin.objects[name]

    def copy_all(self) -> None:
        self.objects = dict(self._origin.objects)
        self.head = self._origin.head


class Chains(RuleBasedStateMachine):
    """One publisher at a time, a receiver at its store, and one behind a mirror that lags."""

    staged: Bundle[StagedVersion] = Bundle("staged")

    @initialize(anchor_every=st.integers(1, 4), keep=st.integers(1, 4))
    def begin(self, anchor_every: int, keep: int) -> None:
        self.options = {"anchor_every": anchor_every, "keep": keep}
        self.store = MemoryStore()
        self.mirror = Mirror(self.store)
        self.contents: dict[str, tuple[int, Arrays]] = {}
        self.now: Arrays = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
        self.number = 0
        self.publisher = DeltaPublisher(self.store, **self.options)  # type: ignore[arg-type]
        self.receivers = [DeltaSubscriber(self.store), DeltaSubscriber(self.mirror)]
        self.damaged = False

    def publish_now(self) -> None:
        self.number += 1
        report = self.publisher.publish(self.number, self.now)
        self.contents[report.digest] = (self.number, {name: array.copy() for name, array in self.now.items()})

    @rule(name=st.sampled_from(sorted(SHAPES)), at=st.integers(0, 2), value=st.integers(-3, 3))
    def publish(self, name: str, at: int, value: int) -> None:
        if name in self.now:
            self.now[name].reshape(-1)[at] = value
        self.publish_now()

    @rule(at=st.sets(st.integers(0, 699), max_size=9), value=st.integers(-3, 3))
    def publish_sparse(self, at: set[int], value: int) -> None:
        index = np.array(sorted(at), np.int64)
        newest = Head.load(self.store.head).newest if self.store.head else None
        base = {} if newest is None else self.contents[newest.digest][1]
        number = self.number + 1
        try:
            draft = self.publisher.version(number, since=newest.version if newest else None)
            with draft:
                draft.put_sparse("b", index, np.full(index.size, value, np.float32))
                draft.keep_rest()
        except DwcpError:
            # After damage nobody knows the base, and the version has to be given in full.
            assert self.damaged or "b" not in base
            return
        self.now = {key: array.copy() for key, array in base.items()}
        self.now["b"].reshape(-1)[index] = value
        self.number = number
        assert draft.report is not None
        self.contents[draft.report.digest] = (number, {key: array.copy() for key, array in self.now.items()})

    @rule(name=st.sampled_from(sorted(SHAPES)))
    def change_tensors(self, name: str) -> None:
        if name in self.now and len(self.now) > 1:
            del self.now[name]
        else:
            self.now[name] = np.ones(SHAPES[name], np.float32)
        self.publish_now()

    @rule(operation=st.integers(0, 6), fault=st.sampled_from(["refused", "lost answer"]))
    def lose(self, operation: int, fault: str) -> None:
        """Publish while the store fails at one operation: it may or may not have become visible."""
        count = iter(range(1000))
        self.store.before = lambda name: fault if next(count) == operation else None
        number, before = self.number, dict(self.contents)
        self.now[next(iter(self.now))].reshape(-1)[0] += 1
        try:
            self.publish_now()
        except DwcpError:
            self.contents = before
            head = Head.load(self.store.head).newest if self.store.head else None
            if head is not None and head.version == self.number:
                self.contents[head.digest] = (self.number, {k: v.copy() for k, v in self.now.items()})
            else:
                self.number = number
        finally:
            self.store.before = lambda name: None

    @rule()
    def restart_publisher(self) -> None:
        old, self.publisher = self.publisher, DeltaPublisher(self.store, **self.options)  # type: ignore[arg-type]
        with pytest.raises(ConflictError):
            old.publish(self.number + 1, self.now)

    @rule(share=st.floats(0, 1), seed=st.integers(0, 99))
    def mirror_some_objects(self, share: float, seed: int) -> None:
        self.mirror.copy_objects(share, seed)

    @rule(everything=st.booleans())
    def mirror_the_head(self, everything: bool) -> None:
        self.mirror.head = self.store.head
        if everything:
            self.mirror.copy_all()

    @rule(which=st.integers(0, 99), cut=st.booleans())
    def damage(self, which: int, cut: bool) -> None:
        names = sorted(name for name, data in self.store.objects.items() if data)
        if names:
            name = names[which % len(names)]
            data = bytearray(self.store.objects[name])
            data[which % len(data)] ^= 1
            self.store.objects[name] = bytes(data[: which % len(data)] if cut else data)
            self.damaged = True

    @rule(who=st.integers(0, 1), target=staged)
    def stage(self, who: int) -> Any:
        try:
            found = self.receivers[who].wait(0)
        except DwcpError:
            assert who == 1 or self.damaged
            return None
        if found is not None:
            self.check(found.tensors(), found.digest)
            found.receiver = self.receivers[who]  # type: ignore[attr-defined]
        return found

    @rule(found=consumes(staged))
    def commit_late(self, found: StagedVersion | None) -> None:
        if found is None:
            return
        try:
            found.commit()
        except ConflictError:
            return
        assert found.receiver.digest == found.digest  # type: ignore[attr-defined]

    @rule(who=st.integers(0, 1))
    def follow(self, who: int) -> None:
        receiver = self.receivers[who]
        try:
            report = receiver.follow(0)
        except DwcpError:
            assert who == 1 or self.damaged
            return
        assert report is None or receiver.digest == report.digest

    @rule(who=st.integers(0, 1))
    def rejoin(self, who: int) -> None:
        self.receivers[who] = DeltaSubscriber(self.mirror if who else self.store)

    @rule()
    def heal(self) -> None:
        """However things are, a version of new content in full and everything mirrored bring all to it."""
        for _ in range(self.options["anchor_every"] if self.damaged else 1):
            self.now[next(iter(self.now))].reshape(-1)[0] += 1
            self.publish_now()
        self.mirror.copy_all()
        for who, receiver in enumerate(self.receivers):
            found = receiver.wait(0)
            if found is not None:
                found.commit()
            assert receiver.version == self.number, who
            assert is_exactly(receiver.tensors(), self.now)

    @invariant()
    def receivers_hold_versions(self) -> None:
        for receiver in getattr(self, "receivers", []):
            if receiver.digest is not None:
                self.check(receiver.tensors(), receiver.digest)

    def check(self, tensors: Any, digest: str) -> None:
        assert digest in self.contents
        assert is_exactly(tensors, self.contents[digest][1])


@pytest.fixture(autouse=True)
def several_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "ALONE_BYTES", 512)


def test_receivers_always_hold_a_published_version() -> None:
    run_state_machine_as_test(Chains, settings=settings(max_examples=150, stateful_step_count=40))
