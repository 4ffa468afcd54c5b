"""Areas, precision and calibration of flags against counts of pairs and thresholds by hand."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scored_rows import CLASSES, N, ScoredRows, quiet

from stages.metrics.bootstrap import draws
from stages.metrics.flags import Flags
from stages.metrics.metric import Instance
from stages.metrics.ranks import areas, auc, average_precision, coded
from stages.metrics.true_labels import known_labels
from stages.stage import ConfigError, DataError


class Known(ScoredRows):
    """The same rows; the first has no true label, a dozen others have another one."""

    def __init__(self) -> None:
        super().__init__()
        g = np.random.default_rng(1)
        self.values = np.round(self.values, 1)
        # Low values are wrong more often, so that there is something to find.
        self.is_wrong = g.random(N) < 1 / (1 + np.exp(2 * self.values))
        true = np.where(self.is_wrong, (self.labels + 1) % CLASSES, self.labels)
        self.true: list[int | None] = [None, *true[1:].tolist()]
        self.is_wrong = self.is_wrong[1:]
        label = self.tables["label"]
        more = pa.array([*self.true, *[None] * (label.num_rows - N)], pa.int64())
        self.tables["label"] = label.set_column(3, "true_label", more)


def area(values: list[float], wrong: list[bool]) -> float:
    """The share of pairs of a wrong and a right row in which the wrong one has less."""
    bad = [v for v, is_wrong in zip(values, wrong, strict=True) if is_wrong]
    good = [v for v, is_wrong in zip(values, wrong, strict=True) if not is_wrong]
    return float(np.mean([(a < b) + (a == b) / 2 for a in bad for b in good]))


def precision_by_recall(values: list[float], wrong: list[bool]) -> float:
    found, recall = 0.0, 0.0
    for threshold in sorted(set(values)):
        read = [is_wrong for v, is_wrong in zip(values, wrong, strict=True) if v <= threshold]
        now = sum(read) / sum(wrong)
        found += (now - recall) * sum(read) / len(read)
        recall = now
    return found


def numbers(values: np.ndarray, wrong: np.ndarray, flagged: np.ndarray) -> dict[str, float]:
    hits = sum(a and b for a, b in zip(flagged.tolist(), wrong.tolist(), strict=True))
    precision, recall = hits / flagged.sum(), hits / wrong.sum()
    return {
        "auc": area(values.tolist(), wrong.tolist()),
        "average_precision": precision_by_recall(values.tolist(), wrong.tolist()),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
    }


def test_flags_are_counted_against_the_true_labels() -> None:
    rows = Known()
    found = Flags(methods=("issues",), resamples=20).compute(rows, quiet)
    (row,) = found.rows
    values, wrong = rows.values[1:], rows.is_wrong
    flagged = values < -0.35
    expected = numbers(values, wrong, flagged)
    for name, value in expected.items():
        assert row[name] == pytest.approx(value)
    assert 0.55 < row["auc"] < 1
    assert (row["rows"], row["wrong"]) == (N - 1, wrong.sum())
    assert (row["flagged"], row["hits"]) == (flagged.sum(), (flagged & wrong).sum())
    again = []
    for at in draws(N - 1, 20, 0):
        again.append(numbers(values[at], wrong[at], flagged[at]))
    for name in expected:
        ends = np.quantile([each[name] for each in again], (0.025, 0.975))
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(tuple(ends))
    assert found.facts["n_labelled"] == N
    assert found.facts["wrong_base"] == pytest.approx(wrong.mean())


def test_calibration_is_the_gap_in_bins_of_equally_many_rows() -> None:
    rows = Known()
    (row,) = Flags(methods=("issues",), resamples=5).compute(rows, quiet).rows
    p, wrong = 1 / (1 + np.exp(3 * rows.values[1:])), rows.is_wrong
    assert row["expected"] == pytest.approx(p.sum())
    order = sorted(range(N - 1), key=lambda i: p[i])
    bins: list[list[int]] = [[] for _ in range(10)]
    for at, i in enumerate(order):
        bins[at * 10 // (N - 1)].append(i)
    gaps = [abs(sum(p[i] - wrong[i] for i in members)) for members in bins]
    assert {len(members) for members in bins} == {3, 4}
    assert row["calibration"] == pytest.approx(sum(gaps) / (N - 1))
    assert row["calibration_low"] <= row["calibration_high"]


def test_values_and_pairs_have_areas_and_no_flags() -> None:
    rows = Known()
    found = Flags(methods=("values", "pairs"), resamples=5).compute(rows, quiet)
    by_method = {row["method"]: row for row in found.rows}
    of_pairs = rows.scores.mean(0)
    for method, values in (("values", rows.values), ("pairs", of_pairs)):
        row = by_method[method]
        expected = area(values[1:].tolist(), rows.is_wrong.tolist())
        assert row["auc"] == pytest.approx(expected)
        assert row["precision"] is row["flagged"] is row["calibration"] is None
    assert [row["auc"] for row in found.rows] == sorted(
        (row["auc"] for row in found.rows), reverse=True
    )


@pytest.mark.parametrize("names", ["class", "number"])
def test_true_labels_may_stand_in_a_column(names: str) -> None:
    rows = Known()
    true = [None if y is None else "abc"[y] if names == "class" else y for y in rows.true]
    known = known_labels(rows)
    rows.tables["label"] = rows.tables["label"].set_column(
        3, "true_label", pa.nulls(rows.tables["label"].num_rows, pa.int64())
    )
    blank = {"source_id": [""] * N, "row_number": np.arange(N)}
    own = {"id": rows.example_ids, "role": ["example"] * N}
    # In no order, as a source may have them.
    rows.tables["extra"] = pa.table({**own, **blank, "gold": true}).take(np.arange(N)[::-1])
    found = known_labels(rows, "gold")
    assert found.ids.tolist() == known.ids.tolist()
    assert found.is_wrong.tolist() == known.is_wrong.tolist() == rows.is_wrong.tolist()
    assert Flags(methods=("values",), true_label="gold").reads == ("values", "label", "extra")
    with pytest.raises(DataError, match="found no column golden among the examples"):
        known_labels(rows, "golden")
    with pytest.raises(DataError, match="whose true one is known"):
        Flags(methods=("values",)).compute(rows, quiet)


def test_names_that_are_numbers_stay_names_beside_an_unknown_label() -> None:
    """Classes 1, 2, 3, whose places are 0, 1, 2; the first row's true label is unknown."""
    rows = Known()
    known, details = known_labels(rows), rows.details
    named = {"classes": ("1", "2", "3")}
    rows.details = lambda name: {**details(name), **named}  # type: ignore[method-assign]
    gold = [None if y is None else y + 1 for y in rows.true]
    blank = {"source_id": [""] * N, "row_number": np.arange(N), "gold": gold}
    own = {"id": rows.example_ids, "role": ["example"] * N}
    rows.tables["extra"] = pa.table({**own, **blank})
    assert known_labels(rows, "gold").is_wrong.tolist() == known.is_wrong.tolist()
    as_written = pa.array(gold, pa.float64())
    rows.tables["extra"] = rows.tables["extra"].set_column(4, "gold", as_written)
    assert known_labels(rows, "gold").is_wrong.tolist() == known.is_wrong.tolist()


@pytest.mark.parametrize("kind", [pa.string(), pa.float64()])
def test_numbers_may_be_texts_or_stand_beside_nan(kind: pa.DataType) -> None:
    """A CSV has texts alone, and NaN is what pandas has where nothing is known."""
    rows = Known()
    known = known_labels(rows)
    gold = pa.array(rows.true, pa.int64()).cast(kind)
    if pa.types.is_floating(kind):
        gold = pa.array(gold.to_numpy(zero_copy_only=False))
    blank = {"source_id": [""] * N, "row_number": np.arange(N), "gold": gold}
    own = {"id": rows.example_ids, "role": ["example"] * N}
    rows.tables["extra"] = pa.table({**own, **blank})
    assert known_labels(rows, "gold").is_wrong.tolist() == known.is_wrong.tolist()


def test_a_column_of_something_else_is_refused() -> None:
    rows = Known()
    blank = {"source_id": [""] * N, "row_number": np.arange(N), "gold": ["d"] * N}
    own = {"id": rows.example_ids, "role": ["example"] * N}
    rows.tables["extra"] = pa.table({**own, **blank})
    with pytest.raises(DataError, match="found 'd' in the column gold, expected a class: a, b, c"):
        known_labels(rows, "gold")


def test_areas_have_their_definition_with_and_without_ties() -> None:
    g = np.random.default_rng(2)
    for n, digits in ((30, 0), (30, 3), (5, 0)):
        values, positive = np.round(g.normal(size=n), digits), g.random(n) < 0.4
        positive[:2] = True, False
        assert auc(values, positive) == pytest.approx(area((-values).tolist(), positive.tolist()))
        by_recall = precision_by_recall((-values).tolist(), positive.tolist())
        assert average_precision(values, positive) == pytest.approx(by_recall)
        counts = g.integers(0, 4, n)
        counts[:2] = 1
        again = np.repeat(np.arange(n), counts)
        found = areas(coded(values[None]).codes[0], positive, counts)
        assert found[0] == pytest.approx(auc(values[again], positive[again]))
        assert found[1] == pytest.approx(average_precision(values[again], positive[again]))
    assert np.isnan(average_precision(values, np.zeros(5, bool)))
    # The order of the rows says nothing where values are equal.
    ties, one = np.zeros(4), np.array([True, False, False, False])
    assert average_precision(ties, one) == average_precision(ties, one[::-1]) == 0.25


def test_methods_are_those_that_score_examples() -> None:
    instances = {
        "tracin": Instance(None, ("attribution",), "label"),
        "label_issues": Instance(None, ("label_issues",), None),
        "freeshap": Instance(None, ("shapley_round", "shapley_stratum"), None),
    }
    assert Flags().with_instances(lambda: instances).methods == ("label_issues", "freeshap")
    named = Flags(methods=("tracin",)).with_instances(lambda: instances)
    assert named.methods == ("tracin",)
    with pytest.raises(ConfigError, match="found no instance that scores examples"):
        Flags().with_instances(lambda: {"tracin": instances["tracin"]})


@pytest.mark.parametrize("fields", [{"methods": ("a", "a")}, {"resamples": 0}, {"seed": -1}])
def test_fields_that_judge_nothing_are_refused(fields: Any) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Flags(**fields)
