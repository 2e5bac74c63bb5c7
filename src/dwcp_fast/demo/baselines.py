"""What people do today, as two real processes each: raw, zstd-1, xor-zstd-1, and the v1 protocol.

``raw`` is one TCP connection: a length, the file through ``sendfile``, an XXH3-128 at the end, and an
acknowledgement once the receiver has checked it. ``zstd-1`` is the same with a zstd stream of level 1
in place of the bytes. ``xor-zstd-1`` is what is written by hand where both sides keep the last version: a
zstd stream of level 1 over the XOR of the two. ``v1`` is :func:`dwcp_fast.v1.send_v1`, which has no
acknowledgement of its own. The receivers write to a file, as the receiver of v3 does, but do not wait for
the disk. Only ``xor-zstd-1`` has a base; the others send a change whole.

Run as ``python -m dwcp_fast.demo.baselines recv METHOD DIRECTORY`` and ``... send METHOD``; both are
spoken to in JSON lines (:mod:`dwcp_fast.demo.worker`) and serve one transfer after another.
"""

import logging
import mmap
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import xxhash
import zstandard

from dwcp_fast.demo.worker import Message, answer, requests
from dwcp_fast.errors import (
    ConfigError,
    DwcpError,
    FormatError,
    IntegrityError,
    LimitExceededError,
    PeerClosedError,
)

__all__ = ["V1_NAME", "main", "receive_object", "send_object"]

_log = logging.getLogger(__name__)

_HEADER = struct.Struct("!HQ")
_PIECE = struct.Struct("!I")
_MAX_NAME_BYTES = 255
_MAX_OBJECT_BYTES = 1 << 40
_BUFFER_BYTES = 1 << 20
# A piece is one compressed buffer; zstd adds at most a few hundred bytes to what does not shrink.
_MAX_PIECE_BYTES = 2 * _BUFFER_BYTES
_DIGEST_BYTES = 16
_IDLE_TIMEOUT_S = 60.0
_CLOSE_TIMEOUT_S = 5.0
V1_NAME = "v1-delivery"


class _Body(Protocol):
    """How the bytes of an object travel."""

    def send(self, peer: socket.socket, source: int, length: int, base: Path | None) -> None:
        """Send ``length`` bytes of the open file ``source``; ``base`` is what the receiver holds."""

    def receive(self, peer: socket.socket, length: int, held: Path) -> Iterator[memoryview]:
        """Receive exactly ``length`` bytes, piece by piece; ``held`` is the receiver's last version."""


class _RawBody:
    def send(self, peer: socket.socket, source: int, length: int, base: Path | None) -> None:
        del base
        offset = 0
        while offset < length:
            sent = os.sendfile(peer.fileno(), source, offset, length - offset)
            if sent == 0:
                raise PeerClosedError(f"the file ended at {offset} of {length} bytes")
            offset += sent

    def receive(self, peer: socket.socket, length: int, held: Path) -> Iterator[memoryview]:
        del held
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        left = length
        while left:
            got = peer.recv_into(buffer[: min(left, _BUFFER_BYTES)])
            if got == 0:
                raise PeerClosedError(f"the sender closed {left} bytes before the end of {length}")
            left -= got
            yield buffer[:got]


class _ZstdBody:
    def send(self, peer: socket.socket, source: int, length: int, base: Path | None) -> None:
        del base
        _send_zstd(peer, _file_pieces(source, length), length)

    def receive(self, peer: socket.socket, length: int, held: Path) -> Iterator[memoryview]:
        del held
        return map(memoryview, _receive_zstd(peer, length))


class _XorZstdBody:
    def send(self, peer: socket.socket, source: int, length: int, base: Path | None) -> None:
        if base is None:
            raise ConfigError("xor-zstd-1 sends changes only: no base is given")
        _send_zstd(peer, _xor_pieces(_file_pieces(source, length), base), length)

    def receive(self, peer: socket.socket, length: int, held: Path) -> Iterator[memoryview]:
        return map(memoryview, _xor_pieces(_receive_zstd(peer, length), held))


def _file_pieces(source: int, length: int) -> Iterator[bytes]:
    offset = 0
    while offset < length:
        data = os.pread(source, min(_BUFFER_BYTES, length - offset), offset)
        if not data:
            raise PeerClosedError(f"the file ended at {offset} of {length} bytes")
        offset += len(data)
        yield data


def _xor_pieces(pieces: Iterator[bytes], base: Path) -> Iterator[bytes]:
    """Each piece XOR the base's bytes at the same offset; beyond its end the base counts as zeros."""
    import numpy as np  # loaded by the processes that need it only

    with base.open("rb") as file:
        for piece in pieces:
            old = file.read(len(piece)).ljust(len(piece), b"\0")
            yield np.bitwise_xor(np.frombuffer(piece, np.uint8), np.frombuffer(old, np.uint8)).tobytes()


def _send_zstd(peer: socket.socket, pieces: Iterator[bytes], length: int) -> None:
    stream = zstandard.ZstdCompressor(level=1).compressobj(size=length)
    for data in pieces:
        _send_piece(peer, stream.compress(data))
    _send_piece(peer, stream.flush())
    peer.sendall(_PIECE.pack(0))


def _send_piece(peer: socket.socket, piece: bytes) -> None:
    if piece:
        peer.sendall(_PIECE.pack(len(piece)))
        peer.sendall(piece)


def _receive_zstd(peer: socket.socket, length: int) -> Iterator[bytes]:
    stream = zstandard.ZstdDecompressor().decompressobj()
    got = 0
    while piece_length := _PIECE.unpack(_receive_exactly(peer, _PIECE.size))[0]:
        if piece_length > _MAX_PIECE_BYTES:
            raise LimitExceededError(f"piece of {piece_length} bytes, limit {_MAX_PIECE_BYTES}")
        data = stream.decompress(_receive_exactly(peer, piece_length))
        got += len(data)
        if got > length:
            raise FormatError(f"stream of more than the announced {length} bytes")
        yield data
    if got != length:
        raise FormatError(f"stream of {got} bytes, announced {length}")


_BODIES: dict[str, _Body] = {"raw": _RawBody(), "zstd-1": _ZstdBody(), "xor-zstd-1": _XorZstdBody()}


def send_object(body: _Body, address: tuple[str, int], path: Path, base: Path | None = None) -> Message:
    """Send one file over one connection and wait for the verified acknowledgement.

    Args:
        body: how its bytes travel.
        address: the receiver.
        path: the file to send.
        base: the sender's copy of what the receiver holds under that name, or None.

    Raises:
        ConfigError: the method needs a base and none is given.
        IntegrityError: the receiver did not confirm the digest.
        PeerClosedError: the receiver went away.
    """
    with path.open("rb") as source:
        length = source.seek(0, os.SEEK_END)
        started = time.monotonic()
        with socket.create_connection(address, _IDLE_TIMEOUT_S) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A blocking descriptor, because sendfile on one with a timeout would report "try again".
            peer.settimeout(None)
            name = path.name.encode()
            peer.sendall(_HEADER.pack(len(name), length) + name)
            body.send(peer, source.fileno(), length, base)
            digest = _digest_file(source.fileno(), length)
            peer.sendall(digest)
            peer.settimeout(_IDLE_TIMEOUT_S)
            if _receive_exactly(peer, _DIGEST_BYTES) != digest:
                raise IntegrityError("the receiver ended up with other bytes")
        return {"seconds": time.monotonic() - started}


def receive_object(body: _Body, peer: socket.socket, into: Path) -> None:
    """Receive one file, check it and acknowledge its digest.

    Raises:
        FormatError: the header or the stream is malformed.
        IntegrityError: the digest does not match.
        PeerClosedError: the sender went away.
    """
    name_length, length = _HEADER.unpack(_receive_exactly(peer, _HEADER.size))
    if not 0 < name_length <= _MAX_NAME_BYTES or length > _MAX_OBJECT_BYTES:
        raise FormatError(f"name of {name_length} bytes and object of {length} bytes")
    name = _receive_exactly(peer, name_length).decode(errors="surrogateescape")
    if name in (".", "..") or "/" in name or "\0" in name:
        raise FormatError(f"name {name!r} is not a plain file name")
    hasher = xxhash.xxh3_128()
    target_path, staged = into / name, into / f"{name}.part"
    with staged.open("wb", buffering=0) as target:
        for piece in body.receive(peer, length, target_path):
            hasher.update(piece)
            target.write(piece)
    announced = _receive_exactly(peer, _DIGEST_BYTES)
    if announced == hasher.digest():
        staged.replace(target_path)
    peer.sendall(hasher.digest())
    if announced != hasher.digest():
        raise IntegrityError(f"digest {hasher.hexdigest()}, announced {announced.hex()}")


def main(arguments: list[str]) -> int:
    """Run one side until standard input ends."""
    match arguments:
        case ["send", "v1"]:
            _send_v1_forever()
        case ["recv", "v1", into]:
            _receive_v1_forever(Path(into))
        case ["send", method] if method in _BODIES:
            for request in requests():
                try:
                    address = (request["host"], request["port"])
                    base = None if request["base"] is None else Path(request["base"])
                    answer(send_object(_BODIES[method], address, Path(request["path"]), base))
                except (OSError, DwcpError) as error:
                    answer({"error": str(error)})
        case ["recv", method, into] if method in _BODIES:
            for peer, address in _accept_until_end():
                with peer:
                    try:
                        receive_object(_BODIES[method], peer, Path(into))
                    except (OSError, DwcpError, zstandard.ZstdError) as error:
                        _log.warning("transfer from %s failed: %s", address, error)
        case _:
            _log.error("usage: send METHOD | recv METHOD DIRECTORY")
            return 2
    return 0


def _send_v1_forever() -> None:
    from dwcp_fast.v1 import send_v1  # the engine is loaded by the processes that need it only

    for request in requests():
        try:
            payload = Path(request["path"]).read_bytes()
            started = time.monotonic()
            send_v1(
                request["host"],
                request["port"],
                payload,
                connect_timeout_s=_IDLE_TIMEOUT_S,
                timeout_s=_IDLE_TIMEOUT_S,
            )
            answer({"started_at": started})
        except (OSError, DwcpError) as error:
            answer({"error": str(error)})


def _receive_v1_forever(into: Path) -> None:
    """Serve v1 and report each delivery with the time at which it was checked.

    The clock is CLOCK_MONOTONIC, which all processes of a machine share.
    """
    from dwcp_fast.v1 import V1Delivery, V1Options, V1Receiver

    def keep(delivery: V1Delivery) -> None:
        digest = xxhash.xxh3_128_hexdigest(delivery.payload)
        (into / V1_NAME).write_bytes(delivery.payload)
        answer({"digest": digest, "finished_at": time.monotonic()})

    def report(_peer: tuple[str, int], error: Exception) -> None:
        answer({"error": str(error)})

    receiver = V1Receiver(V1Options(), on_delivery=keep, on_error=report)
    for peer, address in _accept_until_end():
        receiver.add_connection(peer, address)
    receiver.close(_CLOSE_TIMEOUT_S)


def _accept_until_end() -> Iterator[tuple[socket.socket, tuple[str, int]]]:
    """Announce a port, then yield each connection until standard input ends."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        answer({"port": listener.getsockname()[1]})
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            peer, address = listener.accept()
            peer.settimeout(_IDLE_TIMEOUT_S)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield peer, address


def _receive_exactly(peer: socket.socket, length: int) -> bytes:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        got = peer.recv_into(view)
        if got == 0:
            raise PeerClosedError(f"the peer closed {len(view)} bytes before the end of {length}")
        view = view[got:]
    return bytes(data)


def _digest_file(source: int, length: int) -> bytes:
    if length == 0:
        return xxhash.xxh3_128_digest(b"")
    with mmap.mmap(source, length, access=mmap.ACCESS_READ) as view:
        return xxhash.xxh3_128_digest(view)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
