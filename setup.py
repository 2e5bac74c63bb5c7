"""Build the two native extensions: Rust through maturin, Cython through setuptools.

Everything else about the package is declared in pyproject.toml and Cargo.toml.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ABI_FLOOR = (3, 11)
"""The oldest Python the stable-ABI wheel runs on; also in both Cargo.toml and pyproject.toml."""

STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")
"""Free-threaded Pythons get version-specific wheels: they have no stable ABI before 3.15."""

C_FLAGS = ("-mtune=skylake-avx512", "-falign-functions=64", "-fno-tree-pre", "-fno-tree-sink")
"""What GCC 12 makes zstd and lz4 2 to 5 % faster with on x86-64, as measured on a processor of another make.

Any processor can run the result: a newer one only decides in which order instructions come.
"""


class RustExtension(Extension):
    """The crate that [tool.maturin] in pyproject.toml names."""

    def __init__(self, name: str) -> None:
        super().__init__(name, sources=[], py_limited_api=STABLE_ABI)


class BuildExt(build_ext):
    """Cython and C as setuptools builds them, and Rust as maturin does."""

    def build_extension(self, ext: Extension) -> None:
        if isinstance(ext, RustExtension):
            self._build_with_maturin(ext)
        else:
            super().build_extension(ext)

    def _build_with_maturin(self, ext: RustExtension) -> None:
        """Take the library out of the wheel maturin makes, under the name setuptools expects.

        A missing member means the two disagree about the ABI, and fails the build.
        """
        library = Path(self.get_ext_fullpath(ext.name))
        package = ext.name.rpartition(".")[0].replace(".", "/")
        # --locked: what is built is what Cargo.lock says and the licence check has seen.
        build = [maturin(), "build", "--release", "--locked", "--compatibility", "off"]
        # Setuptools is the build backend on purpose; maturin would warn about it on every build.
        quiet = {**os.environ, "MATURIN_NO_MISSING_BUILD_BACKEND_WARNING": "1", "CFLAGS": c_flags()}
        with TemporaryDirectory() as out:
            subprocess.run([*build, "--interpreter", sys.executable, "--out", out], check=True, env=quiet)
            (wheel,) = Path(out).glob("*.whl")
            with ZipFile(wheel) as archive:
                library.parent.mkdir(parents=True, exist_ok=True)
                library.write_bytes(archive.read(f"{package}/{library.name}"))


def maturin() -> str:
    """Find maturin on PATH, where build isolation puts it, or beside an interpreter not activated."""
    found = shutil.which("maturin") or shutil.which("maturin", path=sysconfig.get_path("scripts"))
    if found is None:
        raise SystemExit("maturin is missing: pip install maturin")
    return found


def c_flags() -> str:
    """What the C libraries are compiled with: our flags, if the compiler knows them all, and the user's."""
    given = os.environ.get("CFLAGS", "")
    if "CARGO_BUILD_TARGET" in os.environ:
        # Another compiler than the one that can be asked here.
        return given
    compiler = [*shlex.split(os.environ.get("CC", "cc")), *shlex.split(given)]
    trial = [*compiler, "-Werror", *C_FLAGS, "-c", "-x", "c", os.devnull, "-o", os.devnull]
    try:
        known = subprocess.run(trial, capture_output=True, check=False).returncode == 0
    except OSError:
        known = False
    return " ".join([*(C_FLAGS if known else ()), given]).strip()


def workspace_version() -> str:
    manifest = tomllib.loads(Path(__file__).with_name("Cargo.toml").read_text(encoding="utf-8"))
    version: str = manifest["workspace"]["package"]["version"]
    return version


major, minor = ABI_FLOOR
options: dict[str, dict[str, object]] = {"build_ext": {"cython_c_in_temp": True}}
limited_api: list[tuple[str, str | None]] = []
if STABLE_ABI:
    limited_api = [("Py_LIMITED_API", f"0x{major:02x}{minor:02x}0000")]
    options["bdist_wheel"] = {"py_limited_api": f"cp{major}{minor}"}

setup(
    version=workspace_version(),
    ext_modules=[
        RustExtension("dwcp_fast._core"),
        Extension(
            "dwcp_fast.v1._v1engine",
            sources=["src/dwcp_fast/v1/_v1engine.pyx"],
            define_macros=limited_api,
            py_limited_api=STABLE_ABI,
        ),
    ],
    cmdclass={"build_ext": BuildExt},
    options=options,
)
