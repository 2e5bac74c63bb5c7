"""A version that is being put together: what was said about each tensor, and nothing published yet."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from dwcp_fast.buffers import BufferLike
from dwcp_fast.errors import BaseMismatchError, ConfigError, DeltaError
from dwcp_fast.versions.reports import PublishReport
from dwcp_fast.versions.safetensors import map_tensors
from dwcp_fast.versions.tensors import TensorSpec, describe, elements_of, plain_view

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Change", "Dense", "Draft", "Kept", "Masked", "Sparse"]


class Change(Protocol):
    """How a tensor comes from its base."""

    keeps: bool
    """Whether it is as in the base."""

    @property
    def whole(self) -> memoryview | None:
        """All its bytes, None if they are not at hand."""
        ...

    def write_onto(self, view: memoryview) -> None:
        """Turn the base, in a writable view, into the new tensor."""
        ...


class Dense:
    """All bytes are given."""

    keeps = False

    def __init__(self, data: memoryview) -> None:
        """Refer to them."""
        self.whole: memoryview | None = data

    def write_onto(self, view: memoryview) -> None:
        """Copy them."""
        if self.whole is not None:
            view[:] = self.whole


class Kept:
    """It is as in the base."""

    keeps = True
    whole: memoryview | None = None

    def write_onto(self, view: memoryview) -> None:
        """Change nothing."""


class Sparse:
    """Some elements are given, with their indices."""

    keeps = False
    whole: memoryview | None = None

    def __init__(self, index: "npt.NDArray[np.int64]", value: "npt.NDArray[Any]") -> None:
        """Refer to both; they were checked."""
        self.index = index
        self.value = value

    def write_onto(self, view: memoryview) -> None:
        """Write the elements."""
        if self.index.size:
            elements_of(view, self.value.itemsize)[self.index] = self.value


class Masked:
    """All elements are given, and which of them changed."""

    keeps = False
    whole: memoryview | None = None

    def __init__(self, value: "npt.NDArray[Any]", mask: "npt.NDArray[np.bool_]") -> None:
        """Refer to both; they were checked."""
        self.value = value
        self.mask = mask

    def write_onto(self, view: memoryview) -> None:
        """Write the elements that changed."""
        if self.mask.size:
            np.copyto(elements_of(view, self.value.itemsize), self.value, where=self.mask)


class Draft:
    """A version that is being put together; made by :meth:`~dwcp_fast.DeltaPublisher.version`.

    Buffers are not copied: they must stay as they are until the ``with`` block has ended. Ending without an
    exception publishes it; with one, nothing is published.

    Attributes:
        version: Its number.
        since: Number of the version that changes are changes to, None if there is none.
        report: What publishing did, after the block.
    """

    def __init__(
        self,
        version: int,
        since: int | None,
        base: Sequence[TensorSpec],
        publish: Callable[["Draft"], PublishReport],
        abandon: Callable[[], None],
        doubt: str | None,
    ) -> None:
        """Start from the tensors of the base; `doubt` says why changes to it must not be taken."""
        self.version = version
        self.since = since
        self._abandon = abandon
        self._doubt = doubt
        self.report: PublishReport | None = None
        self._held = {spec.name: spec for spec in base}
        self._publish = publish
        self._changes: dict[str, tuple[TensorSpec, Change]] = {}
        self._dropped: set[str] = set()
        self._open = False

    @property
    def base_names(self) -> tuple[str, ...]:
        """Names of the tensors of the base."""
        return tuple(self._held)

    def put(
        self,
        name: str,
        buf: BufferLike,
        *,
        dtype: str | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        """Put a tensor with all its bytes.

        Args:
            name: Its name.
            buf: Its bytes: a C-contiguous buffer, an array, or a CPU tensor.
            dtype: Type of its elements, such as ``"bf16"``; None takes what the array tells, or that of the
                base for a plain buffer of the same length, or ``"uint8"``.
            shape: Its dimensions; None as for `dtype`.

        Raises:
            ConfigError: Name, type or shape cannot be used, or it was put before.
            LimitExceededError: It is too large.
            BufferError: The buffer is not contiguous, or not on the CPU.
        """
        known = self._held.get(name)
        view = plain_view(buf)
        if dtype is None and shape is None and not hasattr(buf, "dtype") and known is not None:
            dtype, shape = (known.dtype, known.shape) if known.nbytes == view.nbytes else (None, None)
        self._add(describe(name, buf, dtype, shape), Dense(view))

    def put_all(self, tensors: Mapping[str, BufferLike]) -> None:
        """Put several tensors; as :meth:`put` for each.

        Args:
            tensors: Their bytes by name.
        """
        for name, buf in tensors.items():
            self.put(name, buf)

    def put_file(self, path: str | PathLike[str]) -> None:
        """Put every tensor of a safetensors file, which must stay as it is until the block has ended.

        Args:
            path: The file.

        Raises:
            FormatError: It is no such file.
            OSError: It cannot be read.
        """
        for tensor in map_tensors(path).values():
            self._add(tensor.spec, Dense(tensor.data))

    def put_sparse(self, name: str, index: BufferLike, value: BufferLike) -> None:
        """Put the elements of a tensor that changed; the others are as in the base.

        Args:
            name: A tensor of the base.
            index: Where they are: integers, each element counted in row-major order, none twice.
            value: The new elements, in the same order, of the tensor's type.

        Raises:
            BaseMismatchError: It is not certain that the change is one to the base; see
                :meth:`~dwcp_fast.DeltaPublisher.version`.
            DeltaError: The base has no such tensor, an index is out of range or twice there, or there are not
                as many values as indices.
        """
        spec = self._based(name)
        at = np.asarray(index).reshape(-1)
        if at.size and at.dtype.kind not in "iu":
            raise DeltaError(f"indices of {name!r} are of type {at.dtype}, not integers")
        count = spec.nbytes // spec.width
        at = at.astype(np.int64, copy=False)
        if at.size and not 0 <= int(at.min()) <= int(at.max()) < count:
            raise DeltaError(f"indices of {name!r} go from {at.min()} to {at.max()}, it has {count} elements")
        if at.size > 1:
            steps = np.diff(at)
            if not bool((steps > 0).all()) and np.unique(at).size != at.size:
                raise DeltaError(f"an index of {name!r} is there twice")
        new = elements_of(plain_view(value), spec.width) if at.size else np.zeros(0, f"<u{spec.width}")
        if new.size != at.size:
            raise DeltaError(f"{name!r} has {at.size} indices and {new.size} values")
        self._add(spec, Sparse(at, new))

    def put_masked(self, name: str, buf: BufferLike, mask: BufferLike) -> None:
        """Put a tensor of which only some elements changed; the others are not read.

        Args:
            name: A tensor of the base.
            buf: All its bytes.
            mask: One bool for each element: whether it changed.

        Raises:
            BaseMismatchError: As for :meth:`put_sparse`.
            DeltaError: The base has no such tensor, or the lengths do not fit it.
        """
        spec = self._based(name)
        view = plain_view(buf)
        bits = np.frombuffer(plain_view(mask), dtype=np.bool_)
        count = spec.nbytes // spec.width
        if view.nbytes != spec.nbytes or bits.size != count:
            raise DeltaError(
                f"{name!r} has {count} elements in {spec.nbytes} bytes, given are {view.nbytes} bytes and a "
                f"mask of {bits.size}"
            )
        self._add(spec, Masked(elements_of(view, spec.width), bits) if count else Kept())

    def keep(self, *names: str) -> None:
        """Keep tensors as they are in the base.

        Args:
            names: Their names.

        Raises:
            BaseMismatchError: As for :meth:`put_sparse`.
            DeltaError: The base has no such tensor.
        """
        for name in names:
            self._add(self._based(name), Kept())

    def keep_rest(self) -> None:
        """Keep every tensor of the base that is neither put nor dropped so far."""
        self.keep(*(name for name in self._held if name not in self._changes and name not in self._dropped))

    def drop(self, *names: str) -> None:
        """Leave tensors of the base out of this version.

        Args:
            names: Their names.

        Raises:
            DeltaError: The base has no such tensor.
        """
        for name in names:
            self._known(name)
            self._dropped.add(name)

    def changes(self) -> dict[str, tuple[TensorSpec, Change]]:
        """Give what was said, after checking that nothing of the base was forgotten.

        Returns:
            Type and change of each tensor, by name.

        Raises:
            DeltaError: Tensors of the base are neither put, kept nor dropped.
            ConfigError: There are no tensors.
        """
        missing = [name for name in self._held if name not in self._changes and name not in self._dropped]
        if missing:
            raise DeltaError(
                f"version {self.version} says nothing of {len(missing)} tensors of its base, such as "
                f"{missing[0]!r}",
                hint="put them, or say keep_rest() or drop(name)",
            )
        if not self._changes:
            raise ConfigError(f"version {self.version} has no tensors")
        return self._changes

    def _known(self, name: str) -> TensorSpec:
        try:
            return self._held[name]
        except KeyError:
            raise DeltaError(f"the base has no tensor {name!r}") from None

    def _based(self, name: str) -> TensorSpec:
        if self._doubt is not None:
            raise BaseMismatchError(
                f"a change of {name!r} does not say which version it is a change to, and {self._doubt}",
                hint="put tensors in full, or name that version: version(number, since=...)",
            )
        return self._known(name)

    def _add(self, spec: TensorSpec, change: Change) -> None:
        if not self._open:
            raise ConfigError("the version is not open: use it inside its with block")
        if spec.name in self._changes or spec.name in self._dropped:
            raise ConfigError(f"tensor {spec.name!r} was put, kept or dropped before")
        self._changes[spec.name] = (spec, change)

    def __enter__(self) -> Self:
        """Open it."""
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Publish it, unless the block ended by an exception."""
        self._open = False
        try:
            if kind is None:
                self.report = self._publish(self)
            else:
                self._abandon()
        finally:
            # Buffers of the caller are not held any longer than promised.
            self._changes = {}
