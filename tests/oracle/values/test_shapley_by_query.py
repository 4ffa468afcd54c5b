"""Values for single queries against enumeration, and against the values for all of them."""

import itertools
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_inputs import MemoryInputs, label_table

from stages.stage import ConfigError, DataError, Part, Size, Vectors
from stages.values.freeshap import FreeShap
from stages.values.shapley_by_query import ShapleyByQuery

LABELS = {"example": [0, 1, 1, 0, 1], "query": [0, None, 1]}
UTILITIES = ("cross_entropy", "margin", "accuracy")


class Rows(MemoryInputs):
    """Five examples and three queries, one of which has no label."""

    def __init__(self, n_classes: int) -> None:
        self.n_classes = n_classes
        drawn = torch.Generator().manual_seed(3)
        self.matrix = {
            role: torch.randn(len(labels), 4, generator=drawn, dtype=torch.float64).numpy()
            for role, labels in LABELS.items()
        }
        by_id = {role: {10 * i: y for i, y in enumerate(ys)} for role, ys in LABELS.items()}
        super().__init__(
            {"label": label_table(by_id)},
            {"label": {"classes": list("abc"[:n_classes])}},
            {role: Vectors(np.arange(len(rows)) * 10, rows) for role, rows in self.matrix.items()},
            Part("query", 0),
        )


def rows_of(stage: Any, inputs: Any) -> pa.Table:
    inputs.opened = stage.open(inputs)
    return pa.Table.from_batches([batch for _, batch in stage.compute(inputs)])


def values(stage: Any, inputs: Any) -> dict[tuple[str, int, int], float]:
    rows = rows_of(stage, inputs)
    return {
        (r["utility"], r["query_id"], r["example_id"]): r["value"]
        for r in stage.writes[0].check(rows).to_pylist()
    }


def enumerated(inputs: Rows) -> dict[tuple[str, int, int], float]:
    """By the definition, with the class that all examples predict where a label is unknown."""
    n, c = 5, inputs.n_classes
    features, queries = inputs.matrix["example"], inputs.matrix["query"]
    targets = np.eye(c)[LABELS["example"]] - 1 / c
    kernel = features @ features.T
    damping = 0.3 * np.diag(kernel).mean()

    def outputs(subset: list[int]) -> np.ndarray:
        if not subset:
            return np.zeros((3, c))
        damped = kernel[np.ix_(subset, subset)] + damping * np.eye(len(subset))
        return queries @ features[subset].T @ np.linalg.solve(damped, targets[subset])

    predicted = outputs(list(range(n))).argmax(1)
    labels = [p if y is None else y for p, y in zip(predicted, LABELS["query"], strict=True)]

    def worth(subset: list[int]) -> np.ndarray:
        found = outputs(subset)
        rows = []
        for output, y in zip(found, labels, strict=True):
            best = output.max() - 1e-10
            accuracy = (output[y] >= best) / (output >= best).sum()
            rows.append(
                [
                    output[y] - math.log(np.exp(output).sum()),
                    output[y] - np.delete(output, y).max(),
                    accuracy,
                ]
            )
        return np.array(rows).T

    total: dict[tuple[str, int, int], float] = {}
    for i in range(n):
        others = [j for j in range(n) if j != i]
        value = np.zeros((3, 3))
        for size in range(n):
            for subset in itertools.combinations(others, size):
                gain = worth([*subset, i]) - worth(list(subset))
                value += gain / n / math.comb(n - 1, size)
        for u, utility in enumerate(UTILITIES):
            for q in range(3):
                total[utility, q * 10, i * 10] = value[u, q]
    return total


@pytest.mark.parametrize("n_classes", [2, 3])
def test_values_are_the_enumerated_ones(n_classes: int) -> None:
    """Within 5 standard errors of 300 permutations."""
    inputs = Rows(n_classes)
    stage = ShapleyByQuery(
        sampling="uniform", utilities=UTILITIES, ridge=0.3, normalize=False, units=300
    )
    rows = rows_of(stage, inputs)
    exact = enumerated(inputs)
    assert rows.num_rows == len(exact)
    for row in rows.to_pylist():
        expected = exact[row["utility"], row["query_id"], row["example_id"]]
        assert abs(row["value"] - expected) <= 5 * row["stderr"] + 1e-9


def test_the_mean_over_queries_is_the_value_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Rows(2)
    fields: Any = {"sampling": "paired", "ridge": 0.3, "utilities": ("margin", "accuracy")}
    by_query = values(ShapleyByQuery(units=4, queries=(0, 20), **fields), inputs)
    # A few queries at a time give the same values.
    monkeypatch.setattr("stages.values.shapley_by_query.NUMBERS", 1)
    in_parts = values(ShapleyByQuery(units=4, queries=(0, 20), **fields), inputs)
    assert in_parts.keys() == by_query.keys()
    np.testing.assert_allclose(list(in_parts.values()), list(by_query.values()), atol=1e-12)
    stage = FreeShap(units_per_round=4, **fields)
    inputs.part, inputs.opened = Part("", 0), stage.open(inputs)  # type: ignore[assignment]
    batches = [batch for name, batch in stage.compute(inputs) if name == "shapley_round"]
    for row in pa.Table.from_batches(batches).to_pylist():
        mean = np.mean([by_query[row["utility"], q, row["example_id"]] for q in (0, 20)])
        assert row["total"] / 4 == pytest.approx(mean, abs=1e-12)


def test_the_largest_values_of_each_sign_are_kept() -> None:
    fields: Any = {"units": 4, "ridge": 0.3, "utilities": ("cross_entropy", "margin")}
    whole = rows_of(ShapleyByQuery(**fields), Rows(2)).to_pylist()
    kept = rows_of(ShapleyByQuery(top_k=1, **fields), Rows(2)).to_pylist()
    expected = []
    for utility, query in itertools.product(fields["utilities"], (0, 10, 20)):
        own = [r for r in whole if (r["utility"], r["query_id"]) == (utility, query)]
        best, worst = (side(own, key=lambda r: r["value"]) for side in (max, min))
        both = [best] * (best["value"] > 0) + [worst] * (worst["value"] < 0)
        expected += sorted(both, key=lambda r: r["example_id"])
    assert kept == expected


def test_of_many_pairs_the_largest_values_are_kept() -> None:
    """Two utilities: 2^25 values are 2^24 pairs, of which one is too many."""

    def chosen(n_examples: int, n_queries: int, **fields: Any) -> Any:
        size = Size(n_examples, n_examples, n_queries, n_classes=2, lengths={})
        stage: Any = ShapleyByQuery(**fields).sized(size)
        return stage.top_k

    assert chosen(2**14, 2**10) is None
    assert chosen(2**14 + 1, 2**10) == 1000
    assert chosen(10**6, 872, queries=(1,)) is None
    assert chosen(10**6, 872, top_k=3) == 3


def test_keys_of_before_are_kept_while_all_values_are() -> None:
    assert "top_k" in ShapleyByQuery().outside_key
    assert "top_k" not in ShapleyByQuery(top_k=7).outside_key


def test_other_queries_have_no_rows() -> None:
    stage = ShapleyByQuery(units=1, queries=(10,), ridge=0.3)
    rows = rows_of(stage, Rows(2))
    assert rows["query_id"].unique().to_pylist() == [10]
    assert rows["stderr"].null_count == rows.num_rows
    with pytest.raises(DataError, match="no query with features and the id 11"):
        rows_of(ShapleyByQuery(units=1, queries=(10, 11)), Rows(2))


@pytest.mark.parametrize(
    "fields", [{"units": 0}, {"queries": ()}, {"truncation": "tolerance"}, {"top_k": 0}]
)
def test_unusable_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ShapleyByQuery(**{"sampling": "uniform", **fields})
