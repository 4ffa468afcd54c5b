"""Projected loss gradients against a loop of autograd over rows, in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from stages.features.gradient import Gradient
from stages.gradients.projection import Projection
from stages.model.measurement import load_measurement
from stages.model.spec import ModelSpec
from stages.reading.vectors import matrix_of
from stages.stage import ConfigError, DataError, ModelError

IDENTITY: dict[str, Any] = {
    "projection": Projection(inputs=None, outputs=None, principal=0, dim=None),
    "dtype": "float32",
}


def probe_table(scale: float = 1.0) -> pa.Table:
    weight = torch.randn(3, 32, generator=torch.Generator().manual_seed(1)) * scale
    flat = pa.array(weight.flatten().numpy())
    return pa.table(
        {
            "class": [0, 1, 2],
            "weight": pa.FixedSizeListArray.from_arrays(flat, 32),
            "bias": pa.array([0.1, -0.2, 0.3], pa.float32()),
        }
    )


def by_loop(model: ModelSpec, text: pa.Table, label: pa.Table, inputs: Any) -> np.ndarray:
    """Gradient of each row's cross-entropy by all linear weights, in order of ids."""
    network = load_measurement(model, inputs).network.double()
    weights = [m.weight.requires_grad_() for m in network.modules() if isinstance(m, nn.Linear)]
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    labels = dict(zip(label["id"].to_pylist(), label["label"].to_pylist(), strict=True))
    found = []
    for row in text.sort_by("id").to_pylist():
        logits = network(**tokenizer(row["text"], row["text_b"], return_tensors="pt"))[0]
        target = labels[row["id"]]
        target = int(logits.argmax()) if target is None else target
        gradient = torch.autograd.grad(-torch.log_softmax(logits, 0)[target], weights)
        found.append(torch.cat([g.flatten() for g in gradient]).numpy())
    return np.array(found)


@pytest.mark.parametrize("head", ["probe", "random", "checkpoint"])
def test_identity_features_are_the_gradients(
    encoder_folder: Path,
    checkpoint_folder: Path,
    text: pa.Table,
    label: pa.Table,
    memory: Any,
    head: Any,
) -> None:
    folder = checkpoint_folder if head == "checkpoint" else encoder_folder
    model = ModelSpec(str(folder), head=head, num_labels=3 if head == "random" else None)
    inputs = memory({"text": text, "label": label, "probe": probe_table()})
    table = inputs.run(Gradient(model, **IDENTITY))
    found, expected = matrix_of(table["vector"]), by_loop(model, text, label, inputs)
    error = np.linalg.norm(found - expected, axis=1)
    assert (error <= 1e-5 * np.linalg.norm(expected, axis=1)).all()


def test_queries_at_the_class_that_is_predicted_whatever_their_label(
    encoder_folder: Path, text: pa.Table, label: pa.Table, memory: Any
) -> None:
    model = ModelSpec(str(encoder_folder))
    roles = pa.array(["example"] * 3 + ["query"] * 4)
    text, label = text.set_column(1, "role", roles), label.set_column(1, "role", roles)
    wrong = pa.array([0, 1, 2, 0, 1, 2, 0])
    inputs = memory({"text": text, "label": label.set_column(2, "label", wrong)})
    inputs.tables["probe"] = probe_table()
    table = inputs.run(Gradient(model, queries="predicted", **IDENTITY))
    known = pa.array([0, 1, 2, None, None, None, None])
    expected = by_loop(model, text, label.set_column(2, "label", known), inputs)
    error = np.linalg.norm(matrix_of(table["vector"]) - expected, axis=1)
    assert (error <= 1e-5 * np.linalg.norm(expected, axis=1)).all()
    labelled = matrix_of(inputs.run(Gradient(model, **IDENTITY))["vector"])
    assert (labelled != matrix_of(table["vector"])).any(1).sum() in (1, 2, 3, 4)


def test_a_confident_row_keeps_its_direction(
    encoder_folder: Path, text: pa.Table, label: pa.Table, memory: Any
) -> None:
    # Queries that agree with a sure prediction: 1 - p goes far below float32's 6e-8.
    model = ModelSpec(str(encoder_folder))
    text = text.set_column(1, "role", pa.array(["query"] * text.num_rows))
    label = label.set_column(2, "label", pa.nulls(text.num_rows, pa.int64()))
    inputs = memory({"text": text, "label": label, "probe": probe_table(scale=4.0)})
    found = matrix_of(inputs.run(Gradient(model, **IDENTITY))["vector"])
    expected = by_loop(model, text, label, inputs)
    size = np.linalg.norm(expected, axis=1)
    assert size.min() < 1e-8 * size.max()
    # The rounding of float32 logits, some 1e-5 at this scale, is the relative error of 1 - p.
    assert (np.linalg.norm(found - expected, axis=1) <= 1e-4 * size).all()


def test_rows_without_a_label_row_are_skipped(
    encoder_folder: Path, text: pa.Table, label: pa.Table, memory: Any
) -> None:
    model = ModelSpec(str(encoder_folder))
    tables = {"text": text, "label": label, "probe": probe_table()}
    every = memory(tables).run(Gradient(model))
    kept = memory({**tables, "label": label.take([5, 0, 2])}).run(Gradient(model))
    assert kept["id"].to_pylist() == [30, 50, 60]
    found, expected = matrix_of(kept["vector"]), matrix_of(every["vector"])[[2, 4, 5]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_shard_whose_rows_were_all_dropped_is_empty(
    encoder_folder: Path, text: pa.Table, label: pa.Table, memory: Any
) -> None:
    inputs = memory({"text": text, "label": label.slice(0, 0), "probe": probe_table()})
    stage = Gradient(ModelSpec(str(encoder_folder)))
    inputs.opened = stage.open(inputs)
    assert list(stage.compute(inputs)) == []


def test_a_query_without_a_label_is_given_its_prediction(
    encoder_folder: Path, text: pa.Table, label: pa.Table, memory: Any
) -> None:
    model = ModelSpec(str(encoder_folder))
    role = pa.array(["query"] * text.num_rows)
    text = text.set_column(1, "role", role)
    nulls = pa.array([0, None, 2, None, None, 2, 1], pa.int64())
    label = label.set_column(1, "role", role).set_column(2, "label", nulls)
    inputs = memory({"text": text, "label": label, "probe": probe_table()})
    found = matrix_of(inputs.run(Gradient(model, **IDENTITY))["vector"])
    expected = by_loop(model, text, label, inputs)
    error = np.linalg.norm(found - expected, axis=1)
    assert (error <= 1e-5 * np.linalg.norm(expected, axis=1)).all()


@pytest.mark.parametrize("bad", [None, 3, -1])
def test_examples_need_a_class_of_the_model(
    encoder_folder: Path, text: pa.Table, label: pa.Table, memory: Any, bad: int | None
) -> None:
    label = label.set_column(2, "label", pa.array([0, 1, bad, 0, 0, 0, 0], pa.int64()))
    inputs = memory({"text": text, "label": label, "probe": probe_table()})
    with pytest.raises(DataError, match=f"found label {bad} for example 60, expected 0 to 2"):
        inputs.run(Gradient(ModelSpec(str(encoder_folder))))


def test_probe_must_fit_the_model(encoder_folder: Path, memory: Any) -> None:
    stage = Gradient(ModelSpec(str(encoder_folder)))
    narrow = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(6, np.float32)), 2)
    probe = pa.table({"class": [0, 1, 2], "weight": narrow, "bias": pa.nulls(3, pa.float32())})
    probe = probe.set_column(2, "bias", pa.array([0.0, 0.0, 0.0], pa.float32()))
    with pytest.raises(ModelError, match="found 2 weights per class, expected 32"):
        stage.open(memory({"probe": probe}))
    with pytest.raises(ConfigError, match="fitted on the embedding of layer 1"):
        stage.open(memory({"probe": probe_table()}, {"probe": {"layer": 1}}))
