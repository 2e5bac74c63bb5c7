"""A trainer and a worker in two processes: each step's weights arrive as a version, equal to the bit.

The model is a small multi-layer perceptron that learns to predict the next character of a text. The trainer
keeps 32-bit weights, takes AdamW steps, and publishes the weights rounded to bf16, as reinforcement learning
does for its inference workers. The worker follows and computes the logits of a fixed input each time. The
trainer computes them too, from what it published, and compares.

    python examples/rl_weights.py
    python examples/rl_weights.py --text some.txt --versions 20 --learning-rate 1e-5
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import dwcp_fast as dwcp

Array = npt.NDArray[Any]
Weights = dict[str, Array]

CONTEXT = 12
WIDTH = 24
HIDDEN = 384
BATCH = 512
ALPHABET = 128
PROBE = 64


def as_bf16(values: Array) -> npt.NDArray[np.uint16]:
    """Round 32-bit floats to bf16, to the nearest and ties to even; the result holds their bits."""
    bits = values.view(np.uint32)
    rounded: npt.NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def from_bf16(bits: Array) -> npt.NDArray[np.float32]:
    """Widen bf16 to 32-bit floats."""
    wide: npt.NDArray[np.float32] = (bits.astype(np.uint32) << 16).view(np.float32)
    return wide


def new_weights(rng: np.random.Generator) -> Weights:
    """Make weights to begin with."""

    def matrix(rows: int, columns: int) -> Array:
        values: Array = (rng.normal(size=(rows, columns)) / np.sqrt(rows)).astype(np.float32)
        return values

    return {
        "embedding": matrix(ALPHABET, WIDTH),
        "hidden.weight": matrix(CONTEXT * WIDTH, HIDDEN),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "middle.weight": matrix(HIDDEN, HIDDEN),
        "middle.bias": np.zeros(HIDDEN, np.float32),
        "output.weight": matrix(HIDDEN, ALPHABET),
        "output.bias": np.zeros(ALPHABET, np.float32),
    }


def forward(weights: Weights, contexts: Array) -> tuple[Array, Array, Array, Array]:
    """Compute the logits, and what the way back needs."""
    inputs = weights["embedding"][contexts].reshape(len(contexts), -1)
    hidden = np.maximum(inputs @ weights["hidden.weight"] + weights["hidden.bias"], 0)
    middle = np.maximum(hidden @ weights["middle.weight"] + weights["middle.bias"], 0)
    return middle @ weights["output.weight"] + weights["output.bias"], middle, hidden, inputs


def gradients(weights: Weights, contexts: Array, targets: Array) -> tuple[float, Weights]:
    """Compute the mean cross entropy and its gradients."""
    logits, middle, hidden, inputs = forward(weights, contexts)
    logits = logits - logits.max(axis=1, keepdims=True)
    chances = np.exp(logits)
    chances /= chances.sum(axis=1, keepdims=True)
    rows = np.arange(len(targets))
    loss = float(-np.log(chances[rows, targets] + 1e-12).mean())
    out = chances
    out[rows, targets] -= 1
    out /= len(targets)
    back_middle = (out @ weights["output.weight"].T) * (middle > 0)
    back_hidden = (back_middle @ weights["middle.weight"].T) * (hidden > 0)
    back_inputs = (back_hidden @ weights["hidden.weight"].T).reshape(len(contexts), CONTEXT, WIDTH)
    embedding = np.zeros_like(weights["embedding"])
    np.add.at(embedding, contexts, back_inputs)
    return loss, {
        "embedding": embedding,
        "hidden.weight": inputs.T @ back_hidden,
        "hidden.bias": back_hidden.sum(axis=0),
        "middle.weight": hidden.T @ back_middle,
        "middle.bias": back_middle.sum(axis=0),
        "output.weight": middle.T @ out,
        "output.bias": out.sum(axis=0),
    }


class AdamW:
    """The optimizer that most models are trained with."""

    def __init__(self, weights: Weights) -> None:
        """Begin with empty moments."""
        self._mean = {name: np.zeros_like(value) for name, value in weights.items()}
        self._square = {name: np.zeros_like(value) for name, value in weights.items()}
        self._steps = 0

    def step(self, weights: Weights, found: Weights, rate: float) -> None:
        """Change weights in place."""
        self._steps += 1
        for name, gradient in found.items():
            mean, square = self._mean[name], self._square[name]
            mean += 0.1 * (gradient - mean)
            square += 0.01 * (gradient * gradient - square)
            ready = mean / (1 - 0.9**self._steps)
            scale = np.sqrt(square / (1 - 0.99**self._steps)) + 1e-8
            weights[name] -= np.float32(rate) * (ready / scale + 0.01 * weights[name])


def batches(text: bytes, rng: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """Give random places of the text: characters, and the one that follows."""
    letters = np.minimum(np.frombuffer(text, np.uint8), ALPHABET - 1)
    while True:
        at = rng.integers(0, len(letters) - CONTEXT, BATCH)
        yield letters[at[:, None] + np.arange(CONTEXT)], letters[at + CONTEXT]


def probe_digest(weights: Weights) -> str:
    """Digest the logits of a fixed input."""
    contexts = np.random.default_rng(9).integers(0, ALPHABET, (PROBE, CONTEXT))
    return dwcp.digest(forward(weights, contexts)[0]).hex()


def work(pairing: str) -> None:
    """Follow a trainer, and tell after each version what the model says."""
    with dwcp.DeltaSubscriber(pairing) as subscriber:
        for staged in subscriber:
            weights = {name: from_bf16(tensor.array()) for name, tensor in staged.tensors().items()}
            report = staged.report
            logits = probe_digest(weights)
            told = {
                "version": staged.version,
                "logits": logits,
                "kind": report.kind,
                "read": report.bytes_read,
            }
            print(json.dumps(told), flush=True)
            staged.commit()


def train(text: bytes, versions: int, steps: int, rate: float, store: Path) -> int:
    """Train and publish, with a worker beside it; 0 if every version's logits were the same in both."""
    rng = np.random.default_rng(1)
    weights = new_weights(rng)
    optimizer = AdamW(weights)
    source = batches(text, rng)
    loss = 0.0
    for _ in range(steps):
        loss, found = gradients(weights, *next(source))
        optimizer.step(weights, found, 3e-3)
    print(f"pretrained for {steps} steps, loss {loss:.3f} (a guess: {np.log(ALPHABET):.3f})")
    wrong = 0
    deltas = []
    with dwcp.DeltaPublisher(store, listen="127.0.0.1:0", anchor_every=10, confirm="all") as publisher:
        command = [sys.executable, __file__, "--follow", str(publisher.pairing)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            for version in range(1, versions + 1):
                loss, found = gradients(weights, *next(source))
                optimizer.step(weights, found, rate)
                rounded = {name: as_bf16(value) for name, value in weights.items()}
                with publisher.version(version) as draft:
                    for name, bits in rounded.items():
                        draft.put(name, bits, dtype="bf16")
                told = json.loads(worker.stdout.readline())
                mine = probe_digest({name: from_bf16(bits) for name, bits in rounded.items()})
                same = told["version"] == version and told["logits"] == mine
                wrong += not same
                report = draft.report
                assert report is not None
                share = told["read"] / report.bytes_raw
                if told["kind"] == "delta":
                    deltas.append(share)
                print(
                    f"version {version:3}  loss {loss:.3f}  {report.kind:6}  {report.bytes_raw} bytes, "
                    f"worker read {told['read']} ({share:7.2%}, {told['kind']})  "
                    f"logits {'equal' if same else 'DIFFER'}"
                )
            worker.terminate()
    if deltas:
        print(
            f"deltas: {np.mean(deltas):.2%} of the model on average, {1 / np.mean(deltas):.1f} times smaller"
        )
    print(f"{versions - wrong} of {versions} versions with equal logits")
    return 0 if wrong == 0 else 1


def main() -> int:
    """Read the command line."""
    default = Path(__file__).resolve().parent.parent / "LICENSE-APACHE"
    parser = argparse.ArgumentParser(description="train, publish weights as versions, and follow them")
    parser.add_argument("--text", type=Path, default=default, help="what to learn")
    parser.add_argument("--versions", type=int, default=12, help="training steps that are published")
    parser.add_argument("--steps", type=int, default=60, help="steps before the first of them")
    parser.add_argument("--learning-rate", type=float, default=1e-5, help="of the published steps")
    parser.add_argument("--follow", metavar="PAIRING", help="be the worker of a trainer")
    options = parser.parse_args()
    if options.follow:
        work(options.follow)
        return 0
    with tempfile.TemporaryDirectory(prefix="dwcp-versions-") as store:
        text = options.text.read_bytes()
        return train(text, options.versions, options.steps, options.learning_rate, Path(store))


if __name__ == "__main__":
    sys.exit(main())
