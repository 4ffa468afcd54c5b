"""Which trials speak for a choice."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import trials
from pipeline.trials import interval, trials_of

FOUND = [
    {"method": "one", "by": "query_relevance", "features": "position_weighted", "per": None},
    {"method": "two", "by": "query_relevance", "features": "less", "per": None},
    {"method": "three", "by": "answer_issues", "features": "position_weighted", "per": None},
    {"method": "four", "by": "query_relevance", "features": "less", "per": "task"},
]
FIELDS: dict[str, dict[str, str | None]] = {
    "query_relevance": {"features": "position_weighted"},  # of a run before there was `per`
    "by_less": {"features": "less", "per": None},
    "by_words": {"features": "embedding", "per": None},
    "by_task": {"features": "less", "per": "task"},
}


@pytest.mark.parametrize(
    ("by", "instance", "methods"),
    [
        ("query_relevance", "query_relevance", ["one"]),
        ("query_relevance", "by_less", ["two"]),
        ("query_relevance", "by_words", []),
        ("query_relevance", "by_task", ["four"]),
        ("answer_issues", "answer_issues", ["three"]),
        ("random", "random", []),
    ],
)
def test_a_trial_that_chose_otherwise_says_nothing(
    by: str, instance: str, methods: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sql(statement: str) -> Any:
        (fields,) = (fields for name, fields in FIELDS.items() if f"'{name}'" in statement)
        return SimpleNamespace(fetchall=lambda: [(json.dumps(fields),)])

    monkeypatch.setattr(trials, "trials", lambda run: FOUND)
    run = SimpleNamespace(views=lambda: ["selection_trial"], sql=sql)
    assert [trial["method"] for trial in trials_of(run, by, instance)] == methods


@pytest.mark.parametrize(
    ("n", "quantile"),
    # The 97.5 % points of tables of Student's t with n - 1 degrees of freedom.
    [(2, 12.706), (3, 4.303), (4, 3.182), (6, 2.571), (11, 2.228), (20, 2.093), (61, 2.000)],
)
def test_intervals_of_few_queries_are_wide(n: int, quantile: float) -> None:
    low, high = interval(1.0, 2.0, n)
    assert (high - 1, 1 - low) == pytest.approx((2 * quantile, 2 * quantile), rel=0.01)
