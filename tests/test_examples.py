"""The examples of the documentation are true: docstrings of the installed package, and the README."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import dwcp_fast

# Running __main__ would run the command.
MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(dwcp_fast.__path__, prefix="dwcp_fast.")
    if not name.endswith("__main__")
]


EXTRAS = {
    "dwcp_fast.versions.bucket": ("obstore", "object-store"),
    "dwcp_fast.metrics.prometheus": ("prometheus_client", "prometheus"),
    "dwcp_fast.metrics.otel": ("opentelemetry", "otel"),
}

DOCUMENTS = [
    "README.md",
    "docs/guide/dictionaries.md",
    "docs/guide/modes.md",
    "docs/guide/operations.md",
    "docs/guide/patches.md",
    "docs/guide/snapshots.md",
    "docs/guide/versions.md",
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_are_true(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name in EXTRAS:
        library, extra = EXTRAS[name]
        pytest.importorskip(library, reason=f"the extra '{extra}' is not installed")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", DOCUMENTS)
def test_python_examples_of_documents_run(
    name: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    document = (repository / name).read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", document, flags=re.MULTILINE | re.DOTALL)
    assert examples
    # One after the other, as a reader would type them.
    names = {"__name__": "example"}
    for example in examples:
        exec(compile(example, name, "exec"), names)
