"""Publishing and following: visible as a whole or not at all, proven, and healed."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwcp_fast import delta
from dwcp_fast.delta import Snapshot
from dwcp_fast.errors import (
    BaseMismatchError,
    ConfigError,
    ConflictError,
    DeltaError,
    DwcpError,
    FormatError,
    IntegrityError,
    LimitExceededError,
    TransportError,
)
from dwcp_fast.policy.versions import Retained, choose_anchor, choose_retained, plan_route
from dwcp_fast.versions import DeltaPublisher, DeltaSubscriber, TensorSpec, layout
from dwcp_fast.versions.layout import arrange
from dwcp_fast.versions.manifest import Head, Manifest
from dwcp_fast.versions.spares import Spares
from versions_double import Counter, MemoryStore, is_exactly, publish, take_newest, version_arrays


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def damage(store: MemoryStore, prefix: str, which: int = -1) -> None:
    name = [key for key in store.objects if key.startswith(prefix)][which]
    store.objects[name] = store.objects[name][:-1] + bytes([store.objects[name][-1] ^ 1])


def test_nothing_is_visible_until_the_block_ends(store: MemoryStore) -> None:
    opened, subscriber = DeltaPublisher(store), DeltaSubscriber(store)
    with opened.version(1) as draft:
        draft.put_all(version_arrays(1))
        assert subscriber.wait(0) is None and draft.report is None
    staged = subscriber.wait(0)
    assert staged is not None and staged.version == 1 and subscriber.version is None
    staged.commit()
    with pytest.raises(ZeroDivisionError), opened.version(2) as draft:
        draft.put_all(version_arrays(2))
        raise ZeroDivisionError
    assert subscriber.wait(0) is None and subscriber.version == 1


def test_a_version_that_could_not_be_reached_is_offered_again(store: MemoryStore) -> None:
    opened, subscriber = DeltaPublisher(store), DeltaSubscriber(store)
    publish(opened, 1)
    store.before = lambda operation: "refused" if operation.startswith("read packs") else None
    with pytest.raises(TransportError):
        subscriber.wait(0)
    store.before = lambda operation: None
    assert is_exactly(take(subscriber), version_arrays(1))


def test_dense_sparse_masked_kept_and_dropped_tensors_arrive_exactly(store: MemoryStore) -> None:
    arrays = version_arrays(1) | {"gone": np.ones(3)}
    opened, subscriber = DeltaPublisher(store), DeltaSubscriber(store)
    opened.publish(1, arrays)
    take(subscriber)
    del arrays["gone"]
    index = np.array([5000, 7, 93])
    arrays["embedding"].reshape(-1)[index] = [1.5, 2.5, 3.5]
    mask = np.zeros(96, bool)
    mask[[0, 95]] = True
    noise = np.full(96, np.nan, np.float16)
    noise[mask] = arrays["norm"][mask] = [7, 8]
    with opened.version(2) as draft:
        draft.put_sparse("embedding", index, np.array([1.5, 2.5, 3.5], np.float32))
        draft.put_masked("norm", noise, mask)
        draft.drop("gone")
        draft.keep_rest()
    # Another set of tensors has no delta.
    assert draft.report is not None and draft.report.kind == "anchor"
    assert is_exactly(take(subscriber), arrays)
    arrays["embedding"].reshape(-1)[9] = 9
    with opened.version(3) as draft:
        draft.put_sparse("embedding", np.array([9]), np.array([9], np.float32))
        draft.keep_rest()
    assert draft.report is not None and draft.report.kind == "delta" and draft.report.bytes_delta
    assert draft.report.bytes_delta < 500 and draft.report.groups_changed == 1
    assert is_exactly(take(subscriber), arrays)


def take(subscriber: DeltaSubscriber) -> Any:
    staged = subscriber.wait(0)
    assert staged is not None
    staged.commit()
    return subscriber.tensors()


@pytest.mark.parametrize(
    ("index", "value"), [([3, 3], [1, 2]), ([-1], [1]), ([96], [1]), ([1, 2], [1]), ([0.5], [1])]
)
def test_indices_that_cannot_be_are_refused(store: MemoryStore, index: list[Any], value: list[int]) -> None:
    opened = DeltaPublisher(store)
    publish(opened, 1)
    with pytest.raises(DeltaError), opened.version(2) as draft:
        draft.put_sparse("norm", np.array(index), np.array(value, np.float16))
    assert opened.newest == 1


def test_a_tensor_that_was_forgotten_is_named(store: MemoryStore) -> None:
    opened = DeltaPublisher(store)
    publish(opened, 1)
    with pytest.raises(DeltaError, match="'embedding'"), opened.version(2) as draft:
        draft.keep("bias", "norm")


def test_changes_are_refused_where_a_version_may_have_been_lost(store: MemoryStore) -> None:
    """Otherwise what the caller changed in the version that failed would be missing, unnoticed."""
    opened = DeltaPublisher(store)
    publish(opened, 1)
    store.before = Counter(0, "refused")
    with pytest.raises(ConnectionError):
        publish(opened, 2)
    with pytest.raises(BaseMismatchError), opened.version(3) as draft:
        draft.keep_rest()
    with pytest.raises(BaseMismatchError, match="base is version 1, not 2"):
        opened.version(3, since=2)
    with opened.version(3, since=1) as draft:
        draft.keep_rest()
    again = DeltaPublisher(store)
    with pytest.raises(BaseMismatchError), again.version(4) as draft:
        draft.keep_rest()


def test_a_version_that_was_begun_on_another_base_is_refused(store: MemoryStore) -> None:
    opened = DeltaPublisher(store)
    publish(opened, 1)
    late = opened.version(3)
    publish(opened, 2)
    with pytest.raises(BaseMismatchError, match="begun on version 1"), late:
        late.keep_rest()
    assert opened.newest == 2


def test_a_late_joiner_comes_from_the_newest_anchor(store: MemoryStore) -> None:
    opened = DeltaPublisher(store, anchor_every=3)
    for number in range(1, 6):
        publish(opened, number)
    staged = DeltaSubscriber(store).wait(0)
    assert staged is not None and (staged.report.kind, staged.report.steps) == ("anchor+delta", 2)
    assert is_exactly(staged.tensors(), version_arrays(5))


def test_removing_old_versions_leaves_what_the_others_need(store: MemoryStore) -> None:
    opened = DeltaPublisher(store, anchor_every=4, keep=1)
    follower = DeltaSubscriber(store)
    counts = []
    for number in range(1, 14):
        publish(opened, number)
        assert is_exactly(take_newest(store)[1], version_arrays(number))
        if number % 3:
            assert is_exactly(take(follower), version_arrays(number))
        counts.append(len(store.objects))
    assert max(counts) <= 2 * 4 + 2 and min(counts[4:]) <= 3


def test_a_damaged_delta_is_healed_from_an_anchor(store: MemoryStore) -> None:
    opened, subscriber = DeltaPublisher(store, anchor_every=2), DeltaSubscriber(store)
    for number in (1, 2):
        publish(opened, number)
        take(subscriber)
    report = opened.publish(3, version_arrays(3))
    assert report.kind == "both"
    head = Head.load(store.head or b"")
    manifest = Manifest.load(store.objects[f"manifests/{head.versions[-1].manifest}"])
    assert manifest.delta is not None
    damage(store, f"packs/{manifest.delta.packs[0].digest}")
    staged = subscriber.wait(0)
    assert (
        staged is not None
        and staged.report.kind == "anchor"
        and "delta of version 3" in staged.report.healed[0]
    )
    assert is_exactly(staged.tensors(), version_arrays(3))


def test_where_nothing_heals_the_error_is_told_and_the_next_version_does(store: MemoryStore) -> None:
    opened, subscriber = DeltaPublisher(store, anchor_every=1), DeltaSubscriber(store)
    publish(opened, 1)
    held = take(subscriber)
    publish(opened, 2)
    for which in (-1, -2):
        damage(store, "packs/", which)
    with pytest.raises(IntegrityError):
        subscriber.wait(0)
    assert subscriber.version == 1 and is_exactly(held, version_arrays(1))
    assert subscriber.wait(0) is None
    publish(opened, 3)
    assert is_exactly(take(subscriber), version_arrays(3))


def test_a_subscriber_with_another_base_starts_from_an_anchor(tmp_path: Path) -> None:
    for name, number in (("one", 4), ("two", 1)):
        with DeltaPublisher(tmp_path / name) as opened:
            publish(opened, number)
            opened.publish(5, version_arrays(5))
    take_newest(tmp_path / "one", tmp_path / "held")
    with DeltaPublisher(tmp_path / "two") as opened:
        publish(opened, 6)
    with DeltaSubscriber(tmp_path / "two", tmp_path / "held") as subscriber:
        assert is_exactly(take(subscriber), version_arrays(6))


def test_the_same_tensors_in_another_order_are_another_base(store: MemoryStore) -> None:
    arrays = {name: np.full(9, number, np.float32) for number, name in enumerate("abc")}
    opened, subscriber = DeltaPublisher(store, anchor_every=100), DeltaSubscriber(store)
    first = opened.publish(1, arrays)
    take(subscriber)
    opened.publish(2, {name: arrays[name] for name in "bc"})
    second = opened.publish(3, {name: arrays[name] for name in "bca"})
    assert second.digest != first.digest
    arrays["b"][0] = 7
    opened.publish(4, arrays)
    assert is_exactly(take(subscriber), arrays)


def test_tensors_that_were_given_out_never_change(store: MemoryStore) -> None:
    opened, subscriber = DeltaPublisher(store), DeltaSubscriber(store)
    publish(opened, 1)
    first = take(subscriber)
    publish(opened, 2)
    take(subscriber)
    assert is_exactly(first, version_arrays(1))
    with pytest.raises(ValueError, match="read-only"):
        first["bias"].array()[0] = 1


def test_versions_are_committed_in_order(store: MemoryStore) -> None:
    opened, subscriber = DeltaPublisher(store), DeltaSubscriber(store)
    publish(opened, 1)
    early = subscriber.wait(0)
    publish(opened, 2)
    late = subscriber.wait(0)
    assert early is not None and late is not None
    late.commit()
    with pytest.raises(ConflictError):
        early.commit()
    assert late.commit().version == subscriber.version == 2


def test_the_committed_file_is_a_safetensors_file_that_is_taken_up_again(tmp_path: Path) -> None:
    with DeltaPublisher(tmp_path / "store") as opened:
        publish(opened, 1)
        take_newest(tmp_path / "store", tmp_path / "held")
        data = (tmp_path / "held" / "model.safetensors").read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        begin, end = header["norm"]["data_offsets"]
        assert header["norm"]["dtype"] == "F16" and header["norm"]["shape"] == [96]
        assert data[8 + size + begin : 8 + size + end] == version_arrays(1)["norm"].tobytes()
        publish(opened, 2)
        with DeltaSubscriber(tmp_path / "store", tmp_path / "held") as subscriber:
            assert subscriber.version == 1
            staged = subscriber.wait(0)
            assert staged is not None and staged.report.kind == "delta"
            with pytest.raises(ConflictError):
                DeltaSubscriber(tmp_path / "store", tmp_path / "held")


def test_a_committed_file_that_was_altered_is_no_base(tmp_path: Path) -> None:
    with DeltaPublisher(tmp_path / "store") as opened:
        publish(opened, 1)
    take_newest(tmp_path / "store", tmp_path / "held")
    file = tmp_path / "held" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    version, tensors = take_newest(tmp_path / "store", tmp_path / "held")
    assert version == 1 and is_exactly(tensors, version_arrays(1))


def test_a_file_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    header = b'{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"ab")
    with pytest.raises(ConfigError, match="not written by a subscriber"):
        DeltaSubscriber(MemoryStore(), tmp_path)


def test_the_publisher_that_opened_last_is_the_only_one(store: MemoryStore) -> None:
    first = DeltaPublisher(store)
    publish(first, 1)
    second = DeltaPublisher(store)
    for _ in range(2):
        with pytest.raises(ConflictError):
            publish(first, 2)
    publish(second, 2)
    assert is_exactly(take_newest(store)[1], version_arrays(2))


def test_a_version_is_published_once(store: MemoryStore) -> None:
    opened = DeltaPublisher(store)
    publish(opened, 5)
    assert opened.publish(5, version_arrays(5)).kind == "again"
    for number, content in ((5, 6), (4, 4)):
        with pytest.raises(ConfigError):
            opened.publish(number, version_arrays(content))


def test_an_answer_that_was_lost_is_found_by_trying_again(store: MemoryStore) -> None:
    opened = DeltaPublisher(store)
    publish(opened, 1)
    counter = Counter()
    store.before = counter
    publish(opened, 2)
    at = counter.names.index("replace head")
    store.before = Counter(at, "lost answer")
    with pytest.raises(ConnectionError):
        publish(opened, 3)
    assert opened.publish(3, version_arrays(3)).kind == "again"
    publish(opened, 4)
    assert is_exactly(take_newest(store)[1], version_arrays(4))


def test_a_buffer_that_is_written_to_while_it_is_published_does_no_harm(store: MemoryStore) -> None:
    """What is proven is what is held as the base, whatever was told; later versions are exact again."""
    array = np.zeros(3 << 20, np.uint16)
    opened = DeltaPublisher(store, anchor_every=1)
    opened.publish(1, {"large": array})
    done = threading.Event()

    def meddle() -> None:
        while not done.is_set():
            array[::7] += 1

    meddler = threading.Thread(target=meddle)
    meddler.start()
    try:
        for number in range(2, 12):
            opened.publish(number, {"large": array})
            with DeltaSubscriber(store) as subscriber:
                found = take(subscriber)["large"]
            base = opened._base
            assert base is not None and base.tensors()["large"] == found.data
    finally:
        done.set()
        meddler.join()
    opened.publish(12, {"large": array})
    assert is_exactly(take_newest(store)[1], {"large": array})


def test_what_is_stored_does_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "ALONE_BYTES", 64)
    stores = []
    for threads in (1, 3):
        store = MemoryStore()
        opened = DeltaPublisher(store, threads=threads)
        publish(opened, 1)
        publish(opened, 2)
        stores.append(store.objects)
        with DeltaSubscriber(store, threads=threads) as subscriber:
            assert is_exactly(take(subscriber), version_arrays(2))
    assert stores[0] == stores[1]


def test_small_tensors_share_a_patch() -> None:
    specs = [TensorSpec(f"t{number}", "bf16" if number % 2 else "fp32", (64,)) for number in range(4000)]
    found = arrange(specs)
    assert len(found.groups) == 2 and found.nbytes == sum(spec.nbytes for spec in specs)
    assert {spec.name for spec in found.specs} == {spec.name for spec in specs}


def test_types_come_from_arrays_and_raw_bytes_take_that_of_the_base(store: MemoryStore) -> None:
    opened = DeltaPublisher(store)
    with opened.version(1) as draft:
        draft.put("w", np.zeros((2, 3), np.uint16), dtype="bf16")
        draft.put("raw", b"abc")
        draft.put("empty", np.zeros((0, 4), np.float64))
    with opened.version(2) as draft:
        draft.put("w", bytes(12))
        draft.keep_rest()
    tensors = take_newest(store)[1]
    assert [(tensors[name].spec.dtype, tensors[name].spec.shape) for name in ("w", "raw", "empty")] == [
        ("bf16", (2, 3)),
        ("uint8", (3,)),
        ("fp64", (0, 4)),
    ]
    with pytest.raises(ConfigError), opened.version(3) as draft:
        draft.put("w", bytes(5), dtype="bf16", shape=(2, 3))


def test_a_version_above_the_limit_is_refused_before_its_packs_are_read(store: MemoryStore) -> None:
    publish(DeltaPublisher(store), 1)
    counter = Counter()
    store.before = counter
    with pytest.raises(LimitExceededError):
        DeltaSubscriber(store, max_version_bytes=1000).wait(0)
    assert not any("packs/" in name for name in counter.names)


@pytest.mark.parametrize(
    "change",
    [
        {"groups": [1, 1]},
        {"groups": [4]},
        {"digest": "0" * 32},
        {"base": "0" * 32},
        {"version": -1},
        {"revision": 2},
        {"tensors": []},
        {"tensors": [{"name": "a", "dtype": "fp32", "shape": [1 << 62, 1 << 62], "digest": "0" * 32}]},
        {"tensors": [{"name": "a", "dtype": "fp33", "shape": [1], "digest": "0" * 32}]},
        {"anchor": {"packs": [], "places": [[0, 0, 1]]}},
        {"anchor": {"packs": [{"digest": "0" * 32, "bytes": 9}], "places": [[0, 8, 2], [], []]}},
        {"anchor": {"packs": [], "places": [[], [], []]}},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(store: MemoryStore, change: dict[str, Any]) -> None:
    publish(DeltaPublisher(store), 1)
    name = next(key for key in store.objects if key.startswith("manifests/"))
    fields = json.loads(store.objects[name])
    assert len(fields["groups"]) == 3
    with pytest.raises((FormatError, LimitExceededError)):
        Manifest.load(json.dumps(fields | change).encode())


@given(at=st.integers(0, 10_000), value=st.binary(min_size=1, max_size=4), cut=st.booleans())
def test_documents_with_any_damage_are_read_or_refused(at: int, value: bytes, cut: bool) -> None:
    store = MemoryStore()
    publish(DeltaPublisher(store), 1)
    manifest = next(data for key, data in store.objects.items() if key.startswith("manifests/"))
    for data, read in ((manifest, Manifest.load), (store.head or b"", Head.load)):
        where = at % len(data)
        bad = data[:where] + value + (b"" if cut else data[where + len(value) :])
        try:
            read(bad)
        except DwcpError:
            continue


def test_deeply_nested_documents_are_refused() -> None:
    with pytest.raises(FormatError):
        Head.load(b"[" * 100_000)


def test_awaiting_versions_is_cancelled_without_harm(store: MemoryStore) -> None:
    async def follow() -> list[int]:
        opened = DeltaPublisher(store)
        committed = []
        async with DeltaSubscriber(store) as subscriber:
            waiting = asyncio.ensure_future(anext(aiter(subscriber)))
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            for number in (1, 2):
                await asyncio.to_thread(publish, opened, number)
                async for staged in subscriber:
                    committing = asyncio.ensure_future(staged.commit())
                    await asyncio.sleep(0)
                    committing.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await committing
                    # A commit that has begun is brought to its end.
                    committed.append(subscriber.version)
                    assert is_exactly(subscriber.tensors(), version_arrays(number))
                    break
        return [version for version in committed if version is not None]

    assert asyncio.run(asyncio.wait_for(follow(), 60)) == [1, 2]


def test_a_follower_keeps_up_while_versions_are_published_and_removed(tmp_path: Path) -> None:
    last = 60
    failures: list[BaseException] = []
    seen: list[int] = []

    def follow() -> None:
        try:
            with DeltaSubscriber(tmp_path / "store", tmp_path / "held") as subscriber:
                while not seen or seen[-1] < last:
                    staged = subscriber.wait(60)
                    assert staged is not None
                    assert is_exactly(staged.tensors(), version_arrays(staged.version))
                    staged.commit()
                    seen.append(staged.version)
        except BaseException as exc:  # noqa: BLE001 - told by the test's own thread
            failures.append(exc)

    thread = threading.Thread(target=follow)
    thread.start()
    with DeltaPublisher(tmp_path / "store", keep=1, anchor_every=2) as opened:
        for number in range(1, last + 1):
            publish(opened, number)
    thread.join(100)
    assert failures == [] and seen == sorted(set(seen)) and seen[-1] == last


def test_closing_ends_an_iteration(tmp_path: Path) -> None:
    with DeltaPublisher(tmp_path) as opened:
        publish(opened, 1)
    subscriber = DeltaSubscriber(tmp_path)
    seen = []
    for staged in subscriber:
        seen.append(staged.commit().version)
        subscriber.close()
    assert seen == [1]


RETAINED = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(1, 99)), min_size=1, max_size=12).map(
    lambda told: [
        Retained(
            version=index,
            digest=str(index),
            manifest=f"m{index}",
            manifest_bytes=1,
            base=str(index - 1) if index and (has_delta or not has_anchor) else None,
            delta_bytes=length,
            anchor_bytes=500 if has_anchor or index == 0 else None,
        )
        for index, (has_anchor, has_delta, length) in enumerate(told)
    ]
)


@given(versions=RETAINED, keep=st.integers(1, 12))
def test_what_is_retained_can_be_reached(versions: list[Retained], keep: int) -> None:
    kept = choose_retained(versions, keep)
    assert tuple(versions[-len(kept) :]) == kept and len(kept) >= min(keep, len(versions))
    for end in range(max(0, len(kept) - keep), len(kept)):
        route = plan_route(kept[: end + 1], None).value
        assert route and route[0].form == "anchor" and route[-1].entry == kept[end]


def test_a_receiver_that_cannot_take_an_anchor_either_gets_no_more_of_them() -> None:
    first = Retained(1, "1", "m1", 1, None, 0, 500)
    second = Retained(2, "2", "m2", 1, "1", 9, None)
    for versions, held, due in (((first,), "1", False), ((first, second), "2", True)):
        choice = choose_anchor(versions, base=held, same_tensors=True, anchor_every=9, failure="no room")
        assert choice.value is due


@given(versions=RETAINED, held=st.integers(-1, 12), refused=st.sets(st.integers(0, 11)))
def test_a_route_fits_together_and_avoids_what_was_refused(
    versions: list[Retained], held: int, refused: set[int]
) -> None:
    keys = {(f"m{number}", "delta" if number % 2 else "anchor") for number in refused}
    route = plan_route(versions, str(held), keys).value  # type: ignore[arg-type]
    at: str | None = str(held)
    for step in route or ():
        assert (step.entry.manifest, step.form) not in keys
        assert step.form == "anchor" or step.entry.base == at
        at = step.entry.digest
    assert route is None or at == versions[-1].digest


def place_of(data: Any) -> int:
    return int(np.frombuffer(data, np.uint8).__array_interface__["data"][0])


def test_memory_is_used_again_only_when_nobody_looks_at_it() -> None:
    spares = Spares()
    patch = delta.encode(b"", bytes(16))
    looked_at, seen_through, free = (Snapshot(bytes([number]) * 16) for number in range(3))
    ours, theirs = place_of(free.view()), place_of(looked_at.view())
    view, array = looked_at.view()[3:5], np.frombuffer(seen_through.view(), np.uint8)[4:]
    spares.give([looked_at, seen_through, free])
    made = Snapshot(b"").fork(patch, reuse=spares.take(16))
    assert place_of(made.view()) == ours and spares.take(16) is None
    # Whoever looks at it by now keeps it.
    assert place_of(Snapshot(b"").fork(patch, reuse=seen_through).view()) != place_of(array) - 4
    view.release()
    assert place_of(Snapshot(b"").fork(patch, reuse=spares.take(16)).view()) == theirs
    assert spares.take(16) is None and bytes(array) == b"\x01" * 12


def test_versions_to_come_use_the_memory_of_versions_that_are_gone(store: MemoryStore) -> None:
    opened, subscriber = DeltaPublisher(store), DeltaSubscriber(store)
    places = []
    for number in range(1, 6):
        publish(opened, number)
        places.append(take(subscriber)["embedding"].array().__array_interface__["data"][0])
    assert len(set(places)) == 2
