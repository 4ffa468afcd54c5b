"""Short trainings on preference pairs against DPO written out, and the pairs that are chosen."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_inputs import MemoryInputs
from torch import nn

from stages.model.completion_tuning import load_untuned
from stages.model.fine_tuning import FineTuning
from stages.model.short_training import ShortTraining
from stages.model.spec import Lora, ModelSpec, Trained
from stages.pairs.tracin import TracIn
from stages.predictions.selection_trial import SelectionTrial
from stages.ranking.middle import by_middle, places
from stages.stage import ConfigError, Part, Size

N, QUERIES, STEPS, RATE, BETA = 10, 4, 3, 1e-2, 0.3
WORDS = "the house is red and a road near it was blue or green".split()


@pytest.fixture
def inputs() -> MemoryInputs:
    drawn = np.random.default_rng(0)

    def words(n: int) -> str:
        return "".join(f" {word}" for word in drawn.choice(WORDS, n))

    ids = np.arange(100, 100 + N + QUERIES)
    text = pa.table(
        {
            "id": ids,
            "role": ["example"] * N + ["query"] * QUERIES,
            "text": [words(3).strip() for _ in ids],
            "text_b": [f'{{"chosen": "{words(4)}", "rejected": "{words(2)}"}}' for _ in ids],
        }
    )
    margins = pa.table(
        {
            "id": ids[:N],
            "role": ["example"] * N,
            "chosen_tokens": [4] * N,
            "rejected_tokens": [2] * N,
            "chosen_logp": drawn.normal(size=N) * 9,
            "rejected_logp": drawn.normal(size=N),
            "reward_margin": np.zeros(N),
            "loss": pa.array([math.log(2)] * (N - 1) + [None]),
        }
    )
    pairs = [(query, example) for query in ids[N:] for example in ids[:N]]
    tables = {
        "text": text,
        "answer_margin": margins,
        "tracin": pa.table(
            {
                "query_id": [query for query, _ in pairs],
                "example_id": [example for _, example in pairs],
                "score": drawn.normal(size=len(pairs)),
            }
        ),
        "preference_issues": pa.table(
            {
                "example_id": ids[:N],
                "p_wrong": drawn.random(N),
                "is_preference_issue": np.arange(N) == 3,
            }
        ),
    }
    return MemoryInputs(tables, {"text": {"format": "preference"}})


@pytest.fixture
def model(saved: Callable[..., Path]) -> ModelSpec:
    return ModelSpec(str(saved("llama", "CausalLM")), head="completion", max_length=32)


def trial(model: ModelSpec, **more: Any) -> SelectionTrial:
    fields: dict[str, Any] = {"by": "margin", "issues": "preference_issues", "duplicates": None}
    fields |= {"keep": 0.3, "steps": STEPS, "batch_size": N, "learning_rate": RATE}
    return SelectionTrial(model=model, **{**fields, **more})


@pytest.mark.parametrize(
    "train",
    [
        pytest.param(Trained(last_blocks=1), marks=pytest.mark.slow),
        Trained(lora=Lora(rank=2, alpha=4)),
    ],
)
def test_a_training_is_dpo_with_the_untouched_model_for_the_reference(
    model: ModelSpec, inputs: MemoryInputs, train: Trained
) -> None:
    """Against a second model that is never trained, all pairs in one batch."""
    how = ShortTraining(STEPS, FineTuning(N, N, RATE, weight_decay=0.0), 64, BETA)
    read = how.read(inputs, model, train, inputs.whole_table("text"))
    assert read.is_read.all()
    judged = how.judge(read.learner, np.arange(N), np.arange(N, N + QUERIES), "name")

    network = load_untuned(inputs, model, train, by_sides=True).network
    reference = copy.deepcopy(network)
    named = dict(network.named_parameters())
    weights = [
        weight
        for name, weight in named.items()
        if (".lora_" in name if train.lora else "layers.1." in name or ".norm" in name)
        or (train.lora is None and name.startswith("head"))
    ]
    for weight in weights:
        weight.requires_grad_(True)

    def margin(pair: int) -> torch.Tensor:
        sides = [read.learner.batch(np.array([2 * pair + side])) for side in (0, 1)]
        now = [network(**side)[0, 0].double() for side in sides]
        with torch.no_grad():
            before = [reference(**side)[0, 0].double() for side in sides]
        return BETA * ((now[0] - before[0]) - (now[1] - before[1]))

    optimiser = torch.optim.AdamW(weights, weight_decay=0.0)
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = RATE * (1.0, 1.0, 0.5)[step]
        optimiser.zero_grad()
        total = -sum(nn.functional.logsigmoid(margin(pair)) for pair in range(N)) / N
        assert isinstance(total, torch.Tensor)
        total.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
    with torch.no_grad():
        wanted = np.array([float(margin(pair)) for pair in range(N, N + QUERIES)])
    assert judged.margins is not None
    assert abs(wanted).max() > 0.05
    np.testing.assert_allclose(judged.margins, wanted, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(judged.losses, np.log1p(np.exp(-wanted)), rtol=2e-3)


def test_without_a_training_every_margin_is_0(model: ModelSpec, inputs: MemoryInputs) -> None:
    stage = trial(model)
    inputs.open(stage)
    tables = inputs.compute(stage, Part("", 0))
    assert tables["selection_trial"]["trained_on"].to_pylist() == ["nothing"] * QUERIES
    assert tables["trial_margin"]["margin"].to_pylist() == [0.0] * QUERIES
    np.testing.assert_allclose(tables["selection_trial"]["loss"], math.log(2))
    # All rows, on as many tokens as both sides have.
    every = inputs.compute(stage, Part("", 2))["selection_trial"]
    sides = inputs.opened.learner.lengths[: 2 * N]
    assert every["n_tokens"][0].as_py() == sides.sum()
    assert set(every["n_rows"].to_pylist()) == {N}


def test_pairs_are_chosen_from_the_middle_by_other_queries(
    model: ModelSpec, inputs: MemoryInputs
) -> None:
    margins = inputs.whole_table("answer_margin").to_pylist()
    of_margin = {
        row["id"]: row["chosen_logp"] / 4 - row["rejected_logp"] / 2
        for row in margins
        if row["loss"] is not None
    }

    def distance(values: dict[int, float]) -> dict[int, float]:
        order = sorted(values, key=values.__getitem__)
        return {key: abs(at / (len(order) - 1) - 0.5) for at, key in enumerate(order)}

    def ids(stage: SelectionTrial, part: int) -> list[int]:
        return inputs.opened.example_ids[stage._chosen(inputs, part)].tolist()

    stage = trial(model)
    assert stage.n_rounds == 5
    inputs.open(stage)
    # 103 is flagged; the last pair has no margin.
    far = distance(of_margin)
    wanted = [key for key in sorted(far, key=lambda key: (far[key], key)) if key != 103][:3]
    assert sorted(ids(stage, 0)) == sorted(wanted)

    stage = trial(model, by="middle", influence="tracin", parts=2)
    assert stage.n_rounds == 6
    inputs.open(stage)
    parts = stage._part_of(QUERIES)
    chosen = []
    for part in (0, 1):
        others = set(inputs.opened.query_ids[parts != part].tolist())
        rows = inputs.whole_table("tracin").to_pylist()
        of = {
            key: float(
                np.mean(
                    [r["score"] for r in rows if r["example_id"] == key and r["query_id"] in others]
                )
            )
            for key in range(100, 100 + N)
        }
        near = distance(of)
        both = {key: far[key] + near[key] for key in far}
        wanted = [key for key in sorted(both, key=lambda key: (both[key], key)) if key != 103][:3]
        assert sorted(ids(stage, part)) == sorted(wanted)
        chosen.append(wanted)
    assert chosen[0] != chosen[1]

    stage = trial(model, by="preference_issues")
    inputs.open(stage)
    issues = inputs.whole_table("preference_issues").sort_by("p_wrong")["example_id"].to_pylist()
    assert sorted(ids(stage, 0)) == sorted([key for key in issues if key != 103][:3])


def test_equal_numbers_share_a_place_and_margins_of_rewards_count_first() -> None:
    assert places(np.array([2.0, 1.0, 2.0, 5.0, 7.0])).tolist() == [0.25, 0.0, 0.25, 0.75, 1.0]
    assert places(np.array([3.0])).tolist() == [0.0]
    margins = pa.table(
        {
            "id": [1, 2, 3],
            "chosen_tokens": [1, 1, 1],
            "rejected_tokens": [1, 1, 1],
            "chosen_logp": [0.0, 5.0, 9.0],
            "rejected_logp": [0.0, 0.0, 0.0],
            "reward_margin": [0.5, 0.1, 0.9],
            "loss": [0.1, 0.2, 0.3],
        }
    )
    ids, none = np.array([1, 2, 3]), np.zeros(0, np.int64)
    assert by_middle(margins, None, ids, none).tolist() == [1, 2, 3]


def test_what_is_open_follows_from_the_task(model: ModelSpec) -> None:
    of_pairs = Size(9, 9, 4, 0, {}, "preference")
    of_chats = Size(9, 9, 4, 0, {}, "completion")
    stage = SelectionTrial(model=model)
    sized = stage.sized(of_pairs)
    assert (sized.by, sized.issues, sized.tasks) == ("margin", "preference_issues", ("preference",))
    assert sized.reads == ("text", "answer_margin", "preference_issues", "near_duplicates")
    sized = stage.sized(of_chats)
    assert (sized.by, sized.issues, sized.tasks) == (
        "query_relevance",
        "answer_issues",
        ("completion",),
    )
    for wrong in (
        {"by": "middle"},
        {"by": "margin", "influence": "tracin"},
        {"by": "preference_issues", "issues": None},
        {"by": "margin", "beta": 0.0},
    ):
        with pytest.raises(ConfigError):
            SelectionTrial(model=model, **wrong)  # type: ignore[arg-type]
    stage = SelectionTrial(model=model, by="influence", influence="tracin")
    with pytest.raises(ConfigError, match="found top_k: 100, expected null"):
        stage.check_reads({"tracin": TracIn()})
    stage.check_reads({"tracin": TracIn(top_k=None)})
