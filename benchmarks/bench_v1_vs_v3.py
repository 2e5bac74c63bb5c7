"""v1 against v3 on the same data: encode, decode, delta, framing, transfer.

Both engines are ours: v1 is the Cython engine that speaks the published v1 formats, v3 the Rust core. v1
proves nothing about what arrived; v3 hashes every block and tree, and encrypts the transfer.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import dwcp_fast
import harness
from dwcp_fast.demo.state import build_states
from dwcp_fast.v1 import BaselineStore, HdeDecoder, HdeEncoder, deal_amst, read_amst, send_v1

STREAMS = 4
KEY = "bench_memory"
TIMEOUT_S = 120.0
Pair = dict[str, Callable[[], object]]


def encoders(old: bytes, new: bytes) -> dict[str, tuple[Pair, dict[str, int]]]:
    """For each case both contenders, and the size of what each makes."""
    full_v1 = HdeEncoder().encode(new, tier="regional")
    full_v3 = dwcp_fast.compress(new, codec="zstd:3", checksum=True)
    delta_v1 = delta_packet(old, new)
    delta_v3 = dwcp_fast.delta.encode(old, new)
    assert HdeDecoder().decode(full_v1).payload == new == dwcp_fast.decompress(full_v3)
    assert dwcp_fast.delta.apply(delta_v3, old) == new
    return {
        "encode": (
            {
                "v1": lambda: HdeEncoder().encode(new, tier="regional"),
                "v3": lambda: dwcp_fast.compress(new, codec="zstd:3", checksum=True),
            },
            {"v1": len(full_v1), "v3": len(full_v3)},
        ),
        "decode": (
            {"v1": lambda: HdeDecoder().decode(full_v1), "v3": lambda: dwcp_fast.decompress(full_v3)},
            {"v1": len(full_v1), "v3": len(full_v3)},
        ),
        "delta encode": (
            {
                "v1": encode_delta_v1(old, new),
                "v3": lambda: dwcp_fast.delta.encode(old, new),
            },
            {"v1": len(delta_v1), "v3": len(delta_v3)},
        ),
        "delta apply": (
            {"v1": apply_delta_v1(old, delta_v1), "v3": lambda: dwcp_fast.delta.apply(delta_v3, old)},
            {"v1": len(delta_v1), "v3": len(delta_v3)},
        ),
    }


def delta_packet(old: bytes, new: bytes) -> bytes:
    encoder = HdeEncoder(deltas=True)
    encoder.encode(old, key=KEY)
    return encoder.encode(new, key=KEY)


def encode_delta_v1(old: bytes, new: bytes) -> Callable[[], object]:
    """A v1 encoder moves its baseline with every packet, so back and forth is what can be repeated."""
    encoder = HdeEncoder(deltas=True)
    encoder.encode(old, key=KEY)
    states = [new, old]

    def run() -> object:
        packet = encoder.encode(states[0], key=KEY)
        states.reverse()
        return packet

    return run


def apply_delta_v1(old: bytes, packet: bytes) -> Callable[[], object]:
    """A v1 decoder moves its baseline too, so it is put back, a copy, before each time."""
    baselines = BaselineStore()
    decoder = HdeDecoder(baselines=baselines)

    def run() -> object:
        baselines.put(KEY, old)
        return decoder.decode(packet, key=KEY)

    return run


def framing(data: bytes) -> Pair:
    """v1 chunks in memory, dealt and put together; v3 frames only exist on a lane, see the transfers."""
    return {"v1": lambda: read_amst(deal_amst(data, streams=STREAMS))}


def serve() -> None:
    """Worker: one v3 listener in TLS and one without, both of which serve v1 too."""
    arrived = threading.Event()
    options = dwcp_fast.ReceiveOptions(allow_v1=("127.0.0.0/8",), v1_payload=sys.argv[2])  # type: ignore[arg-type]
    trust = dwcp_fast.INSECURE if sys.argv[3] == "plaintext" else None
    with dwcp_fast.listen(
        "127.0.0.1:0", trust=trust, options=options, on_v1=lambda _delivery: arrived.set()
    ) as listener:
        print(json.dumps({"target": listener.pairing or listener.address}), flush=True)
        with listener.accept(timeout_s=TIMEOUT_S) as session:  # type: ignore[union-attr]
            while session.receive(timeout_s=TIMEOUT_S) is not None:
                pass


def transfers(old: bytes, new: bytes, repeats: int, *, plain: bool) -> harness.Samples:
    """Send `new` from this process to another one: v1 over TCP, v3 over what `plain` says."""
    payload, transport = ("raw", "plaintext") if plain else ("hde", "tls")
    command = [sys.executable, __file__, "--serve", payload, transport]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        target = json.loads(worker.stdout.readline())["target"]
        host, port = target.removeprefix("dwcp://").partition("#")[0].rsplit(":", 1)
        trust = dwcp_fast.INSECURE if plain else None
        options = dwcp_fast.SendOptions(streams=STREAMS, codec="none" if plain else "zstd:3", link="tcp")
        with dwcp_fast.connect(target, trust=trust, options=options) as session:
            session.send({"old": old})
            samples = harness.interleave(
                {
                    "v1": lambda: send_v1(
                        host, int(port), new, streams=STREAMS, payload_format="raw" if plain else "hde"
                    ),
                    "v3": lambda: session.send({"new": new}),
                },
                repeats,
            )
        assert worker.wait(TIMEOUT_S) == 0
    return samples


def main() -> None:
    options = harness.arguments(__doc__ or "", repeats=7)
    size = (8 if options.quick else 48) << 20
    states = {state.name: (state.version_0, state.version_1) for state in build_states(7, size)}
    noise = harness.incompressible(size)
    states["incompressible"] = (noise, noise[: size // 2] + harness.incompressible(size // 2, seed=2))
    claims: list[dict[str, Any]] = []
    raw: dict[str, Any] = {}
    for name, (old, new) in states.items():
        for verb, (pair, sizes) in encoders(old, new).items():
            samples = harness.interleave(pair, options.repeats)
            raw[f"{verb}, {name}"] = samples | {"bytes": len(new), "coded_bytes": sizes}
            claims.append(
                harness.claim(f"{verb} speed, {name}", harness.ratio(samples, "v3", "v1"), 1.0, "v1")
            )
            if verb in ("encode", "delta encode"):
                claims.append(
                    harness.claim(
                        f"{verb} size, {name}", sizes["v3"] / sizes["v1"], 1.001, "v1", lower_is_better=True
                    )
                )
        for plain, what in ((True, "framing and transport, uncoded"), (False, "transfer, coded, v3 in TLS")):
            samples = transfers(old, new, options.repeats, plain=plain)
            raw[f"{what}, {name}"] = samples | {"bytes": len(new)}
            claims.append(
                harness.claim(f"{what}, {name}", harness.ratio(samples, "v3", "v1"), 1.0, "v1 over TCP")
            )
    raw["v1 chunks in memory"] = harness.interleave(framing(noise), options.repeats) | {"bytes": size}
    path = harness.publish("v1_vs_v3", options.out, claims=claims, raw=raw)
    harness.show(claims)
    print(f"raw samples: {path}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve()
    else:
        main()
