"""Pairs, contenders, and how both are timed: in turn, by processor and wall time, every result verified."""

import importlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import harness
from delta.native import Bytes, MissingError
from delta.runner import runner


def nothing() -> None:
    """Prepare nothing."""


class Pair:
    """Two versions of one state, and buffers that every contender decodes into."""

    def __init__(self, name: str, old: Bytes, new: Bytes, dtype: str | None = None) -> None:
        self.name, self.old, self.new, self.dtype = name, old, new, dtype
        self.width = {None: 1, "bf16": 2, "fp32": 4}[dtype]
        self.held = old.copy()
        self.out = np.ones_like(new)
        self.room = np.ones(new.size + (new.size >> 7) + (4 << 20), np.uint8)

    def hold_old(self) -> None:
        """Put the old version into the buffer that is changed in place."""
        np.copyto(self.held, self.old)

    def sliced(self, size: int) -> "Pair":
        """The same pair, cut to its first `size` bytes, for contenders that would take minutes."""
        return Pair(self.name, self.old[:size], self.new[:size], self.dtype)


@dataclass(frozen=True)
class Decode:
    """One way to decode: gives what must equal the new version."""

    run: Callable[[Any], Any]
    prepare: Callable[[], None] = nothing


@dataclass(frozen=True)
class Contender:
    """One way to make a patch, and ways to apply it.

    Attributes:
        encode: Makes the patch.
        decodes: By name; the first is the one that claims are about.
        size: Bytes of a patch.
        prepare: Runs before each encode, untimed.
        most_rounds: At most so many timed rounds, for the slow.
        notes: More that a result keeps, filled in as it runs (peak memory).
    """

    encode: Callable[[], Any]
    decodes: Mapping[str, Decode]
    size: Callable[[Any], int] = len
    prepare: Callable[[], None] = nothing
    most_rounds: int = 1000
    notes: dict[str, Any] = field(default_factory=dict)


def in_place(pair: Pair, run: Callable[[Any], object]) -> dict[str, Decode]:
    """Decode by changing the buffer that holds the old version."""

    def change(patch: Any) -> Bytes:
        run(patch)
        return pair.held

    return {"in place": Decode(change, pair.hold_old)}


def to_new(run: Callable[[Any], Any]) -> dict[str, Decode]:
    """Decode into memory that does not hold the old version."""
    return {"new": Decode(run)}


def clock() -> tuple[float, float]:
    """Wall seconds, and processor seconds of this process and of the programs that it had run."""
    return time.perf_counter(), time.process_time() + runner().cpu_s


def timed(action: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result of a call, its wall and its processor seconds."""
    wall, cpu = clock()
    result = action()
    wall_after, cpu_after = clock()
    return result, wall_after - wall, cpu_after - cpu


class Result:
    """What one contender showed for one pair: samples, size, and whether every decode was right."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.patch_bytes = 0
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}
        self.notes: dict[str, Any] = {}

    def keep(self, step: str, wall: float, cpu: float) -> None:
        self.wall.setdefault(step, []).append(wall)
        self.cpu.setdefault(step, []).append(cpu)

    def cpu_s(self, step: str) -> float:
        return statistics.median(self.cpu[step])

    def rate(self, step: str) -> float:
        """Megabytes of the new version for each processor second."""
        return self.nbytes / self.cpu_s(step) / 1e6

    def raw(self) -> dict[str, Any]:
        return {
            "bytes": self.nbytes,
            "patch_bytes": self.patch_bytes,
            "wall_s": self.wall,
            "cpu_s": self.cpu,
            **self.notes,
        }


def same(made: Any, new: Bytes) -> bool:
    """Whether what was decoded, an array, a buffer or a file, is the new version."""
    if isinstance(made, Path):
        view = np.fromfile(made, np.uint8)
    else:
        view = made.view(np.uint8).ravel() if isinstance(made, np.ndarray) else np.frombuffer(made, np.uint8)
    return bool(np.array_equal(view, new))


def measure(pair: Pair, contenders: Mapping[str, Contender], repeats: int) -> dict[str, Result]:
    """Run all contenders in turn; a first round warms up and is dropped, unless a contender is slow.

    Raises:
        RuntimeError: A contender decoded something else than the new version.
    """
    results = {name: Result(pair.new.size) for name in contenders}
    for turn in range(repeats + 1):
        for name in harness.in_turn(contenders, turn):
            contender, result = contenders[name], results[name]
            first = 0 if contender.most_rounds <= 3 else 1
            if not first <= turn < first + contender.most_rounds and turn:
                continue
            contender.prepare()
            patch, *taken = timed(contender.encode)
            result.patch_bytes = contender.size(patch)
            if turn >= first:
                result.keep("encode", *taken)
            for way, decode in contender.decodes.items():
                decode.prepare()
                made, *taken = timed(partial(decode.run, patch))
                if not same(made, pair.new):
                    raise RuntimeError(f"{name} did not decode {pair.name} ({way})")
                if turn >= first:
                    result.keep(f"decode {way}", *taken)
            result.notes = dict(contender.notes)
    return results


def turns(actions: Mapping[str, Callable[[], object]], repeats: int) -> harness.Samples:
    """Processor seconds of each action, in turn; the first round warms up and is dropped."""
    return harness.interleave(actions, repeats, lambda action: timed(action)[2])


def module(name: str) -> Any:
    """A package that need not be there."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingError(f"the package {name.partition('.')[0]} is missing") from None


def assemble(
    makers: Mapping[str, Callable[[Pair], Contender]], pair: Pair, missing: dict[str, str]
) -> dict[str, Contender]:
    """The contenders that can run here; what cannot is noted with its reason."""
    ready = {}
    for name, make in makers.items():
        try:
            ready[name] = make(pair)
        except MissingError as error:
            missing[name] = str(error)
    return ready
