"""What carries lanes: memory where nothing speaks against it, and the reason whatever it is."""

from typing import Any

import pytest

from dwcp_fast.errors import ConfigError
from dwcp_fast.options import Carrier, ReceiveOptions, SendOptions
from dwcp_fast.policy.transport import choose_links, explain_link


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
    choice = choose_links(requested, shares_memory=shares, asked=asked, mode=mode)
    assert choice.value == order
    assert choice.why


def test_the_reason_names_what_stood_in_the_way() -> None:
    asked = {"local_addresses": ("10.0.0.1",), "a bandwidth limit": True}
    choice = choose_links("auto", shares_memory=True, asked=asked, mode="auto")
    assert choice.why.startswith("local_addresses and a bandwidth limit")
    order = choose_links("auto", shares_memory=True, asked={}, mode="auto")
    assert "but shm: nobody" in explain_link(order, "tcp", "shm: nobody is there").why
    assert explain_link(order, "shm", None) == explain_link(order, "shm", None)
    assert explain_link(order, "shm", None).value == "shm"


def test_a_link_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="link is 'infiniband'"):
        SendOptions(link="infiniband")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="link is 'shm'"):
        ReceiveOptions(link="shm")  # type: ignore[arg-type]
