"""The trial of a selection against trainings written out, and the rows that it trains on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_inputs import MemoryInputs
from torch import nn

from stages.model.completion_tuning import completion_learner, load_untuned, losses, tune
from stages.model.fine_tuning import FineTuning
from stages.model.precision import Precision, has_bfloat16
from stages.model.spec import Lora, ModelSpec, Trained
from stages.predictions.selection_trial import SelectionTrial
from stages.stage import ConfigError, DataError, Part

N, QUERIES, STEPS, RATE = 12, 4, 3, 1e-2
WORDS = "the house is red and a road near it was blue or green".split()


def texts(drawn: np.random.Generator) -> pa.Table:
    ids = np.arange(100, 100 + N + QUERIES)
    return pa.table(
        {
            "id": ids,
            "role": ["example"] * N + ["query"] * QUERIES,
            "text": [" ".join(drawn.choice(WORDS, 3)) for _ in ids],
            "text_b": [" " + " ".join(drawn.choice(WORDS, 4)) for _ in ids],
        }
    )


@pytest.fixture
def inputs() -> MemoryInputs:
    drawn = np.random.default_rng(0)
    text = texts(drawn)
    flat = pa.array(drawn.standard_normal((N + QUERIES) * 3).astype(np.float32))
    vector = pa.FixedSizeListArray.from_arrays(flat, 3)
    examples = text["id"].to_numpy()[:N]
    p_wrong = drawn.random(N) / 2
    p_wrong[5] = 0.9
    tables = {
        "text": text,
        "position_weighted": pa.table({"id": text["id"], "role": text["role"], "vector": vector}),
        "answer_issues": pa.table(
            {"example_id": examples, "p_wrong": p_wrong, "is_answer_issue": p_wrong > 0.5}
        ),
        # 105 is flagged, so 106 stands for their cluster.
        "near_duplicates": pa.table(
            {"example_id": [105, 106, 107, 110], "cluster": [105, 105, 105, 110]}
        ),
    }
    return MemoryInputs(tables, {"text": {"format": "prompt_completion"}})


@pytest.fixture
def model(saved: Callable[..., Path]) -> ModelSpec:
    return ModelSpec(str(saved("llama", "CausalLM")), head="completion", max_length=32)


def trial(model: ModelSpec, **more: Any) -> SelectionTrial:
    fields: dict[str, Any] = {"keep": 0.25, "steps": STEPS, "batch_size": N, "learning_rate": RATE}
    return SelectionTrial(model=model, **{**fields, **more})


def rows_of(inputs: MemoryInputs, stage: SelectionTrial) -> list[pa.Table]:
    inputs.open(stage)
    return [inputs.compute(stage, Part("", at))["selection_trial"] for at in range(stage.n_rounds)]


@pytest.mark.parametrize(
    ("train", "precision"),
    [
        (Trained(), "float32"),
        (Trained(last_blocks=1), "float32"),
        (Trained(lora=Lora(rank=2, alpha=4)), "float32"),
        pytest.param(
            Trained(last_blocks=1),
            "bfloat16",
            marks=pytest.mark.skipif(
                not has_bfloat16("cpu"), reason="this processor has no bfloat16 products"
            ),
        ),
    ],
)
def test_a_training_is_adam_on_mean_losses(
    model: ModelSpec, inputs: MemoryInputs, train: Trained, precision: Precision
) -> None:
    """Against a loop with the losses of single rows and torch's own optimiser, in one batch."""
    measurement = load_untuned(inputs, model, train)
    learner = completion_learner(measurement, measurement.tokenise(inputs.whole_table("text")))
    rows = np.arange(N)
    before = losses(learner, rows, 2048)
    tune(learner, rows, STEPS, FineTuning(N, N, RATE, weight_decay=0.0), 40, "name", precision)
    found = losses(learner, np.arange(N + QUERIES), 2048)
    assert found[:N].mean() < before.mean()

    network = load_untuned(inputs, model, train).network
    kinds = {
        "lora": lambda name: ".lora_" in name,
        "blocks": lambda name: "layers.1." in name or ".norm" in name or name.startswith("head"),
        "all": lambda name: "proj" in name or name.startswith("head"),
    }
    kind = "lora" if train.lora else "blocks" if train.last_blocks else "all"
    named = dict(network.named_parameters())
    weights = [weight for name, weight in named.items() if kinds[kind](name)]
    assert sum(w.numel() for w in weights) == sum(w.numel() for w in learner.start)
    for weight in weights:
        weight.requires_grad_(True)
    optimiser = torch.optim.AdamW(weights, weight_decay=0.0)
    for step in range(STEPS):
        # Of three steps the first warms up, a tenth rounded up; then the rate falls to 0.
        optimiser.param_groups[0]["lr"] = RATE * (1.0, 1.0, 0.5)[step]
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            total = sum(-network(**learner.batch(np.array([row])))[0, 0] for row in rows) / N
        assert isinstance(total, torch.Tensor)
        total.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
    with torch.no_grad():
        every = range(N + QUERIES)
        wanted = [-float(network(**learner.batch(np.array([row])))[0, 0]) for row in every]
    np.testing.assert_allclose(found, wanted, rtol=2e-4 if precision == "float32" else 5e-3)


def test_trials_from_before_there_was_a_precision_keep_their_key(model: ModelSpec) -> None:
    assert "precision" in trial(model).outside_key
    assert "precision" not in trial(model, precision="bfloat16").outside_key


def test_no_query_judges_rows_that_it_chose(model: ModelSpec, inputs: MemoryInputs) -> None:
    stage = trial(model)
    nothing, first, second, every, *random = rows_of(inputs, stage)
    assert [t["trained_on"][0].as_py() for t in (nothing, first, every, random[0])] == [
        "nothing",
        "chosen",
        "all",
        "random",
    ]
    queries = set(range(100 + N, 100 + N + QUERIES))
    judged = [set(table["query_id"].to_pylist()) for table in (first, second)]
    assert judged[0] | judged[1] == queries
    assert not judged[0] & judged[1]
    for at, own in enumerate(judged):
        # By hand: the others take turns by cosine, in the order of their ids.
        table = inputs.whole_table("position_weighted")
        vector = dict(
            zip(table["id"].to_pylist(), np.array(table["vector"].to_pylist()), strict=True)
        )
        free, taken = list(range(100, 100 + N)), []
        while len(taken) < 6:
            for query in sorted(queries - own):
                best = max(
                    (row for row in free if row not in taken),
                    key=lambda row, q=query: vector[row] @ vector[q] / np.linalg.norm(vector[row]),
                )
                taken.append(best)
        # Flagged is 105; 107 is nearly the same as 106.
        kept = [row for row in taken if row not in (105, 107)][:3]
        assert sorted(inputs.opened.example_ids[stage._chosen(inputs, at)]) == sorted(kept)
    assert set(every["n_rows"].to_pylist()) == {N}
    assert random[0]["n_tokens"][0].as_py() >= first["n_tokens"][0].as_py()


def test_without_queries_having_a_say_the_likeliest_right_answers_are_chosen(
    model: ModelSpec, inputs: MemoryInputs
) -> None:
    stage = trial(model, by="answer_issues")
    assert stage.n_rounds == 5
    inputs.open(stage)
    issues = inputs.whole_table("answer_issues").sort_by("p_wrong")["example_id"].to_pylist()
    kept = [row for row in issues if row not in (105, 107)][:3]
    assert sorted(inputs.opened.example_ids[stage._chosen(inputs, 0)]) == sorted(kept)
    chosen = inputs.compute(stage, Part("", 1))["selection_trial"]
    assert chosen.num_rows == QUERIES


def test_rounds_do_not_depend_on_the_order_in_which_they_run(
    model: ModelSpec, inputs: MemoryInputs
) -> None:
    stage = trial(model, draws=1)
    forward = rows_of(inputs, stage)
    for at in reversed(range(stage.n_rounds)):
        assert inputs.compute(stage, Part("", at))["selection_trial"].equals(forward[at])


def test_what_cannot_be_tried_is_refused(model: ModelSpec, inputs: MemoryInputs) -> None:
    for wrong in ({"keep": 1.0}, {"parts": 1}, {"by": "answer_issues", "issues": None}):
        with pytest.raises(ConfigError):
            trial(model, **wrong)
    inputs.tables["text"] = inputs.whole_table("text").slice(0, N + 1)
    with pytest.raises(DataError, match="found 1 queries"):
        inputs.open(trial(model))
