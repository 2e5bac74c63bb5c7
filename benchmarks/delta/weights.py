"""Weights of a language model before and after real AdamW steps, with the master copy and optimizer state."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

import harness
from delta.files import MIB, UnbuildableError

WIDTH, DEPTH, CONTEXT, BATCH, VOCABULARY = 640, 6, 64, 4, 256
WARM_STEPS = 25
STEPS = {"lr1e-6": (1e-6, 1), "lr1e-5": (1e-5, 1), "lr2e-4": (2e-4, 1), "lr1e-5_10": (1e-5, 10)}
"""Name of a version: learning rate and number of steps from the base."""
KEPT = 56 * MIB // 2
"""Elements that are kept of every state, so that a bf16 file has 56 MiB and an fp32 file 112 MiB."""


def build_weights(folder: Path) -> None:
    """Train a small transformer on real text, then take steps of several sizes from the same point.

    What a step changes in bf16 depends on the learning rate against the size of the weights: 1e-6 changes
    about 1 % of the values, 1e-5 about 6 %, 2e-4 about half. The fp32 master copy and both moments of
    AdamW are kept too: they change everywhere.
    """
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        raise UnbuildableError("torch is missing: it trains the model") from None
    torch.set_num_threads(1)
    torch.manual_seed(5)
    model = language_model(torch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.01)
    text = torch.from_numpy(np.frombuffer(harness.real_files(8 * MIB), np.uint8).astype(np.int64))
    for _ in range(WARM_STEPS):
        step(torch, model, optimizer, text)
    base = (copied(torch, model.state_dict()), copied(torch, optimizer.state_dict()))
    write_state(torch, folder, "base", model, optimizer)
    for name, (rate, steps) in STEPS.items():
        model.load_state_dict(base[0])
        optimizer.load_state_dict(copied(torch, base[1]))
        for group in optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(6)
        for _ in range(steps):
            step(torch, model, optimizer, text)
        write_state(torch, folder, name, model, optimizer)


def language_model(torch: Any) -> Any:
    """A causal transformer over bytes, initialised as language models are."""
    layer = torch.nn.TransformerEncoderLayer(
        WIDTH, 10, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, bias=False
    )
    body = torch.nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
    model = torch.nn.ModuleDict(
        {
            "embed": torch.nn.Embedding(VOCABULARY, WIDTH),
            "place": torch.nn.Embedding(CONTEXT, WIDTH),
            "body": body,
            "head": torch.nn.Linear(WIDTH, VOCABULARY, bias=False),
        }
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def step(torch: Any, model: Any, optimizer: Any, text: Any) -> None:
    """One step on a random batch of the text."""
    starts = torch.randint(0, len(text) - CONTEXT - 1, (BATCH,))
    rows = torch.stack([text[start : start + CONTEXT + 1] for start in starts.tolist()])
    mask = torch.nn.Transformer.generate_square_subsequent_mask(CONTEXT)
    hidden = model["embed"](rows[:, :-1]) + model["place"](torch.arange(CONTEXT))
    scores = model["head"](model["body"](hidden, mask=mask, is_causal=True))
    loss = torch.nn.functional.cross_entropy(scores.reshape(-1, VOCABULARY), rows[:, 1:].reshape(-1))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def copied(torch: Any, state: Any) -> Any:
    """A deep copy of a state dictionary."""
    if isinstance(state, dict):
        return {key: copied(torch, value) for key, value in state.items()}
    if isinstance(state, list):
        return [copied(torch, value) for value in state]
    return state.clone() if torch.is_tensor(state) else state


def write_state(torch: Any, folder: Path, name: str, model: Any, optimizer: Any) -> None:
    """Write the weights in bf16 and fp32, and both moments, each as one file in the order of the model."""
    parameters = list(model.parameters())
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])[:KEPT]
    moments = [
        torch.cat([optimizer.state[parameter][key].reshape(-1) for parameter in parameters])[:KEPT]
        for key in ("exp_avg", "exp_avg_sq")
    ]
    files = {
        "bf16": flat.to(torch.bfloat16).view(torch.int16),
        "fp32": flat,
        "adam_m": moments[0],
        "adam_v": moments[1],
    }
    for kind, values in files.items():
        part = folder / f"{kind}_{name}.bin.part"
        values.numpy().tofile(part)
        part.replace(folder / f"{kind}_{name}.bin")
