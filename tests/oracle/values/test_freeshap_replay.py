"""Rounds drawn again for single queries against the rounds themselves."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from memory_inputs import MemoryInputs, label_table

from stages.stage import DataError, Part, Vectors
from stages.values.freeshap import FreeShap

LABELS = {"example": [0, 1, 1, 0, 1, 0, 0, 1, 1], "query": [0, None, 1, 1]}
ROUNDS = (0, 3)


class Rows(MemoryInputs):
    """Nine examples and four queries, one of which has no label."""

    def __init__(self, n_classes: int) -> None:
        drawn = torch.Generator().manual_seed(5)
        rows = {
            role: Vectors(
                np.arange(len(labels)) * 10,
                torch.randn(len(labels), 4, generator=drawn, dtype=torch.float64).numpy(),
            )
            for role, labels in LABELS.items()
        }
        details = {"label": {"classes": list("abc"[:n_classes])}}
        super().__init__({"label": self.labels}, details, rows)

    def labels(self) -> pa.Table:
        by_id = {role: {10 * i: y for i, y in enumerate(ys)} for role, ys in LABELS.items()}
        return label_table(by_id)


def replayed(stage: FreeShap, inputs: Any, query_id: int) -> np.ndarray:
    told: list[tuple[int, int]] = []
    ids, values = stage.replay(inputs, query_id, ROUNDS, lambda *step: told.append(step))
    assert told == [(0, 2), (1, 2), (2, 2)]
    assert ids.tolist() == list(range(0, 90, 10))
    assert values.semivalues == stage.semivalues
    assert values.stderr.shape == values.value.shape
    return np.asarray(values.value.numpy())


def stored(stage: FreeShap, inputs: Any) -> np.ndarray:
    """What the run's own rounds say: totals over units."""
    inputs.opened = stage.open(inputs)
    rows = []
    for index in ROUNDS:
        inputs.part = Part("", index)
        rows += [b for name, b in stage.compute(inputs) if name == "shapley_round"]
    table = pa.Table.from_batches(rows).to_pylist()
    ids = range(0, 90, 10)
    found = np.zeros((len(stage.semivalues), len(stage.utilities), len(ids)))
    for row in table:
        place = (
            stage.semivalues.index(row["semivalue"]),
            stage.utilities.index(row["utility"]),  # type: ignore[arg-type]
            row["example_id"] // 10,
        )
        found[place] += row["total"] / (len(ROUNDS) * stage.units_per_round)
    return found


@pytest.mark.parametrize(
    ("n_classes", "fields"),
    [
        (2, {}),
        (3, {}),
        (2, {"semivalues": ("shapley", "beta(4,1)"), "utilities": ("margin",)}),
        (3, {"sampling": "paired", "truncation": "random", "survival": 3.0}),
        (2, {"engine": "least_squares", "precision": "float64", "normalize": False}),
        (3, {"sampling": "regression_msr", "coalitions": 4}),
        (2, {"sampling": "adalina"}),
    ],
)
def test_the_mean_over_labelled_queries_is_what_the_rounds_say(
    n_classes: int, fields: dict[str, Any]
) -> None:
    inputs = Rows(n_classes)
    stage = FreeShap(ridge=0.3, units_per_round=2, **{"coalitions": 2, **fields})
    labelled = [10 * at for at, label in enumerate(LABELS["query"]) if label is not None]
    mean = np.mean([replayed(stage, inputs, query) for query in labelled], axis=0)
    np.testing.assert_allclose(mean, stored(stage, inputs), atol=1e-9)


def test_of_the_loss_game_all_queries_count() -> None:
    inputs = Rows(2)
    stage = FreeShap(kernel=("gradient",), utilities=("loss",), units_per_round=2)
    mean = np.mean([replayed(stage, inputs, query) for query in range(0, 40, 10)], axis=0)
    np.testing.assert_allclose(mean, stored(stage, inputs), atol=1e-9)


def test_a_query_without_a_label_is_valued_for_the_class_that_all_predict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That class has the larger margin after a fit on all, which is the sum of the values."""
    inputs = Rows(2)
    # Permutations, which are the same whatever the labels.
    stage = FreeShap(ridge=0.3, units_per_round=2, sampling="paired", utilities=("margin",))
    found = replayed(stage, inputs, 10)
    given = []
    for label in (0, 1):
        monkeypatch.setitem(LABELS, "query", [0, label, 1, 1])
        given.append(replayed(stage, inputs, 10))
    np.testing.assert_allclose(found, max(given, key=np.sum), atol=1e-12)
    np.testing.assert_allclose(given[0], -given[1], atol=1e-12)


def test_what_cannot_be_drawn_again() -> None:
    with pytest.raises(DataError, match="no features of query 11"):
        FreeShap(ridge=0.3).replay(Rows(2), 11, ROUNDS, lambda done, total: None)
    stage = FreeShap(sampling="uniform", truncation="tolerance")
    with pytest.raises(DataError, match="the rule ends a permutation"):
        stage.replay(Rows(2), 0, ROUNDS, lambda done, total: None)
