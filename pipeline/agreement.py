"""Models that are right less often than chance: their outputs are probably not the classes."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

BARELY = 0.2
"""Part of the way from the most frequent class to always right, below which a model barely knows
more than that class."""
CONFUSION = """
    SELECT p.method, p.role, list_position(p.logits, list_max(p.logits)) - 1 AS predicted, l.label,
           count(*)
    FROM tables.prediction AS p JOIN tables.label AS l ON l.id = p.id AND l.role = p.role
    WHERE p.source = 'model' AND len(p.logits) > 1 AND l.label IS NOT NULL
    GROUP BY ALL ORDER BY ALL
"""
"""Counts of labelled rows that a model predicts, by both classes."""


def barely_knows(right: float, most_frequent: float) -> bool:
    """Whether a model that is right on a share of the rows barely knows more than that class."""
    return right < most_frequent + BARELY * (1 - most_frequent)


class Agreement(NamedTuple):
    """On how many rows labels and predictions agree, and how many would be chance."""

    rows: int
    right: int
    chance: float
    """Rows on which labels and predictions of the same frequencies agree when they have nothing to
    do with each other."""

    @classmethod
    def of(cls, cells: Sequence[tuple[int, int, int]]) -> "Agreement":
        """The agreement in a confusion matrix; its cells are predicted class, label and rows."""
        predicted, labels = Counter[int](), Counter[int]()
        for predicted_class, label, rows in cells:
            predicted[predicted_class] += rows
            labels[label] += rows
        total = predicted.total()
        chance = sum(predicted[c] * labels[c] for c in labels) / total
        return cls(total, sum(rows for p, label, rows in cells if p == label), chance)

    @property
    def is_below_chance(self) -> bool:
        """Whether they agree on fewer rows than chance, by more than 3 standard errors."""
        deviation = (self.chance * (1 - self.chance / self.rows)) ** 0.5
        return bool(self.right < self.chance - 3 * deviation)


def mismatches(run: Any) -> list[dict[str, Any]]:
    """The models of a run that are right less often than chance: method, role and agreement."""
    counts: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
    for method, role, predicted, label, rows in run.sql(CONFUSION).fetchall():
        counts.setdefault((method, role), []).append((predicted, label, rows))
    found = {key: Agreement.of(cells) for key, cells in counts.items()}
    return [
        {"method": method, "role": role, **agreement._asdict()}
        for (method, role), agreement in found.items()
        if agreement.is_below_chance
    ]
