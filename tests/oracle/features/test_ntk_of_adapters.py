"""Features of fresh adapters against autograd, which leaves A out because B is zero."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from stages.features.ntk import Ntk
from stages.gradients.projection import Projection
from stages.model.measurement import load_measurement
from stages.model.spec import Lora, ModelSpec, Prompt, Trained
from stages.reading.vectors import matrix_of

EXACT = Projection(inputs=None, outputs=None, principal=0, dim=None)
PROMPT = Prompt("{text} was", ("great", "terrible"))


def test_fresh_adapters_are_measured_by_b_and_the_head(
    saved: Callable[..., Path], text: pa.Table, memory: Any
) -> None:
    folder = str(saved("llama", "CausalLM"))
    trained = Trained(lora=Lora(rank=3, alpha=6, targets=("q_proj", "down_proj")))
    model = ModelSpec(folder, head="label_words", prompt=PROMPT, max_length=64, train=trained)
    found = memory({"text": text}).run(Ntk(model, projection=EXACT, dtype="float32"))

    measurement = load_measurement(model, memory({}))
    network = measurement.network.double()
    named = {n: p for n, p in network.named_parameters() if "lora_" in n or n == "head.weight"}
    for weight in named.values():
        weight.requires_grad_()
    tokens = measurement.tokenise(text)
    expected = {}
    for row, identity in enumerate(text["id"].to_pylist()):
        logit = network(**measurement.batch(tokens, np.array([row])))[0, 0]
        found_here = torch.autograd.grad(logit, list(named.values()))
        by_name = dict(zip(named, found_here, strict=True))
        assert all(not g.any() for n, g in by_name.items() if ".lora_A." in n)
        counted = [g.flatten() for n, g in by_name.items() if ".lora_A." not in n]
        expected[identity] = torch.cat(counted).numpy()
    wanted = np.array([expected[identity] for identity in found["id"].to_pylist()])
    # Float32 against float64.
    off = np.linalg.norm(matrix_of(found["vector"]) - wanted, axis=1)
    assert (off / np.linalg.norm(wanted, axis=1)).max() <= 1e-4
