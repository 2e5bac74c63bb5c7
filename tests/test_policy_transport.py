"""What carries lanes: memory where nothing speaks against it, then RDMA, and the reason whatever it is."""

from typing import Any

import pytest

from dwcp_fast.doctor import rdma_limits
from dwcp_fast.errors import ConfigError
from dwcp_fast.options import Carrier, ReceiveOptions, SendOptions
from dwcp_fast.policy.transport import NO_RDMA, RdmaOffer, choose_links, explain_link, offers_rdma

THERE = RdmaOffer(("mlx5_0",), None)
NONE = RdmaOffer((), "there is no rdma device")


@pytest.mark.parametrize(
    ("requested", "shares", "asked", "mode", "order"),
    [
        ("auto", True, {}, "auto", ("shm", "tcp")),
        ("auto", True, {"local_addresses": (), "congestion": False}, "datacenter", ("shm", "tcp")),
        ("auto", False, {}, "auto", ("tcp",)),
        ("auto", True, {"local_addresses": ("10.0.0.1",)}, "auto", ("tcp",)),
        ("auto", True, {"a bandwidth limit": True}, "auto", ("tcp",)),
        ("auto", True, {}, "internet", ("tcp",)),
        ("auto", True, {}, "hybrid", ("tcp",)),
        # What is asked for by name is that and nothing else.
        ("tcp", True, {}, "auto", ("tcp",)),
        ("shm", False, {"a bandwidth limit": True}, "internet", ("shm",)),
    ],
)
def test_memory_goes_first_where_nothing_speaks_against_it(
    requested: Carrier, shares: bool, asked: dict[str, Any], mode: str, order: tuple[str, ...]
) -> None:
    choice = choose_links(requested, shares_memory=shares, asked=asked, mode=mode, plain=False, rdma=THERE)
    assert choice.value == order
    assert choice.why


def test_the_reason_names_what_stood_in_the_way() -> None:
    asked = {"local_addresses": ("10.0.0.1",), "a bandwidth limit": True}
    choice = choose_links("auto", shares_memory=True, asked=asked, mode="auto", plain=False, rdma=NO_RDMA)
    assert choice.why.startswith("local_addresses and a bandwidth limit")
    order = choose_links("auto", shares_memory=True, asked={}, mode="auto", plain=False, rdma=NO_RDMA)
    assert "but shm: nobody" in explain_link(order, "tcp", "shm: nobody is there").why
    assert explain_link(order, "shm", None) == explain_link(order, "shm", None)
    assert explain_link(order, "shm", None).value == "shm"


@pytest.mark.parametrize(
    ("requested", "asked", "mode", "rdma", "order", "reason"),
    [
        ("auto", {}, "auto", THERE, ("shm", "rdma", "tcp"), "there is mlx5_0"),
        ("auto", {}, "auto", NONE, ("shm", "tcp"), "there is no rdma device"),
        ("auto", {"local_addresses": ("10.0.0.1",)}, "auto", THERE, ("rdma", "tcp"), "there is mlx5_0"),
        ("auto", {"congestion": True}, "auto", THERE, ("tcp",), "congestion can be kept"),
        ("auto", {}, "internet", THERE, ("tcp",), "mode internet"),
        ("tcp", {}, "auto", THERE, ("tcp",), "asked for"),
        # The error tells what is missing.
        ("rdma", {}, "internet", NONE, ("rdma",), "asked for"),
    ],
)
def test_rdma_goes_before_tcp_where_nobody_wants_to_be_known_and_there_is_a_device(
    requested: Carrier, asked: dict[str, Any], mode: str, rdma: RdmaOffer, order: tuple[str, ...], reason: str
) -> None:
    choice = choose_links(requested, shares_memory=True, asked=asked, mode=mode, plain=True, rdma=rdma)
    assert choice.value == order
    assert reason in choice.why


def test_rdma_is_refused_where_peers_are_to_know_each_other() -> None:
    with pytest.raises(ConfigError, match="neither encrypted nor authenticated"):
        choose_links("rdma", shares_memory=True, asked={}, mode="auto", plain=False, rdma=THERE)
    with pytest.raises(ConfigError, match="neither encrypted nor authenticated"):
        offers_rdma("rdma", plain=False, rdma=THERE)
    assert [offers_rdma(link, plain=True, rdma=THERE) for link in ("auto", "tcp", "rdma")] == [
        True,
        False,
        True,
    ]
    assert not offers_rdma("auto", plain=False, rdma=THERE)
    assert not offers_rdma("auto", plain=True, rdma=NONE)


def test_little_memory_that_may_be_locked_gets_an_advice() -> None:
    device = {"name": "mlx5_0", "max_qp_wr": 32768}
    poor = rdma_limits([device], None, 65_536)
    assert poor.state == "advice" and "mlx5_0: max_qp_wr 32768; 65536 bytes may be locked" in poor.value
    assert rdma_limits([device], None, None).state == "ok"
    assert rdma_limits([], "no device", 65_536).state == "ok"


def test_a_link_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="link is 'infiniband'"):
        SendOptions(link="infiniband")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="link is 'shm'"):
        ReceiveOptions(link="shm")  # type: ignore[arg-type]
