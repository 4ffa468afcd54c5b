"""Real trainings through the command line: values, outcomes, and the same bytes anywhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import open_run

QUICK = {"epochs": 1, "batch_size": 8}
STAGES = {
    "retrain": {"every": 32, "rounds": 4, "per_round": 2},
    "g_shapley": {"stage": "retrain", "training": {"kind": "one_pass"}, "rounds": 2},
    "blocks": {
        "stage": "retrain",
        "last_blocks": 1,
        "every": 48,
        "rounds": 2,
        "training": QUICK,
    },
    "whole": {
        "stage": "retrain",
        "last_blocks": "all",
        "subsets": "random",
        "share": 0.25,
        "rounds": 2,
        "training": QUICK,
    },
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: Any, write_config: Any, assay: Any) -> Path:
    """A run in this process, never interrupted."""
    folder = tmp_path_factory.mktemp("retrain")
    config = write_config(folder, stages=STAGES)
    assay("plan", config)
    ran = assay("run", config)
    assert "examples of each class" in ran.stdout  # of so short a training none may help
    return folder / "run"


def test_values_have_errors_and_sum_to_what_all_are_worth(finished: Path) -> None:
    run = open_run(finished)
    assert run.methods("shapley") == ["blocks", "g_shapley", "retrain"]
    rows = run.sql(
        "SELECT utility, count(*), sum(value), min(stderr), any_value(n_samples) FROM shapley "
        "WHERE method = 'retrain' AND semivalue = 'shapley' GROUP BY 1 ORDER BY 1"
    ).fetchall()
    worth = run.sql(
        "SELECT avg(is_correct::INT) - 1 / 2, ln(2) - avg(loss) FROM outcomes "
        "WHERE method = 'retrain' AND size = 96"
    ).fetchall()[0]
    assert [(row[0], row[1], row[4]) for row in rows] == [
        ("accuracy", 96, 8),
        ("cross_entropy", 96, 8),
    ]
    np.testing.assert_allclose([row[2] for row in rows], worth, rtol=0, atol=1e-6)
    assert min(row[3] for row in rows) > 0
    assert worth[1] != 0


def test_outcomes_and_subsets_belong_together(finished: Path) -> None:
    run = open_run(finished)
    counts = run.sql(
        "SELECT s.method, s.size, count(DISTINCT (s.round, s.subset)), count(*) "
        "FROM subsets AS s JOIN outcomes AS o ON o.method = s.method AND o.round = s.round "
        "AND o.subset = s.subset AND o.size = len(s.example_ids) GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    found = {(method, size): tuple(rest) for method, size, *rest in counts}
    expected = {("retrain", size): (8, 320) for size in (32, 64, 96)}
    expected |= {("g_shapley", size): (2, 80) for size in range(1, 97)}
    expected |= {("blocks", size): (2, 80) for size in (48, 96)}
    assert found == {**expected, ("whole", 24): (2, 80)}


def test_outcomes_say_what_follows_from_their_logits(finished: Path) -> None:
    rows = (
        open_run(finished)
        .sql(
            "SELECT o.logits, o.predicted, o.is_correct, o.loss, o.margin, q.label FROM outcomes "
            "AS o JOIN queries AS q USING (query_id) WHERE o.method = 'whole'"
        )
        .fetchall()
    )
    for logits, predicted, is_correct, loss, margin, label in rows:
        assert predicted == int(np.argmax(logits))
        assert is_correct == (predicted == label)
        assert margin == pytest.approx(logits[label] - logits[1 - label])
        assert loss == pytest.approx(np.logaddexp(*logits) - logits[label])
