"""Text trees, rotated logs, a disk image, and synthetic edits: the pairs that are made of files and bytes."""

import io
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np

import harness

MIB = 1 << 20
RELEASES = {
    "text_a.tar": ("transformers==4.45.1", "django==5.1.1", "sympy==1.13.1"),
    "text_b.tar": ("transformers==4.45.2", "django==5.1.2", "sympy==1.13.2"),
    "text_minor_a.tar": ("django==5.0.9", "sympy==1.12.1"),
    "text_minor_b.tar": ("django==5.1.1", "sympy==1.13.1"),
}
DISK_MIB = 256
FIRST_PACKAGES = (
    "bash",
    "coreutils",
    "perl-base",
    "perl-modules-5.36",
    "libc6",
    "libpython3.11-stdlib",
    "vim-runtime",
)
MORE_PACKAGES = ("git", "libglib2.0-0", "openssh-client", "libx11-6", "libicu72", "groff-base")
LOG_MIB = 16
AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_6) AppleWebKit/605.1.15 Safari/605.1.15",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    "curl/8.5.0",
    "python-requests/2.32.3",
)
NGINX = """
daemon off; master_process off; worker_processes 1; pid {root}/nginx.pid; error_log {root}/error.log info;
events {{ worker_connections 256; }}
http {{
  access_log {root}/access.log combined buffer=32k;
  client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;
  uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi; keepalive_requests 100000000;
  server {{ listen unix:{root}/http; root {tree}; }}
}}
"""


class UnbuildableError(Exception):
    """A set cannot be built here; the text says what is missing."""


def build_text(folder: Path) -> None:
    """Tars of the same packages in two consecutive patch releases, and in two minor releases."""
    for name, packages in RELEASES.items():
        entries: list[tuple[str, zipfile.ZipInfo, bytes]] = []
        for package in packages:
            with zipfile.ZipFile(wheel(folder / "cache", package)) as archive:
                entries += [
                    (f"{package.partition('==')[0]}/{item.filename}", item, archive.read(item))
                    for item in archive.infolist()
                    if ".dist-info/" not in item.filename
                ]
        with tarfile.open(folder / name, "w", format=tarfile.PAX_FORMAT) as tar:
            for path, item, data in sorted(entries, key=lambda entry: entry[0]):
                told = tarfile.TarInfo(path)
                told.size, told.mtime = len(data), int(time.mktime((*item.date_time, 0, 0, -1)))
                tar.addfile(told, io.BytesIO(data))


def wheel(cache: Path, package: str) -> Path:
    """Have one wheel in the cache."""
    target = cache / package
    if not list(target.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        run([*command, "--dest", str(target), package])
    return next(target.glob("*.whl"))


def run(command: list[str], cwd: Path | None = None) -> None:
    """Run a tool, or say what went wrong with it."""
    if shutil.which(command[0]) is None:
        raise UnbuildableError(f"{command[0]} is missing")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnbuildableError(f"{command[0]} failed: {done.stderr.strip()[-300:]}")


def build_logs(folder: Path) -> None:
    """A web server's access logs, before and after a rotation, as a backup of the log folder finds them.

    nginx serves a real tree to a client that asks for its files with skewed popularity. The second
    backup has about a tenth of new lines, and everything else at another place.
    """
    if shutil.which("nginx") is None:
        raise UnbuildableError("nginx is missing")
    tree = Path(os.__file__).parent
    with tempfile.TemporaryDirectory() as named:
        root = Path(named)
        (root / "nginx.conf").write_text(NGINX.format(root=root, tree=tree))
        with subprocess.Popen(["nginx", "-c", f"{root}/nginx.conf", "-e", f"{root}/error.log"]) as server:
            try:
                grow_log(root, tree, (2 * LOG_MIB + LOG_MIB // 2) * MIB)
                first = (root / "access.log").read_bytes()
                grow_log(root, tree, (3 * LOG_MIB) * MIB)
                whole = (root / "access.log").read_bytes()
            finally:
                server.terminate()
                server.wait(10)
    step = LOG_MIB * MIB
    rotated = [whole[:step], whole[step : 2 * step]]
    (folder / "logs_a").write_bytes(backup([first[2 * step :], rotated[1], rotated[0]]))
    grown = whole[2 * step :]
    cut = len(first) - 2 * step + LOG_MIB * MIB // 4
    (folder / "logs_b").write_bytes(backup([grown[cut : cut + MIB], grown[:cut], rotated[1], rotated[0]]))


def backup(logs: list[bytes]) -> bytes:
    """A tar of `access.log`, `access.log.1` and so on."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number, data in enumerate(logs):
            told = tarfile.TarInfo("var/log/nginx/access.log" + (f".{number}" if number else ""))
            told.size, told.mtime = len(data), int(time.time())
            tar.addfile(told, io.BytesIO(data))
    return out.getvalue()


def grow_log(root: Path, tree: Path, size: int, limit_s: float = 300.0) -> None:
    """Ask the server for files until its log is `size` long."""
    paths = sorted(str(path.relative_to(tree)) for path in tree.rglob("*.py"))
    rng = random.Random(size)
    rng.shuffle(paths)
    log, deadline = root / "access.log", time.monotonic() + limit_s
    while not (root / "http").exists():
        if time.monotonic() > deadline:
            raise UnbuildableError("nginx did not start")
        time.sleep(0.05)
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(root / "http"))
    drain = threading.Thread(target=discard, args=(client,))
    drain.start()
    while log.stat().st_size < size:
        if time.monotonic() > deadline:
            raise UnbuildableError(f"the log did not grow to {size} bytes in {limit_s} s")
        client.sendall("".join(request(rng, paths) for _ in range(500)).encode())
    client.shutdown(socket.SHUT_WR)
    drain.join()
    client.close()


def request(rng: random.Random, paths: list[str]) -> str:
    """One request: a HEAD, so that only the log grows."""
    path = paths[min(int(rng.paretovariate(0.4)) - 1, len(paths) - 1)]
    referer = f"https://example.org/{rng.choice(paths).partition('/')[0]}" if rng.random() < 0.4 else "-"
    query = f"?session={rng.getrandbits(64):016x}" if rng.random() < 0.5 else ""
    return (
        f"HEAD /{path}{query} HTTP/1.1\r\nHost: example.org\r\nUser-Agent: {rng.choice(AGENTS)}\r\n"
        f"Referer: {referer}\r\n\r\n"
    )


def discard(client: socket.socket) -> None:
    """Read what the server answers, and forget it."""
    while client.recv(1 << 16):
        pass


def build_disk(folder: Path) -> None:
    """An ext4 image before and after packages are installed: a journaled file system, really mounted."""
    if os.geteuid():
        raise UnbuildableError("mounting an image needs root")
    packages = folder / "cache" / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    image, work = folder / "disk_a.img", folder / "disk_b.img"
    for name in (*FIRST_PACKAGES, *MORE_PACKAGES):
        if not list(packages.glob(f"{name}_*.deb")):
            run(["apt-get", "download", name], cwd=packages)
    work.unlink(missing_ok=True)
    with work.open("wb") as file:
        file.truncate(DISK_MIB * MIB)
    run(["mke2fs", "-q", "-t", "ext4", "-F", str(work)])
    install(work, packages, FIRST_PACKAGES, removed=())
    shutil.copyfile(work, image)
    install(work, packages, MORE_PACKAGES, removed=("usr/share/doc", "usr/share/man"))


def install(image: Path, packages: Path, names: tuple[str, ...], removed: tuple[str, ...]) -> None:
    """Mount the image, unpack packages into it, remove what was asked for, unmount."""
    with tempfile.TemporaryDirectory() as mount:
        run(["mount", "-o", "loop", str(image), mount])
        try:
            for path in removed:
                shutil.rmtree(Path(mount, path), ignore_errors=True)
            for name in names:
                run(["dpkg", "-x", str(next(packages.glob(f"{name}_*.deb"))), mount])
        finally:
            run(["umount", mount])


def build_synthetic(folder: Path) -> None:
    """Random bytes with insertions of any length, a sparse heap, and noise."""
    rng = np.random.default_rng(11)
    noise = np.frombuffer(harness.incompressible(64 * MIB, seed=3), np.uint8)
    noise.tofile(folder / "noise_a.bin")
    np.frombuffer(harness.incompressible(64 * MIB, seed=4), np.uint8).tofile(folder / "noise_b.bin")
    pieces, at = [], 0
    for cut in np.sort(rng.integers(0, noise.size, 120)):
        pieces += [noise[at:cut], np.frombuffer(rng.bytes(int(2 ** rng.uniform(0, 15.3))), np.uint8)]
        at = int(cut) + int(2 ** rng.uniform(0, 12)) * int(rng.integers(0, 2))
    np.concatenate([*pieces, noise[at:]]).tofile(folder / "insert_b.bin")
    pages = np.zeros((64 * MIB // 4096, 4096), np.uint8)
    used = rng.random(len(pages)) < 0.04
    content = np.frombuffer(harness.real_files(int(used.sum()) * 4096), np.uint8)
    pages[used] = content.reshape(-1, 4096)
    pages.tofile(folder / "sparse_a.bin")
    for page in rng.choice(np.flatnonzero(used), 80, replace=False):
        pages[page] = 0
    for page in rng.choice(len(pages), 160, replace=False):
        start = int(rng.integers(0, 4000))
        pages[page, start : start + 64] = np.frombuffer(rng.bytes(64), np.uint8)[: 4096 - start]
    pages.tofile(folder / "sparse_b.bin")
