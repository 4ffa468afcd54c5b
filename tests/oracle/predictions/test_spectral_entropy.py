"""The spectral entropy of answers against singular values of the gradient that autograd gives."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_inputs import MemoryInputs

from stages.gradients.spectra import singular_values, spectral_entropy
from stages.model.measurement import load_measurement
from stages.model.spec import ModelSpec
from stages.predictions.spectral_entropy import SpectralEntropy
from stages.stage import ConfigError, Part

TEXTS = [("a bad", " film"), ("it was", " good , it was"), ("the", " a good film it was bad , a")]
TOP = 4


def test_singular_values_are_those_of_the_product() -> None:
    drawn = torch.Generator().manual_seed(0)
    for n_tokens, outputs, inputs in ((5, 40, 12), (30, 50, 12), (12, 7, 12), (1, 9, 4)):
        deltas = torch.randn(n_tokens, outputs, generator=drawn)
        states = torch.randn(n_tokens, inputs, generator=drawn)
        # Two tokens in one direction, and one that is nearly nothing.
        states[-1] = states[0]
        deltas[0] *= 1e-3
        whole = torch.linalg.svdvals(deltas.double().T @ states.double())
        found = singular_values(deltas, states)
        n = min(len(whole), len(found))
        np.testing.assert_allclose(found[:n], whole[:n], atol=2e-8 * float(whole[0]))
        assert (found[n:] <= 2e-8 * whole[0]).all()


def test_entropy_is_1_of_equal_values_and_0_of_one() -> None:
    assert spectral_entropy(torch.ones(20), 16) == pytest.approx(1)
    assert spectral_entropy(torch.tensor([3.0, 0.0]), 16) == 0
    # Of fewer values at most as much as they can have.
    assert spectral_entropy(torch.ones(4), 16) == pytest.approx(math.log(4) / math.log(16))
    assert spectral_entropy(torch.tensor([3.0, 1.0, 1.0]), 2) == pytest.approx(
        -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    )
    assert math.isnan(spectral_entropy(torch.zeros(3), 2))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # whose output layer is the embedding table
def test_entropies_are_those_of_the_gradient(kind: str, saved: Callable[..., Path]) -> None:
    model = ModelSpec(str(saved(kind, "CausalLM")), head="completion", max_length=32)
    roles = pa.array(["example"] * 3 + ["query"])
    prompts, answers = map(list, zip(*TEXTS, TEXTS[0], strict=True))
    text = pa.table({"id": [7, 3, 5, 1], "role": roles, "text": prompts, "text_b": answers})
    inputs = MemoryInputs({"text": text}, {"text": {"format": "prompt_completion"}})
    table = inputs.run(SpectralEntropy(model, top=TOP), Part("example", 0))
    assert table["example_id"].to_pylist() == [3, 5, 7]

    measurement = load_measurement(model, inputs)
    network = measurement.network.double()
    head = network.head
    # Apart from the table that shares its weight.
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    tokens = measurement.tokenise(text)
    for row in table.to_pylist():
        at = text["id"].to_pylist().index(row["example_id"])
        output = network(**measurement.batch(tokens, np.array([at])))[0, 0]
        (gradient,) = torch.autograd.grad(-output, [head.weight])
        values = torch.linalg.svdvals(gradient)[:TOP]
        shares = values / values.sum()
        wanted = -(shares * shares.clamp(min=1e-300).log()).sum() / math.log(TOP)
        assert row["spectral_entropy"] == pytest.approx(float(wanted), abs=1e-5)
        targets = tokens.columns["targets"][at]
        assert row["n_tokens"] == sum(word >= 0 for word in targets)
    entropies = table["spectral_entropy"].to_numpy()
    assert np.ptp(entropies) > 0.05


def test_an_answer_that_is_cut_away_has_none_and_one_value_is_refused(
    saved: Callable[..., Path],
) -> None:
    model = ModelSpec(str(saved("llama", "CausalLM")), head="completion", max_length=4)
    text = pa.table(
        {
            "id": [1, 2],
            "role": ["example"] * 2,
            "text": ["a good film it was bad , a", "a"],
            "text_b": [" film", " film"],
        }
    )
    inputs = MemoryInputs({"text": text}, {"text": {"format": "prompt_completion"}})
    table = inputs.run(SpectralEntropy(model), Part("example", 0))
    assert table["example_id"].to_pylist() == [2]
    with pytest.raises(ConfigError, match="found top: 1, expected at least 2"):
        SpectralEntropy(model, top=1)
