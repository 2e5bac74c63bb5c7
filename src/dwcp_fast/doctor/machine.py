"""What the machine offers: processors, memory, files, clock."""

import os
import platform
import sys
from importlib.util import find_spec
from typing import Final

from dwcp_fast.doctor.finding import Finding, Host, advise, found, unknown

__all__ = [
    "clock_source",
    "cpu_features",
    "descriptors",
    "extras",
    "huge_pages",
    "io_uring",
    "memory_limit",
    "processors",
]

X86_FEATURES: Final = ("avx2", "avx512f", "avx512bw", "avx512vl", "avx512vbmi", "aes", "vaes")
FEW_DESCRIPTORS: Final = 4096
LITTLE_MEMORY: Final = 1 << 30
UNLIMITED: Final = 1 << 60
SLOW_CLOCKS: Final = ("hpet", "acpi_pm", "jiffies", "refined-jiffies", "pit")
EXTRAS: Final = {
    "prometheus": "prometheus_client",
    "otel": "opentelemetry",
    "object-store": "obstore",
    "demo": "matplotlib",
    "train": "lightgbm",
}


def cpu_features(host: Host) -> Finding:
    """Look for the vector instructions that the loops over changes use."""
    name, why = "vector instructions", "deltas compare and apply as fast as memory with AVX2, AVX-512 or NEON"
    lines = (host.text("/proc/cpuinfo") or "").splitlines()
    told = next((line for line in lines if line.startswith(("flags", "Features"))), None)
    if told is None:
        return unknown(name, why)
    flags = set(told.partition(":")[2].split())
    has = ["neon"] if "asimd" in flags else [feature for feature in X86_FEATURES if feature in flags]
    if "neon" in has or "avx2" in has:
        return found(name, " ".join(has), why)
    value = " ".join(has) or "none of them"
    return advise(name, value, why, "give the virtual machine the processor of its host (QEMU: -cpu host)")


def processors(host: Host) -> Finding:
    """Look how many processors this process may use, and how much of them."""
    name, why = "processors", "lanes, digests and codecs share them"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if usable is None:
        return unknown(name, why)
    share = cpu_share(host)
    if share is None or share >= usable:
        return found(name, f"{usable} of {os.cpu_count()}", why)
    value = f"{usable}, of which the control group grants {share:.2g}"
    return advise(name, value, why, "raise cpu.max of the control group (containers: the CPU limit)")


def cpu_share(host: Host) -> float | None:
    """Give how many processors the control group grants, None for no limit."""
    for folder in cgroup_folders(host, "cpu"):
        words = (host.text(f"{folder}/cpu.max") or "").split()
        quota: int | None = int(words[0]) if len(words) == 2 and words[0].isdigit() else None
        period: int | None = int(words[1]) if len(words) == 2 and words[1].isdigit() else None
        if not words:
            quota = host.number(f"{folder}/cpu.cfs_quota_us")
            period = host.number(f"{folder}/cpu.cfs_period_us")
        if quota is not None and period is not None and quota > 0 and period > 0:
            return quota / period
    return None


def memory_limit(host: Host) -> Finding:
    """Look how much memory there is, and how much the control group grants."""
    name, why = "memory", "states of buffers are held whole: max_total_bytes of the receive options"
    kib = next(
        (line.split()[1] for line in (host.text("/proc/meminfo") or "").splitlines() if "MemTotal" in line),
        None,
    )
    if kib is None or not kib.isdigit():
        return unknown(name, why)
    whole, granted = int(kib) << 10, None
    for folder in cgroup_folders(host, "memory"):
        for file in ("memory.max", "memory.limit_in_bytes"):
            limit = host.number(f"{folder}/{file}")
            if limit is not None and limit < UNLIMITED:
                granted = min(limit, granted or limit)
    if granted is None or granted >= whole:
        return found(name, f"{whole >> 20} MiB", why)
    value = f"{whole >> 20} MiB, of which the control group grants {granted >> 20}"
    if granted >= LITTLE_MEMORY:
        return found(name, value, why)
    return advise(name, value, why, "raise memory.max of the control group, or lower max_total_bytes")


def cgroup_folders(host: Host, controller: str) -> list[str]:
    """Give the folders of the control groups of this process, its own first."""
    folders = []
    for line in (host.text("/proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        base = f"/sys/fs/cgroup/{controller}" if controllers else "/sys/fs/cgroup"
        parts = [part for part in path.split("/") if part and part != ".."]
        folders += ["/".join([base, *parts[:count]]) for count in range(len(parts), -1, -1)]
    return folders


def huge_pages(host: Host) -> Finding:
    """Look whether large buffers get large pages."""
    name, why = "transparent huge pages", "large states are walked with fewer misses of the page tables"
    text = host.text("/sys/kernel/mm/transparent_hugepage/enabled")
    if text is None or "[" not in text:
        return unknown(name, why)
    value = text.partition("[")[2].partition("]")[0]
    if value != "never":
        return found(name, value, why)
    change = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled, as root"
    return advise(name, value, why, change)


def io_uring(host: Host) -> Finding:
    """Look whether io_uring may be used."""
    name, why = "io_uring", "not used at present: lanes are threads that block"
    value = host.number("/proc/sys/kernel/io_uring_disabled")
    if value is None:
        return unknown(name, why)
    return found(name, {0: "allowed", 1: "allowed to privileged processes"}.get(value, "disabled"), why)


def descriptors(_host: Host) -> Finding:
    """Look how many files and connections this process may have open."""
    name, why = "open files", "each lane is a connection, and a listener has those of all its peers"
    try:
        import resource
    except ImportError:
        return unknown(name, why)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FEW_DESCRIPTORS:
        return found(name, "no limit" if soft == resource.RLIM_INFINITY else str(soft), why)
    enough = hard == resource.RLIM_INFINITY or hard >= FEW_DESCRIPTORS
    change = "ulimit -n 65536" if enough else "LimitNOFILE=65536 in the unit, or limits.conf, as root"
    return advise(name, f"{soft} (at most {hard})", why, change)


def clock_source(host: Host) -> Finding:
    """Look how dear it is to ask for the time."""
    name, why = "clock source", "the time is asked for at every block"
    folder = "/sys/devices/system/clocksource/clocksource0"
    value = host.text(f"{folder}/current_clocksource")
    if value is None:
        return unknown(name, why)
    if value not in SLOW_CLOCKS:
        return found(name, value, why)
    others = [
        other for other in (host.text(f"{folder}/available_clocksource") or "").split() if other != value
    ]
    better = next((other for other in others if other not in SLOW_CLOCKS), None)
    if better is None:
        return found(name, f"{value}, and there is no better one", why)
    return advise(name, value, why, f"echo {better} > {folder}/current_clocksource, as root")


def extras(_host: Host) -> Finding:
    """Look which optional libraries are installed."""
    value = ", ".join(name for name, module in EXTRAS.items() if find_spec(module)) or "none"
    python = f"{platform.python_implementation()} {platform.python_version()} on {sys.platform}"
    return found("extras", f"{value}; {python}", "pip install 'dwcp-fast[NAME]' for " + ", ".join(EXTRAS))
