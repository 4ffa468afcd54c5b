"""Embeddings against the model run on one row at a time, without padding."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoTokenizer, BertModel

import stages.model.measurement
from stages.features.embedding import Embedding
from stages.features.hidden_states import HiddenStates
from stages.features.position_weighted import PositionWeighted
from stages.model.spec import ModelSpec
from stages.reading.vectors import matrix_of
from stages.stage import ConfigError, Work


def by_loop(folder: Path, text: pa.Table, layer: int) -> np.ndarray:
    """Mean hidden state of each row by itself, in float64, in order of ids."""
    network = BertModel.from_pretrained(folder, add_pooling_layer=False).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for row in text.sort_by("id").to_pylist():
        encoded = tokenizer(row["text"], row["text_b"], return_tensors="pt")
        with torch.no_grad():
            hidden = network(**encoded, output_hidden_states=True).hidden_states[layer]
        found.append(hidden[0].mean(0).numpy())
    return np.array(found)


@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_embedding_is_the_mean_hidden_state(
    encoder_folder: Path, text: pa.Table, memory: Any, layer: int
) -> None:
    stage = Embedding(ModelSpec(str(encoder_folder)), layer=layer)
    table = memory({"text": text}).run(stage)
    assert table["id"].to_pylist() == sorted(text["id"].to_pylist())
    # Float32 against float64 through two layers: some tens of roundings of 6e-8.
    np.testing.assert_allclose(
        matrix_of(table["vector"]), by_loop(encoder_folder, text, layer), rtol=0, atol=5e-6
    )


def test_embedding_does_not_depend_on_its_batch(
    encoder_folder: Path, text: pa.Table, memory: Any
) -> None:
    model = ModelSpec(str(encoder_folder))
    alone = memory({"text": text}).run(Embedding(model, token_budget=1))
    together = memory({"text": text}).run(Embedding(model, token_budget=10_000))
    shuffled = text.take([3, 6, 0, 2, 5, 1, 4])
    reordered = memory({"text": shuffled}).run(Embedding(model, token_budget=30))
    expected = matrix_of(alone["vector"])
    size = np.linalg.norm(expected, axis=1)
    for other in (together, reordered):
        error = np.linalg.norm(matrix_of(other["vector"]) - expected, axis=1)
        assert (error <= 1e-5 * size).all()


def test_same_batches_give_the_same_bits(encoder_folder: Path, text: pa.Table, memory: Any) -> None:
    stage = Embedding(ModelSpec(str(encoder_folder)))
    assert memory({"text": text}).run(stage).equals(memory({"text": text}).run(stage))


def test_every_row_is_passed_forward_once(
    encoder_folder: Path, text: pa.Table, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def counting(network: Any, batch: Any) -> Any:
        seen.append(len(batch["input_ids"]))
        return network(**batch)

    monkeypatch.setattr(stages.model.measurement, "forward", counting)
    memory({"text": text}).run(Embedding(ModelSpec(str(encoder_folder)), token_budget=30))
    assert sum(seen) == text.num_rows
    assert len(seen) > 1


def test_loading_says_nothing(
    encoder_folder: Path, text: pa.Table, memory: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    memory({"text": text}).run(Embedding(ModelSpec(str(encoder_folder))))
    assert capfd.readouterr() == ("", "")


def test_all_layers_give_the_mean_of_their_cosines(
    encoder_folder: Path, text: pa.Table, memory: Any
) -> None:
    stage = HiddenStates(ModelSpec(str(encoder_folder)))
    vectors = matrix_of(memory({"text": text}).run(stage)["vector"])
    layers = [by_loop(encoder_folder, text, layer) for layer in range(3)]
    unit = [states / np.linalg.norm(states, axis=1, keepdims=True) for states in layers]
    expected = sum(states @ states.T for states in unit) / 3
    np.testing.assert_allclose(vectors @ vectors.T, expected, rtol=0, atol=5e-6)


def test_later_tokens_weigh_more(encoder_folder: Path, text: pa.Table, memory: Any) -> None:
    rows = memory({"text": text}).run(PositionWeighted(ModelSpec(str(encoder_folder))))
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder)
    network = BertModel.from_pretrained(encoder_folder).eval()
    given = text.sort_by("id").to_pylist()
    for row, vector in zip(given, rows["vector"].to_pylist(), strict=True):
        batch = tokenizer(row["text"], row["text_b"], return_tensors="pt")
        with torch.no_grad():
            states = network(**batch).last_hidden_state[0].numpy()
        expected = np.average(states, axis=0, weights=np.arange(1, len(states) + 1))
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_layer_must_exist(encoder_folder: Path, text: pa.Table, memory: Any) -> None:
    with pytest.raises(ConfigError, match=r"found layer: 3, expected -3 to 2"):
        memory({"text": text}).run(Embedding(ModelSpec(str(encoder_folder)), layer=3))


def test_max_length_must_fit_the_positions(encoder_folder: Path, memory: Any) -> None:
    stage = Embedding(ModelSpec(str(encoder_folder), max_length=161))
    with pytest.raises(ConfigError, match="expected at most 160"):
        stage.open(memory({}))


def test_long_rows_are_cut(encoder_folder: Path, text: pa.Table, memory: Any) -> None:
    stage = Embedding(ModelSpec(str(encoder_folder), max_length=5))
    inputs = memory({"text": text})
    inputs.run(stage)
    assert inputs.opened.tokenise(text).lengths.max() == 5


def test_cost_counts_linear_weights(encoder_folder: Path) -> None:
    work = Work(n_examples=5, n_queries=2, n_tokens=70, n_classes=3, dim=0)
    cost = Embedding(ModelSpec(str(encoder_folder))).cost(work)
    assert cost.forward_rows == 7
    assert cost.flops == 2 * 70 * 2 * (4 * 32 * 32 + 2 * 32 * 48)
    assert cost.written_bytes == 7 * (4 * 32 + 16)
