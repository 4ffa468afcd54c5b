"""The quantile test against regressions on each tenth, solved anew by a loop."""

from typing import Any

import numpy as np
import pytest
from scored_rows import CLASSES, RIDGE, N, ScoredRows, quiet

from stages.metrics.bootstrap import draws
from stages.metrics.quantiles import Quantiles
from stages.metrics.ranks import spearman
from stages.stage import ConfigError, DataError

CUTS = 4
FIELDS: dict[str, Any] = {
    "kernel": ("features",),
    "ridge": RIDGE,
    "quantiles": CUTS,
    "draws": 5,
    "resamples": 20,
}


def cut(score: np.ndarray, labels: np.ndarray | None) -> list[list[int]]:
    """The rows of each quantile, the largest scores first; of each class an equal share."""
    found: list[list[int]] = [[] for _ in range(CUTS)]
    groups = [list(range(N))] if labels is None else []
    if labels is not None:
        groups = [np.flatnonzero(labels == c).tolist() for c in range(CLASSES)]
    for members in groups:
        order = sorted(members, key=lambda i: -score[i])
        for at, row in enumerate(order):
            found[int(CUTS * (at + 0.5) / len(order))].append(row)
    return found


@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("method", ["pairs", "values", "issues"])
def test_losses_are_those_of_fits_on_each_quantile(method: str, per_class: bool) -> None:
    rows = ScoredRows()
    found = Quantiles(methods=(method,), per_class=per_class, **FIELDS).compute(rows, quiet)
    labels = rows.labels if per_class else None
    part_of = np.random.default_rng([0, 1, 4]).permutation(len(rows.judging)) % 2
    said = np.empty((CUTS, 2, len(rows.judging)))
    for part in range(2):
        score = rows.values
        if method == "pairs":
            score = rows.scores[rows.judging[part_of != part]].mean(0)
        for at, members in enumerate(cut(score, labels)):
            said[at][:, part_of == part] = np.stack(rows.solved(members))[:, part_of == part]
    own = [row for row in found.rows if row["method"] == method]
    assert [row["quantile"] for row in own] == [1, 2, 3, 4, None]
    for at, row in enumerate(own[:-1]):
        assert row["loss"] == pytest.approx(-said[at, 1].mean(), abs=1e-9)
        assert row["accuracy"] == pytest.approx(said[at, 0].mean())
        assert row["n_rows"] == len(cut(rows.values, labels)[at]) == 10
        assert row["spearman"] is None
        assert row["held_out"] == (method != "values")
    losses = -said[:, 1]
    assert own[-1]["spearman"] == pytest.approx(spearman(np.arange(float(CUTS)), losses.mean(1)))
    asked = list(draws(losses.shape[1], 20, 0))
    again = [spearman(np.arange(float(CUTS)), losses[:, at].mean(1)) for at in asked]
    ends = np.quantile(again, (0.025, 0.975))
    assert (own[-1]["spearman_low"], own[-1]["spearman_high"]) == pytest.approx(tuple(ends))


@pytest.mark.parametrize(("n_classes", "of_each"), [(2, 5), (4, 15), (20, 12), (3, 10)])
def test_quantiles_are_of_equally_many_rows_and_alike_in_classes(
    n_classes: int, of_each: int
) -> None:
    labels = np.repeat(np.arange(n_classes), of_each)
    score = np.random.default_rng(0).random(len(labels))
    found = Quantiles(methods=("values",), quantiles=10).quantile_of(score, labels)
    sizes = np.bincount(found, minlength=10)
    assert sizes.max() - sizes.min() <= 1
    for of_class in (labels == c for c in range(n_classes)):
        own = np.bincount(found[of_class], minlength=10)
        # Places in classes are rounded, so that one row may lie beyond the cut.
        assert own.max() - own.min() <= 2
        # The better ones are in the first.
        assert (np.diff(found[of_class][np.argsort(-score[of_class])]) >= 0).all()


def test_a_ranking_turned_round_has_the_correlation_less() -> None:
    rows = ScoredRows()
    rows.values = np.arange(N, dtype=float)
    losses = {}
    for name, values in (("values", rows.values), ("reversed", -rows.values)):
        rows.values = values
        metric = Quantiles(methods=("values",), per_class=False, **FIELDS)
        found = metric.compute(rows, quiet).rows
        own = [row for row in found if row["method"] == "values"]
        losses[name] = [row["loss"] for row in own[:-1]], own[-1]["spearman"]
    assert losses["reversed"][0] == pytest.approx(losses["values"][0][::-1])
    assert losses["reversed"][1] == pytest.approx(-losses["values"][1])
    ranked = sorted(losses["values"][0])
    expected = spearman(
        np.arange(float(CUTS)), np.array([float(ranked.index(x)) for x in losses["values"][0]])
    )
    assert losses["values"][1] == pytest.approx(expected)


def test_random_rankings_stand_beside() -> None:
    rows = ScoredRows()
    found = Quantiles(methods=("values",), **FIELDS).compute(rows, quiet).rows
    own = [row for row in found if row["method"] == "random"]
    generator = np.random.default_rng([0, 1, 2])
    each = [
        [-rows.solved(members)[1].mean() for members in cut(generator.random(N), rows.labels)]
        for _ in range(5)
    ]
    assert [row["loss"] for row in own[:-1]] == pytest.approx(np.mean(each, axis=0).tolist())
    ordered = [spearman(np.arange(float(CUTS)), np.array(losses)) for losses in each]
    assert own[-1]["spearman"] == pytest.approx(np.mean(ordered))
    ends = np.quantile(ordered, (0.025, 0.975))
    assert (own[-1]["spearman_low"], own[-1]["spearman_high"]) == pytest.approx(tuple(ends))


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ConfigError, match="found 2, expected at least 3"):
        Quantiles(quantiles=2)
    with pytest.raises(DataError, match="found 41 of 40 examples"):
        Quantiles(methods=("values",), **{**FIELDS, "quantiles": 41}).compute(ScoredRows(), quiet)
