"""Transfers with a dictionary: between two ends of one process, and what the options and commands refuse."""

from pathlib import Path

import pytest
from click.testing import CliRunner

import dwcp_fast as dwcp
from dwcp_fast import errors
from dwcp_fast.cli.files import read_dictionary, read_known
from dwcp_fast.cli.program import program
from messages import MESSAGES
from two_ends import LOCAL, WAIT_S, accepted, meanwhile, pairing_of

STATE = {f"message-{number}": message for number, message in enumerate(MESSAGES[500:])}


def made_with_it(report: dwcp.SendReport | dwcp.ReceiveReport) -> int:
    return sum(share.blocks for share in report.codec_mix if share.codec == "zstd+dict")


def transfer(options: dwcp.SendOptions, receive: dwcp.ReceiveOptions) -> dwcp.SendReport:
    """Send the state once; what arrived is compared."""

    def serve() -> dwcp.Received:
        with accepted(listener) as incoming:
            received = incoming.receive(WAIT_S)
        assert received is not None
        return received

    with dwcp.listen(LOCAL, options=receive) as listener, meanwhile(serve) as arriving:
        with dwcp.connect(pairing_of(listener), options=options) as sending:
            report = sending.send(STATE)
        received = arriving.result(WAIT_S)
    assert {name: bytes(value) for name, value in received.items()} == STATE
    assert made_with_it(received.report) == made_with_it(report)
    return report


def test_buffers_that_look_alike_take_less_whether_or_not_the_receiver_knows_the_dictionary(
    common: dwcp.Dictionary,
) -> None:
    options = dwcp.SendOptions(dictionary=common)
    alone = transfer(dwcp.SendOptions(), dwcp.ReceiveOptions())
    assert made_with_it(alone) == 0 and "dictionary" not in alone.why
    for receive in (dwcp.ReceiveOptions(), dwcp.ReceiveOptions(dictionaries=(common,))):
        report = transfer(options, receive)
        assert made_with_it(report) == len(STATE)
        assert 2 * report.bytes_wire < alone.bytes_wire
        assert report.why["dictionary"].startswith(common.digest)


@pytest.mark.parametrize("limit", [0, 100])
def test_a_receiver_that_takes_none_or_only_shorter_ones_is_served_without(
    common: dwcp.Dictionary, limit: int
) -> None:
    receive = dwcp.ReceiveOptions(max_dictionary_bytes=limit)
    assert made_with_it(transfer(dwcp.SendOptions(dictionary=common), receive)) == 0


def test_what_is_fetched_is_made_with_the_dictionary_of_the_server(common: dwcp.Dictionary) -> None:
    def serve() -> dwcp.SendReport:
        with accepted(listener) as incoming:
            assert incoming.next_request(WAIT_S) is not None
            return incoming.send(STATE)

    serving = dwcp.SendOptions(dictionary=common)
    with dwcp.listen(LOCAL, serve=serving) as listener, meanwhile(serve) as answering:
        with dwcp.connect(pairing_of(listener), receive=dwcp.ReceiveOptions()) as session:
            received = session.fetch(timeout_s=WAIT_S)
        assert made_with_it(answering.result(WAIT_S)) == len(STATE) == made_with_it(received.report)


def test_files_that_cannot_be_the_dictionary_of_a_transfer_are_refused(tmp_path: Path) -> None:
    long = tmp_path / "long.dict"
    long.write_bytes(bytes(1_048_553))
    with pytest.raises(errors.ConfigError, match=r"long\.dict has 1048553 bytes.*1048552"):
        read_dictionary(long)
    with pytest.raises(errors.ConfigError, match=r"long\.dict"):
        read_known(tmp_path)
    long.write_bytes(b"")
    with pytest.raises(errors.FormatError, match="0 bytes"):
        read_known(tmp_path)
    result = CliRunner().invoke(program, ["send", str(long), "--to", "h:1", "--dict", str(tmp_path / "none")])
    assert isinstance(result.exception, FileNotFoundError)


def test_known_dictionaries_are_the_dict_files_of_a_directory(
    tmp_path: Path, common: dwcp.Dictionary
) -> None:
    (tmp_path / "a.dict").write_bytes(common.to_bytes())
    (tmp_path / "b.dict").write_bytes(b"content that data has in common")
    (tmp_path / "readme.txt").write_text("no dictionary")
    (tmp_path / "c.dict").mkdir()
    digests = {known.digest for known in read_known(tmp_path)}
    assert len(digests) == 2 and common.digest in digests
    for number in range(255):
        (tmp_path / f"{number}.dict").write_bytes(b"x")
    with pytest.raises(errors.ConfigError, match=r"257 dictionaries.*256"):
        read_known(tmp_path)
