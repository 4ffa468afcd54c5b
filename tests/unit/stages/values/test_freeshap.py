from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from memory_inputs import MemoryInputs, label_table

from stages.catalogue import load
from stages.game.utility import Judge
from stages.model.seeded import permutations
from stages.stage import ConfigError, DataError, Part, Size, Vectors, Work
from stages.tables import SHAPLEY_ROUND
from stages.values.freeshap import SHAPLEY_STRATUM, FreeShap
from stages.values.leave_one_out import LeaveOneOut
from stages.values.shapley_by_query import ShapleyByQuery

LABELS = {"example": {1: 0, 2: 1, 4: 1, 7: 0, 8: 1, 9: 2}, "query": {0: 0, 1: None, 2: 1, 3: 2}}


class InMemory(MemoryInputs):
    """Six labelled examples, one that was dropped (id 5), and four queries, one without label."""

    def __init__(self) -> None:
        generator = np.random.default_rng(1)
        rows = {
            role: Vectors(np.array(ids), generator.normal(size=(len(ids), 5)).astype(np.float32))
            for role, ids in (("example", [1, 2, 4, 5, 7, 8, 9]), ("query", [0, 1, 2, 3]))
        }
        details = {"label": {"classes": ["a", "b", "c"]}}
        super().__init__({"label": label_table(LABELS)}, details, rows)


def rows_of(stage: Any, index: int = 0) -> pa.Table:
    inputs = InMemory()
    inputs.opened = stage.open(inputs)
    inputs.part = Part("", index)
    pairs = list(stage.compute(inputs))
    assert {name for name, _ in pairs} == {spec.name for spec in stage.writes}
    tables = {
        spec.name: spec.check(pa.Table.from_batches([b for name, b in pairs if name == spec.name]))
        for spec in stage.writes
    }
    return tables[stage.writes[0].name]


def test_a_round_is_the_same_whenever_it_is_computed() -> None:
    stage = FreeShap(units_per_round=3, utilities=("accuracy", "cross_entropy", "margin"))
    first = rows_of(stage, 4)
    assert rows_of(stage, 2) != first
    assert rows_of(stage, 4) == first
    assert first["round"].unique().to_pylist() == [4]
    assert first["n_units"].unique().to_pylist() == [3]
    assert first["n_observed"].unique().to_pylist() == [3]
    assert first["semivalue"].unique().to_pylist() == ["shapley"]
    assert first["example_id"].to_pylist() == sorted(LABELS["example"]) * 3


def test_another_seed_draws_other_permutations() -> None:
    assert rows_of(FreeShap(seed=1)) != rows_of(FreeShap(seed=0))
    drawn = [order.tolist() for order in permutations(6, 2, 3, 5)]
    generator = np.random.default_rng([3, 5])
    assert drawn == [generator.permutation(6).tolist() for _ in range(2)]


def test_values_of_a_round_sum_to_what_all_examples_are_worth() -> None:
    stage = FreeShap(units_per_round=4, sampling="uniform")
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
    assert facts["engine"] == "prefix_cholesky"


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("kernel", [("ntk",), ("ntk", "embedding")])
@pytest.mark.parametrize("normalize", [True, False])
def test_engines_read_the_same_game(kernel: Any, normalize: bool, precision: Any) -> None:
    fields: Any = {"kernel": kernel, "normalize": normalize, "ridge": 0.1, "sampling": "uniform"}
    found = [
        rows_of(FreeShap(**fields, engine="prefix_cholesky")),
        rows_of(FreeShap(**fields, engine="least_squares", precision=precision)),
    ]
    smooth = [pc.equal(table["utility"], "cross_entropy") for table in found]
    totals = [t.filter(s)["total"].to_numpy() for t, s in zip(found, smooth, strict=True)]
    tolerance = 1e-12 if precision == "float64" else 1e-5
    np.testing.assert_allclose(totals[1], totals[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("utilities", "ridge", "precision"),
    [
        (("margin",), 0.01, "float32"),
        (("cross_entropy",), 0.005, "float64"),
        (("accuracy", "margin"), 0.5, "float64"),
        (("accuracy",), 1.0, "float32"),
    ],
)
def test_float32_is_taken_where_rounding_turns_nothing(
    utilities: Any, ridge: float, precision: str
) -> None:
    stage = FreeShap(engine="least_squares", utilities=utilities, ridge=ridge)
    inputs = InMemory()
    inputs.opened = stage.open(inputs)
    assert stage.details(inputs)["precision"] == precision


def test_semivalues_and_strata_are_written() -> None:
    stage = FreeShap(semivalues=("shapley", "beta(16,1)"), utilities=("margin",))
    rows = rows_of(stage)
    assert rows["semivalue"].unique().to_pylist() == ["beta(16,1)", "shapley"]
    assert stage.writes == (SHAPLEY_ROUND, SHAPLEY_STRATUM)


def test_squares_are_of_whole_permutations() -> None:
    sampled: Any = {"sampling": "uniform", "seed": 3}
    units = [rows_of(FreeShap(units_per_round=count, **sampled)) for count in (1, 2)]
    first, both = (np.array(rows["total"]) for rows in units)
    expected = first**2 + (both - first) ** 2
    np.testing.assert_allclose(np.array(units[1]["total_sq"]), expected, rtol=1e-12, atol=1e-15)


def test_outputs_that_tie_share_the_accuracy() -> None:
    outputs = torch.tensor([[0.0, 0, 0], [1, 1, 0], [0, 1, 2]], dtype=torch.float64)[..., None]
    labels = torch.tensor([1])
    judge = Judge(labels, 3)
    assert judge.mean(outputs, "accuracy").tolist() == pytest.approx([1 / 3, 1 / 2, 0])
    assert judge.mean(outputs, "margin").tolist() == pytest.approx([0, 0, -1])
    expected = outputs[..., 0].log_softmax(1)[:, 1].tolist()
    assert judge.mean(outputs, "cross_entropy").tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"utilities": ()},
        {"utilities": ("accuracy", "accuracy")},
        {"temperature": 0.0},
        {"units_per_round": 0},
        {"rounds": 0},
        {"seed": -1},
        {"ridge": 0.0},
        {"utilities": ("loss", "accuracy")},
        {"semivalues": ()},
        {"semivalues": ("banzhaf",)},
        {"semivalues": ("beta(0,1)",)},
        {"coalitions": 0},
        {"truncation": "random"},
        {"sampling": "uniform", "truncation": "random", "survival": 0.0},
        {"sampling": "regression_msr", "truncation": "random"},
        {"sampling": "regression_msr", "coalitions": 3},
        {"sampling": "adalina", "coalitions": 1},
        {"minutes": 0.0},
        {"stderr": -1.0},
        {"sign_confidence": 0.4},
    ],
)
def test_unusable_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        FreeShap(**fields)


def test_a_regression_on_too_many_examples_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.game.sample_reuse.MOST_REGRESSED", 5)
    with pytest.raises(DataError, match="regression_msr: found 6 examples, expected at most 5"):
        rows_of(FreeShap(sampling="regression_msr"))
    assert len(rows_of(FreeShap(sampling="adalina"))) > 0


def test_stages_declare_what_they_read_and_write() -> None:
    stage = load("freeshap")(kernel=("ntk", "embedding"))
    assert stage.reads == ("ntk", "embedding", "label")
    assert "rounds" in stage.outside_key
    assert load("leave_one_out") is LeaveOneOut


def test_leave_one_out_writes_one_value_per_utility_and_example() -> None:
    rows = rows_of(LeaveOneOut())
    assert rows["semivalue"].unique().to_pylist() == ["loo"]
    assert rows.num_rows == 2 * len(LABELS["example"])


@pytest.mark.parametrize(
    ("fields", "n", "expected"),
    [
        ({}, 10_000, 12),
        ({}, 10_001, 11),
        ({}, 20_000, 6),
        ({}, 10**8, 4),
        ({"rounds": 7}, 10**8, 7),
        ({"stderr": 0.1}, 10**8, 12),
    ],
)
def test_many_examples_have_fewer_rounds(fields: dict[str, Any], n: int, expected: int) -> None:
    stage = FreeShap(**fields).sized(Size(n, n, 9, 2, {}))
    assert stage.n_rounds == stage.rounds == expected
    note = stage.cost(Work(n_examples=n, n_queries=9, n_tokens=0, n_classes=2, dim=9)).note
    assert f"; {expected} rounds" in note
    assert ("the work of 12" in note) == (not fields and expected < 12)


@pytest.mark.parametrize("stage", [FreeShap, ShapleyByQuery, LeaveOneOut])
def test_a_game_on_short_features_costs_what_their_length_does(stage: Any) -> None:
    work = Work(n_examples=100_000, n_queries=10, n_tokens=0, n_classes=2, dim=2688)
    short = replace(work, dim=512)
    assert stage(directions=512).cost(work).flops == stage(directions=None).cost(short).flops
    assert stage(directions=512).cost(replace(work, dim=64)).flops < (
        stage(directions=512).cost(short).flops
    )
