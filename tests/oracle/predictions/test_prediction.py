"""Logits from embeddings and a probe, from a random head, and from a checkpoint's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

import stages.model.measurement
from stages.features.embedding import Embedding
from stages.model.measurement import load_measurement
from stages.model.spec import ModelSpec
from stages.predictions.prediction import Prediction
from stages.reading.vectors import matrix_of
from stages.stage import ConfigError, ModelError, Work


def probe_table() -> pa.Table:
    weight = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    flat = pa.array(weight.flatten().numpy())
    return pa.table(
        {
            "class": [2, 0, 1],
            "weight": pa.FixedSizeListArray.from_arrays(flat, 32),
            "bias": pa.array([0.1, -0.2, 0.3], pa.float32()),
        }
    )


def test_probe_logits_need_no_pass_and_equal_the_networks(
    encoder_folder: Path, text: pa.Table, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelSpec(str(encoder_folder))
    tables = {"text": text, "probe": probe_table()}
    tables["embedding"] = memory(tables).run(Embedding(model))
    measurement = load_measurement(model, memory(tables))
    tokens = measurement.tokenise(text)
    order = np.argsort(text["id"].to_numpy())
    expected = measurement.outputs(measurement.batch(tokens, order)).numpy()

    monkeypatch.setattr(stages.model.measurement, "forward", None)
    table = memory(tables).run(Prediction(model))
    assert table["id"].to_pylist() == sorted(text["id"].to_pylist())
    assert set(table["source"].to_pylist()) == {"probe"}
    np.testing.assert_allclose(matrix_of(table["logits"]), expected, rtol=0, atol=3e-5)


def test_checkpoint_logits_are_the_checkpoints(
    checkpoint_folder: Path, text: pa.Table, memory: Any
) -> None:
    table = memory({"text": text}).run(
        Prediction(ModelSpec(str(checkpoint_folder), head="checkpoint"))
    )
    assert set(table["source"].to_pylist()) == {"model"}
    network = BertForSequenceClassification.from_pretrained(checkpoint_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_folder)
    for row, found in zip(text.sort_by("id").to_pylist(), matrix_of(table["logits"]), strict=True):
        with torch.no_grad():
            logits = network(**tokenizer(row["text"], row["text_b"], return_tensors="pt")).logits
        np.testing.assert_allclose(found, logits[0].numpy(), rtol=0, atol=1e-5)


def test_a_random_head_follows_its_seed(encoder_folder: Path, text: pa.Table, memory: Any) -> None:
    def logits(seed: int) -> np.ndarray:
        model = ModelSpec(str(encoder_folder), head="random", num_labels=4, seed=seed)
        return matrix_of(memory({"text": text}).run(Prediction(model))["logits"])

    assert logits(0).shape == (7, 4)
    assert (logits(0) == logits(0)).all()
    assert (logits(0) != logits(1)).all()


def test_a_checkpoint_without_a_head_is_refused(encoder_folder: Path, memory: Any) -> None:
    with pytest.raises(ModelError, match=r"no weights for classifier\.bias, classifier\.weight"):
        load_measurement(ModelSpec(str(encoder_folder), head="checkpoint"), memory({}))


def test_a_folder_without_weights_or_tokenizer_is_refused(
    encoder_folder: Path, tmp_path: Path, memory: Any
) -> None:
    model = ModelSpec(str(tmp_path), head="random", num_labels=2)
    (tmp_path / "config.json").write_bytes((encoder_folder / "config.json").read_bytes())
    weights = (encoder_folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(ModelError, match="found a tokenizer without words"):
        load_measurement(model, memory({}))
    for file in encoder_folder.glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights that can be loaded"):
        load_measurement(model, memory({}))


def test_cost_of_a_probe_is_without_passes(encoder_folder: Path, checkpoint_folder: Path) -> None:
    work = Work(n_examples=5, n_queries=2, n_tokens=70, n_classes=3, dim=32)
    assert Prediction(ModelSpec(str(encoder_folder))).cost(work).forward_rows == 0
    own = Prediction(ModelSpec(str(checkpoint_folder), head="checkpoint")).cost(work)
    assert own.forward_rows == 7
    assert own.memory_bytes > 0


def rows_of(vectors: np.ndarray) -> pa.Table:
    flat = pa.array(vectors.astype(np.float32).reshape(-1))
    lists = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return pa.table({"id": range(len(vectors)), "role": ["query"] * len(vectors), "vector": lists})


def test_a_probe_on_vectors_of_the_users_own_needs_no_model(memory: Any) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    tables = {"features": rows_of(vectors), "probe": probe_table()}
    stage = Prediction(embedding="features")
    assert stage.reads == ("features", "probe")
    table = memory(tables, {"probe": {"embedding": "features"}}).run(stage)
    assert set(table["source"].to_pylist()) == {"probe"}
    probe = probe_table().sort_by("class")
    expected = vectors @ matrix_of(probe["weight"]).T + probe["bias"].to_numpy()
    np.testing.assert_allclose(matrix_of(table["logits"]), expected, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="with a probe fitted on embedding, expected the same"):
        memory(tables, {"probe": {"embedding": "embedding"}}).run(stage)
    assert stage.cost(Work(5, 2, 70, 3, 32)).flops == 2 * 7 * 32 * 3


def test_a_probe_of_one_output_predicts_a_number(memory: Any) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    inputs = memory({"features": rows_of(vectors)})
    weight, bias = torch.tensor([[1.0, -2.0, 0.5, 3.0]]), torch.tensor([7.0])
    inputs.opened = weight, bias
    (name, batch), *rest = Prediction(embedding="features").compute(inputs)
    assert (name, rest) == ("prediction", [])
    found = np.array(batch["logits"].to_pylist())
    np.testing.assert_allclose(found, vectors @ weight.numpy().T + 7, rtol=0, atol=1e-5)


def test_vectors_are_of_no_use_to_a_model_that_reads_text(checkpoint_folder: Path) -> None:
    with pytest.raises(ConfigError, match="Set model: null in this stage"):
        Prediction(ModelSpec(str(checkpoint_folder), head="checkpoint"), embedding="features")
