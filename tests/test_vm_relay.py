"""The relay as Python holds it: options, ends, stats, and that a peer without the token gets nothing."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dwcp_fast import AuthError, ConfigError, DeadlineError, DwcpError
from dwcp_fast.vm.relay import MIGRATION, RelayOptions, SourceRelay, TargetRelay

DEADLINE_S = 20.0
PAGE_BYTES = 4_096


def migration(pages: list[bytes], rounds: int) -> bytes:
    """Give a stream as QEMU makes it: the same pages, round after round."""
    size = len(pages) * PAGE_BYTES
    stream = b"QEVM\0\0\0\x03\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04"
    stream += (size | 0x04).to_bytes(8) + b"\x06pc.ram" + size.to_bytes(8) + (0x10).to_bytes(8)
    stream += b"\x7e\0\0\0\x02"
    for _ in range(rounds):
        stream += b"\x02\0\0\0\x02"
        for number, page in enumerate(pages):
            word = number * PAGE_BYTES | 0x08 | (0x20 if number else 0)
            stream += word.to_bytes(8) + (b"" if number else b"\x06pc.ram") + page
        stream += (0x10).to_bytes(8) + b"\x7e\0\0\0\x02"
    return stream + b"\x04\0\0\0\x05\x03apic and the rest"


def listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.settimeout(DEADLINE_S)
    listener.bind(str(path))
    listener.listen()
    return listener


def dialled(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(DEADLINE_S)
    connection.connect(str(path))
    return connection


def read_all(connection: socket.socket) -> bytes:
    connection.settimeout(DEADLINE_S)
    with connection, connection.makefile("rb") as stream:
        return stream.read()


def carried(tmp_path: Path, machine: socket.socket, stream: bytes) -> bytes:
    """What comes of a stream, which the relay takes no faster than it is read there."""

    def send() -> None:
        with dialled(tmp_path / "out") as leaving:
            leaving.sendall(stream)

    with ThreadPoolExecutor() as pool:
        sending = pool.submit(send)
        came = read_all(machine.accept()[0])
        sending.result(DEADLINE_S)
    return came


@contextmanager
def relay(tmp_path: Path, options: RelayOptions) -> Iterator[tuple[SourceRelay, TargetRelay]]:
    target = TargetRelay("127.0.0.1:0", {MIGRATION: tmp_path / "in"}, options=options)
    with target:
        assert target.stats().state == "waiting"
        assert target.pairing is not None
        with SourceRelay(target.pairing, {MIGRATION: tmp_path / "out"}, options=options) as source:
            target.accept(DEADLINE_S)
            yield source, target


def test_a_migration_arrives_as_it_was_and_the_stats_tell_how(tmp_path: Path) -> None:
    pages = [number.to_bytes(2) * (PAGE_BYTES // 2) for number in range(1, 300)]
    stream = migration(pages, rounds=3)
    # Over loopback, what is chosen by itself is to pass pages on as they are.
    options = RelayOptions(lanes=2, codec="lz4")
    with listening(tmp_path / "in") as machine, relay(tmp_path, options) as (source, target):
        assert carried(tmp_path, machine, stream) == stream
        with pytest.raises(DeadlineError):
            source.wait(0.05)
        source.finish()
        ours, theirs = source.wait(DEADLINE_S), target.wait(DEADLINE_S)
    assert (ours.state, theirs.state) == ("finished", "finished")
    assert ours.stream_bytes == theirs.stream_bytes == ours.migration_bytes == len(stream)
    assert ours.pages == {"zero": 0, "same": 598, "copy": 0, "delta": 0, "base": 0, "full": 299}
    assert theirs.pages == ours.pages
    assert ours.page_bytes == 897 * PAGE_BYTES
    assert ours.wire_bytes < len(stream) // 2
    assert ours.timeline[-1].stream_bytes == len(stream)
    assert not (tmp_path / "out").exists()
    # What was is known after the end, too.
    assert source.stats().stream_bytes == len(stream)


def test_pages_pass_as_they_are_where_the_link_is_faster_than_looking_at_them(tmp_path: Path) -> None:
    pages = [number.to_bytes(2) * (PAGE_BYTES // 2) for number in range(1, 100)]
    stream, kept = migration(pages, rounds=3), tmp_path / "kept"
    with listening(tmp_path / "in") as machine, relay(tmp_path, RelayOptions(keep=kept)) as (source, target):
        assert carried(tmp_path, machine, stream) == stream
        source.finish()
        ours, theirs = source.wait(DEADLINE_S), target.wait(DEADLINE_S)
    # They are seen all the same: counted on both sides, and kept.
    assert ours.pages == theirs.pages == {"zero": 0, "same": 0, "copy": 0, "delta": 0, "base": 0, "full": 297}
    assert (kept / "pc.ram").read_bytes() == b"".join(pages)


def test_a_machine_that_comes_back_is_told_by_what_was_kept(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    pages = [number.to_bytes(2) * (PAGE_BYTES // 2) for number in range(1, 101)]
    with listening(tmp_path / "in") as machine, relay(tmp_path, RelayOptions(keep=kept)) as (source, _):
        carried(tmp_path, machine, migration(pages, rounds=1))
        source.finish()
        source.wait(DEADLINE_S)
    assert (kept / "pc.ram").read_bytes() == b"".join(pages)
    (tmp_path / "in").unlink()
    pages[:10] = [b"changed!" * (PAGE_BYTES // 8)] * 10
    with listening(tmp_path / "in") as machine, relay(tmp_path, RelayOptions(base=kept)) as (source, _):
        stream = migration(pages, rounds=1)
        assert carried(tmp_path, machine, stream) == stream
        source.finish()
        assert source.wait(DEADLINE_S).pages["base"] == 90


def test_a_source_holds_no_more_of_a_base_than_it_wants_to(tmp_path: Path) -> None:
    pages = [number.to_bytes(2) * (PAGE_BYTES // 2) for number in range(1, 101)]
    base = tmp_path / "base"
    base.mkdir()
    (base / "pc.ram").write_bytes(b"".join(pages))
    options = RelayOptions(base=base, max_base_bytes=30 * PAGE_BYTES)
    with listening(tmp_path / "in") as machine, relay(tmp_path, options) as (source, _):
        stream = migration(pages, rounds=1)
        assert carried(tmp_path, machine, stream) == stream
        source.finish()
        told = source.wait(DEADLINE_S)
        assert told.pages["base"] == 30
        # Who asks often is not given all that ever was. (Lanes take a moment to leave, which is work too.)
        present = source.present()
        assert told.timeline and present == replace(
            told, timeline=(), cpu_seconds=present.cpu_seconds, rtt_ms=present.rtt_ms
        )


def test_a_relay_that_is_stopped_shuts_the_sockets_of_both_machines(tmp_path: Path) -> None:
    with listening(tmp_path / "in") as machine, relay(tmp_path, RelayOptions()) as (source, target):
        with dialled(tmp_path / "out") as leaving:
            arriving, _ = machine.accept()
            source.stop("the operator changed his mind")
            assert read_all(arriving) == b""
            assert leaving.recv(1) == b""
        with pytest.raises(DwcpError, match="changed his mind"):
            target.wait(DEADLINE_S)
        assert (source.stats().state, target.stats().state) == ("failed", "failed")
        assert "changed his mind" in (target.stats().error or "")


def test_another_token_lets_nobody_in(tmp_path: Path) -> None:
    with (
        TargetRelay("127.0.0.1:0", {MIGRATION: tmp_path / "in"}) as target,
        TargetRelay("127.0.0.1:0", {MIGRATION: tmp_path / "in"}) as other,
    ):
        assert target.pairing is not None
        assert other.pairing is not None
        wrong = target.pairing.rpartition(".")[0] + "." + other.pairing.rpartition(".")[2]
        with pytest.raises(AuthError):
            SourceRelay(wrong, {MIGRATION: tmp_path / "out"})
        with pytest.raises(DeadlineError):
            target.accept(0.1)
    assert not (tmp_path / "out").exists()


def test_a_file_at_the_place_of_a_socket_stays_there(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with TargetRelay("127.0.0.1:0", {MIGRATION: tmp_path / "in"}) as target:
        assert target.pairing is not None
        with pytest.raises(OSError, match="in use"):
            SourceRelay(target.pairing, {MIGRATION: tmp_path / "out"})
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("channel", "socket_name", "keep"),
    [("Disk", "x", None), ("", "x", None), ("disk", "x" * 200, None), ("disk", "x", Path("/a"))],
)
def test_what_cannot_be_used_is_refused_by_name(
    tmp_path: Path, channel: str, socket_name: str, keep: Path | None
) -> None:
    options = RelayOptions(base=Path("/a") if keep else None, keep=keep)
    with pytest.raises(ConfigError):
        TargetRelay("127.0.0.1:0", {channel: tmp_path / socket_name}, options=options)


@pytest.mark.parametrize(
    "options", [{"lanes": 0}, {"codec": "gzip"}, {"page_cache_bytes": -1}, {"reconnect_s": -1.0}]
)
def test_options_out_of_range_are_refused(options: dict[str, int | str | float]) -> None:
    with pytest.raises(ConfigError):
        RelayOptions(**options)  # type: ignore[arg-type]
