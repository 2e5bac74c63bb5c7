"""Publishing: numbered versions, each of which is there as a whole or not at all."""

import logging
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from types import TracebackType
from typing import Final, Literal, Self, get_args

from dwcp_fast import delta
from dwcp_fast.buffers import BufferLike
from dwcp_fast.errors import (
    BaseMismatchError,
    ConfigError,
    ConflictError,
    DwcpError,
    FormatError,
    IntegrityError,
)
from dwcp_fast.options import check_block_bytes, check_choice, check_int, check_seconds
from dwcp_fast.policy.versions import Form, Retained, Step, choose_anchor, choose_retained, plan_route
from dwcp_fast.trust import Insecure, MutualTls
from dwcp_fast.versions.draft import Change, Draft
from dwcp_fast.versions.layout import Layout, arrange
from dwcp_fast.versions.manifest import (
    MAX_HEAD_BYTES,
    Head,
    Manifest,
    content_digest,
    version_digest,
)
from dwcp_fast.versions.packing import Packer
from dwcp_fast.versions.places import open_store
from dwcp_fast.versions.reading import WIDTH_NAMES, Refusal, follow, read_manifest
from dwcp_fast.versions.record import MAX_NUMBER
from dwcp_fast.versions.reports import PublishReport
from dwcp_fast.versions.serving import PeerStatus, Server
from dwcp_fast.versions.state import State, run_over, tensor_digests
from dwcp_fast.versions.store import Stamp, Store, manifest_key, pack_key
from dwcp_fast.versions.tensors import TensorSpec

__all__ = ["Confirm", "DeltaPublisher"]

Confirm = Literal["store", "any", "all"]

LOG: Final = logging.getLogger(__name__)
MAX_THREADS: Final = 256
Changes = Mapping[str, tuple[TensorSpec, Change]]


class DeltaPublisher:
    """Publishes versions of a set of tensors.

    A version is some immutable objects in a store, and becomes visible when one small head is replaced, last.
    One publisher writes to a store at a time: opening another one ends the first one's right to publish.

    What is published is kept in memory once more as the base of the next version, and moves on only when the
    version is durable in the store. After a failure it is read back from the store where there is doubt.
    """

    def __init__(
        self,
        base: str | PathLike[str] | Store,
        *,
        anchor_every: int = 25,
        keep: int = 50,
        codec: str = "zstd:1",
        block_bytes: int = 1 << 20,
        threads: int = 1,
        max_version_bytes: int = 1 << 40,
        listen: str | None = None,
        trust: MutualTls | Insecure | None = None,
        clients: int | None = None,
        max_peers: int = 64,
        confirm: Confirm = "store",
        confirm_timeout_s: float = 30.0,
    ) -> None:
        """Open a store, and go on from its newest version.

        Args:
            base: Where versions are kept: a directory, ``s3://bucket/prefix``, or a store.
            anchor_every: Most versions from one that is stored in full to the next such one, 1 to 1024.
            keep: How many versions stay reachable, 1 to 1024; older ones are removed unless those need them.
            codec: Codec of what changed: ``"none"``, ``"lz4"``, ``"zstd"`` or ``"zstd:LEVEL"``.
            block_bytes: Length of a block of a patch: a power of two, 64 KiB to 4 MiB.
            threads: Threads that code, 1 to 256.
            max_version_bytes: Most bytes of a version that is read back from the store.
            listen: ``HOST:PORT`` where subscribers may dial and are answered from the store, or None.
            trust: How subscribers are known: None for a pairing string, see :func:`~dwcp_fast.listen`.
            clients: How many clients the pairing string is good for; None for all that have it.
            max_peers: Most subscribers that are connected at once.
            confirm: When a version counts as published: ``"store"`` once it is durable in the store,
                ``"any"`` and ``"all"`` only once one or all of the subscribers that are connected hold it.
            confirm_timeout_s: Seconds to wait for them.

        Raises:
            ConfigError: An option cannot be used.
            ConflictError: Another publisher opened the store at this moment.
            OSError: The store cannot be read or written.
            TransportError: The store cannot be reached.
        """
        check_int("anchor_every", anchor_every, 1, 1024)
        check_int("keep", keep, 1, 1024)
        check_int("threads", threads, 1, MAX_THREADS)
        check_block_bytes(block_bytes)
        check_choice("confirm", confirm, get_args(Confirm))
        check_seconds("confirm_timeout_s", confirm_timeout_s)
        if listen is None and (confirm != "store" or trust is not None or clients is not None):
            raise ConfigError("trust, clients and confirm are for subscribers that dial, but listen is None")
        self._confirm = confirm
        self._confirm_timeout_s = confirm_timeout_s
        self._server: Server | None = None
        self._store: Store = open_store(base)
        self._name = secrets.token_hex(16)
        self._anchor_every = anchor_every
        self._keep = keep
        self._codec = codec
        self._block_bytes = block_bytes
        self._threads = threads
        self._max_bytes = max_version_bytes
        self._lock = threading.Lock()
        self._head: Head = Head(self._name)
        self._stamp: Stamp | None = None
        self._held: State | None = None
        self._objects: dict[str, set[str]] = {}
        self._garbage: set[str] = set()
        # Why it is not certain that the caller's changes are changes to what is held.
        self._uncertain: str | None = "the publisher has just been opened"
        # Whether what the store holds has to be read before it can be relied on.
        self._doubt = True
        self._settle(opening=True)
        if listen is not None:
            self._server = Server(listen, self._store, trust, clients, max_peers)
            self._show()

    @property
    def newest(self) -> int | None:
        """Number of the newest version in the store, None if there is none."""
        newest = self._head.newest
        return None if newest is None else newest.version

    def version(self, number: int, *, since: int | None = None) -> Draft:
        """Begin a version.

        Args:
            number: Its number, above that of the newest one. The same number is taken if the content is the
                same too, so that a publisher that does not know whether it succeeded can try again.
            since: Number of the version that sparse, masked and kept tensors are changes to. None means the
                last one that this publisher published; after a version that failed, and where the publisher
                has just been opened, it has to be said, or tensors put in full.

        Returns:
            The version, for a ``with`` block that puts tensors and publishes when it ends.

        Raises:
            ConfigError: The number is not above the newest.
            BaseMismatchError: The newest version is not `since`.
            OSError: An earlier failure left doubt, and the store cannot be read.
        """
        with self._lock:
            self._settle()
            newest = self.newest
            if type(number) is not int or not 0 <= number <= MAX_NUMBER:
                raise ConfigError(f"version is {number!r}: it must be an integer from 0 to {MAX_NUMBER}")
            if newest is not None and number < newest:
                raise ConfigError(f"version {number} is below version {newest}, which is the newest")
            held = self._held
            if since is not None and (held is None or held.version != since):
                raise BaseMismatchError(f"the base is version {held and held.version}, not {since}")
            doubt = None if since is not None else self._uncertain
            return Draft(number, held, self._publish, self._abandon, doubt)

    def publish(self, number: int, tensors: Mapping[str, BufferLike]) -> PublishReport:
        """Publish a version that consists of exactly these tensors.

        Args:
            number: As for :meth:`version`.
            tensors: Their bytes by name; arrays tell their type.

        Returns:
            What was done.

        Raises:
            ConfigError: As for :meth:`version`, or a tensor cannot be used.
            OSError: The store cannot be written; the version is not published.
            TransportError: The store cannot be reached; the version may or may not be published.
            DeadlineError: It is published, but not confirmed in time; see `confirm`.
            PeerError: It is published, but a subscriber could not take it.
            ConflictError: Another publisher has opened the store; this one is of no use any more.
        """
        with self.version(number) as draft:
            draft.put_all(tensors)
            gone = set(self._held.tensors() if self._held else ()) - set(tensors)
            draft.drop(*gone)
        assert draft.report is not None  # noqa: S101 - set by a block that ended well; tells the type checker
        return draft.report

    @property
    def address(self) -> str | None:
        """Where subscribers may dial, as ``HOST:PORT``; None if nowhere."""
        return None if self._server is None else self._server.address

    @property
    def pairing(self) -> str | None:
        """The pairing string for subscribers, None if there is none. It is a secret."""
        return None if self._server is None else self._server.pairing

    def peers(self) -> tuple[PeerStatus, ...]:
        """Tell which subscribers are connected, and how they fare."""
        return () if self._server is None else self._server.peers()

    def close(self) -> None:
        """Part from subscribers and let go of the store; a second time does nothing."""
        if self._server is not None:
            self._server.close()
        self._store.close()

    def __enter__(self) -> Self:
        """Use the publisher in a ``with`` statement."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _publish(self, draft: Draft) -> PublishReport:
        with self._lock:
            started = time.perf_counter()
            self._uncertain = f"version {draft.version} was not published for certain"
            self._settle()
            report = self._publish_changes(draft.version, draft.changes(), started)
            self._uncertain = None
        return self._await_peers(report)

    def _await_peers(self, report: PublishReport) -> PublishReport:
        if self._server is None or self._confirm == "store":
            return report
        started = time.perf_counter()
        confirmed = self._server.wait_confirmed(
            report.version, self._confirm == "all", self._confirm_timeout_s
        )
        return replace(report, confirmed=confirmed, seconds_confirm=time.perf_counter() - started)

    def _show(self) -> None:
        if self._server is not None and self._stamp is not None:
            self._server.show(self._stamp, self._head)

    def _abandon(self) -> None:
        self._uncertain = "the version before was not published"

    def _publish_changes(self, number: int, changes: Changes, started: float) -> PublishReport:
        held, newest = self._held, self._head.newest
        same = held is not None and {spec.name: spec for spec in held.layout.specs} == {
            name: spec for name, (spec, _) in changes.items()
        }
        layout = held.layout if held is not None and same else arrange(spec for spec, _ in changes.values())
        choice = choose_anchor(
            self._head.versions,
            base=None if held is None else held.digest,
            same_tensors=same,
            anchor_every=self._anchor_every,
            failure=next((peer.failure for peer in self.peers() if peer.failure is not None), None),
        )
        base = (
            held
            if held is not None and same and newest is not None and held.digest == newest.digest
            else None
        )
        anchor = Packer(self._store, self._garbage) if choice.value or base is None else None
        packer = Packer(self._store, self._garbage) if base is not None else None
        digests: list[str] = []
        changed = []

        def code(index: int) -> tuple[bytes | None, bytes | None, list[str]]:
            return self._code(layout, index, changes, base, held, anchored=anchor is not None)

        for index, (patch, full, told) in enumerate(run_over(self._threads, code, range(len(layout.groups)))):
            if packer is not None:
                packer.add(patch)
            if anchor is not None:
                anchor.add(full)
            if patch is not None or base is None:
                changed.append(index)
            digests += told
        content = version_digest(layout.specs, digests)
        if newest is not None and number <= newest.version:
            if (number, content) == (newest.version, newest.digest):
                return self._report(newest, layout, [], "again", "the store has it", (), started)
            raise ConfigError(f"version {number} is not above version {newest.version}, which is the newest")
        manifest = Manifest(
            version=number,
            layout=layout,
            digests=tuple(digests),
            digest=content,
            base=None if base is None else base.digest,
            delta=None if packer is None else packer.finish(),
            anchor=None if anchor is None else anchor.finish(),
        )
        removed = self._make_visible(manifest)
        self._advance(manifest, changes, changed, base)
        self._collect(removed)
        kind = (
            "both" if base is not None and anchor is not None else ("delta" if anchor is None else "anchor")
        )
        entry = self._head.versions[-1]
        return self._report(
            entry, layout, changed, kind, choice.why, tuple(one.version for one in removed), started
        )

    def _code(
        self,
        layout: Layout,
        index: int,
        changes: Changes,
        base: State | None,
        held: State | None,
        *,
        anchored: bool,
    ) -> tuple[bytes | None, bytes | None, list[str]]:
        group = layout.groups[index]
        whole = compose(layout, index, changes, base, held)
        name = WIDTH_NAMES[group.width]
        patch = full = None
        told = None
        if base is not None:
            before = base.groups[index]
            if whole is None:
                told = list(base.digests[group.first : group.first + group.count])
            else:
                patch = delta.encode(
                    before, whole, dtype=name, codec=self._codec, block_bytes=self._block_bytes
                )
                found = delta.info(patch)
                if found.base_digest == found.target_digest:
                    patch = None
        if anchored and group.nbytes:
            content = base.groups[index] if whole is None and base is not None else whole
            full = delta.encode(
                b"", content or b"", dtype=name, codec=self._codec, block_bytes=self._block_bytes
            )
        if told is None:
            told = tensor_digests(layout, index, whole if whole is not None else b"")
        return patch, full, told

    def _make_visible(self, manifest: Manifest) -> tuple[Retained, ...]:
        """Write the manifest, then the head; give the versions that the new head no longer names."""
        data = manifest.dump()
        name = content_digest(data)
        entry = Retained(
            version=manifest.version,
            digest=manifest.digest,
            manifest=name,
            manifest_bytes=len(data),
            base=manifest.base,
            delta_bytes=0 if manifest.delta is None else manifest.delta.nbytes,
            anchor_bytes=None if manifest.anchor is None else manifest.anchor.nbytes,
        )
        before = self._head.versions
        kept = choose_retained((*before, entry), self._keep)
        head = Head(self._name, kept)
        told = head.dump()
        if len(told) > MAX_HEAD_BYTES:
            raise ConfigError(
                f"a head of {len(kept)} versions has {len(told)} bytes, the limit is {MAX_HEAD_BYTES}"
            )
        self._garbage.add(manifest_key(name))
        self._store.write(manifest_key(name), data)
        # From here until the head is known to be replaced, or known not to be, nobody knows which holds.
        self._doubt = True
        self._stamp = self._store.replace_head(told, self._stamp)
        self._head = head
        self._show()
        self._objects[name] = {manifest_key(name), *map(pack_key, manifest.objects())}
        return tuple(one for one in before if one not in kept)

    def _advance(self, manifest: Manifest, changes: Changes, changed: list[int], base: State | None) -> None:
        """Make what was published the base of the next version, and prove that it is that."""
        layout = manifest.layout
        old, self._held = self._held, None
        if base is None:
            groups: tuple[bytes | bytearray, ...] = tuple(bytearray(group.nbytes) for group in layout.groups)
        else:
            groups = base.groups
        sources = old.tensors() if old is not None and base is None else {}
        for index in changed:
            view = memoryview(groups[index])
            for number, place in layout.groups[index].slices():
                spec, change = changes[layout.specs[number].name]
                if spec.name in sources and change.whole is None:
                    view[place] = sources[spec.name].data
                change.write_onto(view[place])

        def prove(index: int) -> bool:
            group = layout.groups[index]
            told = list(manifest.digests[group.first : group.first + group.count])
            return tensor_digests(layout, index, groups[index]) == told

        if not all(run_over(self._threads, prove, changed)):
            raise IntegrityError(
                f"a buffer was written to while version {manifest.version} was published",
                hint="buffers must stay as they are until the with block has ended",
            )
        self._held = State(manifest.version, manifest.digest, layout, manifest.digests, groups)
        self._doubt = False

    def _collect(self, removed: tuple[Retained, ...]) -> None:
        """Remove what no version needs any more; what cannot be removed now is tried again later."""
        for entry in removed:
            self._garbage |= self._objects.pop(entry.manifest, {manifest_key(entry.manifest)})
        if any(entry.manifest not in self._objects for entry in self._head.versions):
            return
        self._garbage -= set().union(*self._objects.values())
        for key in sorted(self._garbage):
            try:
                self._store.remove(key)
            except (OSError, DwcpError) as exc:
                LOG.warning("object %s of removed versions is still there: %s", key, exc)
                return
            self._garbage.discard(key)

    def _settle(self, *, opening: bool = False) -> None:
        """Read from the store what is not known for certain."""
        if not self._doubt:
            return
        self._stamp = self._store.read_head()
        head = Head(self._name) if self._stamp is None else Head.load(self._stamp.data)
        if opening:
            head = Head(self._name, head.versions)
            # The new name takes the right to publish from whoever had it.
            self._stamp = self._store.replace_head(head.dump(), self._stamp)
        elif head.publisher != self._name:
            raise ConflictError(
                "another publisher has opened the store", hint="only the one that opened it last may publish"
            )
        self._head = head
        newest = head.newest
        if newest is None or self._held is None or self._held.digest != newest.digest:
            self._held = self._load()
        self._index()
        self._doubt = False
        self._show()
        if opening:
            self._sweep()

    def _load(self) -> State | None:
        """Read the newest version; None if it is damaged, which makes the next version an anchor."""
        refused: set[tuple[str, Form]] = set()
        while self._head.versions:
            route = plan_route(self._head.versions, None, refused)
            if not route.value:
                LOG.warning("the newest version cannot be read back, so the next one is an anchor")
                return None
            try:
                state = follow(
                    self._store, route.value, None, threads=self._threads, max_bytes=self._max_bytes
                )
            except Refusal as refusal:
                LOG.warning("version %d cannot be read back: %s", refusal.step.entry.version, refusal.error)
                refused.add(refusal.key)
                continue
            groups = tuple(bytearray(group) for group in state.groups)
            return State(state.version, state.digest, state.layout, state.digests, groups)
        return None

    def _index(self) -> None:
        """Note which objects each version needs, where that is not known."""
        known = {entry.manifest for entry in self._head.versions}
        self._objects = {name: keys for name, keys in self._objects.items() if name in known}
        for entry in self._head.versions:
            if entry.manifest in self._objects:
                continue
            form: Form = "delta" if entry.base is not None else "anchor"
            try:
                manifest = read_manifest(self._store, Step(entry, form))
            except FormatError as exc:
                # Nothing is removed while it is not known what this version needs.
                LOG.warning("the manifest of version %d cannot be read: %s", entry.version, exc)
                continue
            self._objects[entry.manifest] = {
                manifest_key(entry.manifest),
                *map(pack_key, manifest.objects()),
            }

    def _sweep(self) -> None:
        """Remove what earlier publishers left behind without ever naming it."""
        self._garbage |= set(self._store.list_keys())
        self._collect(())

    def _report(
        self,
        entry: Retained,
        layout: Layout,
        changed: list[int],
        kind: str,
        why: str,
        removed: tuple[int, ...],
        started: float,
    ) -> PublishReport:
        read = entry.anchor_bytes if entry.base is None else entry.delta_bytes
        return PublishReport(
            version=entry.version,
            digest=entry.digest,
            base=entry.base,
            kind=kind,
            why={"anchor": why},
            tensors=len(layout.specs),
            bytes_raw=layout.nbytes,
            bytes_delta=None if entry.base is None else entry.delta_bytes,
            bytes_anchor=entry.anchor_bytes,
            ratio=layout.nbytes / read if read else None,
            groups_changed=len(changed),
            groups=len(layout.groups),
            removed=removed,
            seconds=time.perf_counter() - started,
        )


def compose(
    layout: Layout, index: int, changes: Changes, base: State | None, held: State | None
) -> memoryview | None:
    """Give the new bytes of a group; None if all of it is as in the base."""
    group = layout.groups[index]
    members = [(place, *changes[layout.specs[number].name]) for number, place in group.slices()]
    if len(members) == 1 and members[0][2].whole is not None:
        return members[0][2].whole
    if base is not None:
        if all(change.keeps for _, _, change in members):
            return None
        whole = bytearray(base.groups[index])
    else:
        whole = bytearray(group.nbytes)
    view = memoryview(whole)
    sources = held.tensors() if held is not None and base is None else {}
    for place, spec, change in members:
        if spec.name in sources and change.whole is None:
            view[place] = sources[spec.name].data
        change.write_onto(view[place])
    return view
