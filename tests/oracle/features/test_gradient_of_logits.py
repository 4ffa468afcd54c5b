"""Loss gradients put together from those of the logits, against the pass of the model."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from stages.features.embedding import Embedding
from stages.features.gradient import Gradient
from stages.features.ntk import Ntk
from stages.gradients.of_logits import loss_gradients
from stages.gradients.projection import Projection
from stages.model.measurement import row_loss
from stages.model.spec import Lora, ModelSpec, Prompt, Trained
from stages.predictions.prediction import Prediction
from stages.reading.vectors import matrix_of
from stages.stage import DataError, ModelError

EXACT = Projection(inputs=None, outputs=None, principal=0, dim=None)
MIXED = Projection(inputs=8, outputs=8, principal=2, dim=200)
TARGETS = [0.5, -1.0, 2.0, 0.0, 1.5, -0.25, 3.0]
PROMPTS = {"MaskedLM": "{text} it was {mask} .", "CausalLM": "{text} it was"}
REGRESSION = {"label": {"task": "regression"}}


def probe_table(n_classes: int = 3, scale: float = 1.0) -> pa.Table:
    weight = torch.randn(n_classes, 32, generator=torch.Generator().manual_seed(1)) * scale
    lists = pa.FixedSizeListArray.from_arrays(pa.array(weight.flatten().numpy()), 32)
    bias = pa.array([0.1, -0.2, 0.3][:n_classes], pa.float32())
    return pa.table({"class": range(n_classes), "weight": lists, "bias": bias})


def written(memory: Any, given: Any, model: ModelSpec, dtype: Any, **fields: Any) -> Any:
    """Tables and details with the gradients of all logits, and the logits, beside `given`."""
    tables, details = given
    inputs = memory(tables, details)
    stage = Ntk(model, logit="all", dtype=dtype, **fields)
    vectors = inputs.run(stage)
    facts = dict(stage.details(inputs))
    if model.head == "probe":
        tables = {**tables, "embedding": memory(tables).run(Embedding(model))}
    logits = memory(tables, details).run(Prediction(model))
    kept = {"ntk": vectors, "prediction": logits, "label": tables["label"]}
    return kept, {"ntk": facts, "label": details.get("label", {})}


def assert_rebuilt(memory: Any, given: Any, model: ModelSpec, tolerance: float = 1e-5) -> None:
    """With whole and projected gradients: rows, order and diagnostics of the model's own pass."""
    for projection in (EXACT, MIXED):
        inputs = memory(*given)
        expected = inputs.run(Gradient(model, projection=projection))
        told = inputs.written["diagnostics"]
        kept = memory(*written(memory, given, model, "float32", projection=projection))
        stage = Gradient(model, projection=projection, ntk="ntk")
        found = kept.run(stage)
        assert found.select(["id", "role"]).equals(expected.select(["id", "role"]))
        a, b = (matrix_of(table["vector"]) for table in (found, expected))
        assert (np.linalg.norm(a - b, axis=1) <= tolerance * np.linalg.norm(b, axis=1)).all()
        again = kept.written["diagnostics"]
        assert again["n_tokens"].null_count == again.num_rows
        assert again.select(["id", "role", "status"]).equals(told.select(["id", "role", "status"]))
        for name in ("measured", "norm"):
            np.testing.assert_allclose(again[name], told[name], rtol=tolerance, atol=1e-6)
        blocks = kept.facts_of["ntk"]["blocks"]
        assert stage.details(kept) == {"blocks": blocks}
        assert kept.told.get("n_not_finite", 0) == 0
        assert "notices" not in kept.told


@pytest.mark.parametrize("head", ["probe", "random", "checkpoint"])
@pytest.mark.parametrize("trained", [Trained(), Trained(last_blocks=1), Trained(lora=Lora(rank=2))])
def test_classifiers(
    encoder_folder: Path,
    checkpoint_folder: Path,
    text: pa.Table,
    label: pa.Table,
    memory: Any,
    head: Any,
    trained: Trained,
) -> None:
    folder = checkpoint_folder if head == "checkpoint" else encoder_folder
    n_random = 3 if head == "random" else None
    model = ModelSpec(str(folder), head=head, num_labels=n_random, train=trained)
    given = {"text": text, "label": label, "probe": probe_table()}, {}
    assert_rebuilt(memory, given, model)


@pytest.mark.parametrize(
    ("kind", "task"), [("bert", "MaskedLM"), ("gpt2", "CausalLM"), ("llama", "CausalLM")]
)
def test_label_words(
    kind: str, task: str, saved: Any, text: pa.Table, label: pa.Table, memory: Any
) -> None:
    prompt = Prompt(PROMPTS[task], ("good", "bad", "dull"))
    model = ModelSpec(str(saved(kind, task)), head="label_words", prompt=prompt)
    assert_rebuilt(memory, ({"text": text, "label": label}, {}), model)


@pytest.mark.parametrize("head", ["probe", "random", "checkpoint"])
def test_regressions(
    head: Any, saved: Any, encoder_folder: Path, text: pa.Table, memory: Any
) -> None:
    folder = encoder_folder
    if head == "checkpoint":
        folder = saved("bert", "SequenceClassification", num_labels=1)
    # A query without a target has no gradient.
    targets = pa.array([*TARGETS[:-1], None])
    label = pa.table({"id": text["id"], "role": text["role"], "target": targets})
    model = ModelSpec(str(folder), head=head, num_labels=1 if head == "random" else None)
    given = {"text": text, "label": label, "probe": probe_table(1)}
    assert_rebuilt(memory, (given, REGRESSION), model)


def test_queries_without_a_label_and_rows_that_were_dropped(
    encoder_folder: Path, text: pa.Table, label: pa.Table, memory: Any
) -> None:
    roles = pa.array(["query"] * text.num_rows)
    text = text.set_column(1, "role", roles)
    label = label.set_column(1, "role", roles)
    label = label.set_column(2, "label", pa.array([0, None, 2, None, 0, 2, 1], pa.int64()))
    # In another order than the text's.
    label = label.take([6, 1, 4, 3, 0])
    given = {"text": text, "label": label, "probe": probe_table()}, {}
    assert_rebuilt(memory, given, ModelSpec(str(encoder_folder)))


def test_a_confident_row_keeps_its_direction(
    encoder_folder: Path, text: pa.Table, label: pa.Table, memory: Any
) -> None:
    roles = pa.array(["query"] * text.num_rows)
    label = label.set_column(2, "label", pa.nulls(text.num_rows, pa.int64()))
    tables = {"text": text.set_column(1, "role", roles), "probe": probe_table(scale=4.0)}
    given = {**tables, "label": label.set_column(1, "role", roles)}, {}
    # As in test_gradient.py, the rounding of logits is the relative error of 1 - p.
    assert_rebuilt(memory, given, ModelSpec(str(encoder_folder)), tolerance=1e-4)


def test_the_chain_rule_to_the_last_digits() -> None:
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(5, 3, 7, dtype=torch.float64, generator=generator)
    logits = torch.randn(5, 3, generator=generator)
    answers = torch.tensor([0, 2, 1, -1, 2])
    found, losses = loss_gradients(g, logits, answers)
    for row in range(5):
        # Weights w, of which the logits are linear functions: f_c = f_c(0) + g_c w.
        w = torch.zeros(7, dtype=torch.float64, requires_grad=True)
        outputs = (logits[row].double() + g[row] @ w)[None]
        (loss,) = row_loss(outputs, answers[row : row + 1])
        (expected,) = torch.autograd.grad(loss, w)
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-14)
        assert losses[row] == loss


def test_half_precision_costs_the_rounding_of_what_cancels(
    encoder_folder: Path, text: pa.Table, label: pa.Table, memory: Any
) -> None:
    model = ModelSpec(str(encoder_folder))
    given = {"text": text, "label": label, "probe": probe_table()}, {}
    whole = written(memory, given, model, "float32", projection=MIXED)
    half = written(memory, given, model, "float16", projection=MIXED)
    stage = Gradient(model, projection=MIXED, ntk="ntk")
    expected, found = (memory(*kept).run(stage) for kept in (whole, half))
    g = matrix_of(whole[0]["ntk"]["vector"]).reshape(text.num_rows, 3, -1).astype(np.float64)
    logits = torch.tensor(matrix_of(whole[0]["prediction"]["logits"]))
    slopes = torch.softmax(logits.double(), 1).numpy()
    labels = label.sort_by("id")["label"].to_numpy()
    slopes[np.arange(len(labels)), labels] -= 1
    # Half a unit in the last place of 11 bits, or of the smallest number that float16 knows.
    each = np.abs(slopes)[:, :, None] * np.maximum(np.abs(g) * 2.0**-11, 2.0**-25)
    bound = np.linalg.norm(each.sum(1), axis=1)
    error = np.linalg.norm(matrix_of(found["vector"]) - matrix_of(expected["vector"]), axis=1)
    size = np.linalg.norm(matrix_of(expected["vector"]), axis=1)
    assert (error <= bound + 1e-6 * size).all()
    assert error.max() > 1e-5 * size.max()


def test_rows_that_are_missing_are_counted_and_rows_too_large_told(
    encoder_folder: Path, text: pa.Table, label: pa.Table, memory: Any
) -> None:
    model = ModelSpec(str(encoder_folder))
    given = {"text": text, "label": label.slice(1), "probe": probe_table()}, {}
    tables, details = written(memory, given, model, "float32", projection=MIXED)
    whole = memory(tables, details).run(Gradient(model, projection=MIXED, ntk="ntk"))
    lacking = {
        **tables,
        "ntk": tables["ntk"].filter(pc.not_equal(tables["ntk"]["id"], 10)),
        "prediction": tables["prediction"].filter(pc.not_equal(tables["prediction"]["id"], 40)),
    }
    inputs, stage = memory(lacking, details), Gradient(model, projection=MIXED, ntk="ntk")
    found = inputs.run(stage)
    # Row 30 has no label, rows 10 and 40 lack one table or the other.
    assert whole["id"].to_pylist() == [10, 20, 40, 50, 60, 70]
    assert found["id"].to_pylist() == [20, 50, 60, 70]
    assert inputs.told["n_left_out"] == 2
    np.testing.assert_array_equal(
        matrix_of(found["vector"]), matrix_of(whole["vector"])[[1, 3, 4, 5]]
    )
    large = matrix_of(tables["ntk"]["vector"]).copy()
    large[0] *= 1e6
    lists = pa.FixedSizeListArray.from_arrays(pa.array(large.ravel()), large.shape[1])
    inputs = memory({**tables, "ntk": tables["ntk"].set_column(2, "vector", lists)}, details)
    stage = dataclasses.replace(stage, dtype="float16")
    assert inputs.run(stage)["id"].to_pylist() == [20, 40, 50, 60, 70]
    assert inputs.told["n_not_finite"] == 1
    assert inputs.written["diagnostics"]["status"].to_pylist() == ["overflow"] + ["ok"] * 5


def test_shards_without_rows(
    encoder_folder: Path, text: pa.Table, label: pa.Table, memory: Any
) -> None:
    model = ModelSpec(str(encoder_folder))
    given = {"text": text, "label": label, "probe": probe_table()}, {}
    tables, details = written(memory, given, model, "float32", projection=MIXED)
    stage = Gradient(model, projection=MIXED, ntk="ntk")
    inputs = memory({**tables, "label": label.slice(0, 0)}, details)
    assert inputs.run(stage).num_rows == 0
    assert not inputs.told.get("n_left_out")
    # As a shard all of whose rows were left out lies in the store.
    empty = tables["ntk"].slice(0, 0).set_column(2, "vector", pa.array([], pa.list_(pa.float32())))
    inputs = memory({**tables, "ntk": empty}, details)
    assert inputs.run(stage).num_rows == 0
    assert inputs.told["n_left_out"] == 7


def test_what_does_not_belong_together_is_refused(
    encoder_folder: Path, text: pa.Table, label: pa.Table, memory: Any
) -> None:
    model = ModelSpec(str(encoder_folder))
    given = {"text": text, "label": label, "probe": probe_table()}, {}
    tables, details = written(memory, given, model, "float32", projection=MIXED)
    stage = Gradient(model, projection=MIXED, ntk="ntk")
    two = {
        **tables,
        "prediction": memory({**given[0], "probe": probe_table(2)}).run(
            Prediction(ModelSpec(str(encoder_folder), head="random", num_labels=2))
        ),
    }
    with pytest.raises(DataError, match="ntk: found vectors of length 600 .* one of 2 logits"):
        memory(two, details).run(stage)
    kernel = tables["prediction"].set_column(2, "source", pa.array(["kernel"] * 7))
    with pytest.raises(DataError, match="prediction: found predictions of kernel, expected"):
        memory({**tables, "prediction": kernel}, details).run(stage)
    target = label.set_column(2, "target", pa.array(TARGETS))
    with pytest.raises(ModelError, match="with 3 outputs for a corpus with task: regression"):
        memory({**tables, "label": target}, {**details, **REGRESSION}).run(stage)
    wrong = label.set_column(2, "label", pa.array([3, 0, 0, 0, 0, 0, 0]))
    with pytest.raises(DataError, match="found label 3 for example 30"):
        memory({**tables, "label": wrong}, details).run(stage)
