"""Kernel features against gradients of one row at a time, by autograd, in float64."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, BertForSequenceClassification

from stages.features.ntk import Ntk
from stages.gradients.projection import Projection
from stages.gradients.projector import Projector
from stages.model.batches import batches
from stages.model.layers import trained_layers
from stages.model.measurement import load_measurement
from stages.model.spec import ModelSpec, Trained
from stages.reading.vectors import matrix_of
from stages.stage import ConfigError, Work

EXACT = Projection(inputs=None, outputs=None, principal=0, dim=None)
IDENTITY: dict[str, Any] = {"projection": EXACT, "dtype": "float32"}
SMALL = Projection(inputs=8, outputs=8, principal=2, dim=200)


def random_model(folder: Path) -> ModelSpec:
    return ModelSpec(str(folder), head="random", num_labels=3)


def jacobians(model: ModelSpec, text: pa.Table, memory: Any) -> np.ndarray:
    """Gradients of all logits by all linear weights, (rows, classes, weights), in order of ids."""
    network = load_measurement(model, memory({})).network.double()
    weights = [m.weight.requires_grad_() for m in network.modules() if isinstance(m, nn.Linear)]
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    found = []
    for row in text.sort_by("id").to_pylist():
        logits = network(**tokenizer(row["text"], row["text_b"], return_tensors="pt"))[0]
        rows = [torch.autograd.grad(logit, weights, retain_graph=True) for logit in logits]
        found.append([torch.cat([g.flatten() for g in gradient]).numpy() for gradient in rows])
    return np.array(found)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest over rows, in the Euclidean norm."""
    return float(
        (np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max()
    )


@pytest.mark.parametrize("logit", [0, 2])
def test_identity_features_are_the_gradients(
    encoder_folder: Path, text: pa.Table, memory: Any, logit: int
) -> None:
    model = random_model(encoder_folder)
    table = memory({"text": text}).run(Ntk(model, logit=logit, **IDENTITY))
    expected = jacobians(model, text, memory)[:, logit]
    # Float32 against float64, two layers forward and backward.
    assert relative_error(matrix_of(table["vector"]), expected) <= 1e-5


def test_identity_features_of_a_checkpoint_head(
    checkpoint_folder: Path, text: pa.Table, memory: Any
) -> None:
    model = ModelSpec(str(checkpoint_folder), head="checkpoint")
    table = memory({"text": text}).run(Ntk(model, **IDENTITY))
    expected = jacobians(model, text, memory)[:, 0]
    assert relative_error(matrix_of(table["vector"]), expected) <= 1e-5
    # The network itself, loaded by transformers, has the same weights in the same order.
    network = BertForSequenceClassification.from_pretrained(checkpoint_folder)
    names = [n for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    ours = trained_layers(load_measurement(model, memory({})).network, Trained())
    assert list(ours) == [f"classifier.{name}" for name in names]


def test_kernel_is_the_kernel_of_full_jacobians(
    encoder_folder: Path, text: pa.Table, memory: Any
) -> None:
    model = random_model(encoder_folder)
    features = matrix_of(memory({"text": text}).run(Ntk(model, **IDENTITY))["vector"])
    gradients = jacobians(model, text, memory)
    kernel = np.einsum("icp,jdp->icjd", gradients, gradients)[:, 0, :, 0]
    np.testing.assert_allclose(features @ features.T, kernel, rtol=1e-5, atol=1e-5 * kernel.max())


def test_projected_kernel_is_unbiased(encoder_folder: Path, text: pa.Table, memory: Any) -> None:
    measurement = load_measurement(random_model(encoder_folder), memory({}))
    layers = trained_layers(measurement.network, Trained())
    tokens = measurement.tokenise(text)
    rows = next(batches(tokens.lengths, 10_000))
    batch = measurement.batch(tokens, rows)

    def kernel(projection: Projection) -> torch.Tensor:
        projector = Projector(measurement.network, layers, projection)
        features, _ = projector.features(
            lambda: measurement.outputs(batch)[:, 0], batch["attention_mask"].bool()
        )
        return features[:, 0].double() @ features[:, 0].double().T

    exact = kernel(EXACT)
    drawn = torch.stack(
        [
            kernel(Projection(inputs=6, outputs=6, principal=0, dim=96, seed=seed))
            for seed in range(100)
        ]
    )
    stderr = drawn.std(0) / math.sqrt(len(drawn))
    # 28 distinct entries, correlated: the largest of as many normal deviates is under 4.
    assert ((drawn.mean(0) - exact).abs() <= 4 * stderr).all()
    # The test would notice a bias of a quarter.
    assert (4 * stderr.diagonal() <= 0.25 * exact.diagonal()).all()


@pytest.mark.parametrize("projection", [EXACT, SMALL])
def test_features_do_not_depend_on_the_batch(
    encoder_folder: Path, text: pa.Table, memory: Any, projection: Projection
) -> None:
    def features(rows: pa.Table, token_budget: int) -> pa.Table:
        model = random_model(encoder_folder)
        stage = Ntk(model, projection=projection, dtype="float32", token_budget=token_budget)
        return memory({"text": rows}).run(stage)

    alone = features(text, 1)
    together = features(text, 10_000)
    reordered = features(text.take([3, 6, 0, 2, 5, 1, 4]), 30)
    for other in (together, reordered):
        assert other["id"].equals(alone["id"])
        found, expected = matrix_of(other["vector"]), matrix_of(alone["vector"])
        assert relative_error(found, expected) <= 1e-5


def test_lengths_of_features(encoder_folder: Path, text: pa.Table, memory: Any) -> None:
    model = random_model(encoder_folder)
    layers = 2 * 6
    for k, dim, expected in [(4, 50, 50), (4, None, 16 * layers + 3 * 4), (4, 9999, 204)]:
        projection = Projection(inputs=k, outputs=k, principal=1, dim=dim)
        stage = Ntk(model, projection=projection)
        table = memory({"text": text}).run(stage)
        assert table["vector"].type.list_size == expected
        work = Work(n_examples=6, n_queries=1, n_tokens=70, n_classes=3, dim=0)
        assert stage.cost(work).written_bytes == 7 * (2 * expected + 64)


def test_logit_must_exist(encoder_folder: Path, memory: Any) -> None:
    with pytest.raises(ConfigError, match="found logit: 3, expected 0 to 2"):
        Ntk(random_model(encoder_folder), logit=3).open(memory({}))


def test_labels_are_never_read() -> None:
    for head in ("probe", "checkpoint"):
        assert "label" not in Ntk(ModelSpec("x", head=head)).reads
