"""What the installed package is made of, and that the licence check can fail."""

import importlib.util
import json
import re
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

import dwcp_fast
from dwcp_fast import _core
from dwcp_fast.v1 import _v1engine

STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")


@pytest.fixture(scope="module")
def installed() -> metadata.Distribution:
    found = metadata.distribution("dwcp-fast")
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    if origin.get("dir_info", {}).get("editable"):
        pytest.skip("an editable installation has no wheel's contents")
    return found


@pytest.fixture(scope="module")
def licences() -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "tools" / "check_licenses.py"
    spec = importlib.util.spec_from_file_location("check_licenses", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not STABLE_ABI, reason="free-threaded Python: version-specific wheel")
@pytest.mark.parametrize("module", [_core, _v1engine])
def test_both_extensions_are_built_for_the_stable_abi(module: ModuleType) -> None:
    assert module.__file__ is not None
    assert module.__file__.endswith(".abi3.so")


@pytest.mark.skipif(not STABLE_ABI, reason="free-threaded Python: version-specific wheel")
def test_wheel_tag_promises_what_the_extensions_are(installed: metadata.Distribution) -> None:
    wheel = installed.read_text("WHEEL") or ""
    assert re.findall(r"^Tag: (cp311-abi3)-linux_\w+$", wheel, flags=re.MULTILINE) == ["cp311-abi3"]
    assert "Root-Is-Purelib: false" in wheel


def test_version_is_the_same_everywhere(repository: Path) -> None:
    version = tomllib.loads((repository / "Cargo.toml").read_text("utf-8"))["workspace"]["package"]["version"]
    locked = tomllib.loads((repository / "Cargo.lock").read_text("utf-8"))["package"]
    ours = {package["version"] for package in locked if package["name"].startswith("dwcp-")}
    assert ours == {version}
    assert metadata.version("dwcp-fast") == dwcp_fast.__version__ == version
    changes = (repository / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"^## \[?{re.escape(version)}\b", changes, flags=re.MULTILINE)


def test_wheel_ships_types_and_licences_but_no_sources_of_extensions(
    installed: metadata.Distribution,
) -> None:
    names = {str(path) for path in installed.files or []}
    assert {"dwcp_fast/py.typed", "dwcp_fast/_core.pyi", "dwcp_fast/v1/_v1engine.pyi"} <= names
    assert sum("/licenses/LICENSE" in name for name in names) == 3
    assert [name for name in names if name.endswith((".pyx", ".c", ".rs"))] == []
    stray = {Path(name).parts[0] for name in names} - {"dwcp_fast", ".."}
    assert {re.sub(r"^dwcp_fast-[0-9.]+\.dist-info$", "dist-info", name) for name in stray} == {"dist-info"}


@pytest.mark.parametrize(
    "expression",
    [
        "MIT",
        "MIT OR GPL-3.0-only",
        "GPL-2.0/Apache-2.0",
        "(MIT OR GPL-3.0-only) AND Zlib",
        "Apache-2.0 WITH LLVM-exception",
    ],
)
def test_licence_expression_with_an_allowed_way_is_accepted(licences: ModuleType, expression: str) -> None:
    assert licences.accepts(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "GPL-3.0-only",
        "MIT AND GPL-3.0-only",
        "MIT OR",
        "(MIT",
        "MIT Apache-2.0",
        "MIT WITH odd-exception",
        "Copyright us",
    ],
)
def test_licence_expression_without_an_allowed_way_is_refused(licences: ModuleType, expression: str) -> None:
    assert licences.refused([("odd 1.0", expression)]) == [("odd 1.0", expression)]


def test_crates_that_only_build_are_told_from_shipped_ones(licences: ModuleType) -> None:
    def needs(name: str, kind: str | None) -> dict[str, object]:
        return {"pkg": name, "dep_kinds": [{"kind": kind}]}

    nodes = [
        {"id": "ours", "deps": [needs("linked", None), needs("builder", "build"), needs("tester", "dev")]},
        {"id": "linked", "deps": [needs("deep", None)]},
        *({"id": name, "deps": []} for name in ("builder", "tester", "deep")),
    ]
    packages = {"ours": {"name": "dwcp-python"}, "linked": {"name": "linked"}}
    assert licences.reachable_crates(nodes, "dwcp-python", packages) == {"ours", "linked", "deep"}


def test_importing_the_package_brings_no_numpy_and_versions_come_when_asked_for() -> None:
    code = (
        "import sys, dwcp_fast; before = 'numpy' in sys.modules; "
        "print(before, dwcp_fast.versions.DeltaPublisher is dwcp_fast.DeltaPublisher)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert told.stdout.split() == ["False", "True"]
