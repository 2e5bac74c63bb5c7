"""What is said of a host: of a good one, a poor one, one that tells nothing, and this one."""

import json
from pathlib import Path

import pytest

from dwcp_fast.cli.program import run
from dwcp_fast.doctor import UNKNOWN, Finding, Host, examine, network

GOOD = {
    "proc/sys/net/ipv4/tcp_congestion_control": "cubic",
    "proc/sys/net/ipv4/tcp_available_congestion_control": "reno cubic bbr",
    "proc/sys/net/ipv4/tcp_allowed_congestion_control": "reno cubic bbr",
    "proc/sys/net/ipv4/tcp_rmem": "4096\t131072\t33554432",
    "proc/sys/net/ipv4/tcp_wmem": "4096\t16384\t33554432",
    "proc/sys/net/ipv4/tcp_slow_start_after_idle": "0",
    "proc/sys/net/ipv4/tcp_available_ulp": "espintcp mptcp tls",
    "proc/sys/net/core/rmem_max": "212992",
    "proc/sys/net/core/wmem_max": "16777216",
    "proc/sys/kernel/io_uring_disabled": "0",
    "proc/cpuinfo": "model name\t: x\nflags\t\t: fpu avx2 avx512f aes",
    "proc/meminfo": "MemTotal:       16384000 kB\nMemFree: 1 kB",
    "proc/self/cgroup": "0::/user.slice",
    "proc/self/status": "CapEff:\t0000000000000000",
    "sys/fs/cgroup/user.slice/cpu.max": "max 100000",
    "sys/fs/cgroup/user.slice/memory.max": "max",
    "sys/class/infiniband/mlx5_0/node_type": "1",
    "usr/lib/x86_64-linux-gnu/libibverbs.so.1": "",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc",
    "sys/devices/system/clocksource/clocksource0/available_clocksource": "tsc hpet",
}
POOR = GOOD | {
    "proc/sys/net/ipv4/tcp_allowed_congestion_control": "reno cubic",
    "proc/sys/net/ipv4/tcp_rmem": "4096 131072 6291456",
    "proc/sys/net/ipv4/tcp_wmem": "4096 16384 4194304",
    "proc/sys/net/ipv4/tcp_slow_start_after_idle": "1",
    "proc/sys/net/core/rmem_max": "212992",
    "proc/sys/net/core/wmem_max": "212992",
    "proc/cpuinfo": "flags : fpu sse2",
    "sys/fs/cgroup/user.slice/cpu.max": "50000 100000",
    "sys/fs/cgroup/user.slice/memory.max": "268435456",
    "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]",
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet",
}
OF_THE_PROCESS = {"open files", "extras", "processors"}


def host(folder: Path, files: dict[str, str]) -> Host:
    """A host with these files."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return Host(folder)


def by_name(found: tuple[Finding, ...]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


def test_a_good_host_gets_no_advice(tmp_path: Path) -> None:
    found = by_name(examine(host(tmp_path, GOOD)))
    assert {name for name, finding in found.items() if finding.state != "ok"} <= {"open files"}
    assert found["congestion control"].value == "cubic; bbr is allowed"
    assert found["RDMA"].value == "mlx5_0; libibverbs is there"
    assert found["vector instructions"].value == "avx2 avx512f aes"
    assert "1342 Mbps" in found["TCP receive buffer"].value
    assert "by themselves" in found["socket receive buffer"].value


def test_each_weakness_gets_an_advice_that_says_how_to_change_it(tmp_path: Path) -> None:
    found = by_name(examine(host(tmp_path, POOR)))
    advised = {name: finding.change or "" for name, finding in found.items() if finding.state == "advice"}
    advised.pop("open files", None)
    assert set(advised) == {
        "congestion control",
        "TCP receive buffer",
        "TCP send buffer",
        "socket receive buffer",
        "socket send buffer",
        "slow start after idle",
        "processors",
        "vector instructions",
        "memory",
        "transparent huge pages",
        "clock source",
    }
    assert 'tcp_allowed_congestion_control="reno cubic bbr"' in advised["congestion control"]
    assert 'tcp_rmem="4096 131072 33554432"' in advised["TCP receive buffer"]
    assert "echo tsc >" in advised["clock source"]
    assert "0.5" in found["processors"].value and "256" in found["memory"].value


def test_what_others_may_not_is_allowed_to_a_privileged_process(tmp_path: Path) -> None:
    poor = host(tmp_path, POOR)
    assert network.congestion(poor, privileged=True).state == "ok"
    assert network.congestion(poor, privileged=False).state == "advice"
    capable = host(tmp_path, {"proc/self/status": "CapEff:\t0000000000001000"})
    assert network.congestion(capable).state == "ok"


def test_a_kernel_without_bbr_is_told_which_module_has_it(tmp_path: Path) -> None:
    bare = GOOD | {
        "proc/sys/net/ipv4/tcp_available_congestion_control": "reno cubic",
        "proc/sys/net/ipv4/tcp_allowed_congestion_control": "reno cubic",
    }
    assert "modprobe tcp_bbr" in (network.congestion(host(tmp_path, bare)).change or "")


def test_limits_of_old_control_groups_are_found(tmp_path: Path) -> None:
    old = {
        "proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n7:memory:/docker/x",
        "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": "25000",
        "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": "536870912",
    }
    others = {name: text for name, text in GOOD.items() if not name.startswith("sys/fs/cgroup")}
    found = by_name(examine(host(tmp_path, others | old)))
    assert "0.25" in found["processors"].value and "512" in found["memory"].value


@pytest.mark.parametrize("content", [None, "", "\x00garbage [", "-1", "max"])
def test_a_host_that_tells_nothing_or_nonsense_is_not_known(tmp_path: Path, content: str | None) -> None:
    files = {} if content is None else dict.fromkeys(GOOD, content)
    found = by_name(examine(host(tmp_path, files)))
    assert len(found) == len(examine())
    if content is None:
        assert {name for name, finding in found.items() if finding.value != UNKNOWN} == OF_THE_PROCESS


def test_this_host_is_looked_at_by_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in told["findings"]] == [
        *(finding.name for finding in examine()),
        "RDMA limits",
    ]
    assert all((entry["change"] is not None) == (entry["state"] == "advice") for entry in told["findings"])
    assert told["advice"] == sum(entry["state"] == "advice" for entry in told["findings"])
    assert run(["doctor"]) == 0
    text = capsys.readouterr().out
    assert all(entry["value"] in text for entry in told["findings"])
