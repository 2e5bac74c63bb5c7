"""Options are checked when they are made, and units are read as a person writes them."""

import dataclasses
import doctest
from pathlib import Path
from typing import Any

import pytest

from dwcp_fast import options
from dwcp_fast.dictionary import Dictionary
from dwcp_fast.errors import ConfigError
from dwcp_fast.options import ReceiveOptions, SendOptions, parse_bytes, parse_duration, parse_rate


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("12", 12),
        ("1kB", 1000),
        ("64MiB", 64 << 20),
        ("1.5GiB", 3 << 29),
        ("2 TB", 2 * 10**12),
        ("7b", 7),
        ("1m", 10**6),
    ],
)
def test_lengths_are_read(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500Mbps", 500_000_000),
        ("1.5 gbps", 1_500_000_000),
        ("9bps", 9),
        ("1MB/s", 8_000_000),
        ("2kbit/s", 2000),
        ("2MBit/s", 2_000_000),
        ("3 miB/s", 3 << 23),
        ("4B/s", 32),
    ],
)
def test_rates_are_read(text: str, expected: int) -> None:
    assert parse_rate(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("300ms", 0.3), ("2", 2.0), ("1.5s", 1.5), ("10min", 600.0), ("2h", 7200.0), ("5us", 5e-6)],
)
def test_time_spans_are_read(text: str, expected: float) -> None:
    assert parse_duration(text) == pytest.approx(expected)


@pytest.mark.parametrize("parse", [parse_bytes, parse_rate, parse_duration])
@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1e9", "1 2", "5 parsecs", "MiB", "9" * 30, "١s", "nan", "inf"]
)
def test_what_is_no_quantity_is_refused_with_an_example(parse: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=r"such as|as in"):
        parse(text)


@pytest.mark.parametrize("text", ["100Mb/s", "10MBps", "5b/s", "5 GBPS", "1Mib/s", "7Bps"])
def test_a_rate_in_what_may_be_bits_or_bytes_is_refused_with_both(text: str) -> None:
    with pytest.raises(ConfigError, match=r"500Mbps \(bits\) or 500MB/s \(bytes\)") as caught:
        parse_rate(text)
    assert repr(text) in str(caught.value)


def test_a_rate_needs_a_unit() -> None:
    with pytest.raises(ConfigError, match="500Mbps"):
        parse_rate("500")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("protocol", "v2"),
        ("streams", 0),
        ("streams", 257),
        ("streams", True),
        ("codec", "brotli"),
        ("codec", "zstd:"),
        ("dictionary", Dictionary(bytes(1_048_553))),
        ("block_bytes", 1000),
        ("block_bytes", 3 << 20),
        ("block_bytes", 8 << 20),
        ("bandwidth_bits_per_s", 1),
        ("congestion", "a name that is too long"),
        ("congestion", "BBR"),
        ("local_addresses", ("host",)),
        ("local_addresses", ("fe80::1%eth0",)),
        ("local_addresses", ("127.0.0.1",) * 17),
        ("timeout_s", 0),
        ("timeout_s", float("nan")),
        ("stall_timeout_s", 0),
        ("connect_timeout_s", -1),
        ("idle_timeout_s", float("inf")),
        ("reconnect_s", -0.1),
        ("base", "everything"),
        ("base", ()),
        ("symlinks", "follow"),
        ("v1_generation", "D"),
        ("v1_payload", "json"),
    ],
)
def test_a_send_option_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        SendOptions(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("symlinks", "follow"),
        ("max_object_bytes", 0),
        ("max_total_bytes", -1),
        ("max_entries", 1 << 21),
        ("max_block_bytes", 100),
        ("max_dictionary_bytes", 1_048_553),
        ("max_lanes", 300),
        ("idle_timeout_s", 0),
        ("handshake_timeout_s", 1e9),
        ("allow_v1", ("10.0.0.0/33",)),
        ("v1_generation", "a"),
        ("v1_payload", ""),
    ],
)
def test_a_receive_option_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        ReceiveOptions(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [object(), b"x", -1.5, {"a": 1}, [[]], 1 + 2j, "\x00"])
@pytest.mark.parametrize("kind", [SendOptions, ReceiveOptions])
def test_every_field_refuses_what_it_cannot_be_and_is_named(
    kind: type[SendOptions | ReceiveOptions], wrong: object
) -> None:
    for field in dataclasses.fields(kind):
        if field.name == "codec_model" and wrong == "\x00":
            # A path may have any name; it is the system that refuses this one.
            continue
        with pytest.raises(ConfigError, match=field.name):
            kind(**{field.name: wrong})  # type: ignore[arg-type]


def test_a_text_that_says_no_does_not_count_as_yes() -> None:
    for make in (
        lambda no: ReceiveOptions(overwrite=no),
        lambda no: ReceiveOptions(sync=no),
        lambda no: SendOptions(polite=no),
    ):
        with pytest.raises(ConfigError, match="it must be True or False"):
            make("no")


def test_options_share_no_list_with_whoever_made_them() -> None:
    lists: dict[str, list[Any]] = {
        "local_addresses": ["127.0.0.1"],
        "base": [Path("x")],
        "allow_v1": ["10.0.0.0/8"],
        "dictionaries": [Dictionary(b"common")],
    }
    sending = SendOptions(local_addresses=lists["local_addresses"], base=lists["base"])  # type: ignore[arg-type]
    receiving = ReceiveOptions(allow_v1=lists["allow_v1"], dictionaries=lists["dictionaries"])  # type: ignore[arg-type]
    for given in lists.values():
        given.clear()
    assert sending.local_addresses == ("127.0.0.1",) and sending.base == (Path("x"),)
    assert receiving.allow_v1 == ("10.0.0.0/8",) and len(receiving.dictionaries) == 1
    assert hash(sending) == hash(dataclasses.replace(sending))
    with pytest.raises(dataclasses.FrozenInstanceError):
        sending.polite = True  # type: ignore[misc]


def test_options_that_are_in_range_are_taken() -> None:
    SendOptions(streams=256, codec="zstd:-7", block_bytes=4 << 20, reconnect_s=0, base=(Path("x"),))
    SendOptions(dictionary=Dictionary(bytes(1_048_552)))
    ReceiveOptions(allow_v1=("10.1.2.3/8", "::1"), max_lanes=1, max_dictionary_bytes=0)


def test_the_examples_in_the_documentation_hold() -> None:
    outcome = doctest.testmod(options)
    assert outcome.attempted >= 3 and outcome.failed == 0
