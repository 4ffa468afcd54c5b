"""What is kept is judged by the regression solved anew, on queries that had no say."""

from typing import Any

import numpy as np
import pytest
from memory_inputs import MemoryInputs, label_table

from stages.metrics.refitted import best_rows
from stages.metrics.selection import Selection
from stages.stage import ConfigError, DataError, Vectors

N, M, CLASSES, RIDGE = 40, 12, 3, 0.2
FIELDS: dict[str, Any] = {
    "kernel": ("features",),
    "ridge": RIDGE,
    "utilities": ("accuracy", "cross_entropy"),
    "keep": (0.25, 0.5),
    "draws": 3,
    "rounds": 2,
}


class Rows(MemoryInputs):
    """Labelled vectors of three classes, and labelled queries."""

    def __init__(self, answers: dict[int, int | None] | None = None) -> None:
        g = np.random.default_rng(0)
        self.labels = {
            "example": dict(enumerate(g.integers(0, CLASSES, N).tolist())),
            "query": dict(enumerate(g.integers(0, CLASSES, M).tolist())) | (answers or {}),
        }
        middle = g.normal(size=(CLASSES, 6))
        self.matrix = {
            role: (
                middle[[0 if label is None else label for label in of_role.values()]]
                + 1.5 * g.normal(size=(len(of_role), 6))
            ).astype(np.float32)
            for role, of_role in self.labels.items()
        }
        vectors = {role: Vectors(np.arange(len(m)), m) for role, m in self.matrix.items()}
        details = {"label": {"classes": ["a", "b", "c"]}}
        super().__init__({"label": label_table(self.labels)}, details, vectors)


def solved(rows: Rows, chosen: np.ndarray) -> tuple[float, float]:
    """Accuracy and mean log-probability of the regression on some examples, for all queries."""
    unit = {
        role: m / np.linalg.norm(m.astype(np.float64), axis=1)[:, None]
        for role, m in rows.matrix.items()
    }
    f, q = unit["example"][chosen], unit["query"]
    targets = np.eye(CLASSES)[[rows.labels["example"][i] for i in chosen.tolist()]] - 1 / CLASSES
    weights = np.linalg.solve(f @ f.T + RIDGE * np.eye(len(f)), targets)
    outputs = q @ f.T @ weights
    answers = np.array(list(rows.labels["query"].values()))
    chance = np.log(np.exp(outputs).sum(1))
    return (
        float((outputs.argmax(1) == answers).mean()),
        float((outputs[np.arange(M), answers] - chance).mean()),
    )


def test_all_rows_are_worth_what_the_regression_on_them_is() -> None:
    rows = Rows()
    found = Selection(**FIELDS).compute(rows, lambda done, total: None)
    (row,) = (row for row in found.rows if row["by"] == "all")
    accuracy, cross_entropy = solved(rows, np.arange(N))
    assert row["accuracy"] == pytest.approx(accuracy)
    assert row["cross_entropy"] == pytest.approx(cross_entropy, abs=1e-9)
    assert (row["keep"], row["n_rows"], row["accuracy_sd"]) == (1.0, N, None)


def test_the_table_is_the_mean_of_the_parts_and_says_how_random_rows_vary() -> None:
    found = Selection(**FIELDS).compute(Rows(), lambda done, total: None)
    assert [(row["keep"], row["by"]) for row in found.rows] == [
        (1.0, "all"),
        *((share, by) for share in (0.25, 0.5) for by in ("accuracy", "cross_entropy", "random")),
    ]
    for row in found.rows:
        parts = [
            [d["accuracy"] for d in found.details if (d["part"], d["keep"], d["by"]) == wanted]
            for wanted in ((part, row["keep"], row["by"]) for part in range(2))
        ]
        draws = np.mean(parts, axis=0)
        assert len(draws) == (3 if row["by"] == "random" else 1)
        assert row["accuracy"] == pytest.approx(draws.mean())
        if len(draws) > 1:
            assert row["accuracy_sd"] == pytest.approx(draws.std(ddof=1))


def test_a_query_has_no_say_in_the_choice_that_it_judges() -> None:
    def chosen(answers: dict[int, int | None]) -> list[dict[str, Any]]:
        found = Selection(**{**FIELDS, "utilities": ("accuracy",), "rounds": 1})
        details = found.compute(Rows(answers), lambda done, total: None).details
        return [d for d in details if d["by"] == "accuracy"]

    before = chosen({})
    for query in (0, 5, 11):
        label = Rows().labels["query"][query]
        assert label is not None
        after = chosen({query: (label + 1) % CLASSES})
        # Of the part that the query judges only its own verdict may change: one in six queries.
        for part in range(2):
            changes = [
                abs(a["accuracy"] - b["accuracy"])
                for a, b in zip(after, before, strict=True)
                if a["part"] == part
            ]
            if max(changes) <= 1 / 6 + 1e-9:
                break
        else:
            pytest.fail(f"query {query} moved the choices of both parts")


def test_the_same_share_of_each_class_is_kept_by_value() -> None:
    value = np.array([5.0, 4, 3, 2, 1, 0, -1, -2, 9, 8])
    labels = np.array([0] * 8 + [1] * 2)
    assert best_rows(value, labels, 5).tolist() == [0, 1, 8, 2, 3]
    assert sorted(best_rows(value, labels, 10).tolist()) == list(range(10))


@pytest.mark.parametrize(
    "fields",
    [
        {"keep": ()},
        {"keep": (1.0,)},
        {"keep": (0.2, 0.2)},
        {"draws": 1},
        {"parts": 1},
        {"utilities": ("loss",)},
    ],
)
def test_fields_that_choose_nothing_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Selection(**{**FIELDS, **fields})


def test_fewer_labelled_queries_than_parts_are_told() -> None:
    answers: dict[int, int | None] = dict.fromkeys(range(1, M))
    with pytest.raises(DataError, match="found 1 labelled queries"):
        Selection(**FIELDS).compute(Rows(answers), lambda done, total: None)
