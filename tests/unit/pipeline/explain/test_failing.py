"""Sets of queries: which way scores count, how a set is cut, and what a forecast comes to."""

from types import SimpleNamespace
from typing import Any

import duckdb
import pytest

from pipeline.errors import RunError
from pipeline.explain.failing import _predicted, explain_set
from pipeline.explain.query_set import QuerySet
from pipeline.explain.set_forecast import FEWEST, halves
from pipeline.explain.set_titles import forecast_table, verdict
from pipeline.progress import Progress

VIEWS = """
CREATE SCHEMA tables;
CREATE TABLE tables.label AS SELECT * FROM (VALUES
    (1, 'query', 0, NULL), (2, 'query', 1, NULL), (3, 'query', NULL, 2.5), (4, 'query', NULL, 2.5)
) AS t(id, role, label, target);
CREATE VIEW predictions AS SELECT 'query' AS role, * FROM (VALUES
    ('model', 'model', 1, 0, [1.0, 0.0]), ('model', 'model', 2, 0, [1.0, 0.0]),
    ('kernel', 'kernel', 1, 1, [0.0, 1.0]), ('kernel', 'kernel', 2, 1, [0.0, 1.0]),
    ('number', 'probe', 3, NULL, [2.0]), ('number', 'probe', 4, NULL, [3.0])
) AS t(method, source, id, predicted, logits);
"""


def chosen(ids: list[int], labels: str = "") -> QuerySet:
    rows = [{"query_id": i, "label": label} for i, label in zip(ids, labels or ids, strict=True)]
    return QuerySet("failing.csv", rows)


@pytest.mark.parametrize(
    ("reads", "ids", "expected"),
    [
        ("kernel", [1, 2], {1: False, 2: True}),
        # A method that reads no predictions, such as one of gradients, explains the model's.
        ("probe", [1, 2], {1: True, 2: False}),
        # A larger number is nearer to the target of the first, and farther from that of the second.
        ("number", [3, 4], {3: True, 4: False}),
        ("probe", [7], None),
    ],
)
def test_it_is_the_explained_prediction_that_is_right_or_wrong(
    reads: str, ids: list[int], expected: dict[int, bool] | None
) -> None:
    connection: Any = duckdb.connect()
    connection.execute(VIEWS)
    run = SimpleNamespace(views=lambda: ["predictions"], sql=connection.sql)
    finished: Any = SimpleNamespace(sources=lambda _: {"x": (reads, "table")})
    assert _predicted(run, finished, "method", chosen(ids)) == expected


def test_halves_are_of_one_size_within_every_label() -> None:
    labels = "a" * 7 + "b" * 4 + "c"
    set_ = chosen(list(range(100, 112)), labels)
    found = halves(set_)
    assert found == halves(set_)
    for label in "abc":
        own = [found[row["query_id"]] for row in set_.rows if row["label"] == label]
        assert abs(own.count(0) - own.count(1)) <= 1
    assert sorted(found.values()) == [0] * 6 + [1] * 6
    assert halves(chosen(list(range(FEWEST - 1)))) == {}


@pytest.mark.parametrize("alone", [("1", None, None), (None, "text", None), (None, None, "b")])
def test_a_set_stands_alone(alone: tuple[str | None, ...]) -> None:
    with pytest.raises(RunError, match="found queries beside a single query or a text"):
        explain_set(None, [1], (), 5, 20, Progress(), alone)


@pytest.mark.parametrize("n_removed", [0, 1001])
def test_a_cure_is_of_some_rows(n_removed: int) -> None:
    with pytest.raises(RunError, match=f"found remove: {n_removed}, expected 1 to 1000"):
        explain_set(None, [1], (), 5, n_removed, Progress())


def forecast(*rows: tuple[str, str | None, float, float, float | None]) -> dict[str, Any]:
    made = []
    for action, by, of_set, others, spread in rows:
        row: dict[str, Any] = {"action": action, "by": by, "of": "set", "n_rows": 3}
        row |= {"set": {"margin": of_set}, "others": {"margin": others}, "all": {"margin": 0.0}}
        made.append(row | ({"set_sd": {"margin": spread}} if spread is not None else {}))
    return {"draws": 10, "rows": made}


def test_a_cure_must_do_more_than_random_rows_by_chance() -> None:
    before, random = ("none", None, -0.5, 0.5, None), ("remove", "random", -0.4, 0.5, 0.1)
    good = forecast(
        before, ("remove", "x", -0.19, 0.4, None), ("remove", "y", -0.3, 0.5, None), random
    )
    assert verdict(good) == (
        "Best for the set (without the 3 worst of x): margin of the set -0.500 -> -0.190, margin "
        "of the others 0.500 -> 0.400."
    )
    assert forecast_table(good)[1][-1] == [
        "without 3 random ones (10 draws)",
        "-0.400 ± 0.100",
        "0.500",
        "0.000",
    ]
    assert verdict(forecast(before, ("remove", "x", -0.21, 0.4, None), random)).startswith(
        "No cure"
    )
    # Random rows that harm by chance make no cure of what harms less.
    harmful = ("remove", "random", -0.9, 0.5, 0.1)
    assert verdict(forecast(before, ("remove", "x", -0.51, 0.4, None), harmful)).startswith(
        "No cure"
    )
    assert verdict(forecast(before, random)).startswith("No method of the run")
