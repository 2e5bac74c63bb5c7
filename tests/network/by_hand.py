"""A peer in plain Python that says what it is told to: `ssl`, and frames as docs/format.md has them."""

import base64
import contextlib
import hashlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import xxhash

from dwcp_fast import _core
from oracle.wire import HEADER, Frame, Lane

PREFACE: Final = b"DWCP3\n\x03\x03"
HELLO, WELCOME, OFFER, MANIFEST, BLOCK, DIGESTS, FINISH, CLOSE = 1, 2, 3, 4, 7, 0x0B, 0x0C, 0x0F
BLOCK_BYTES: Final = 65_536
WAIT_S: Final = 20.0


def digest(*parts: bytes) -> bytes:
    """The XXH3-128 digest of everything together."""
    return xxhash.xxh3_128_digest(b"".join(parts))


def u(size: int, value: int) -> bytes:
    """An unsigned integer of `size` bytes."""
    return value.to_bytes(size, "little")


def seal(kind: int, sequence: int, seed: int, head: bytes, body: bytes = b"") -> bytes:
    """A frame with a right check."""
    front = bytes([kind, 0, 0, 0]) + u(4, len(head)) + u(4, len(body)) + u(4, sequence)
    return front + u(8, xxhash.xxh3_64_intdigest(front + head, seed=seed)) + head + body


@dataclass(frozen=True)
class Identity:
    """A certificate and its key, in files."""

    certificate: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> "Identity":
        """A new one, as a user of the package has it."""
        parts = list(_parts(_core.Identity.generate().to_blob()))
        made = cls(folder / "hand-cert.pem", folder / "hand-key.pem")
        for path, name, part in zip(
            (made.certificate, made.key), ("CERTIFICATE", "PRIVATE KEY"), parts, strict=True
        ):
            text = base64.encodebytes(part).decode()
            path.write_text(f"-----BEGIN {name}-----\n{text}-----END {name}-----\n")
        return made

    def context(self, *, server: bool = False) -> ssl.SSLContext:
        """TLS 1.3 with this certificate, whoever the peer is."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(self.certificate, self.key)
        return context

    def fingerprint(self) -> str:
        """The certificate's, as a pairing string has it."""
        der = ssl.PEM_cert_to_DER_cert(self.certificate.read_text())
        return base64.urlsafe_b64encode(hashlib.sha256(der).digest()).decode().rstrip("=")


def _parts(blob: bytes) -> Iterator[bytes]:
    """Certificate and key of a kept identity, each with its length before it, behind 9 bytes."""
    rest = blob[9:]
    while rest:
        length = int.from_bytes(rest[:4], "little")
        yield rest[4 : 4 + length]
        rest = rest[4 + length :]


def hello(
    secret: bytes,
    *,
    version: int = 3,
    security: int = 1,
    lane: int = 0,
    session: bytes = bytes(16),
) -> bytes:
    """The head of a HELLO of a sender."""
    return (
        bytes([version, security]) + u(2, lane) + u(4, 0) + session + secret + bytes(32) + u(4, BLOCK_BYTES)
    )


def token_of(pairing: str) -> bytes:
    """The token in a pairing string."""
    return base64.urlsafe_b64decode(pairing.rpartition(".")[2] + "=")


def transfer_of(name: str, content: bytes) -> list[tuple[int, bytes, bytes]]:
    """What a sender says from OFFER to FINISH for a file of one block: types, heads and bodies."""
    assert 0 < len(content) <= BLOCK_BYTES
    path = name.encode()
    core = bytes([0]) + u(2, len(path)) + path + u(4, 0o644) + u(8, 0) + u(8, len(content)) + u(2, 0)
    transfer = digest(b"dwcp-mani", u(4, BLOCK_BYTES), u(4, 1), core)
    block = digest(content)
    tree = digest(b"dwcp-tree", u(8, len(content)), u(4, BLOCK_BYTES), block)
    offer = transfer + u(4, BLOCK_BYTES) + u(4, 1) + u(8, len(content)) + u(4, 0) + u(4, 0)
    plain = u(4, 0) + u(4, len(content)) + u(8, 0) + bytes(4) + block + bytes(16)
    return [
        (OFFER, offer, b""),
        (MANIFEST, u(4, 0) + u(4, 1) + core + bytes(1), b""),
        (BLOCK, plain, content),
        (DIGESTS, u(4, 0) + u(4, 1) + tree, b""),
        (FINISH, transfer + digest(b"dwcp-xfer", transfer, tree), b""),
    ]


class Hand:
    """A connection to a listener, by hand."""

    def __init__(
        self, address: str, identity: Identity | None, *, source: str = "127.0.0.1", timeout_s: float = WAIT_S
    ) -> None:
        host, _, port = address.rpartition(":")
        raw = socket.create_connection((host, int(port)), timeout=timeout_s, source_address=(source, 0))
        try:
            self.stream = raw if identity is None else identity.context().wrap_socket(raw)
        except BaseException:
            raw.close()
            raise
        self.session = bytes(16)
        self.key = bytes(32)
        self.said = 0
        self._heard = Lane()
        self._buffer = b""

    @property
    def seed(self) -> int:
        """What the checks of the session begin with."""
        return int.from_bytes(self.session[:8], "little")

    def greet(self, head: bytes, preface: bytes = PREFACE) -> Frame | None:
        """Say preface and HELLO, and hear the answer; a WELCOME is remembered."""
        self.say(preface + seal(HELLO, 0, 0, head))
        self.said = 1
        if self._take(8) != PREFACE:
            return None
        answer = self.hear()
        if answer is not None and answer.name == "welcome":
            self.session = bytes.fromhex(answer.fields["session_id"])
            self.key = bytes.fromhex(answer.fields["join_key_hex"])
            self._heard.session = self.session
        return answer

    def tell(self, kind: int, head: bytes = b"", body: bytes = b"") -> None:
        """Say one frame of the session."""
        self.say(seal(kind, self.said, self.seed, head, body))
        self.said += 1

    def say(self, content: bytes) -> None:
        """Say bytes as they are."""
        self.stream.sendall(content)

    def hear(self) -> Frame | None:
        """The next frame; None at the end, in order or not."""
        header = self._take(HEADER.size)
        if len(header) < HEADER.size:
            return None
        head, body = (int.from_bytes(header[i : i + 4], "little") for i in (4, 8))
        return self._heard.frame(header + self._take(head + body))[0]

    def hear_until(self, name: str) -> Frame:
        """The next frame of a kind."""
        while (frame := self.hear()) is not None:
            if frame.name == name:
                return frame
        raise AssertionError(f"the listener left without {name!r}")

    def vanish(self) -> None:
        """End the connection without a word, and without the end of TLS."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.stream, socket.SHUT_RDWR)
        self.stream.close()

    def _take(self, count: int) -> bytes:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while len(self._buffer) < count and (more := self.stream.recv(65_536)):
                self._buffer += more
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
