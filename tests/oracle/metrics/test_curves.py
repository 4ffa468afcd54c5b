"""Curves against regressions solved anew by a loop, and heads against a plain training."""

from typing import Any

import numpy as np
import pytest
import torch
from scored_rows import CLASSES, DIM, RIDGE, UNLABELLED, N, ScoredRows, quiet

from stages.metrics.bootstrap import draws
from stages.metrics.curves import Curves
from stages.metrics.refitted import places, weights_of
from stages.model.seeded import generator_of
from stages.stage import ConfigError, DataError, Vectors

FIELDS: dict[str, Any] = {
    "kernel": ("features",),
    "ridge": RIDGE,
    "keep": (0.2, 0.5),
    "remove": (0.25,),
    "draws": 3,
    "resamples": 20,
}


def ranked(score: np.ndarray, labels: np.ndarray | None) -> list[int]:
    """Rows from the best: within each class by score, the classes dealt out by their shares."""
    if labels is None:
        return sorted(range(N), key=lambda i: -score[i])
    places = {}
    for label in set(labels.tolist()):
        members = sorted(np.flatnonzero(labels == label).tolist(), key=lambda i: -score[i])
        places |= {i: (at + 0.5) / len(members) for at, i in enumerate(members)}
    return sorted(range(N), key=lambda i: (places[i], -score[i]))


def expected(rows: ScoredRows, method: str, per_class: bool, action: str, count: int) -> np.ndarray:
    """Right and log-probability of each labelled query, judged by rankings of other queries."""
    labels = rows.labels if per_class else None
    sign = -1 if action == "remove_helpful" else 1
    if method != "pairs":
        return np.stack(rows.solved(ranked(sign * rows.values, labels)[:count]))
    part_of = np.random.default_rng([0, 1, 4]).permutation(len(rows.judging)) % 2
    found = np.empty((2, len(rows.judging)))
    for part in range(2):
        score = rows.scores[rows.judging[part_of != part]].mean(0)
        said = np.stack(rows.solved(ranked(sign * score, labels)[:count]))
        found[:, part_of == part] = said[:, part_of == part]
    return found


@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("method", ["pairs", "values"])
def test_a_curve_is_that_of_regressions_solved_anew(method: str, per_class: bool) -> None:
    rows = ScoredRows()
    found = Curves(methods=(method,), per_class=per_class, **FIELDS).compute(rows, quiet)
    cases = {("keep", 0.2): 8, ("keep", 0.5): 20}
    cases |= {("remove_harmful", 0.25): 30, ("remove_helpful", 0.25): 30}
    named = {(row["action"], row["share"]): row for row in found.rows}
    assert len(named) == len(found.rows) == 7
    for (action, share), count in cases.items():
        row, said = named[action, share], expected(rows, method, per_class, action, count)
        assert row["n_rows"] == count
        assert row["held_out"] == (method == "pairs")
        assert row["accuracy"] == pytest.approx(said[0].mean())
        assert row["cross_entropy"] == pytest.approx(said[1].mean(), abs=1e-9)
        for utility in ("accuracy", "cross_entropy"):
            gain = row[utility] - row[f"random_{utility}"]
            assert row[f"gain_{utility}"] == pytest.approx(gain)
            assert row[f"gain_{utility}_low"] <= row[f"gain_{utility}_high"]
    for utility in ("accuracy", "cross_entropy"):
        # Of two shares the trapezoid rule takes the mean; of one the number itself.
        each = [named["keep", share][f"gain_{utility}"] for share in (0.2, 0.5)]
        assert named["keep", None][f"gain_{utility}"] == pytest.approx(np.mean(each))
        of_one = named["remove_harmful", 0.25]
        assert named["remove_harmful", None][f"gain_{utility}"] == of_one[f"gain_{utility}"]
    everyone = rows.solved(list(range(N)))
    assert found.facts["accuracy_of_all"] == pytest.approx(everyone[0].mean())
    assert found.facts["n_queries"] == len(rows.judging)


def test_random_rows_and_the_interval_of_a_gain() -> None:
    rows = ScoredRows()
    found = Curves(methods=("values",), **{**FIELDS, "keep": (0.5,), "remove": ()})
    (row, _) = found.compute(rows, quiet).rows
    generator = np.random.default_rng([0, 1, 2])
    each = [rows.solved(ranked(generator.random(N), rows.labels)[:20])[1] for _ in range(3)]
    assert row["random_cross_entropy"] == pytest.approx(np.mean(each))
    assert row["random_cross_entropy_sd"] == pytest.approx(np.mean(each, axis=1).std(ddof=1))
    own = expected(rows, "values", True, "keep", 20)[1]
    again = [
        np.mean([own[q] - np.mean([each[d][q] for d in drawn]) for q in asked])
        for drawn, asked in zip(draws(3, 20, 0, stream=4), draws(len(own), 20, 0), strict=True)
    ]
    low, high = np.quantile(again, (0.025, 0.975))
    ends = (row["gain_cross_entropy_low"], row["gain_cross_entropy_high"])
    assert ends == pytest.approx((low, high))


def test_a_head_is_really_trained_on_what_is_kept() -> None:
    rows = ScoredRows()
    metric = Curves(methods=("values",), by="retrain", **{**FIELDS, "keep": (0.5,), "remove": ()})
    (row, _) = metric.compute(rows, quiet).rows
    kept = set(ranked(rows.values, rows.labels)[:20])
    visits = torch.randperm(N, generator=generator_of("refitted/0")).tolist()
    order = [i for i in visits if i in kept]
    head = torch.nn.Linear(DIM, CLASSES)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    step = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(10):
        for start in range(0, len(order), 16):
            own = order[start : start + 16]
            step.zero_grad()
            said = head(torch.from_numpy(rows.matrix["example"][own]))
            torch.nn.functional.cross_entropy(said, torch.from_numpy(rows.labels[own])).backward()
            step.step()
    with torch.no_grad():
        said = head(torch.from_numpy(rows.matrix["query"][rows.judging])).log_softmax(1)
    own_class = said[np.arange(len(rows.answers)), rows.answers]
    # float32 weights after 20 steps; the fused Adam rounds otherwise.
    assert row["cross_entropy"] == pytest.approx(float(own_class.mean()), abs=1e-5)


def test_a_query_has_no_say_in_a_ranking_by_pairs_that_it_judges() -> None:
    rows = ScoredRows()
    fields = {**FIELDS, "keep": (0.2,), "remove": ()}
    metric, made = Curves(methods=("pairs",), **fields), None
    made = metric.refit(rows)
    ((_, before),) = metric.ranked(rows, "pairs", made)
    rows.scores[rows.judging[4]] += 100 * np.arange(N)
    ((_, after),) = metric.ranked(rows, "pairs", made)
    changed = [bool((a.score != b.score).any()) for a, b in zip(after, before, strict=True)]
    assert changed == [not order.judges[4] for order in before]
    assert sum(changed) == 1


def test_places_and_the_trapezoid_rule() -> None:
    score, labels = np.array([3.0, 1, 2, 9]), np.array([0, 0, 0, 1])
    assert places(score, labels, False).tolist() == [0.375, 0.875, 0.625, 0.125]
    assert places(score, labels, True).tolist() == pytest.approx([1 / 6, 5 / 6, 0.5, 0.5])
    assert weights_of((0.1, 0.2, 0.5)) @ [1, 1, 1] == pytest.approx(1)
    line = np.array([0.1, 0.2, 0.5])
    assert weights_of((0.1, 0.2, 0.5)) @ line == pytest.approx(0.3)


@pytest.mark.parametrize(
    "fields",
    [
        {"keep": (0.5, 0.2)},
        {"keep": (), "remove": ()},
        {"remove": (1.0,)},
        {"parts": 1},
        {"methods": ()},
        {"last_blocks": 1},
    ],
)
def test_fields_that_judge_nothing_are_refused(fields: Any) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Curves(**{**FIELDS, **fields})


def test_rows_that_cannot_be_compared_are_refused() -> None:
    rows = ScoredRows()
    rows.tables["values"] = rows.value_rows().slice(1, N - 1)
    with pytest.raises(DataError, match="found no score of 1 of 40 examples"):
        Curves(methods=("values",), **FIELDS).compute(rows, quiet)
    rows = ScoredRows()
    alone = np.array([UNLABELLED])
    rows.vectors_of["query"] = Vectors(rows.query_ids[alone], rows.matrix["query"][alone])
    with pytest.raises(DataError, match="found 0 labelled queries"):
        Curves(methods=("values",), **FIELDS).compute(rows, quiet)
