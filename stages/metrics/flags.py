"""How well scores find wrong labels, where true ones are known.

Each score orders the examples, the most suspicious first: a low `label_score`, a low value, of a
pairwise method a low mean score over the queries. Against what is known:

- auc: the probability that a wrong label is more suspicious than a right one, ties counting half.
- average_precision: the area under precision by recall, from the most suspicious down; by chance it
  is the share of wrong labels.
- flagged, hits, precision, recall, f1: of the labels that `label_issues` flags; other methods flag
  none and have no such numbers.
- expected: how many labels `label_issues` expects to be wrong, the sum of `p_wrong`; calibration:
  the mean of |mean `p_wrong` - share of wrong labels| over ten bins of equally many rows, by
  `p_wrong` (expected calibration error, arXiv:1706.04599, there with bins of equal width).

Intervals are over rows: what other rows, drawn as these were, would have given.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int64

from stages.metrics.bootstrap import draws, estimated
from stages.metrics.metric import Instance, Metric, Result
from stages.metrics.ranks import areas, coded
from stages.metrics.scored import VALUES, Scores, scores_of
from stages.metrics.true_labels import KnownLabels, known_labels
from stages.stage import ConfigError, DataError, Inputs, Steps

BINS = 10


class Flagged(NamedTuple):
    """What `label_issues` says of examples, by ascending id."""

    ids: Int64[np.ndarray, " examples"]
    is_flagged: Bool[np.ndarray, " examples"]
    p_wrong: Float[np.ndarray, " examples"]


@dataclass(frozen=True)
class Flags(Metric):
    """Areas of every score against known wrong labels, and precision and recall of flags.

    Cost: `resamples` times the rows, for each set of scores; memory 100 bytes a row.
    """

    methods: tuple[str, ...] = ()
    """Instances that score examples or pairs; by default all of label issues and values."""
    true_label: str | None = None
    """Column of the corpus with the true class, by name or number; null takes the labels that were
    there before `flip_labels` or a review changed them."""
    seed: int = 0
    """Seed of the bootstrap."""
    resamples: int = 1000
    """Bootstrap draws of rows for each interval."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Classification: a label is of a class."""
        return ("classification",)

    def __post_init__(self) -> None:
        """Refuses fields out of range.

        Raises:
            ConfigError: a method is named twice, or a number is out of range.
        """
        if len(set(self.methods)) < len(self.methods) or self.seed < 0 or self.resamples < 1:
            raise ConfigError(
                f"flags: found methods: {list(self.methods)}, seed: {self.seed}, resamples: "
                f"{self.resamples}, expected each method once, at least 0 and at least 1. Correct "
                "them."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The methods' tables and the labels; the corpus's columns, where one is named."""
        return (*self.methods, "label", *(() if self.true_label is None else ("extra",)))

    def with_instances(self, instances: Callable[[], Mapping[str, Instance]]) -> "Flags":
        """With the methods of the run, where none is named.

        Raises:
            ConfigError: no instance of the run scores examples.
        """
        if self.methods:
            return self
        found = tuple(name for name, one in instances().items() if one.tables[0] in VALUES)
        if not found:
            raise ConfigError(
                "methods: found no instance that scores examples, expected at least one. Add "
                "`label_issues: {}` under `stages:` and run again."
            )
        return replace(self, methods=found)

    def compute(self, inputs: Inputs, stepped: Steps) -> Result:
        """One row for each set of scores, the largest area first; no details.

        Columns: method, semivalue, utility, rows (with a score and a known true label), wrong, and
        those above.

        Raises:
            DataError: no true label is known, or all labels are right, or all are wrong.
        """
        known = known_labels(inputs, self.true_label)
        if not known.is_wrong.any() or known.is_wrong.all():
            raise DataError(
                f"label: found {int(known.is_wrong.sum())} wrong ones among {len(known.ids)} "
                "labels whose true one is known, expected some and not all. Name a column of true "
                "labels as true_label, or plant wrong ones by flip_labels."
            )
        stepped(0, len(self.methods))
        rows = []
        for nth, method in enumerate(self.methods):
            flagged = _flagged(inputs, method)
            for scores in scores_of(inputs, method, method):
                rows.append({**scores.named(), **self._judged(known, scores, flagged)})
            stepped(nth + 1, len(self.methods))
        rows.sort(key=lambda row: -(row["auc"] or 0))
        facts = {
            "n_labelled": known.n_labelled,
            "n_known": len(known.ids),
            "n_wrong": int(known.is_wrong.sum()),
            "wrong_base": float(known.is_wrong.mean()),
        }
        return Result(rows, facts, [])

    def _judged(
        self, known: KnownLabels, scores: Scores, flagged: Flagged | None
    ) -> dict[str, Any]:
        """The columns of a row."""
        queries = np.zeros(0, np.int64)
        if scores.query_ids is not None:
            queries = np.unique(scores.query_ids)
        score = scores.of_examples(queries, known.ids)
        has_score = ~np.isnan(score)
        wrong, n = known.is_wrong[has_score], int(has_score.sum())
        if not n:
            raise DataError(
                f"{scores.method}: found scores of none of the {len(known.ids)} examples whose "
                "true label is known, expected some. Name another instance in methods."
            )
        codes = coded(-score[has_score][None]).codes[0]
        own = None
        if flagged is not None:
            at = np.searchsorted(flagged.ids, known.ids[has_score])
            own = _Issues(flagged.is_flagged[at], flagged.p_wrong[at])
        whole = _numbers(codes, wrong, np.ones(n, np.int64), own)
        drawn: dict[str, list[float]] = {name: [] for name in whole}
        for rows in draws(n, self.resamples, self.seed):
            counts = np.bincount(rows, minlength=n)
            for name, value in _numbers(codes, wrong, counts, own).items():
                drawn[name].append(value)
        counted = {
            "flagged": None if own is None else int(own.is_flagged.sum()),
            "hits": None if own is None else int((own.is_flagged & wrong).sum()),
            "expected": None if own is None else float(own.p_wrong.sum()),
        }
        named: dict[str, Any] = {"rows": n, "wrong": int(wrong.sum()), **counted}
        for name, value in whole.items():
            named |= estimated(value, drawn[name]).named(name)
        return named


class _Issues:
    """Flags and probabilities of the rows that are judged, and the bin of each."""

    def __init__(self, is_flagged: np.ndarray, p_wrong: np.ndarray) -> None:
        self.is_flagged, self.p_wrong = is_flagged, p_wrong
        self.bins = np.empty(len(p_wrong), np.int64)
        order = np.argsort(p_wrong, kind="stable")
        self.bins[order] = np.arange(len(order)) * BINS // len(order)

    def calibration(self, wrong: np.ndarray, counts: np.ndarray) -> float:
        """The mean over rows of the gap between probability and share of wrong ones in a bin."""
        gaps = np.bincount(self.bins, counts * (self.p_wrong - wrong), BINS)
        return float(np.abs(gaps).sum() / counts.sum())


def _numbers(
    codes: Int64[np.ndarray, " rows"],
    wrong: Bool[np.ndarray, " rows"],
    counts: Int64[np.ndarray, " rows"],
    issues: _Issues | None,
) -> dict[str, float]:
    """All numbers that have intervals, of rows counted `counts` times; NaN where undefined."""
    area, by_recall = areas(codes, wrong, counts)
    found = {"auc": area, "average_precision": by_recall}
    nothing = float("nan")
    if issues is None:
        return {**found, **dict.fromkeys(("precision", "recall", "f1", "calibration"), nothing)}
    flagged, bad = counts @ issues.is_flagged, counts @ wrong
    hits = counts @ (issues.is_flagged & wrong)
    return {
        **found,
        "precision": float(hits / flagged) if flagged else nothing,
        "recall": float(hits / bad) if bad else nothing,
        "f1": float(2 * hits / (flagged + bad)) if flagged + bad else nothing,
        "calibration": issues.calibration(wrong, counts),
    }


def _flagged(inputs: Inputs, method: str) -> Flagged | None:
    """Flags and probabilities of an instance of `label_issues`; None of another."""
    parts = []
    for table in inputs.by_shard(method, "example"):
        if "is_label_issue" not in table.column_names:
            return None
        kinds = {"example_id": "int64", "is_label_issue": "bool", "p_wrong": "float64"}
        parts.append([pc.cast(table[name], kind).to_numpy() for name, kind in kinds.items()])
    if not parts:
        return None
    ids, is_flagged, p_wrong = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(ids, kind="stable")
    return Flagged(ids[order], is_flagged[order], p_wrong[order])


METRIC = Flags
