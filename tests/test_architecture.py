"""Which crate and which module may use which, as ARCHITECTURE.md says, and proof that each check can fail."""

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

PACKAGE = "dwcp_fast"

# --- crates

CRATES_BELOW = {
    "dwcp-codec": set[str](),
    "dwcp-proto": {"dwcp-codec"},
    "dwcp-store": {"dwcp-codec", "dwcp-proto"},
    "dwcp-vm": {"dwcp-codec"},
    "dwcp-rdma": set[str](),
    "dwcp-net": {"dwcp-codec", "dwcp-proto", "dwcp-rdma", "dwcp-store", "dwcp-vm"},
    "dwcp-python": {"dwcp-codec", "dwcp-proto", "dwcp-store", "dwcp-vm", "dwcp-net"},
    "dwcp-linklab": set[str](),
}
MACHINE_CRATES = {"libc", "mio", "nix", "rcgen", "rustix", "rustls", "socket2", "tokio", "getrandom"}
FOREIGN_CRATES = {
    "dwcp-codec": MACHINE_CRATES | {"pyo3"},
    "dwcp-proto": MACHINE_CRATES | {"pyo3"},
    "dwcp-vm": MACHINE_CRATES | {"pyo3"},
    "dwcp-store": {"mio", "pyo3", "rcgen", "rustls", "socket2", "tokio"},
    "dwcp-rdma": {"mio", "pyo3", "rcgen", "rustls", "socket2", "tokio"},
    "dwcp-net": {"pyo3"},
    "dwcp-python": {"mio", "rustls", "socket2", "tokio"},
    "dwcp-linklab": {"mio", "pyo3", "rcgen", "rustls", "socket2", "tokio"},
}
SANS_IO_CRATES = ("dwcp-codec", "dwcp-proto", "dwcp-vm")
UNSAFE_FILES = {
    "dwcp-codec": {"kernel/neon.rs", "kernel/x86.rs", "raw.rs", "sampling.rs"},
    "dwcp-proto": set[str](),
    "dwcp-vm": set[str](),
    "dwcp-store": {"memory/region.rs"},
    "dwcp-rdma": {"cm.rs", "device.rs", "domain.rs", "ffi.rs", "queue.rs", "region.rs"},
    "dwcp-net": {"transport/shm/region.rs", "transport/sockopt.rs"},
    "dwcp-python": {
        "buffer.rs",
        "compress.rs",
        "decompress.rs",
        "delta/apply.rs",
        "delta/encode.rs",
        "delta/snapshot.rs",
        "registered.rs",
        "target.rs",
    },
    "dwcp-linklab": {"main.rs"},
}
"""The files of a crate, where there are any, whose purpose needs unsafe code."""
IO_IN_RUST = re.compile(
    r"\bstd::(?:net|fs|process)\b|\bInstant::now\b|\bSystemTime\b|\bpyo3\b|\btime::Instant\b"
    # The same inside a braced import.
    r"|\bstd::\{[^;]*?\b(?:net|fs|process|Instant|SystemTime)\b"
)


def crate_faults(metadata: dict[str, Any]) -> list[str]:
    """Name every dependency, tests apart, that points up or to a crate of another room."""
    faults = []
    for package in metadata["packages"]:
        name = package["name"]
        if name not in CRATES_BELOW:
            faults.append(f"{name} has no place in the crate graph")
            continue
        for dependency in package["dependencies"]:
            needs = dependency["name"]
            ours = needs.startswith("dwcp-")
            if dependency["kind"] == "dev":
                continue
            if (ours and needs not in CRATES_BELOW[name]) or needs in FOREIGN_CRATES[name]:
                faults.append(f"{name} -> {needs}")
    return faults


def io_in_rust(source: str) -> list[str]:
    """Name what a source without I/O and clock may not use; comments are not looked at."""
    return [found.group() for found in IO_IN_RUST.finditer(without_comments(source))]


def without_comments(source: str) -> str:
    return re.sub(r"//[^\n]*", "", source)


def has_unsafe(source: str) -> bool:
    return re.search(r"\bunsafe\b", without_comments(source)) is not None


@pytest.fixture(scope="module")
def crate_graph(repository: Path) -> dict[str, Any]:
    command = ["cargo", "metadata", "--format-version=1", "--no-deps", "--offline"]
    told = subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True)
    graph: dict[str, Any] = json.loads(told.stdout)
    return graph


def test_every_crate_depends_only_on_crates_below_it(crate_graph: dict[str, Any]) -> None:
    assert {package["name"] for package in crate_graph["packages"]} == set(CRATES_BELOW)
    assert crate_faults(crate_graph) == []


@pytest.mark.parametrize(
    ("name", "needs"),
    [("dwcp-codec", "dwcp-proto"), ("dwcp-proto", "socket2"), ("dwcp-net", "pyo3"), ("dwcp-new", "log")],
)
def test_a_crate_that_points_up_is_found(name: str, needs: str) -> None:
    assert crate_faults({"packages": [{"name": name, "dependencies": [{"name": needs, "kind": None}]}]})


@pytest.mark.parametrize("crate", SANS_IO_CRATES)
def test_crates_without_io_have_neither_sockets_files_nor_clock(repository: Path, crate: str) -> None:
    sources = sorted((repository / "rust" / crate / "src").rglob("*.rs"))
    assert sources
    faults = {path.name: io_in_rust(path.read_text(encoding="utf-8")) for path in sources}
    assert {name: found for name, found in faults.items() if found} == {}


@pytest.mark.parametrize(
    "source",
    [
        "use std::net::TcpStream;",
        "use std::{io, fs};",
        "use std::{collections::BTreeMap, time::{Duration, Instant}};",
        "let now = Instant::now();",
        "fn f(at: std::time::SystemTime) {}",
    ],
)
def test_io_in_rust_is_found(source: str) -> None:
    assert io_in_rust(source)
    assert not io_in_rust(f"/// {source}\nuse std::{{fmt, time::Duration}};")


@pytest.mark.parametrize("crate", UNSAFE_FILES)
def test_unsafe_code_lives_only_in_the_files_made_for_it(repository: Path, crate: str) -> None:
    src = repository / "rust" / crate / "src"
    found = {
        str(path.relative_to(src))
        for path in src.rglob("*.rs")
        if has_unsafe(path.read_text(encoding="utf-8"))
    }
    assert found <= UNSAFE_FILES[crate]


@pytest.mark.parametrize(
    ("crate", "level"),
    [("codec", "deny"), ("proto", "forbid"), ("vm", "forbid"), ("store", "deny"), ("rdma", "deny")],
)
def test_the_compiler_refuses_unsafe_code_too(repository: Path, crate: str, level: str) -> None:
    root = (repository / "rust" / f"dwcp-{crate}" / "src" / "lib.rs").read_text(encoding="utf-8")
    assert re.search(rf"^#!\[{level}\(unsafe_code\)\]$", root, flags=re.MULTILINE)


def test_unsafe_code_is_found() -> None:
    assert has_unsafe("let x = unsafe { y() };")
    assert not has_unsafe("#![forbid(unsafe_code)] // no unsafe here")


# --- Python

PRINTING_ROOMS = {"cli", "demo"}
ROOMS_ON_TOP = {"cli", "demo", "__main__"}
NATIVE = {"_core", "_v1engine"}
NATIVE_USERS_FORBIDDEN = {"errors", "options", "policy", "cli", "demo", "__main__"}
ROOMS_BELOW = {
    "errors": set[str](),
    "options": {"errors"},
    "policy": {"errors", "options"},
    "rollout": {"errors", "options", "policy", "reports", "staging"},
    "v1": {"errors", "options", "policy", "_v1engine"},
    "doctor": set[str](),
    "metrics": {"errors", "closing", "told", "reports", "received", "_core"},
}
"""Rooms low in the house, with all that each may use of ours."""

MACHINE_MODULES = {
    "asyncio", "datetime", "io", "multiprocessing", "os", "pathlib", "select", "selectors", "shutil",
    "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time",
}  # fmt: skip
TEST_MODULES = {"tests", "benchmarks", "pytest", "hypothesis", "conftest"}


@dataclass(frozen=True)
class Import:
    """One imported module, and whether importing the importer runs it."""

    target: str
    at_import: bool


def imports(module: str, is_package: bool, tree: ast.Module) -> Iterator[Import]:
    """Give every import, with relative names resolved and `from package import name` as package.name."""

    def visit(node: ast.AST, at_import: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, base] if base else parts)
            yield from (Import(f"{base}.{alias.name}", at_import) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for typed in node.body:
                yield from visit(typed, at_import=False)
            for other in node.orelse:
                yield from visit(other, at_import)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, at_import and not inside)

    return visit(tree, at_import=True)


def room_of(module: str) -> str:
    """The first name below the package, or of a native module its own name."""
    parts = module.split(".")
    native = [part for part in parts if part in NATIVE]
    return native[0] if native else (parts[1] if len(parts) > 1 else PACKAGE)


def import_faults(module: str, found: list[Import]) -> list[str]:
    """Name every import that crosses a wall."""
    room, faults = room_of(module), []
    for target in sorted({one.target for one in found}):
        top = target.partition(".")[0]
        if top in TEST_MODULES or (room == "policy" and top in MACHINE_MODULES):
            faults.append(f"{module} -> {target}")
        if top != PACKAGE:
            continue
        into = room_of(target)
        if into == room:
            continue
        goes_up = into in ROOMS_ON_TOP and room not in {"cli", "__main__"}
        past_the_face = into in NATIVE and room in NATIVE_USERS_FORBIDDEN
        out_of_a_low_room = room in ROOMS_BELOW and into not in ROOMS_BELOW[room]
        if goes_up or past_the_face or out_of_a_low_room:
            faults.append(f"{module} -> {target}")
    return faults


def print_faults(module: str, tree: ast.Module) -> list[str]:
    """Name what writes to the terminal outside the rooms that may."""
    if room_of(module) in PRINTING_ROOMS:
        return []
    printing = [
        node
        for node in ast.walk(tree)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in {"print", "input"}
        )
        or (isinstance(node, ast.Attribute) and ast.unparse(node) in {"sys.stdout", "sys.stderr"})
    ]
    return [f"{module} prints in line {node.lineno}" for node in printing]


def cycle_faults(found: dict[str, list[Import]]) -> list[str]:
    """Name one import cycle among modules, if there is any."""
    graph: dict[str, set[str]] = {}
    for module, listed in found.items():
        targets = (one.target for one in listed if one.at_import and room_of(one.target) not in NATIVE)
        # `from package.module import name` leads to the module; `from package import module` as well.
        known = (target if target in found else target.rpartition(".")[0] for target in targets)
        graph[module] = {target for target in known if target in found and target != module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return ["import cycle: " + " -> ".join(error.args[1])]
    return []


def python_faults(sources: dict[str, str]) -> list[str]:
    """Check modules, given by dotted name (packages as name.__init__) with their source."""
    faults: list[str] = []
    found: dict[str, list[Import]] = {}
    for name, source in sources.items():
        module = name.removesuffix(".__init__")
        tree = ast.parse(source)
        found[module] = list(imports(module, name != module, tree))
        faults += import_faults(module, found[module]) + print_faults(module, tree)
        opens = any(isinstance(node, ast.Name) and node.id == "open" for node in ast.walk(tree))
        if room_of(module) == "policy" and opens:
            faults.append(f"{module} opens a file")
    return faults + cycle_faults(found)


def test_python_modules_keep_to_their_rooms(repository: Path) -> None:
    src = repository / "src"
    paths = sorted((src / PACKAGE).rglob("*.py"))
    assert paths
    sources = {
        ".".join(path.relative_to(src).with_suffix("").parts): path.read_text("utf-8") for path in paths
    }
    assert python_faults(sources) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("errors", "from dwcp_fast.options import X"),
        ("errors", "def f():\n    from . import options"),
        ("policy.streams", "import time"),
        ("policy.streams", "from os import path"),
        ("policy.streams", "from dwcp_fast import _core"),
        ("policy.streams", "open('table')"),
        ("cli.send", "from dwcp_fast._core import connect"),
        ("session", "from dwcp_fast.cli import main"),
        ("v1.hde", "from .. import session"),
        ("metrics.meter", "from dwcp_fast.session import Session"),
        ("codec", "print('done')"),
        ("codec", "import sys\nsys.stderr.write('done')"),
        ("delta", "from tests.golden import data"),
    ],
)
def test_a_module_that_leaves_its_room_is_found(module: str, source: str) -> None:
    assert python_faults({f"{PACKAGE}.{module}": source})


def test_an_import_cycle_is_found_and_a_late_import_is_none() -> None:
    first, second = f"{PACKAGE}.codec", f"{PACKAGE}.delta"
    assert python_faults({first: "from . import delta", second: "from .codec import compress"})
    assert not python_faults(
        {first: "from . import delta", second: "def f():\n    from .codec import compress"}
    )
    typing_only = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .codec import compress"
    assert not python_faults({first: "from . import delta", second: typing_only})


def test_a_module_that_keeps_to_its_room_is_accepted() -> None:
    allowed = {
        f"{PACKAGE}.__init__": "from .errors import DwcpError\nfrom .session import connect",
        f"{PACKAGE}.errors": "import socket",
        f"{PACKAGE}.policy.mode": "from dwcp_fast.options import SendOptions\nimport math",
        f"{PACKAGE}.session": "from dwcp_fast import _core\nfrom .policy.mode import choose",
        f"{PACKAGE}.cli.__init__": "from dwcp_fast.session import connect\nprint('x')",
        f"{PACKAGE}.__main__": "from dwcp_fast.cli import main",
    }
    assert python_faults(allowed) == []
