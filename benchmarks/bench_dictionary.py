"""How much less does a tree of small files take with a dictionary that was trained on others like them?

Half of the files, every second one by name, are the samples; the other half is sent. All bytes of the
connection are counted in both directions: manifest, heads, acknowledgements, and the dictionary where it has
to be given. Takes any folder of small files, as in
`python benchmarks/bench_dictionary.py FOLDER --pattern '*.json'`.
"""

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dwcp_fast
import harness
from dwcp_fast.demo.link import Link, LinkShape

LONGEST = 128 << 10
TIMEOUT_S = 120.0
# Faster than anything here: the link is there to count.
LINK = LinkShape(rate_bps=25e9, delay_s=0.0)


def transfer(tree: Path, send: dwcp_fast.SendOptions, receive: dwcp_fast.ReceiveOptions) -> dict[str, Any]:
    """Send a tree to a fresh folder: what went over the connection, and how long it took."""
    with (
        tempfile.TemporaryDirectory() as into,
        dwcp_fast.listen("127.0.0.1:0", trust=dwcp_fast.INSECURE, options=receive) as listener,
        Link(LINK) as link,
    ):
        host, _, port = listener.address.rpartition(":")
        link.retarget(host, int(port))

        def serve() -> None:
            with listener.accept(timeout_s=TIMEOUT_S) as incoming:  # type: ignore[union-attr]
                while incoming.receive_tree(into, timeout_s=TIMEOUT_S) is not None:
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        start = time.perf_counter()
        with dwcp_fast.connect(f"127.0.0.1:{link.port}", trust=dwcp_fast.INSECURE, options=send) as session:
            report = session.send_paths([tree])
        seconds = time.perf_counter() - start
        thread.join(TIMEOUT_S)
        counted = link.stats()
    made = sum(share.blocks for share in report.codec_mix if share.codec == "zstd+dict")
    return {
        "connection_bytes": counted.bytes_up + counted.bytes_down,
        "body_bytes": report.bytes_wire,
        "blocks_made_with_it": made,
        "seconds": seconds,
    }


def split(folder: Path, pattern: str, tree: Path) -> list[bytes]:
    """Copy every second file to `tree`; give the content of the others."""
    paths = sorted(
        path for path in folder.rglob(pattern) if path.is_file() and 0 < path.stat().st_size <= LONGEST
    )
    for path in paths[1::2]:
        copy = tree / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return [path.read_bytes() for path in paths[::2]]


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="small files that look alike")
    parser.add_argument("--pattern", default="*", help="which of them (default: all)")


def main() -> None:
    options = harness.arguments(__doc__ or "", repeats=5, extend=extend)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        samples = split(options.folder, options.pattern, tree)
        common = dwcp_fast.Dictionary.train(samples)
        raw_bytes = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
        files = sum(path.is_file() for path in tree.rglob("*"))
        knows = dwcp_fast.ReceiveOptions(sync=False, dictionaries=(common,))
        plain = dwcp_fast.ReceiveOptions(sync=False)

        def case(
            codec: str, dictionary: dwcp_fast.Dictionary | None, receive: dwcp_fast.ReceiveOptions
        ) -> Callable[[], dict[str, Any]]:
            send = dwcp_fast.SendOptions(codec=codec, dictionary=dictionary, base="none", protocol="v3")
            return lambda: transfer(tree, send, receive)

        cases = {
            "zstd:3": case("zstd:3", None, plain),
            "zstd:19": case("zstd:19", None, plain),
            "zstd:3, dictionary given": case("zstd:3", common, plain),
            "zstd:3, dictionary known": case("zstd:3", common, knows),
            "zstd:19, dictionary known": case("zstd:19", common, knows),
        }
        raw: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
        for turn in range(options.repeats):
            for name in harness.in_turn(cases, turn):
                raw[name].append(cases[name]())

    def median(name: str, what: str) -> float:
        return float(statistics.median(sample[what] for sample in raw[name]))

    print(f"{files} files, {raw_bytes} bytes; dictionary of {len(common.to_bytes())} bytes")
    for name in cases:
        row = {what: median(name, what) for what in ("connection_bytes", "body_bytes", "seconds")}
        print(
            f"{name:25} {row['connection_bytes']:9.0f} bytes, {row['body_bytes']:9.0f} in blocks, "
            f"{row['seconds']:.2f} s"
        )
    claims = []
    for level in ("zstd:3", "zstd:19"):
        saved = median(level, "connection_bytes") / median(f"{level}, dictionary known", "connection_bytes")
        claims.append(harness.claim(f"bytes of the connection, {level}", saved, 1.3, f"{level} alone"))
    facts = {"files": files, "bytes": raw_bytes, "dictionary_bytes": len(common.to_bytes()), "samples": raw}
    path = harness.publish("dictionary", options.out, claims=claims, raw=facts)
    harness.show(claims)
    print(f"raw samples: {path}")


if __name__ == "__main__":
    main()
