"""Shapley values add up to U(all) - U(none); what is told of estimates that do not."""

from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from memory_inputs import MemoryInputs, label_table, vector_table

from pipeline.shard_facts import of_task, sentences, together
from stages.game.efficiency import of_units, with_gap
from stages.game.utility import Judge
from stages.stage import Part
from stages.values import knn_shapley
from stages.values.freeshap import FreeShap
from stages.values.knn_shapley import KnnShapley
from stages.values.shapley_by_query import ShapleyByQuery

N, M = 30, 24
KERNEL: dict[str, Any] = {"kernel": ("embedding",), "ridge": 1.0}


@pytest.fixture(scope="module")
def inputs() -> MemoryInputs:
    """Two classes that overlap; every example is there twice, so that outputs often tie."""
    g = torch.Generator().manual_seed(0)
    x, q = torch.randn(N // 2, 5, generator=g).repeat(2, 1), torch.randn(M, 5, generator=g)
    y = (x[:, 0] + torch.randn(N, generator=g) > 0).long()
    labels = {
        "example": dict(enumerate(y.tolist())),
        "query": dict(enumerate((q[:, 0] > 0).long().tolist(), 1000)),
    }
    tables = {"label": label_table(labels), "embedding": vector_table(x, q)}
    return MemoryInputs(tables, {"label": {"classes": ["no", "yes"]}})


def told(inputs: MemoryInputs, stage: Any, parts: int = 1) -> tuple[dict[str, Any], Any]:
    """The manifest's details after so many rounds, and the rows of all of them."""
    inputs.open(stage)
    facts, rows = [], []
    for index in range(parts):
        rows.append(inputs.compute(stage, Part("", index))[stage.writes[0].name])
        facts.append(of_task(inputs.said_by(stage), str(index)))
    return together(facts), rows


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sampling": "paired"},
        {"sampling": "uniform", "truncation": "random"},
        {"sampling": "regression_msr"},
    ],
)
def test_the_gap_is_that_of_the_values_and_within_its_error(
    inputs: MemoryInputs, fields: dict[str, Any], seed: int
) -> None:
    stage = FreeShap(**KERNEL, **fields, seed=seed, survival=10.0, units_per_round=4)
    details, rounds = told(inputs, stage, 3)
    for utility in stage.utilities:
        facts = details["efficiency"][utility]
        totals = [r.filter(pc.equal(r["utility"], utility))["total"].to_numpy() for r in rounds]
        gain = details["utility_of_all"][utility] - details["utility_of_none"][utility]
        assert facts["gap"] == pytest.approx(np.sum(totals) / 12 - gain, abs=1e-12)
        assert facts["n"] == 12
        assert abs(facts["gap"]) <= facts["allowed"]
        if fields.get("truncation", "none") == "none" and fields:
            assert facts["allowed"] < 1e-6  # a whole permutation always adds up
    assert sentences(details) == []


def test_the_error_is_that_of_a_mean_over_units() -> None:
    sums = np.array([1.0, 1.4, 0.9, 1.1])
    facts = with_gap(of_units(sums, (0.2, 1.2)))
    assert facts["gap"] == pytest.approx(0.1)
    assert facts["stderr"] == pytest.approx(sums.std(ddof=1) / 2)
    # The quantile of t with 3 degrees of freedom at 0.9995, from a table.
    assert facts["allowed"] == pytest.approx(12.924 * facts["stderr"], rel=1e-3)
    assert with_gap(of_units(sums[:1], (0.2, 1.2)))["stderr"] is None


def test_the_bias_of_the_rule_of_the_paper_is_told(inputs: MemoryInputs) -> None:
    fields: dict[str, Any] = {"sampling": "uniform", "truncation": "tolerance", "tolerance": 0.4}
    details, _ = told(inputs, FreeShap(**KERNEL, **fields, units_per_round=8), 6)
    assert any(
        s.startswith("values of cross_entropy add up to") and "biased" in s
        for s in sentences(details)
    )


def test_ties_that_are_missed_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a tie one of bits alone, rounding would vote, and here nearly always for one side.

    Three classes of one-hot vectors: a query sees the classes of its own group alone.
    """
    g = torch.Generator().manual_seed(0)
    x, q = (torch.eye(6)[torch.randint(6, (rows,), generator=g)] for rows in (N, M))
    y, z = (torch.randint(3, (rows,), generator=g).tolist() for rows in (N, M))
    labels = {"example": dict(enumerate(y)), "query": dict(enumerate(z, 1000))}
    tables = {"label": label_table(labels), "embedding": vector_table(x, q)}
    inputs = MemoryInputs(tables, {"label": {"classes": ["a", "b", "c"]}})
    fields: dict[str, Any] = {"engine": "least_squares", "precision": "float32", "ridge": 0.01}
    stage = FreeShap(
        **{**KERNEL, **fields}, utilities=("accuracy",), sampling="uniform", units_per_round=30
    )
    assert sentences(told(inputs, stage)[0]) == []
    monkeypatch.setattr(Judge, "tie", lambda self, dtype: torch.zeros((), dtype=dtype))
    assert "values of accuracy add up to" in sentences(told(inputs, stage)[0])[0]


def test_values_of_single_queries_add_up(inputs: MemoryInputs) -> None:
    stage = ShapleyByQuery(**KERNEL, units=8)
    inputs.block = 10
    blocks = []
    inputs.part = Part("query", 0)
    inputs.open(stage)
    rows = []
    for index in range(3):
        rows += inputs.compute(stage, Part("query", index))["shapley_query"].to_pylist()
        blocks.append(of_task(inputs.said_by(stage), str(index)))
    inputs.part, inputs.block = Part("", 0), None
    details = together(blocks)
    freeshap = FreeShap(**KERNEL)
    inputs.open(freeshap)
    ends = freeshap.details(inputs)
    for utility, facts in details["efficiency"].items():
        total = sum(row["value"] for row in rows if row["utility"] == utility)
        gain = ends["utility_of_all"][utility] - ends["utility_of_none"][utility]
        assert facts["gap"] == pytest.approx(total / M - gain, abs=1e-10)
        assert facts["n"] == M
        assert abs(facts["gap"]) <= facts["allowed"]
    assert sentences(details) == []


def test_exact_values_add_up_to_rounding(
    inputs: MemoryInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = KnnShapley(neighbours=3)
    details, _ = told(inputs, stage)
    facts = details["efficiency"]["knn"]
    assert (facts["n"], abs(facts["gap"]) < 1e-12, facts["allowed"] < 1e-7) == (M, True, True)
    assert sentences(details) == []
    right = knn_shapley.values_by_rank
    monkeypatch.setattr(knn_shapley, "values_by_rank", lambda *given: right(*given) + 1e-6)
    details, _ = told(inputs, stage)
    assert details["efficiency"]["knn"]["gap"] == pytest.approx(N * 1e-6)
    assert "values of knn add up to" in sentences(details)[0]
