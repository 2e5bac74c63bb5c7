"""Following in place: memory that somebody looks at stays; the rest is the next version or as it was."""

import ctypes
from typing import Any

import numpy as np
import pytest

from dwcp_fast import delta
from dwcp_fast.errors import FormatError
from dwcp_fast.versions import DeltaPublisher, DeltaSubscriber, reading
from versions_double import MemoryStore, is_exactly


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def damage(store: MemoryStore, prefix: str) -> None:
    name = [key for key in store.objects if key.startswith(prefix)][-1]
    store.objects[name] = store.objects[name][:-1] + bytes([store.objects[name][-1] ^ 1])


def place_of(data: Any) -> int:
    return int(np.frombuffer(data, np.uint8).__array_interface__["data"][0])


class Following:
    """A publisher and a subscriber of a large tensor, a second one, and small ones that share a group."""

    def __init__(self, store: MemoryStore) -> None:
        self.arrays: dict[str, np.ndarray[Any, Any]] = {
            "large": np.arange(1 << 20, dtype=np.uint16),
            "second": np.ones(1 << 20, np.float32),
        }
        self.arrays |= {name: np.zeros(9, np.uint16) for name in ("small", "other")}
        self.store = store
        self.opened = DeltaPublisher(store)
        self.subscriber = DeltaSubscriber(store)
        self.step()
        assert self.subscriber.follow(0) is not None

    def step(self) -> None:
        for array in self.arrays.values():
            array[::5] += 1
        self.opened.publish((self.opened.newest or 0) + 1, self.arrays)

    def places(self) -> dict[str, int]:
        return {name: place_of(tensor.data) for name, tensor in self.subscriber.tensors().items()}


def test_following_changes_the_memory_that_nobody_looks_at(store: MemoryStore) -> None:
    following = Following(store)
    before = following.places()
    following.step()
    following.step()
    report = following.subscriber.follow(0)
    assert report is not None and (report.kind, report.steps, report.version) == ("delta", 2, 3)
    assert is_exactly(following.subscriber.tensors(), following.arrays)
    after = following.places()
    assert (after["large"], after["second"]) == (before["large"], before["second"])
    assert following.subscriber.follow(0) is None


@pytest.mark.parametrize("pin", ["tensors", "tensor", "array", "staged"])
def test_what_was_handed_out_does_not_change_while_following(store: MemoryStore, pin: str) -> None:
    following = Following(store)
    old = {name: array.copy() for name, array in following.arrays.items()}
    tensors: Any = following.subscriber.tensors()
    if pin == "tensor":
        tensors = {"large": tensors["large"]}
    elif pin == "array":
        tensors = {"large": tensors["large"].array()}
    elif pin == "staged":
        following.step()
        old = {name: array.copy() for name, array in following.arrays.items()}
        tensors = following.subscriber.wait(0)
        tensors.commit()
    following.step()
    assert following.subscriber.follow(0) is not None
    assert is_exactly(following.subscriber.tensors(), following.arrays)
    kept = tensors.tensors() if pin == "staged" else tensors
    large = kept["large"]
    assert np.array_equal(large if pin == "array" else large.array(), old["large"])


@pytest.mark.parametrize("broken", ["packs/", "manifests/"])
def test_following_a_damaged_delta_leaves_what_is_held(store: MemoryStore, broken: str) -> None:
    following = Following(store)
    old = {name: array.copy() for name, array in following.arrays.items()}
    following.step()
    damage(store, broken)
    with pytest.raises(FormatError):
        following.subscriber.follow(0)
    assert is_exactly(following.subscriber.tensors(), old) and following.subscriber.version == 1
    damage(store, broken)
    following.step()
    assert following.subscriber.follow(0) is not None
    assert is_exactly(following.subscriber.tensors(), following.arrays)


def test_a_patch_that_makes_another_tensor_changes_nothing(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first group is proven and changed when the second turns out wrong: it is changed back."""
    following = Following(store)
    old = {name: array.copy() for name, array in following.arrays.items()}
    following.step()
    real = delta.apply_together

    def wrong(changes: Any, **options: Any) -> None:
        assert len(changes) == 2
        patch = bytearray(changes[1][1])
        patch[len(patch) // 2] ^= 1
        real([changes[0], (changes[1][0], patch)], **options)

    monkeypatch.setattr(delta, "apply_together", wrong)
    with pytest.raises(FormatError):
        following.subscriber.follow(0)
    assert is_exactly(following.subscriber.tensors(), old) and following.subscriber.version == 1


@pytest.mark.parametrize("done", [False, True])
def test_an_interruption_while_following_leaves_one_version_or_the_other(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    following = Following(store)
    old = {name: array.copy() for name, array in following.arrays.items()}
    following.step()
    real = delta.apply_together

    def interrupted(*given: Any, **options: Any) -> None:
        if done:
            real(*given, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(delta, "apply_together", interrupted)
    with pytest.raises(KeyboardInterrupt):
        following.subscriber.follow(0)
    monkeypatch.setattr(delta, "apply_together", real)
    held = following.arrays if done else old
    assert is_exactly(following.subscriber.tensors(), held) and following.subscriber.version == 1 + done
    assert (following.subscriber.follow(0) is None) == done
    assert is_exactly(following.subscriber.tensors(), following.arrays)


def test_held_memory_that_somebody_altered_is_healed_from_an_anchor(store: MemoryStore) -> None:
    following = Following(store)
    place = following.places()["large"]
    ctypes.memset(place + 20, 0xFF, 1)
    following.step()
    report = following.subscriber.follow(0)
    assert report is not None and report.healed and report.kind == "anchor+delta"
    assert is_exactly(following.subscriber.tensors(), following.arrays)


def test_what_a_version_is_made_from_cannot_be_given_up_meanwhile(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = Following(store)
    held = following.subscriber._held
    assert held is not None
    looked_at: list[bool] = []
    read_step = reading.read_step

    def look(*arguments: Any) -> Any:
        looked_at.extend(group.is_viewed for group in held.groups)
        return read_step(*arguments)

    monkeypatch.setattr(reading, "read_step", look)
    following.step()
    staged = following.subscriber.wait(0)
    assert staged is not None and looked_at and all(looked_at)
    staged.commit()
    assert not any(group.is_viewed for group in held.groups)


def test_a_snapshot_is_not_changed_by_a_view_of_itself() -> None:
    held = delta.Snapshot(bytes(1 << 16))
    digest = held.digest
    with pytest.raises(ValueError, match="a view of the version"):
        held.advance(held.view())
    assert held.digest == digest
