"""Write first inputs for the fuzz targets: from the golden files, and from real data that is named.

Usage: python rust/fuzz/seeds.py CORPUS [OLD NEW]...

CORPUS gets a directory for each target. Every OLD and NEW is a pair of files, of which pieces are taken.
`dwcp_fast` must be installed: it makes the patches.
"""

import random
import sys
from collections.abc import Iterator
from hashlib import blake2b
from itertools import chain, pairwise, product
from pathlib import Path

from dwcp_fast import codec, delta, dictionary

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
HEAD, ENTRY, SAME = 32, 24, 8
RNG = random.Random(7)

Inputs = Iterator[tuple[str, bytes]]
"""Targets and what to give them."""


def entries(patch: bytes) -> list[tuple[int, int, bytes]]:
    """Give kind, codec and payload of every entry that has a payload."""
    # Bit 0 of the flags: the digest of a dictionary follows the head.
    found, at = [], HEAD + 16 * (patch[5] & 1)
    while patch[at] != 255:
        kind, coder, length = patch[at], patch[at + 1], int.from_bytes(patch[at + 4 : at + 8], "little")
        if kind == 16:
            at += SAME
            continue
        found.append((kind, coder, patch[at + ENTRY : at + ENTRY + length]))
        at += ENTRY + length
    return found


def pieces(pair: tuple[Path, Path]) -> list[tuple[bytes, bytes]]:
    """Take pieces of up to 60 KB at the same places of two files, where they differ if that is soon found."""
    old, new = (path.read_bytes()[: 64 << 20] for path in pair)
    taken = []
    for _ in range(40):
        length = RNG.choice([200, 2_000, 16_000, 60_000])
        at = RNG.randrange(max(1, min(len(old), len(new)) - length))
        if old[at : at + length] != new[at : at + length] or RNG.random() < 0.1:
            taken.append((old[at : at + length], new[at : at + length]))
    return taken


def of_patches(real: list[tuple[bytes, bytes]], golden: list[bytes]) -> Inputs:
    """Give whole patches, or what they are made of."""
    for patch in golden:
        if len(patch) < 20_000:
            yield "patch_apply", patch
    for old, new in real:
        cut = 256 * len(old) // (len(old) + len(new) or 1)
        yield "patch_apply", bytes([RNG.randrange(5), *RNG.randbytes(3), cut]) + old + new
        yield "patch_resealed", bytes([cut, RNG.randrange(5)]) + RNG.randbytes(16) + old + new
        for choice in ("lz4", "zstd:1", "none"):
            yield "container_decode", codec.compress(new, codec=choice)


def of_blocks(real: list[tuple[bytes, bytes]], golden: list[bytes]) -> Inputs:
    """Give payloads of short blocks, against a base that repeats."""
    for old, new in real:
        base = old[:200]
        length = min(len(new), 6_000) & ~7
        whole = (base * (length // len(base) + 1))[:length]
        changed = bytearray(whole)
        for _ in range(RNG.choice([1, 30, 400])):
            at = RNG.randrange(max(1, length - 8)) & ~3
            changed[at : at + 4] = RNG.choice([new[at : at + 4], RNG.randbytes(4)])
        for target, dtype in product((new[:length], bytes(changed)), ("int8", "bf16", "fp32", "fp64")):
            for kind, coder, payload in entries(delta.encode(whole, target, dtype=dtype)):
                head = bytes([kind, coder]) + length.to_bytes(2, "little") + bytes([len(base)])
                if kind < 16:
                    yield "block_decode", head + base + payload
                else:
                    yield (
                        "segments_decode",
                        bytes([kind % 2, 20]) + length.to_bytes(2, "little") + b"\0" + payload,
                    )
    for patch in golden:
        for kind, _, payload in entries(patch):
            if kind > 16:
                yield "segments_decode", bytes([kind % 2, 255, 255, 255, 255]) + payload


def of_frames(streams: list[bytes]) -> Inputs:
    """Give the frames of recorded sessions, one by one."""
    for stream in streams:
        yield "frame_decode", stream
        at = 8
        while at + 24 <= len(stream):
            kind = stream[at]
            head, body = (int.from_bytes(stream[at + i : at + i + 4], "little") for i in (4, 8))
            told = stream[at + 24 : at + 24 + head]
            yield "frame_decode", bytes([kind, 0]) + body.to_bytes(4, "little")[:3] + told
            if kind == 4:
                yield "manifest", bytes([16, 255, 255]) + told
            at += 24 + head + body


def of_handshakes(streams: list[bytes]) -> Inputs:
    """Give recorded sessions as either side would tell them, and strings that name a listener."""
    for stream, role in product(streams, range(4)):
        told = [b"\0\1\x08\0\0" + stream[:8]]
        at = 8
        while at + 24 <= len(stream):
            head, body = (int.from_bytes(stream[at + i : at + i + 4], "little") for i in (4, 8))
            content = stream[at + 24 : at + 24 + head]
            if head < 1 << 16 and body == 0:
                told.append(bytes([stream[at], 0, *head.to_bytes(2, "little"), 0]) + content)
            at += 24 + head + body
        for count in range(1, min(len(told), 6) + 1):
            yield "handshake", bytes([role]) + b"".join(told[:count])
    secrets = f"{'A' * 43}.{'A' * 43}"
    for address in ("127.0.0.1:7443", "host.example:1", "[::1]:65535", "[fe80::1%eth0]:1"):
        yield "pairing", f"dwcp://{address}#{secrets}".encode()
        yield "pairing", address.encode()
    for network in (b"10.0.0.0/8", b"2001:db8::/32", b"::1"):
        yield "pairing", network


def of_programs() -> Inputs:
    """Give bytes for targets that take them as what to do."""
    for _ in range(40):
        told = RNG.randbytes(5 * RNG.randrange(1, 8))
        yield "patch_ways", RNG.randbytes(19) + told
        yield "snapshot_ops", RNG.randbytes(2 + 7 * RNG.randrange(1, 6))
        yield "chain_files", RNG.randbytes(7) + told
        yield "journal_recover", RNG.randbytes(8 + 2 * RNG.randrange(8))
        yield "session_ops", RNG.randbytes(200)
        yield "pages", bytes([64, 5, 1, *RNG.randbytes(5)]) + RNG.randbytes(3_000)


def of_migrations() -> Inputs:
    """Give migration streams as QEMU makes them, short ones, and chunks that begin as those of a relay do."""
    head = b"QEVM\0\0\0\x03\x07\0\0\0\x02pc\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04"
    setup = (0x40000 | 4).to_bytes(8, "big") + b"\x06pc.ram" + (0x40000).to_bytes(8, "big")
    end = (0x10).to_bytes(8, "big") + b"\x7e\0\0\0\x02"
    for _ in range(20):
        pages = bytearray()
        for number in RNG.sample(range(64), RNG.randrange(1, 6)):
            filled = RNG.random() < 0.3
            pages += (number * 4096 | (2 if filled else 8)).to_bytes(8, "big") + b"\x06pc.ram"
            pages += b"\0" if filled else RNG.choice([RNG.randbytes(4096), RNG.randbytes(16) * 256])
        section = b"\0\0\0\x02" + bytes(pages) + end
        rounds = b"\x02" + section + b"\x02" + section + b"\x03" + section
        devices = b"\x04\0\0\0\x05\x03apic" + bytes(9)
        yield "vm_stream", RNG.randbytes(2) + head + setup + end + rounds + devices
        told = bytes([7, RNG.choice([8, 9, 10, 0x18]), 0, 0, 2 << 1, 6]) + b"pc.ram"
        chunk = RNG.randbytes(16) + b"\x90\x20" + bytes([len(told)]) + told + RNG.randbytes(4096)
        yield "vm_decode", len(chunk).to_bytes(2, "little") + chunk


def of_dictionaries() -> Inputs:
    """Give a trained dictionary with what may be coded by it."""
    samples = [f'{{"lane":{number % 8},"block":{number},"of":"transfer"}}'.encode() for number in range(400)]
    trained = dictionary.Dictionary.train(samples, max_bytes=1024).to_bytes()
    for first, second in pairwise(samples[:20]):
        cut = 256 * len(trained) // (len(trained) + len(first + second)) + 1
        yield "dictionary", bytes([cut, 0, 7, 0]) + trained + first + second


def main(corpus: Path, files: list[Path]) -> None:
    """Write every input under its digest."""
    golden = [path.read_bytes() for path in sorted((GOLDEN / "patches").iterdir())]
    relays = [GOLDEN / "relay" / f"{side}.bin" for side in ("source", "target")]
    sessions = [*sorted((GOLDEN / "v3").glob("*.bin")), *relays]
    streams = [path.read_bytes() for path in sessions]
    real = [piece for pair in zip(files[::2], files[1::2], strict=True) for piece in pieces(pair)]
    for target, content in chain(
        of_patches(real, golden),
        of_blocks(real, golden),
        of_frames(streams),
        of_handshakes(streams),
        of_programs(),
        of_migrations(),
        of_dictionaries(),
    ):
        directory = corpus / target
        directory.mkdir(parents=True, exist_ok=True)
        (directory / blake2b(content, digest_size=12).hexdigest()).write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
