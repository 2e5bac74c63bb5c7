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


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_are_true(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_python_examples_of_the_readme_run(repository: Path) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)
    assert examples
    # One after the other, as a reader would type them.
    names = {"__name__": "example"}
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
