"""Blocks that are run again give what they give when all activations are kept."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_inputs import MemoryInputs
from torch import nn
from transformers.pytorch_utils import Conv1D

from stages.gradients.projection import Projection
from stages.gradients.projector import Projector
from stages.model.checkpointing import checkpointed
from stages.model.layers import blocks_of, trained_layers
from stages.model.measurement import Measurement, load_measurement
from stages.model.spec import ModelSpec, Trained

CASES = [
    *((kind, "SequenceClassification", "checkpoint") for kind in ("bert", "gpt2", "llama", "bart")),
    ("llama", "CausalLM", "completion"),
    ("t5", "", "random"),
]


def loaded(folder: Path, head: str) -> Measurement:
    form = "prompt_completion" if head == "completion" else "text"
    labels = 2 if head == "random" else None
    spec = ModelSpec(str(folder), head=head, num_labels=labels)
    return load_measurement(spec, MemoryInputs(details={"text": {"format": form}}))


def calls_in(block: nn.Module) -> Counter[str]:
    """Counts the calls of each linear layer in a block from now on."""
    calls: Counter[str] = Counter()
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    return calls


@pytest.mark.parametrize(("kind", "task", "head"), CASES, ids=str)
def test_gradients_are_the_same_to_the_last_bit(
    saved: Callable[..., Path], text: pa.Table, kind: str, task: str, head: str
) -> None:
    measurement = loaded(saved(kind, task), head)
    network = measurement.network
    pairs = pa.array(["was bad", "good"] * 3 + ["the film"])
    text = text.set_column(text.column_names.index("text_b"), "text_b", pairs)
    tokens = measurement.tokenise(text)
    batch = measurement.batch(tokens, np.arange(text.num_rows))
    projector = Projector(network, trained_layers(network, Trained()), Projection(dim=None))

    def features() -> tuple[torch.Tensor, torch.Tensor]:
        return projector.features(
            lambda: measurement.outputs(batch), batch["attention_mask"].bool()
        )

    kept = features()
    calls = calls_in(blocks_of(network, 0)[1][0])
    features()
    once = Counter(calls)
    calls.clear()
    with checkpointed(network):
        again = features()
    assert all(map(torch.equal, kept, again))
    # A second run for the backward pass of each output.
    n_outputs = kept[1].shape[1]
    assert once
    assert calls == {name: n * (1 + n_outputs) for name, n in once.items()}
    calls.clear()
    assert all(map(torch.equal, kept, features()))
    assert calls == once


def test_a_network_without_blocks_is_run_as_it_is() -> None:
    network: Any = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    inputs = torch.ones(1, 2)
    with checkpointed(network):
        assert network(inputs).equal(network(inputs))
