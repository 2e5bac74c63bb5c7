"""A store in memory, and faults at chosen operations of a store or of the operating system."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from dwcp_fast.errors import ConflictError, TransportError
from dwcp_fast.versions import DeltaPublisher, DeltaSubscriber, Stamp, Tensors
from dwcp_fast.versions.manifest import content_digest

Arrays = dict[str, np.ndarray[Any, Any]]
STORE_FAULTS: Final = ("refused", "lost answer", "flipped", "cut", "stale")
SYSTEM_FAULTS: Final = ("refused", "lost answer", "killed", "power lost", "flipped")


class Killed(BaseException):
    """The process is gone: nothing it would still do has an effect."""


class MemoryStore:
    """A store whose `before` is asked at each operation: it may raise, and tells what else is to go wrong."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.head: bytes | None = None
        self.old_head: bytes | None = None
        self.before: Callable[[str], str | None] = lambda operation: None
        self._woken = threading.Event()

    def read_head(self) -> Stamp | None:
        with self._operation("read head") as fault:
            data = self.old_head if fault == "stale" else self.head
            return None if data is None else Stamp(damaged(data, fault), content_digest(data))

    def wait_head(self, seen: Stamp | None, held: str | None, timeout_s: float) -> Stamp | None:
        while True:
            head = self.read_head()
            if head is not None and (seen is None or seen.token != head.token):
                return head
            if timeout_s <= 0 or self._woken.wait(min(timeout_s, 0.01)):
                self._woken.clear()
                return None
            timeout_s -= 0.01

    def read(self, key: str, length: int) -> bytes:
        with self._operation(f"read {key}") as fault:
            if key not in self.objects:
                raise FileNotFoundError(key)
            return damaged(self.objects[key], fault)[: length + 1]

    def tell(self, version: int | None, failure: str | None) -> None:
        pass

    def interrupt(self) -> None:
        self._woken.set()

    def close(self) -> None:
        pass

    def replace_head(self, data: bytes, seen: Stamp | None) -> Stamp:
        with self._operation("replace head"):
            token = None if self.head is None else content_digest(self.head)
            if token != (None if seen is None else seen.token):
                raise ConflictError("the head was changed")
            self.old_head, self.head = self.head, data
            return Stamp(data, content_digest(data))

    def write(self, key: str, data: bytes) -> None:
        with self._operation(f"write {key}") as fault:
            # A store may also keep something else than it was given.
            self.objects[key] = damaged(bytes(data), fault)

    def remove(self, key: str) -> None:
        with self._operation(f"remove {key}"):
            self.objects.pop(key, None)

    def list_keys(self) -> Iterator[str]:
        with self._operation("list"):
            return iter(list(self.objects))

    @contextmanager
    def _operation(self, name: str) -> Iterator[str | None]:
        fault = self.before(name)
        if fault == "refused":
            raise TransportError("the store is not there")
        yield fault
        if fault == "lost answer":
            raise TransportError("the answer is lost")


def damaged(data: bytes, fault: str | None) -> bytes:
    if fault == "flipped" and data:
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]
    return data[: len(data) // 2] if fault == "cut" else data


class Counter:
    """Counts operations, and makes one of them go wrong."""

    def __init__(self, at: int = -1, fault: str = "") -> None:
        self.count = 0
        self.names: list[str] = []
        self._at = at
        self._fault = fault

    def __call__(self, operation: str) -> str | None:
        self.count += 1
        self.names.append(operation)
        return self._fault if self.count - 1 == self._at else None


class FaultySystem:
    """The calls of `os` that this thread makes below one directory, one of which goes wrong.

    After "killed" no call has an effect. After "power lost" neither, and what was not synced is undone:
    content of files as well as names in directories.
    """

    def __init__(self, root: Path, counter: Counter) -> None:
        self._root = str(root)
        self._counter = counter
        self._paths: dict[int, str] = {}
        self._dead = False
        self._unsynced_files: set[str] = set()
        self._unsynced_names: list[tuple[str, str, bytes | None]] = []
        self.fault_told: str | None = None
        self._thread = threading.get_ident()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            real = {name: getattr(os, name) for name in ("open", "close")}

            def open_(path: Any, *rest: Any, **named: Any) -> int:
                def act() -> int:
                    return self._note(real["open"](path, *rest, **named), path)

                fd: int = self._call("open", str(path), act)
                return fd

            def close(fd: int) -> None:
                self._paths.pop(fd, None)
                real["close"](fd)

            patch.setattr(os, "open", open_)
            patch.setattr(os, "close", close)
            for name in ("write", "read", "pread", "fsync"):
                patch.setattr(os, name, self._by_descriptor(name, getattr(os, name)))
            for name in ("replace", "unlink", "mkdir", "listdir"):
                patch.setattr(os, name, self._by_path(name, getattr(os, name)))
            yield
        if self.fault_told == "power lost":
            self._lose_power()

    def _note(self, fd: int, path: Any) -> int:
        self._paths[fd] = str(path)
        return fd

    def _by_path(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *rest: Any, **named: Any) -> Any:
            def act() -> Any:
                if name == "replace":
                    self._renamed(str(path), str(rest[0]))
                return real(path, *rest, **named)

            return self._call(name, str(path), act)

        return call

    def _by_descriptor(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(fd: int, *rest: Any) -> Any:
            path = self._paths.get(fd, "")

            def act() -> Any:
                if name == "write":
                    self._unsynced_files.add(path)
                if name == "fsync":
                    # Kept in mind instead of done: tests need not wait for disks.
                    self._unsynced_files.discard(path)
                    self._unsynced_names = [one for one in self._unsynced_names if one[0] != path]
                    return None
                return real(fd, *rest)

            if name == "write":
                return self._call(name, path, act, torn=lambda: real(fd, rest[0][: len(rest[0]) // 2]))
            return self._call(name, path, act)

        return call

    def _call(
        self, name: str, path: str, act: Callable[[], Any], torn: Callable[[], Any] | None = None
    ) -> Any:
        if threading.get_ident() != self._thread or not path.startswith(self._root):
            return act()
        if self._dead:
            raise Killed
        fault = self._counter(f"{name} {path.removeprefix(self._root)}")
        if fault is None:
            return act()
        self.fault_told = fault
        if fault == "refused":
            raise OSError(5, "refused", path)
        if fault in {"killed", "power lost"}:
            self._dead = True
            if torn is not None:
                torn()
            raise Killed
        done = act()
        if fault == "flipped":
            return damaged(done, fault) if isinstance(done, bytes) else done
        if name == "open":
            os.close(done)
        raise OSError(5, "the answer is lost", path)

    def _renamed(self, old: str, new: str) -> None:
        before = Path(new)
        self._unsynced_names.append(
            (str(before.parent), new, before.read_bytes() if before.exists() else None)
        )
        if old in self._unsynced_files:
            self._unsynced_files.discard(old)
            self._unsynced_files.add(new)

    def _lose_power(self) -> None:
        for path in self._unsynced_files:
            if Path(path).exists():
                os.truncate(path, Path(path).stat().st_size // 2)
        for _, name, before in reversed(self._unsynced_names):
            if before is None:
                Path(name).unlink(missing_ok=True)
            else:
                Path(name).write_bytes(before)


def version_arrays(number: int) -> Arrays:
    """The tensors of a version: most of them as in the version before, some of them not."""
    rng = np.random.default_rng(5)
    arrays: Arrays = {
        "embedding": rng.normal(size=(64, 96)).astype(np.float32),
        "norm": rng.normal(size=96).astype(np.float16),
        "bias": np.zeros(7, np.float64),
    }
    for step in range(1, number + 1):
        at = np.random.default_rng(step).integers(0, 64 * 96, 20)
        arrays["embedding"].reshape(-1)[at] += np.float32(step)
        arrays["norm"][step % 96] = step
    return arrays


def is_exactly(tensors: Tensors, arrays: Arrays) -> bool:
    return set(tensors) == set(arrays) and all(
        tensors[name].data == array.tobytes() and tensors[name].spec.shape == array.shape
        for name, array in arrays.items()
    )


def take_newest(source: Any, into: Path | None = None) -> tuple[int, Tensors]:
    """What a receiver that starts now comes to."""
    with DeltaSubscriber(source, into) as subscriber:
        staged = subscriber.wait(0)
        if staged is not None:
            staged.commit()
        assert subscriber.version is not None
        return subscriber.version, subscriber.tensors()


def publish(publisher: DeltaPublisher, number: int) -> None:
    publisher.publish(number, version_arrays(number))
