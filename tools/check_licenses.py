"""Refuse a dependency whose licence is not on the list.

Looks at what is shipped or needed at run time: the crates linked into the native library, and the Python
packages that the wheel and its `demo` extra require, as installed. Crates that only build or test are
reported apart and do not fail the check. Uses the standard library alone, so that it runs where nothing
is installed.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHIPPED_CRATE = "dwcp-python"
DISTRIBUTION = "dwcp-fast"

ALLOWED = frozenset(
    {
        "0BSD",
        "Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSL-1.0",
        "CC0-1.0",
        "ISC",
        "MIT",
        "MIT-0",
        "MIT-CMU",
        "PSF-2.0",
        "Unicode-3.0",
        "Unlicense",
        "Zlib",
    }
)

CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Python Software Foundation License": "PSF-2.0",
}
"""Last parts of the trove classifiers of packages that have no licence expression yet."""

Dependency = tuple[str, str]
"""What it is, with its version, and its licence expression; the latter is empty where none is given."""


def accepts(expression: str) -> bool:
    """Say whether an SPDX expression can be satisfied with allowed licences alone.

    Args:
        expression: AND, OR, WITH and brackets; also the old slash form, which means OR.

    Returns:
        False too where the expression is empty or cannot be read.
    """
    tokens = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))
    try:
        verdict, rest = _either(tokens)
    except IndexError:
        return False
    return verdict and not rest


def _either(tokens: list[str]) -> tuple[bool, list[str]]:
    verdict, tokens = _both(tokens)
    while tokens and tokens[0].upper() == "OR":
        other, tokens = _both(tokens[1:])
        verdict = verdict or other
    return verdict, tokens


def _both(tokens: list[str]) -> tuple[bool, list[str]]:
    verdict, tokens = _licence(tokens)
    while tokens and tokens[0].upper() == "AND":
        other, tokens = _licence(tokens[1:])
        verdict = verdict and other
    return verdict, tokens


def _licence(tokens: list[str]) -> tuple[bool, list[str]]:
    if tokens[0] == "(":
        verdict, tokens = _either(tokens[1:])
        return verdict and tokens[0] == ")", tokens[1:]
    name, tokens = tokens[0], tokens[1:]
    if tokens and tokens[0].upper() == "WITH":
        name, tokens = f"{name} WITH {tokens[1]}", tokens[2:]
    return name in ALLOWED, tokens


def refused(dependencies: Iterable[Dependency]) -> list[Dependency]:
    """Give those whose licence is not allowed, missing or unreadable."""
    return [dependency for dependency in dependencies if not accepts(dependency[1])]


def crates() -> tuple[list[Dependency], list[Dependency]]:
    """Give the crates linked into the library, and those that only build or test it."""
    host = next(line for line in _output("rustc", "-vV").splitlines() if line.startswith("host: "))
    told: dict[str, Any] = json.loads(
        _output("cargo", "metadata", "--format-version=1", "--locked", "--filter-platform", host[6:])
    )
    packages = {package["id"]: package for package in told["packages"]}
    linked = reachable_crates(told["resolve"]["nodes"], SHIPPED_CRATE, packages)
    shipped: list[Dependency] = []
    apart: list[Dependency] = []
    for identity, package in packages.items():
        if package["source"] is None:
            continue
        found = (f"{package['name']} {package['version']}", package["license"] or "")
        (shipped if identity in linked else apart).append(found)
    return sorted(shipped), sorted(apart)


def reachable_crates(nodes: list[dict[str, Any]], root: str, packages: dict[str, dict[str, Any]]) -> set[str]:
    """Follow the normal dependencies, which are those whose code ends in the library or runs to write it."""
    normal = {
        node["id"]: [
            dep["pkg"] for dep in node["deps"] if any(kind["kind"] is None for kind in dep["dep_kinds"])
        ]
        for node in nodes
    }
    todo = [identity for identity, package in packages.items() if package["name"] == root]
    seen: set[str] = set()
    while todo:
        identity = todo.pop()
        if identity not in seen:
            seen.add(identity)
            todo.extend(normal[identity])
    return seen


def distributions(extras: frozenset[str]) -> list[Dependency]:
    """Give the installed Python packages that ours needs, directly or not."""
    found: dict[str, Dependency] = {}
    todo = list(_requirements(DISTRIBUTION, extras))
    while todo:
        name = todo.pop()
        if name in found:
            continue
        try:
            info = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            # A requirement for another platform or Python; pip would have installed it otherwise.
            continue
        found[name] = (f"{name} {info['Version']}", licence_of(info))
        todo.extend(_requirements(name, frozenset()))
    return sorted(found.values())


def _requirements(name: str, extras: frozenset[str]) -> Iterator[str]:
    for requirement in metadata.requires(name) or []:
        wanted = re.search(r"extra\s*==\s*['\"]([^'\"]+)", requirement)
        if wanted is None or wanted[1] in extras:
            project = re.match(r"[A-Za-z0-9._-]+", requirement)
            if project is None:
                raise SystemExit(f"cannot read requirement {requirement!r} of {name}")
            yield re.sub(r"[-_.]+", "-", project[0]).lower()


def licence_of(info: Any) -> str:
    """Read the licence a package declares: its expression, else its classifiers, else the old field."""
    if info["License-Expression"]:
        return str(info["License-Expression"])
    declared = [
        line.rpartition(" :: ")[2] for line in info.get_all("Classifier", []) if line.startswith("License ::")
    ]
    if declared and all(name in CLASSIFIERS for name in declared):
        return " AND ".join(CLASSIFIERS[name] for name in declared)
    return str(info["License"] or "")


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> int:
    """Run the check.

    Returns:
        0 where every licence is allowed, else 1.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verbose", action="store_true", help="list every dependency with its licence")
    options = parser.parse_args()

    shipped, apart = crates()
    groups = {
        "crates in the library": shipped,
        "Python packages at run time": distributions(frozenset({"demo"})),
    }
    failed = False
    for title, found in groups.items():
        bad = refused(found)
        failed = failed or bool(bad) or not found
        print(f"{title}: {len(found)}, refused {len(bad)}")
        for name, licence in found if options.verbose else bad:
            print(f"  {name}: {licence or 'no licence given'}")
    print(
        f"crates that only build or test: {len(apart)}, outside the list {len(refused(apart))} (not shipped)"
    )
    for name, licence in apart if options.verbose else refused(apart):
        print(f"  {name}: {licence or 'no licence given'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
