"""A guest with real verbs: Debian's kernel, whose Soft-RoCE is a driver, on the files of this machine."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import dwcp_fast
from dwcp_fast.demo.guest import QEMU, add_to, newest

HERE: Final = Path(__file__).resolve().parent
KERNEL: Final = "linux-image-amd64"
PACKAGES: Final = (
    "ibverbs-providers",
    "ibverbs-utils",
    "rdmacm-utils",
    "perftest",
    "libibverbs1",
    "librdmacm1",
    "libibumad3",
    "libpci3",
)
"""What is unpacked beside the kernel, and installed nowhere."""
MODULES: Final = (
    *(f"drivers/virtio/virtio{part}" for part in ("_ring", "", "_pci_legacy_dev", "_pci_modern_dev", "_pci")),
    *("fs/netfs/netfs", "fs/fscache/fscache", "net/9p/9pnet", "net/9p/9pnet_virtio", "fs/9p/9p"),
    *("fs/configfs/configfs", "crypto/crc32_generic", "drivers/net/dummy"),
    *("net/ipv4/udp_tunnel", "net/ipv6/ip6_udp_tunnel"),
    *(
        f"drivers/infiniband/core/{part}"
        for part in ("ib_core", "ib_uverbs", "ib_cm", "iw_cm", "rdma_cm", "rdma_ucm")
    ),
    "drivers/infiniband/sw/rxe/rdma_rxe",
)
"""In this order, by what needs what."""
LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"
MEMORY_MIB: Final = 1536
PACKAGE: Final = Path(dwcp_fast.__file__).resolve().parent.parent


def package_cache() -> Path:
    """Where what was unpacked is kept between runs."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dwcp-test-rdma"
    return Path(os.environ.get("RDMA_TEST_CACHE", default))


@functools.cache
def why_missing() -> str | None:
    """Why there can be no guest here; None if there can."""
    if not (HERE / "init.c").exists():
        return "the first program of the guest is not here: sdists hold no C"
    for program in (QEMU, "gcc", "dpkg-deb", "tar", "ip", "rdma"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    try:
        ground()
    except (OSError, subprocess.SubprocessError, LookupError) as error:
        return f"Debian's packages for RDMA cannot be had: {error}"
    return None


@functools.cache
def ground() -> Path:
    """Give the folder with the kernel, its drivers and the programs, fetched by apt where they are not."""
    cache = package_cache()
    done = cache / "complete"
    wanted = " ".join(PACKAGES)
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        cache.mkdir(parents=True, exist_ok=True)
        names = [newest(KERNEL), *PACKAGES]
        subprocess.run(
            ["apt-get", "download", "-qq", *names], cwd=cache, capture_output=True, timeout=180, check=True
        )
        for package in sorted(cache.glob("*.deb")):
            unpack(package, cache)
            package.unlink()
        done.write_text(wanted, encoding="utf-8")
    return cache


def unpack(package: Path, into: Path) -> None:
    """Unpack a package; of the kernel only what the guest needs, for there are thousands of drivers."""
    wanted = ["."]
    if package.name.startswith("linux-image"):
        wanted = ["./boot/vmlinuz-*", *(f"*/kernel/{name}.ko" for name in MODULES)]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as archive:
        subprocess.run(
            ["tar", "-x", "-C", into, "--wildcards", *wanted], stdin=archive.stdout, timeout=120, check=True
        )


def build_initramfs(into: Path) -> Path:
    """Compile the first program and pack it with the drivers."""
    program = into / "init"
    subprocess.run(["gcc", "-O2", "-static", "-o", program, HERE / "init.c"], check=True, timeout=120)
    kernel = next(ground().glob("lib/modules/*/kernel"))
    archive = bytearray()
    for folder in ("dev", "host", "modules"):
        add_to(archive, folder, 0o040755)
    add_to(archive, "dev/console", 0o020600, device=(5, 1))
    add_to(archive, "init", 0o100755, program.read_bytes())
    for number, name in enumerate(MODULES):
        data = (kernel / f"{name}.ko").read_bytes()
        add_to(archive, f"modules/{number:02}-{Path(name).name}.ko", 0o100644, data)
    add_to(archive, "TRAILER!!!", 0)
    made = into / "initramfs"
    made.write_bytes(archive)
    return made


def boot(folder: Path, script: Path, timeout_s: float, files: Mapping[str, str] | None = None) -> Path:
    """Run a Python program in a guest of its own, to its end.

    It sees the files of this machine, which it cannot change, with this interpreter and this package.

    Args:
        folder: For what belongs to the guest.
        script: The program. Its argument is the folder that is `out` of `folder`.
        timeout_s: When the guest is ended, in seconds.
        files: What there is in `out` before, by name.

    Returns:
        The folder `out`, with ``log``: what the program has said.

    Raises:
        TimeoutError: It took too long; the message has what was said.
    """
    out, console = folder / "out", folder / "console"
    out.mkdir()
    for name, text in (files or {}).items():
        (out / name).write_text(text, encoding="utf-8")
    libraries = ground() / LIBRARIES
    start = out / "start"
    start.write_text(
        "#!/bin/sh\n"
        f"export LD_LIBRARY_PATH={libraries}:{ground()}/lib/{libraries.name}\n"
        f"export RDMAV_DRIVERS={libraries}/libibverbs/librxe\n"
        f"export PATH=$PATH:{ground()}/usr/bin PYTHONPATH={PACKAGE} PYTHONDONTWRITEBYTECODE=1\n"
        f"exec {sys.executable} -u {script} /run/out >/run/out/log 2>&1\n",
        encoding="utf-8",
    )
    start.chmod(0o755)
    append = "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on RUN=/run/out/start ARGUMENT=x"
    command: list[str | Path] = [
        QEMU, "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", str(MEMORY_MIB), "-nodefaults",
        "-display", "none", "-no-reboot", "-serial", f"file:{console}",
        "-kernel", next(ground().glob("boot/vmlinuz-*")), "-initrd", build_initramfs(folder),
        "-append", append,
        "-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap",
        "-virtfs", f"local,path={out},mount_tag=out,security_model=none",
    ]  # fmt: skip
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, timeout=timeout_s, check=True, capture_output=True)
    except subprocess.TimeoutExpired:
        said = "".join(
            path.read_text(encoding="utf-8", errors="replace")[-2000:]
            for path in (console, out / "log")
            if path.exists()
        )
        raise TimeoutError(f"the guest took longer than {timeout_s:g} s; last said: {said}") from None
    return out
