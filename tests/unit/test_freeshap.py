from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from stages.freeshap import SHAPLEY_ROUND, FreeShap, permutations
from stages.leave_one_out import LeaveOneOut
from stages.stage import ConfigError, Part, Vectors, load
from stages.utility import mean_utilities

LABELS = {"example": {1: 0, 2: 1, 4: 1, 7: 0, 8: 1, 9: 2}, "query": {0: 0, 1: None, 2: 1, 3: 2}}


class InMemory:
    """Six labelled examples, one that was dropped (id 5), and four queries, one without label."""

    def __init__(self) -> None:
        self.part = Part("", 0)
        self.opened: Any = None
        generator = np.random.default_rng(1)
        self.rows = {
            role: Vectors(np.array(ids), generator.normal(size=(len(ids), 5)).astype(np.float32))
            for role, ids in (("example", [1, 2, 4, 5, 7, 8, 9]), ("query", [0, 1, 2, 3]))
        }

    def table(self, name: str, role: str) -> pa.Table:
        ids, labels = LABELS[role].keys(), LABELS[role].values()
        return pa.table(
            {"id": pa.array(ids, pa.int64()), "label": pa.array(list(labels), pa.int64())}
        )

    def vectors(self, name: str, role: str) -> Vectors:
        return self.rows[role]

    def details(self, name: str) -> dict[str, Any]:
        return {"classes": ["a", "b", "c"]}


def rows_of(stage: Any, index: int = 0) -> pa.Table:
    inputs = InMemory()
    inputs.opened = stage.open(inputs)
    inputs.part = Part("", index)
    pairs = list(stage.compute(inputs))
    assert {name for name, _ in pairs} == {stage.writes[0].name}
    return stage.writes[0].check(pa.Table.from_batches([batch for _, batch in pairs]))


def test_a_round_is_the_same_whenever_it_is_computed() -> None:
    stage = FreeShap(units_per_round=3, utilities=("accuracy", "cross_entropy", "margin"))
    first = rows_of(stage, 4)
    assert rows_of(stage, 2) != first
    assert rows_of(stage, 4) == first
    assert first["round"].unique().to_pylist() == [4]
    assert first["n_units"].unique().to_pylist() == [3]
    assert first["n_observed"].unique().to_pylist() == [3]
    assert first["example_id"].to_pylist() == sorted(LABELS["example"]) * 3


def test_another_seed_draws_other_permutations() -> None:
    assert rows_of(FreeShap(seed=1)) != rows_of(FreeShap(seed=0))
    drawn = [order.tolist() for order in permutations(6, 2, 3, 5)]
    generator = np.random.default_rng([3, 5])
    assert drawn == [generator.permutation(6).tolist() for _ in range(2)]


def test_values_of_a_round_sum_to_what_all_examples_are_worth() -> None:
    stage = FreeShap(units_per_round=4)
    inputs = InMemory()
    inputs.opened = stage.open(inputs)
    facts = stage.details(inputs)
    rows = rows_of(stage).to_pylist()
    for name in stage.utilities:
        total = sum(row["total"] for row in rows if row["utility"] == name)
        gain = facts["utility_of_all"][name] - facts["utility_of_none"][name]
        assert total / 4 == pytest.approx(gain, abs=1e-12)
    assert facts["utility_of_none"]["accuracy"] == pytest.approx(1 / 3)
    assert facts["utility_of_none"]["cross_entropy"] == pytest.approx(-np.log(3))
    assert (facts["n_examples"], facts["n_queries"], facts["n_unlabelled_queries"]) == (6, 3, 1)


def test_squares_are_of_whole_permutations() -> None:
    units = [rows_of(FreeShap(units_per_round=count)) for count in (1, 2)]
    first, both = (np.array(rows["total"]) for rows in units)
    expected = first**2 + (both - first) ** 2
    np.testing.assert_allclose(np.array(units[1]["total_sq"]), expected, rtol=1e-12, atol=1e-15)


def test_outputs_that_tie_share_the_accuracy() -> None:
    outputs = torch.tensor([[0.0, 0, 0], [1, 1, 0], [0, 1, 2]], dtype=torch.float64)[..., None]
    labels = torch.tensor([1])
    found = mean_utilities(outputs, labels, ("accuracy", "margin", "cross_entropy"), 1.0)
    assert found[0].tolist() == pytest.approx([1 / 3, 1 / 2, 0])
    assert found[1].tolist() == pytest.approx([0, 0, -1])
    assert found[2].tolist() == pytest.approx(outputs[..., 0].log_softmax(1)[:, 1].tolist())


def test_temperature_divides_the_outputs() -> None:
    outputs = torch.randn(4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 0])
    found = mean_utilities(outputs, labels, ("cross_entropy",), 0.1)
    expected = mean_utilities(outputs / 0.1, labels, ("cross_entropy",), 1.0)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"utilities": ()},
        {"utilities": ("accuracy", "accuracy")},
        {"temperature": 0.0},
        {"units_per_round": 0},
        {"rounds": 0},
        {"seed": -1},
        {"kernel": ()},
        {"ridge": 0.0},
    ],
)
def test_unusable_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        FreeShap(**fields)


def test_stages_declare_what_they_read_and_write() -> None:
    stage = load("freeshap")(kernel=("ntk", "embedding"))
    assert stage.reads == ("ntk", "embedding", "label")
    assert stage.writes == (SHAPLEY_ROUND,)
    assert "rounds" in stage.outside_key
    assert load("leave_one_out") is LeaveOneOut


def test_leave_one_out_writes_one_value_per_utility_and_example() -> None:
    rows = rows_of(LeaveOneOut())
    assert rows["semivalue"].unique().to_pylist() == ["loo"]
    assert rows.num_rows == 2 * len(LABELS["example"])
