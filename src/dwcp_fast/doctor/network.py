"""What the network of a host offers: congestion control, buffers, TLS in the kernel, RDMA."""

import os
from typing import Final

from dwcp_fast.doctor.finding import Finding, Host, advise, found, unknown

__all__ = ["congestion", "idle_restart", "kernel_tls", "rdma", "socket_buffers", "tcp_buffers"]

IPV4: Final = "/proc/sys/net/ipv4/"
CORE: Final = "/proc/sys/net/core/"
MIB: Final = 1 << 20
ROUND_TRIP_S: Final = 0.1
ENOUGH_TCP_BYTES: Final = 16 * MIB
ENOUGH_ASKED_BYTES: Final = 4 * MIB
LIBRARY_FOLDERS: Final = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib")


def congestion(host: Host, *, privileged: bool | None = None) -> Finding:
    """Look whether BBR may be used.

    Args:
        host: Where to look.
        privileged: Whether what is not allowed to everybody is allowed to this process; None looks.
    """
    name, why = "congestion control", "BBR keeps a far link full where packets are lost at random"
    used = host.text(f"{IPV4}tcp_congestion_control")
    available = host.text(f"{IPV4}tcp_available_congestion_control")
    allowed = host.text(f"{IPV4}tcp_allowed_congestion_control")
    if used is None or available is None or allowed is None:
        return unknown(name, why)
    if "bbr" in allowed.split() or used == "bbr":
        return found(name, f"{used}; bbr is allowed", why)
    if "bbr" not in available.split():
        return advise(name, f"{used}; no bbr among {available}", why, "modprobe tcp_bbr, as root")
    if privileged if privileged is not None else has_net_admin(host):
        return found(name, f"{used}; bbr is allowed to this process", why)
    change = f'sysctl -w net.ipv4.tcp_allowed_congestion_control="{allowed} bbr", as root'
    return advise(name, f"{used}; bbr is there and not allowed", why, change)


def has_net_admin(host: Host) -> bool:
    """Tell whether this process may use whatever congestion control there is."""
    cap_net_admin = 12
    for line in (host.text("/proc/self/status") or "").splitlines():
        field, _, value = line.partition(":")
        if field == "CapEff":
            return bool(int(value, 16) >> cap_net_admin & 1)
    return hasattr(os, "geteuid") and os.geteuid() == 0


def tcp_buffers(host: Host, name: str, file: str, side: str) -> Finding:
    """Look how far the system lets a connection's buffer grow."""
    why = f"how much a lane can have under way as {side}"
    text = host.text(f"{IPV4}{file}")
    try:
        low, start, most = (int(part) for part in (text or "").split())
    except ValueError:
        return unknown(name, why)
    # Half of it is taken by the overhead of packets, as the system counts.
    rate = most / 2 / ROUND_TRIP_S * 8 / 1e6
    value = f"{low} {start} {most}: about {rate:.0f} Mbps a lane at {ROUND_TRIP_S * 1e3:.0f} ms"
    if most >= ENOUGH_TCP_BYTES:
        return found(name, value, why)
    return advise(
        name, value, why, f'sysctl -w net.ipv4.{file}="{low} {start} {2 * ENOUGH_TCP_BYTES}", as root'
    )


def socket_buffers(host: Host, name: str, file: str) -> Finding:
    """Look how much buffer a process may ask for."""
    why = "what a lane may ask for on a long path"
    most = host.number(f"{CORE}{file}")
    if most is None:
        return unknown(name, why)
    if most >= ENOUGH_ASKED_BYTES:
        return found(name, f"{most} bytes", why)
    # Buffers that grow further by themselves are as good.
    grown = host.text(f"{IPV4}tcp_{file[:1]}mem")
    last = (grown or "").split()[-1:]
    if last and last[0].isdigit() and int(last[0]) >= ENOUGH_TCP_BYTES:
        return found(name, f"{most} bytes; buffers grow to {last[0]} by themselves", why)
    return advise(name, f"{most} bytes", why, f"sysctl -w net.core.{file}={4 * ENOUGH_ASKED_BYTES}, as root")


def idle_restart(host: Host) -> Finding:
    """Look whether a connection that rests begins anew."""
    name, why = "slow start after idle", "a session that sends now and then finds its window where it was"
    value = host.number(f"{IPV4}tcp_slow_start_after_idle")
    if value is None:
        return unknown(name, why)
    if value == 0:
        return found(name, "off", why)
    return advise(name, "on", why, "sysctl -w net.ipv4.tcp_slow_start_after_idle=0, as root")


def kernel_tls(host: Host) -> Finding:
    """Look whether the kernel could encrypt."""
    name, why = "kernel TLS", "not used at present: lanes encrypt by themselves"
    protocols = host.text(f"{IPV4}tcp_available_ulp")
    if protocols is None:
        return unknown(name, why)
    return found(name, "there" if "tls" in protocols.split() else "module tls is not loaded", why)


def rdma(host: Host) -> Finding:
    """Look for RDMA devices and the library for them."""
    name, why = "RDMA", "lanes over it, where both sides have it and need not know each other (--insecure)"
    devices = host.names("/sys/class/infiniband")
    if devices is None and host.names("/sys/class") is None:
        return unknown(name, why)
    libraries = [entry for folder in LIBRARY_FOLDERS for entry in library_names(host, folder)]
    library = "libibverbs is there" if libraries else "no libibverbs"
    return found(name, f"{', '.join(devices or []) or 'no device'}; {library}", why)


def library_names(host: Host, folder: str) -> list[str]:
    """Find libibverbs in a folder, or one level below, where distributions keep those of an architecture."""
    names = host.names(folder) or []
    below = [name for name in names if name.endswith("-linux-gnu")]
    names += [name for inner in below for name in host.names(f"{folder}/{inner}") or []]
    return [name for name in names if name.startswith("libibverbs.so")]
