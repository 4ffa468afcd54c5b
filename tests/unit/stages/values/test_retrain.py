from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_inputs import MemoryInputs, label_table
from torch import nn

from stages.game.utility import mean_utilities
from stages.model.layers import blocks_of, parameters_above
from stages.model.learners import hidden_states, vector_learner
from stages.model.networks import PooledNetwork
from stages.model.seeded import permutations
from stages.model.spec import ModelSpec
from stages.model.training import Training, outputs, train
from stages.reading.vectors import matrix_of
from stages.stage import ConfigError, DataError, ModelError, Part, Size, StageError, Vectors, Work
from stages.tables import OUTCOME, SHAPLEY_ROUND, SUBSET
from stages.values.retrain import Retrain, sizes_of

LABELS = {"example": {1: 0, 2: 1, 4: 1, 7: 0, 8: 1, 9: 2}, "query": {0: 0, 1: None, 2: 1, 3: 2}}
EXAMPLES = sorted(LABELS["example"])


class InMemory(MemoryInputs):
    """Six labelled examples, one that was dropped (id 5), and four queries, one without label."""

    def __init__(self, labels: Any = None) -> None:
        generator = np.random.default_rng(1)
        rows = {
            role: Vectors(np.array(ids), generator.normal(size=(len(ids), 5)).astype(np.float32))
            for role, ids in (("example", [1, 2, 4, 5, 7, 8, 9]), ("query", [0, 1, 2, 3]))
        }
        details = {"label": {"classes": ["a", "b", "c"]}}
        super().__init__({"label": label_table(labels or LABELS)}, details, rows)


def tables_of(stage: Retrain, *indices: int) -> dict[str, pa.Table]:
    """What the last of these rounds writes, the others before it in the same worker."""
    inputs = InMemory()
    inputs.opened = stage.open(inputs)
    for index in indices:
        inputs.part = Part("", index)
        found: dict[str, list[pa.RecordBatch]] = {spec.name: [] for spec in stage.writes}
        for name, batch in stage.compute(inputs):
            found[name].append(batch)
    return {spec.name: spec.check(pa.Table.from_batches(found[spec.name])) for spec in stage.writes}


def test_a_round_is_the_same_whenever_it_is_computed() -> None:
    stage = Retrain(per_round=2, every=3, utilities=("accuracy", "cross_entropy", "margin"))
    alone = tables_of(stage, 4)
    assert tables_of(stage, 0, 7, 4) == alone
    for name, other in tables_of(stage, 5).items():
        assert other != alone[name]
    for name, other in tables_of(Retrain(per_round=2, every=3, seed=1), 4).items():
        assert other != alone[name]


def test_every_prefix_of_a_permutation_has_its_outcomes() -> None:
    found = tables_of(Retrain(per_round=2, every=4), 3)
    subset, outcome = (found[name].to_pylist() for name in ("subset", "outcome"))
    orders = [[EXAMPLES[at] for at in order] for order in permutations(6, 2, 0, 3)]
    expected = [order[:size] for order in orders for size in (4, 6)]
    assert [row["example_ids"] for row in subset] == expected
    assert [(row["round"], row["subset"], row["size"]) for row in subset] == [
        (3, 0, 4),
        (3, 1, 6),
        (3, 2, 4),
        (3, 3, 6),
    ]
    assert [(row["subset"], row["query_id"]) for row in outcome] == [
        (subset, query) for subset in range(4) for query in range(4)
    ]
    assert {len(row["logits"]) for row in outcome} == {3}


def test_sums_of_marginals_are_those_of_the_outcomes() -> None:
    """In a block all gain the same; a permutation is a unit; an unlabelled query has no say."""
    found = tables_of(Retrain(per_round=2, every=4), 3)
    logits = torch.from_numpy(matrix_of(found["outcome"]["logits"]).copy()).double()
    said = logits.reshape(2, 2, 4, 3)[:, :, [0, 2, 3]].transpose(2, 3)
    units = np.zeros((2, 6))
    for unit, order in enumerate(permutations(6, 2, 0, 3)):
        both = torch.cat([torch.zeros(1, 3, 3, dtype=torch.float64), said[unit]])
        worth = mean_utilities(both, torch.tensor([0, 1, 2]), ("cross_entropy",))[0]
        units[unit, order[:4]] = float(worth[1] - worth[0]) / 4
        units[unit, order[4:]] = float(worth[2] - worth[1]) / 2
    rows = [r for r in found["shapley_round"].to_pylist() if r["utility"] == "cross_entropy"]
    assert [row["example_id"] for row in rows] == EXAMPLES
    np.testing.assert_allclose([r["total"] for r in rows], units.sum(0), rtol=0, atol=1e-6)
    squares = np.square(units).sum(0)
    np.testing.assert_allclose([r["total_sq"] for r in rows], squares, rtol=0, atol=1e-6)
    assert {(row["n_units"], row["n_observed"]) for row in rows} == {(2, 2)}


def test_logits_of_absent_classes_tie_up_to_rounding() -> None:
    """Trained from zero they are equal but for the order in which a product was added up."""
    logits = torch.tensor([[[-3.1], [1.0], [1.0 + 2**-23], [1.0 - 2**-23]]])
    for label, worth in ((0, 0.0), (1, 1 / 3), (2, 1 / 3), (3, 1 / 3)):
        found = mean_utilities(logits, torch.tensor([label]), ("accuracy",))
        assert float(found) == pytest.approx(worth, abs=1e-6)


def test_random_subsets_have_one_size_and_no_values() -> None:
    stage = Retrain(subsets="random", share=0.5, per_round=3)
    assert stage.writes == (OUTCOME, SUBSET)
    rows = tables_of(stage, 2)["subset"].to_pylist()
    drawn = [[EXAMPLES[at] for at in order[:3]] for order in permutations(6, 3, 0, 2)]
    assert [row["example_ids"] for row in rows] == drawn
    assert sizes_of(Retrain(subsets="random", share=0.01), 6) == (1,)


@pytest.mark.parametrize("kind", ["regression_msr", "adalina"])
def test_reused_coalitions_are_trained_on_alone_and_count_for_all(kind: Any) -> None:
    """Rounds repeat; a pair is one coalition and the rest; a unit's values sum to U(all) - U(0)."""
    stage = Retrain(subsets=kind, coalitions=8, per_round=2, utilities=("cross_entropy", "margin"))
    found = tables_of(stage, 3)
    assert tables_of(stage, 0, 3) == found != tables_of(stage, 4)
    subsets = [set(row["example_ids"]) for row in found["subset"].to_pylist()]
    assert [row["size"] for row in found["subset"].to_pylist()] == [len(s) for s in subsets]
    assert len(subsets) == 2 * 9
    for unit in (subsets[:9], subsets[9:]):
        assert unit[-1] == set(EXAMPLES)
        assert all(0 < len(coalition) < 6 for coalition in unit[:-1])
        is_paired = [
            a | b == set(EXAMPLES) and not a & b
            for a, b in zip(unit[0:8:2], unit[1:8:2], strict=True)
        ]
        assert all(is_paired) == (kind == "regression_msr")
    logits = torch.from_numpy(matrix_of(found["outcome"]["logits"]).copy()).double()
    said = logits.reshape(18, 4, 3)[:, [0, 2, 3]].transpose(1, 2)
    worth = mean_utilities(said, torch.tensor([0, 1, 2]), ("margin",))[0]
    rows = [row for row in found["shapley_round"].to_pylist() if row["utility"] == "margin"]
    total = sum(row["total"] for row in rows)
    assert total == pytest.approx(float(worth[8] + worth[17]), abs=1e-6)
    assert {(row["n_units"], row["n_observed"], row["n_prior"]) for row in rows} == {(2, 2, 0)}
    if kind == "adalina":
        expected = np.zeros(6)
        for at in (0, 9):
            expected += covariances(subsets[at : at + 8], worth[at : at + 9].numpy())
        np.testing.assert_allclose([row["total"] for row in rows], expected, rtol=0, atol=1e-6)


def covariances(coalitions: list[set[int]], worth: np.ndarray) -> np.ndarray:
    """8 / 7 times the covariance of c_i and utilities, and a sixth of U(all) - U(0), by example."""
    law = np.array([1 / (s * (6 - s)) ** 0.5 for s in range(1, 6)])
    law /= law.sum()
    c = np.array(
        [
            [(1 / len(s) if i in s else -1 / (6 - len(s))) / law[len(s) - 1] for i in EXAMPLES]
            for s in coalitions
        ]
    )
    found: np.ndarray = (c - c.mean(0)).T @ (worth[:8] - worth[:8].mean()) / 7 + worth[8] / 6
    return found


def test_reused_coalitions_of_one_example() -> None:
    """Nothing is drawn: the value is what the example is worth."""
    inputs = InMemory({"example": {1: 0}, "query": LABELS["query"]})
    stage = Retrain(subsets="regression_msr", utilities=("margin",))
    inputs.opened, inputs.part = stage.open(inputs), Part("", 0)
    batches = dict(stage.compute(inputs))
    assert batches["subset"].to_pylist()[0]["example_ids"] == [1]
    logits = torch.tensor(batches["outcome"]["logits"].to_pylist(), dtype=torch.float64).T[None]
    expected = mean_utilities(logits[..., [0, 2, 3]], torch.tensor([0, 1, 2]), ("margin",))
    (row,) = batches["shapley_round"].to_pylist()
    assert row["total"] == pytest.approx(float(expected), abs=1e-6)


def test_repeats_train_on_the_same_subset_in_other_orders() -> None:
    stage = Retrain(subsets="random", per_round=2, repeats=3, training=Training(batch_size=1))
    found = tables_of(stage, 1)
    subsets = [row["example_ids"] for row in found["subset"].to_pylist()]
    drawn = [[EXAMPLES[at] for at in order[:3]] for order in permutations(6, 2, 0, 1)]
    assert subsets == [drawn[0]] * 3 + [drawn[1]] * 3
    logits = matrix_of(found["outcome"]["logits"]).reshape(6, -1)
    assert len({row.tobytes() for row in logits}) == 6
    # The first training of the first subset is that of a stage without repeats.
    alone = tables_of(Retrain(subsets="random", per_round=2, training=stage.training), 1)
    assert (matrix_of(alone["outcome"]["logits"]).reshape(2, -1)[0] == logits[0]).all()
    work = Work(n_examples=100, n_queries=10, n_tokens=1000, n_classes=2, dim=8)
    once = Retrain(subsets="random", per_round=2, training=stage.training)
    assert stage.cost(work).backward_rows == 3 * once.cost(work).backward_rows


def test_one_pass_moves_on_from_where_it_was() -> None:
    """After the same examples in the same order the model is the same, however often looked at."""
    once = Training(kind="one_pass")
    rows = [tables_of(Retrain(training=once, every=every), 1)["outcome"] for every in (1, 3)]
    every, third = (table.to_pylist() for table in rows)
    assert [r["logits"] for r in every if r["size"] in (3, 6)] == [r["logits"] for r in third]


def test_facts_for_the_manifest() -> None:
    stage, inputs = Retrain(), InMemory()
    inputs.opened = stage.open(inputs)
    assert stage.details(inputs) == {
        "n_examples": 6,
        "n_queries": 4,
        "n_unlabelled_queries": 1,
        "n_trained": 18,
    }


def test_what_is_read_and_written() -> None:
    model = ModelSpec("owner/name")
    assert Retrain().reads == ("embedding", "label")
    assert Retrain(embedding="features").reads == ("features", "label")
    assert Retrain(model).reads == ("embedding", "label")
    assert Retrain(model, last_blocks=1).reads == ("text", "label")
    random = ModelSpec("owner/name", head="random", num_labels=2)
    assert Retrain(random).reads == ("text", "label")
    assert Retrain().writes == (OUTCOME, SUBSET, SHAPLEY_ROUND)
    assert Retrain().outside_key == {"rounds", "model.train", "coalitions", "repeats"}
    repeated = Retrain(subsets="random", repeats=2)
    assert repeated.outside_key == {"rounds", "model.train", "coalitions"}
    reused = Retrain(subsets="adalina")
    assert reused.outside_key == {"rounds", "model.train", "repeats"}
    assert reused.writes == (OUTCOME, SUBSET, SHAPLEY_ROUND)


@pytest.mark.parametrize(
    "fields",
    [
        {"utilities": ()},
        {"utilities": ("loss",)},
        {"every": 0},
        {"per_round": 0},
        {"rounds": 0},
        {"token_budget": 0},
        {"seed": -1},
        {"share": 0.0},
        {"share": 1.5},
        {"subsets": "regression_msr", "coalitions": 2},
        {"subsets": "regression_msr", "coalitions": 9},
        {"subsets": "adalina", "coalitions": 1},
        {"subsets": "adalina", "training": Training(kind="one_pass")},
        {"repeats": 0, "subsets": "random"},
        {"repeats": 2},
        {"repeats": 2, "subsets": "random", "training": Training(kind="one_pass")},
        {"last_blocks": -1, "model": ModelSpec("owner/name")},
        {"last_blocks": 1},
        {"last_blocks": "all"},
        {"last_blocks": 1, "model": ModelSpec("owner/name"), "embedding": "features"},
    ],
)
def test_unusable_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Retrain(**fields)


@pytest.mark.parametrize(
    "fields",
    [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"head_learning_rate": -1.0}],
)
def test_unusable_trainings_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Training(**fields)


@pytest.mark.parametrize("role", ["example", "query"])
def test_rows_without_labels_are_refused(role: str) -> None:
    labels = {**LABELS, role: dict.fromkeys(LABELS[role])}
    with pytest.raises(DataError, match="Label some rows"):
        Retrain().open(InMemory(labels))


def test_a_training_that_explodes_is_told() -> None:
    made = vector_learner(torch.tensor([[1e30], [-1e30]]), 2)
    train(made, torch.tensor([0, 1]), np.array([0, 1]), Training(head_learning_rate=1e30))
    with pytest.raises(StageError, match="Lower"):
        outputs(made, np.array([0, 1]), 10)


class Talkative(nn.Module):
    """A block that returns more than hidden states, as blocks of older models do."""

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, None]:
        return states, None


def test_blocks_that_return_tuples_are_told() -> None:
    network = Talkative()

    def batch(rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {"states": torch.ones(len(rows), 2, 3)}

    with pytest.raises(ModelError, match="last_blocks: all"):
        hidden_states(network, network, batch, np.array([2, 2]), 10)


def test_a_network_has_no_more_blocks_than_it_has() -> None:
    network = PooledNetwork(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="found last_blocks: 0 for a network with 0 blocks"):
        blocks_of(network, 0)
    with pytest.raises(ConfigError, match="found last_blocks: 3"):
        parameters_above(PooledNetwork(nn.ModuleList([nn.Linear(1, 1)] * 2), nn.ReLU()), 3)


def test_a_plan_counts_what_is_trained() -> None:
    work = Work(n_examples=100, n_queries=10, n_tokens=1000, n_classes=2, dim=8)
    cost = Retrain(every=50, rounds=3, training=Training(epochs=4)).cost(work)
    assert cost.backward_rows == 3 * 4 * 150
    assert cost.forward_rows == 3 * (4 * 150 + 2 * 10)
    once = Retrain(every=50, rounds=3, training=Training(kind="one_pass")).cost(work)
    assert once.backward_rows == 300


def test_of_many_examples_a_hundred_prefixes_are_trained_on() -> None:
    def size(n: int) -> Size:
        return Size(n, n, n_queries=1, n_classes=2, lengths={})

    kept = Retrain(every=1, subsets="permutation", rounds=20)
    assert Retrain().sized(size(10_000)) == kept
    many = Retrain().sized(size(10_001))
    assert isinstance(many, Retrain)
    assert len(sizes_of(many, 10_001)) == 100
    assert sizes_of(many, 10_001)[-1] == 10_001
    assert Retrain(every=3).sized(size(10**6)) == replace(kept, every=3)


@pytest.mark.parametrize(
    ("fields", "n", "subsets", "rounds"),
    [
        ({}, 1_000, "regression_msr", 5),
        ({}, 1_001, "permutation", 20),
        ({"every": 2}, 100, "permutation", 20),
        ({"rounds": 7}, 100, "permutation", 7),
        ({"training": Training(kind="one_pass")}, 100, "permutation", 20),
        ({"subsets": "random"}, 100, "random", 20),
        ({"subsets": "adalina", "rounds": 7}, 10**4, "adalina", 7),
        ({"subsets": "regression_msr"}, 5_000, "regression_msr", 5),
    ],
)
def test_few_examples_are_valued_by_whole_utilities(
    fields: dict[str, Any], n: int, subsets: str, rounds: int
) -> None:
    """At as many trainings: 20 permutations are 5 units of 4 coalitions for each example."""
    chosen = Retrain(**fields).sized(Size(n, n, n_queries=1, n_classes=2, lengths={}))
    assert (chosen.subsets, chosen.rounds, chosen.n_rounds) == (subsets, rounds, rounds)


def test_a_plan_counts_the_trainings_of_a_unit() -> None:
    work = Work(n_examples=100, n_queries=10, n_tokens=1000, n_classes=2, dim=8)
    cost = Retrain(subsets="regression_msr").cost(work)
    assert cost.backward_rows == 5 * 10 * (400 * 50 + 100)
    assert cost.note == "regression_msr: units of 401 trainings"
    assert cost.memory_bytes > Retrain(subsets="adalina").cost(work).memory_bytes
    assert sizes_of(Retrain(), 3) == (1, 2, 3)
    with pytest.raises(ConfigError, match="found every"):
        Retrain(every=0)
