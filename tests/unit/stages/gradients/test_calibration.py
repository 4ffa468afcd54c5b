"""Projections are exact along the principal directions of what every layer saw, and no more is
held of it than one block."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory_inputs import MemoryInputs
from torch import Tensor

from stages.gradients.projection import Projection
from stages.gradients.projector import Projector
from stages.gradients.sketch import principal_directions, with_principal
from stages.model.layers import trained_layers
from stages.model.measurement import Measurement, load_measurement
from stages.model.seeded import gaussian
from stages.model.spec import Lora, ModelSpec, Trained

PROJECTION = Projection(inputs=6, outputs=6, principal=2, dim=None, seed=3)
TRAINED = {
    "all": Trained(),
    "last": Trained(last_blocks=1, layers=("*down_proj",)),
    "lora": Trained(lora=Lora(rank=8)),
}


@pytest.fixture(params=TRAINED, ids=str)
def measurement(request: Any, saved: Callable[..., Path]) -> Measurement:
    """A causal language model whose output layer shares the table's weight."""
    folder = str(saved("llama", "CausalLM", tie_word_embeddings=True))
    spec = ModelSpec(folder, head="completion", train=TRAINED[request.param])
    return load_measurement(spec, MemoryInputs(details={"text": {"format": "prompt_completion"}}))


def batch_of(measurement: Measurement) -> dict[str, Tensor]:
    tokens = measurement.tokenise(measurement.random_text(5, 6, seed=1))
    return measurement.batch(tokens, np.arange(5))


def activity(measurement: Measurement, batch: dict[str, Tensor]) -> dict[str, tuple[Any, Any]]:
    """Inputs and output gradients of every layer at all tokens, by autograd."""
    layers = trained_layers(measurement.network, measurement.spec.train)
    seen: dict[str, tuple[Any, Any]] = {}
    hooks = []
    for name, module in layers.items():

        def keep(_: Any, args: Any, output: Tensor, name: str = name) -> None:
            if not output.requires_grad:
                output.requires_grad_()
            output.retain_grad()
            seen[name] = (args[0].detach(), output)

        hooks.append(module.register_forward_hook(keep))
    measurement.outputs(batch).sum().backward()
    for hook in hooks:
        hook.remove()
    mask = batch["attention_mask"].bool()
    found = {}
    for name, (inputs, output) in seen.items():
        # Of the head the last positions of a row are read, padding never is.
        real = mask if output.shape[:2] == mask.shape else torch.ones(output.shape[:2]).bool()
        found[name] = inputs.flatten(0, 1), (output.grad * real.unsqueeze(-1)).flatten(0, 1)
    return found


def expected_side(drawn: Tensor | None, rows: Tensor, name: str) -> Tensor | None:
    if drawn is None:
        return None
    start = gaussian(PROJECTION.seed, f"{name}/start", len(drawn), PROJECTION.principal)
    return with_principal(drawn, principal_directions(rows, PROJECTION.principal, start))


def test_directions_are_those_of_every_layers_activity(measurement: Measurement) -> None:
    batch = batch_of(measurement)
    layers = trained_layers(measurement.network, measurement.spec.train)
    projector = Projector(measurement.network, layers, PROJECTION)
    before = dict(projector.sketch.layers)
    projector.calibrate(lambda: measurement.outputs(batch)[:, 0], batch["attention_mask"].bool())
    seen = activity(measurement, batch)
    assert len(before) == len(seen)
    for key, layer in before.items():
        inputs, deltas = seen[layer.name]
        after = projector.sketch.layers[key]
        for found, expected in (
            (after.left, expected_side(layer.left, deltas, f"{layer.name}/left")),
            (after.right, expected_side(layer.right, inputs, f"{layer.name}/right")),
        ):
            torch.testing.assert_close(found, expected)
        assert not after.left.equal(layer.left)


def test_a_layer_is_forgotten_when_the_next_one_is_reached(measurement: Measurement) -> None:
    batch = batch_of(measurement)
    layers = trained_layers(measurement.network, measurement.spec.train)
    projector = Projector(measurement.network, layers, PROJECTION)
    alive: list[list[weakref.ref[Tensor]]] = []
    most = 0

    def keep(key: int, inputs: Tensor, deltas: Tensor) -> None:
        nonlocal most
        alive.append([weakref.ref(inputs), weakref.ref(deltas)])
        most = max(most, sum(any(ref() is not None for ref in refs) for refs in alive))

    projector.sketch.keep = keep  # type: ignore[method-assign]
    projector.calibrate(lambda: measurement.outputs(batch)[:, 0], batch["attention_mask"].bool())
    assert len(alive) == len(layers)
    assert most == 1
