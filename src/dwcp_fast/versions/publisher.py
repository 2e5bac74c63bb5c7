"""Publishing: numbered versions, each of which is there as a whole or not at all."""

import logging
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Final, Literal, get_args

from dwcp_fast import delta
from dwcp_fast.buffers import BufferLike
from dwcp_fast.closing import Closing
from dwcp_fast.delta import Snapshot
from dwcp_fast.errors import (
    BaseMismatchError,
    ClosedError,
    ConfigError,
    ConflictError,
    DwcpError,
    FormatError,
)
from dwcp_fast.options import (
    MAX_OBJECT_BYTES,
    MAX_SESSIONS,
    check_block_bytes,
    check_choice,
    check_int,
    check_seconds,
    check_threads,
)
from dwcp_fast.policy.versions import Form, Retained, Step, choose_anchor, choose_retained, plan_route
from dwcp_fast.record import MAX_NUMBER
from dwcp_fast.trust import Insecure, MutualTls
from dwcp_fast.versions.base import Base, Changes, Coder, begin_group
from dwcp_fast.versions.draft import Draft
from dwcp_fast.versions.layout import Layout, arrange
from dwcp_fast.versions.manifest import (
    MAX_HEAD_BYTES,
    Head,
    Manifest,
    Patches,
    content_digest,
    version_digest,
)
from dwcp_fast.versions.packing import Packer
from dwcp_fast.versions.places import open_store
from dwcp_fast.versions.reading import Refusal, follow, read_manifest
from dwcp_fast.versions.reports import PublishReport
from dwcp_fast.versions.serving import PeerStatus, Server
from dwcp_fast.versions.state import run_over
from dwcp_fast.versions.store import Stamp, Store, manifest_key, pack_key

__all__ = ["Confirm", "DeltaPublisher"]

Confirm = Literal["store", "any", "all"]

LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Coded:
    """A version whose patches are written, and which nothing names yet."""

    layout: Layout
    digests: tuple[str, ...]
    snapshots: tuple[Snapshot, ...]
    delta: Patches | None
    anchor: Patches | None
    changed: int


class DeltaPublisher(Closing):
    """Publishes versions of a set of tensors.

    A version is some immutable objects in a store, and becomes visible when one small head is replaced, last.
    One publisher writes to a store at a time: opening another one ends the first one's right to publish.

    What is published is kept in memory once more as the base of the next version. It becomes what the buffers
    hold while they are read, once, and is a base only when the version is durable: after a failure it is read
    back from the store.
    """

    def __init__(
        self,
        base: str | PathLike[str] | Store,
        *,
        anchor_every: int = 25,
        keep: int = 50,
        codec: str = "zstd:1",
        block_bytes: int = delta.DEFAULT_BLOCK_BYTES,
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
            codec: Codec of what changed: ``"none"``, ``"lz4"``,
                ``"lz4:ACCELERATION"``, ``"zstd"`` or ``"zstd:LEVEL"``.
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
            OSError: The store cannot be read or written, or `listen` not be listened on.
            TransportError: The store cannot be reached.
        """
        check_int("anchor_every", anchor_every, 1, 1024)
        check_int("keep", keep, 1, 1024)
        check_threads(threads)
        check_block_bytes(block_bytes)
        check_choice("confirm", confirm, get_args(Confirm))
        check_seconds("confirm_timeout_s", confirm_timeout_s)
        check_int("max_version_bytes", max_version_bytes, 1, MAX_OBJECT_BYTES)
        check_int("max_peers", max_peers, 1, MAX_SESSIONS)
        if listen is None and (confirm != "store" or trust is not None or clients is not None):
            raise ConfigError("trust, clients and confirm are for subscribers that dial, but listen is None")
        self._confirm = confirm
        self._confirm_timeout_s = confirm_timeout_s
        self._server: Server | None = None
        self._coder = Coder(codec, block_bytes)
        # Which codecs there are is the library's to say.
        self._coder.snapshot(b"", 1)
        self._store: Store = open_store(base)
        self._name = secrets.token_hex(16)
        self._anchor_every = anchor_every
        self._keep = keep
        self._threads = threads
        self._max_bytes = max_version_bytes
        self._lock = threading.Lock()
        self._head: Head = Head(self._name)
        self._stamp: Stamp | None = None
        self._base: Base | None = None
        self._objects: dict[str, set[str]] = {}
        self._garbage: set[str] = set()
        # Why it is not certain that the caller's changes are changes to what is held.
        self._uncertain: str | None = "the publisher has just been opened"
        # Whether what the store holds has to be read before it can be relied on.
        self._doubt = True
        self._closed = False
        try:
            # First, as it may fail: to settle ends the right to publish of whoever had it.
            if listen is not None:
                self._server = Server(listen, self._store, trust, clients, max_peers)
            self._settle(opening=True)
        except BaseException:
            if self._server is not None:
                self._server.close()
            if self._store is not base:
                self._store.close()
            raise

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
            ClosedError: The publisher was closed.
        """
        with self._lock:
            self._check_open()
            self._settle()
            newest = self.newest
            if type(number) is not int or not 0 <= number <= MAX_NUMBER:
                raise ConfigError(f"version is {number!r}: it must be an integer from 0 to {MAX_NUMBER}")
            if newest is not None and number < newest:
                raise ConfigError(f"version {number} is below version {newest}, which is the newest")
            base = self._base
            if since is not None and (base is None or base.version != since):
                raise BaseMismatchError(f"the base is version {base and base.version}, not {since}")
            doubt = None if since is not None else self._uncertain
            specs = () if base is None else base.layout.specs
            return Draft(
                number, None if base is None else base.version, specs, self._publish, self._abandon, doubt
            )

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
            draft.drop(*(name for name in draft.base_names if name not in tensors))
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
        """Part from subscribers and let go of the store; a second time does nothing.

        What is being published on another thread is brought to its end before, and nothing is published
        afterwards.
        """
        with self._lock:
            closed, self._closed = self._closed, True
        if closed:
            return
        if self._server is not None:
            self._server.close()
        self._store.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this publisher was closed")

    def _publish(self, draft: Draft) -> PublishReport:
        with self._lock:
            self._check_open()
            started = time.perf_counter()
            self._uncertain = f"version {draft.version} was not published for certain"
            self._settle()
            if draft.since != (self._base and self._base.version):
                raise BaseMismatchError(
                    f"version {draft.version} was begun on version {draft.since}, newest is {self.newest}",
                    hint="begin a version when the one before has been published",
                )
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
        base, newest = self._base, self._head.newest
        if newest is not None and number < newest.version:
            raise ConfigError(f"version {number} is below version {newest.version}, which is the newest")
        same = base is not None and {spec.name: spec for spec in base.layout.specs} == {
            name: spec for name, (spec, _) in changes.items()
        }
        choice = choose_anchor(
            self._head.versions,
            base=None if base is None else base.digest,
            same_tensors=same,
            anchor_every=self._anchor_every,
            failure=next((peer.failure for peer in self.peers() if peer.failure is not None), None),
        )
        # Until the version is published, nobody knows what is held: the base advances while it is coded.
        self._doubt, self._base = True, None
        told = (
            self._code_delta(base, changes, anchored=choice.value)
            if base is not None and same
            else self._code_anew(base, changes)
        )
        content = version_digest(told.layout, told.digests)
        if newest is not None and number == newest.version:
            if content != newest.digest:
                raise ConfigError(f"version {number} is published already, with other content")
            return self._report(newest, told.layout, 0, "again", "the store has it", (), started)
        manifest = Manifest(
            version=number,
            layout=told.layout,
            digests=told.digests,
            digest=content,
            base=None if told.delta is None or base is None else base.digest,
            delta=told.delta,
            anchor=told.anchor,
        )
        removed = self._make_visible(manifest)
        self._base = Base(number, content, told.layout, told.digests, told.snapshots)
        self._doubt = False
        self._collect(removed)
        forms = (told.delta is not None, told.anchor is not None)
        kind = {(True, True): "both", (True, False): "delta"}.get(forms, "anchor")
        gone = tuple(one.version for one in removed)
        return self._report(
            self._head.versions[-1], told.layout, told.changed, kind, choice.why, gone, started
        )

    def _code_delta(self, base: Base, changes: Changes, *, anchored: bool) -> "Coded":
        """Code a version with the tensors of the base, which becomes that version."""
        layout = base.layout
        packer = Packer(self._store, self._garbage)
        anchor = Packer(self._store, self._garbage)

        def code(index: int) -> tuple[bytes | None, bytes | None, list[str]]:
            patch, digests = base.advance(index, changes)
            group = layout.groups[index]
            full = None
            if anchored and group.nbytes:
                full = self._coder.anchor(base.snapshots[index].view(), group.width)
            return patch, full, digests

        digests: list[str] = []
        changed = 0
        for patch, full, told in run_over(self._threads, code, range(len(layout.groups))):
            packer.add(patch)
            anchor.add(full)
            changed += patch is not None
            digests += told
        return Coded(
            layout,
            tuple(digests),
            base.snapshots,
            packer.finish(),
            anchor.finish() if anchored else None,
            changed,
        )

    def _code_anew(self, base: Base | None, changes: Changes) -> "Coded":
        """Code a version that no base fits."""
        layout = arrange(spec for spec, _ in changes.values())
        before = {} if base is None else base.tensors()
        packer = Packer(self._store, self._garbage)

        def code(index: int) -> tuple[Snapshot, bytes | None, list[str]]:
            snapshot, digests = begin_group(layout, index, changes, before, self._coder)
            group = layout.groups[index]
            return (
                snapshot,
                self._coder.anchor(snapshot.view(), group.width) if group.nbytes else None,
                digests,
            )

        digests: list[str] = []
        snapshots = []
        for snapshot, full, told in run_over(self._threads, code, range(len(layout.groups))):
            snapshots.append(snapshot)
            packer.add(full)
            digests += told
        return Coded(layout, tuple(digests), tuple(snapshots), None, packer.finish(), len(snapshots))

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
        self._stamp = self._store.replace_head(told, self._stamp)
        self._head = head
        self._show()
        self._objects[name] = objects_of(name, manifest)
        return tuple(one for one in before if one not in kept)

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
        if newest is None or self._base is None or self._base.digest != newest.digest:
            self._base = self._load()
        self._index()
        self._doubt = False
        self._show()
        if opening:
            self._sweep()

    def _load(self) -> Base | None:
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
            return Base.hold(state, self._coder)
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
            self._objects[entry.manifest] = objects_of(entry.manifest, manifest)

    def _sweep(self) -> None:
        """Remove what earlier publishers left behind without ever naming it."""
        self._garbage |= set(self._store.list_keys())
        self._collect(())

    def _report(
        self,
        entry: Retained,
        layout: Layout,
        changed: int,
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
            groups_changed=changed,
            groups=len(layout.groups),
            removed=removed,
            seconds=time.perf_counter() - started,
        )


def objects_of(name: str, manifest: Manifest) -> set[str]:
    """Give the keys of all objects that a version needs; `name` is the digest of its manifest."""
    return {manifest_key(name), *map(pack_key, manifest.objects())}
