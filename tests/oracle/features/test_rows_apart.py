"""What holds for every row by itself: its neighbours, memory and precision change nothing else."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import stages.gradients.of_rows
from stages.features.gradient import Gradient
from stages.features.ntk import Ntk
from stages.gradients.projection import Projection
from stages.model.precision import has_bfloat16
from stages.model.spec import Lora, ModelSpec, Prompt, Trained
from stages.reading.vectors import matrix_of
from stages.stage import StageError

LABELS = [0, 1, 2, 1, 0, 2, 1]
SHORT = Projection(inputs=8, outputs=8, principal=2, dim=100)


def classifier(saved: Any, kind: str = "bert", **more: Any) -> ModelSpec:
    return ModelSpec(str(saved(kind)), head="random", num_labels=3, **more)


def rows_of(table: pa.Table) -> dict[int, np.ndarray]:
    vectors = matrix_of(table["vector"]).astype(np.float64)
    return dict(zip(table["id"].to_pylist(), vectors, strict=True))


def statuses(inputs: Any) -> dict[int, str]:
    told = inputs.written["diagnostics"]
    return dict(zip(told["id"].to_pylist(), told["status"].to_pylist(), strict=True))


def completion(saved: Any, text: pa.Table, label: pa.Table) -> tuple[ModelSpec, Any, Any]:
    folder = saved("llama", "CausalLM", tie_word_embeddings=True)
    return ModelSpec(str(folder), head="completion"), label, {"label": {"task": "completion"}}


def label_words(saved: Any, text: pa.Table, label: pa.Table) -> tuple[ModelSpec, Any, Any]:
    prompt = Prompt("{text} it was", ("good", "bad", "dull"))
    folder = saved("gpt2", "CausalLM")
    return ModelSpec(str(folder), head="label_words", prompt=prompt), label, {}


def adapted(saved: Any, text: pa.Table, label: pa.Table) -> tuple[ModelSpec, Any, Any]:
    return classifier(saved, "roberta", train=Trained(lora=Lora(rank=4))), label, {}


def shared_positions(saved: Any, text: pa.Table, label: pa.Table) -> tuple[ModelSpec, Any, Any]:
    return classifier(saved, "deberta-v2"), label, {}


def one_list_of_tokens(saved: Any, text: pa.Table, label: pa.Table) -> tuple[ModelSpec, Any, Any]:
    return ModelSpec(str(saved("opt", "CausalLM")), head="completion"), *completion(
        saved, text, label
    )[1:]


@pytest.mark.parametrize(
    "make", [completion, label_words, adapted, shared_positions, one_list_of_tokens]
)
def test_a_row_does_not_depend_on_its_batch(
    make: Callable[..., Any], saved: Any, text: pa.Table, label: pa.Table, memory: Any
) -> None:
    model, label, details = make(saved, text, label)

    def features(rows: list[int], token_budget: int) -> dict[int, np.ndarray]:
        inputs = memory({"text": text.take(rows), "label": label}, details)
        return rows_of(inputs.run(Gradient(model, dtype="float32", token_budget=token_budget)))

    expected = features(list(range(7)), 4096)
    for rows, budget in [([6, 2, 0, 5, 1, 4, 3], 8), ([3, 6, 0, 2, 5, 1, 4], 64), ([4], 4096)]:
        found = features(rows, budget)
        assert len(found) == len(rows)
        for row, vector in found.items():
            size = np.linalg.norm(expected[row])
            assert np.linalg.norm(vector - expected[row]) <= 1e-5 * size


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("projection", [Projection(), SHORT], ids=["default", "short"])
def test_loss_gradients_are_combinations_of_logit_gradients(
    projection: Projection, n_classes: int, saved: Any, text: pa.Table, memory: Any
) -> None:
    # One seed, one space: grad loss = sum_c (p_c - y_c) grad f_c, projected as it is.
    model = ModelSpec(str(saved("distilbert")), head="random", num_labels=n_classes)
    answers = [label % n_classes for label in LABELS]
    label = pa.table({"id": text["id"], "role": text["role"], "label": answers})
    fields: dict[str, Any] = {"projection": projection, "dtype": "float32"}
    inputs = memory({"text": text, "label": label})
    loss = rows_of(inputs.run(Gradient(model, **fields)))
    logits = rows_of(inputs.run(Ntk(model, logit="all", **fields)))
    assert inputs.opened.projector.sketch.dim * n_classes == len(next(iter(logits.values())))
    measurement = inputs.opened.measurement
    tokens = measurement.tokenise(text)
    with torch.no_grad():
        outputs = measurement.outputs(measurement.batch(tokens, np.arange(text.num_rows)))
    pull = torch.softmax(outputs.double(), 1) - torch.eye(n_classes)[answers]
    for row, weights in zip(text["id"].to_pylist(), pull.numpy(), strict=True):
        expected = weights @ logits[row].reshape(n_classes, -1)
        error = np.linalg.norm(loss[row] - expected)
        assert error <= 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("final", ["sparse", "dense"])
def test_a_loss_that_is_not_finite_is_put_aside(
    bad: float,
    final: Any,
    saved: Any,
    text: pa.Table,
    label: pa.Table,
    memory: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    projection = Projection(inputs=8, outputs=8, principal=2, dim=100, final=final)
    stage = Gradient(classifier(saved), projection=projection, dtype="float32")
    inputs = memory({"text": text, "label": label})
    expected = rows_of(inputs.run(stage))
    exact = stages.gradients.of_rows.row_loss
    # Of the rows in one batch, longest first, the third.
    spoilt = torch.ones(7, dtype=torch.float64)
    spoilt[2] = bad
    monkeypatch.setattr(
        stages.gradients.of_rows,
        "row_loss",
        lambda outputs, answers: exact(outputs, answers) * spoilt,
    )
    found = rows_of(inputs.run(stage))
    status = statuses(inputs)
    (lost,) = set(expected) - set(found)
    assert status[lost] == "not finite"
    assert inputs.told.n_not_finite == 1
    for row, vector in found.items():
        assert status[row] == "ok"
        np.testing.assert_array_equal(vector, expected[row])
    told = {row["id"]: row for row in inputs.written["diagnostics"].to_pylist()}
    assert told[lost]["measured"] is None
    assert told[lost]["norm"] is None


@pytest.mark.parametrize("stage_class", [Gradient, Ntk])
def test_a_word_whose_weights_are_not_finite_spoils_its_own_rows(
    stage_class: Any, saved: Any, text: pa.Table, label: pa.Table, memory: Any
) -> None:
    inputs = memory({"text": text, "label": label})
    stage = stage_class(classifier(saved), projection=SHORT, dtype="float32")
    expected = rows_of(inputs.run(stage))
    opened = stage.open(inputs)
    table = opened.measurement.network.trunk.get_input_embeddings()
    with torch.no_grad():
        table.weight[opened.measurement.tokenizer.convert_tokens_to_ids("slow")] = float("nan")
    inputs.opened = opened
    batches = list(stage.compute(inputs))
    kept = [batch for name, batch in batches if name != "diagnostics"]
    (told,) = [batch.to_pylist() for name, batch in batches if name == "diagnostics"]
    found = rows_of(pa.Table.from_batches(kept))
    said = dict(zip(text["id"].to_pylist(), text["text"].to_pylist(), strict=True))
    spoilt = {row for row, words in said.items() if "slow" in words}
    assert len(spoilt) == 3
    assert {row["id"] for row in told if row["status"] == "not finite"} == spoilt
    assert set(found) == set(said) - spoilt
    for row, vector in found.items():
        np.testing.assert_array_equal(vector, expected[row])


def test_what_float16_cannot_hold_is_an_overflow(saved: Any, text: pa.Table, memory: Any) -> None:
    targets = [0.5, -1.0, 1e7, 0.0, 1.5, -0.25, 3.0]
    label = pa.table({"id": text["id"], "role": text["role"], "target": targets})
    model = ModelSpec(str(saved("bert")), head="random", num_labels=1)
    inputs = memory({"text": text, "label": label}, {"label": {"task": "regression"}})
    long = rows_of(inputs.run(Gradient(model, projection=SHORT, dtype="float32")))
    assert set(statuses(inputs).values()) == {"ok"}
    table = inputs.run(Gradient(model, projection=SHORT, dtype="float16"))
    assert table["vector"].type.value_type == pa.float16()
    found = rows_of(table)
    assert set(long) - set(found) == {60}
    assert statuses(inputs)[60] == "overflow"
    for row, vector in found.items():
        # Half a unit in the last of 11 bits, or half of the smallest number.
        np.testing.assert_allclose(vector, long[row], rtol=2.0**-11, atol=2.0**-25)


def test_memory_that_runs_out_loses_no_row(
    saved: Any, text: pa.Table, label: pa.Table, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = memory({"text": text, "label": label})
    stage = Gradient(classifier(saved), projection=SHORT, dtype="float32")
    expected = rows_of(inputs.run(stage))
    assert inputs.told.is_exact_bytes

    def limit(most: int) -> Any:
        inputs.opened = stage.open(inputs)
        compute = inputs.opened.projector.features

        def features(measure: Any, mask: torch.Tensor, precision: Any) -> Any:
            if len(mask) > most:
                raise torch.OutOfMemoryError("no room")
            return compute(measure, mask, precision)

        monkeypatch.setattr(inputs.opened.projector, "features", features)
        return stage.compute(inputs)

    kept = [batch for name, batch in limit(2) if name == "gradient"]
    assert max(batch.num_rows for batch in kept) <= 2
    found = rows_of(pa.Table.from_batches(kept))
    assert sum(batch.num_rows for batch in kept) == len(found) == 7
    for row, vector in found.items():
        size = np.linalg.norm(expected[row])
        assert np.linalg.norm(vector - expected[row]) <= 1e-5 * size
    facts = inputs.told.details()
    assert facts["is_exact_bytes"] is False
    assert "lower token_budget" in facts["notices"][0]
    with pytest.raises(StageError, match="does not fit alone"):
        list(limit(0))


@pytest.mark.skipif(not has_bfloat16("cpu"), reason="this processor has no bfloat16 products")
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_bfloat16_is_near(
    kind: str, saved: Any, text: pa.Table, label: pa.Table, memory: Any
) -> None:
    def features(precision: Any) -> dict[int, np.ndarray]:
        inputs = memory({"text": text, "label": label})
        stage = Gradient(
            classifier(saved, kind), projection=SHORT, dtype="float32", precision=precision
        )
        return rows_of(inputs.run(stage))

    exact, near = features("float32"), features("bfloat16")
    errors = [np.linalg.norm(near[r] - v) / np.linalg.norm(v) for r, v in exact.items()]
    # Eight bits a number, and some dozens of roundings: percents, not thousandths.
    assert 1e-5 < max(errors) <= 0.05


def test_random_text_depends_on_the_seed_alone(saved: Any, text: pa.Table, memory: Any) -> None:
    measurement = Ntk(classifier(saved)).open(memory({})).measurement
    first, again, other = (measurement.random_text(4, 6, seed) for seed in (0, 0, 1))
    assert first.equals(again)
    assert not first.equals(other)
    tokens = measurement.tokenise(first)
    assert tokens.lengths.min() > 3
    special = set(measurement.tokenizer.all_special_ids)
    assert all(not special & set(ids[1:-1]) for ids in tokens.columns["input_ids"])
