"""Cross-fitting through the command line: its plan, its views, flags by it, a fold at a time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import assay, complaint, tables_of

from pipeline import open_run

TRAINING = {"epochs": 2, "learning_rate": 1e-3, "head_learning_rate": 0.01}
STAGES = {
    "tuned": {"stage": "cross_fitting", "folds": 3, "training": TRAINING},
    "label_issues": {"predictions": "tuned"},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: Any, write_config: Any) -> Path:
    """A finished run of 96 rows in three shards, in this process."""
    path: Path = write_config(tmp_path_factory.mktemp("cross_fitting"), stages=STAGES)
    planned = json.loads(assay("plan", path, "--json").stdout)
    row = next(row for row in planned["stages"] if row["stage"] == "tuned")
    # Two epochs of three trainings on two thirds of the rows; then each row is predicted.
    assert (row["tasks"], row["backward_rows"], row["forward_rows"]) == (3, 2 * 2 * 96, 5 * 96)
    assert row["how"] == "3 trainings of 2 epochs"
    assay("run", path)
    return path


def test_the_view_says_what_follows_from_the_logits(config: Path) -> None:
    run = open_run(config.parent / "run")
    rows = run.sql(
        "SELECT d.*, p.logits, p.loss AS other_loss, e.label, e.label_name FROM training_dynamics "
        "AS d JOIN predictions AS p ON p.id = d.example_id JOIN examples AS e USING (example_id)"
    ).to_arrow_table()
    assert rows.num_rows == 96
    for row in rows.to_pylist():
        logits, label = row["logits"], row["label"]
        assert row["given_label"] == row["label_name"]
        assert row["predicted_label"] == ["negative", "positive"][int(np.argmax(logits))]
        assert row["margin"] == pytest.approx(logits[label] - logits[1 - label])
        assert row["loss"] == pytest.approx(np.logaddexp(*logits) - logits[label])
        assert row["loss"] == row["other_loss"]
        assert row["n_trainings"] == 2
    means = run.sql(
        "SELECT d.area_under_margin - t.a, d.early_loss - t.e, d.forgotten - t.f FROM "
        "training_dynamics AS d JOIN (SELECT example_id, avg(area_under_margin) AS a, "
        "avg(early_loss) AS e, avg(forgotten) AS f FROM tables.training_dynamics GROUP BY 1) AS t "
        "USING (example_id)"
    ).fetchall()
    np.testing.assert_allclose(means, 0, atol=1e-12)


def test_every_label_is_judged_by_its_prediction(config: Path) -> None:
    rows = (
        open_run(config.parent / "run")
        .sql(
            "SELECT i.margin - d.margin FROM label_issues AS i JOIN training_dynamics AS d "
            "USING (example_id)"
        )
        .fetchall()
    )
    np.testing.assert_allclose(rows, np.zeros((96, 1)), atol=1e-6)


def test_a_lost_fold_alone_is_trained_again_to_the_same_bytes(config: Path) -> None:
    store = config.parent / "run" / "store"
    before = tables_of(store)
    shard = sorted((store / "training_dynamics").glob("*.parquet"))[0]
    for table in ("training_dynamics", "prediction"):
        (store / table / shard.name).unlink()
    planned = json.loads(assay("plan", config, "--json").stdout)
    assert {row["stage"]: row["tasks"] for row in planned["stages"]}["tuned"] == 1
    assay("run", config)
    assert tables_of(store) == before


def test_a_corpus_of_numbers_is_refused(tmp_path: Path, write_config: Any) -> None:
    lines = [{"text": f"film {at}", "target": at / 7} for at in range(9)]
    path = tmp_path / "numbers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    corpus = {"path": str(path), "task": "regression", "label": "target"}
    config = write_config(tmp_path, corpus=corpus, queries=corpus, stages={"cross_fitting": {}})
    said = complaint("plan", config)
    assert "found a corpus with task: regression, expected classification" in said


def test_labels_are_judged_by_several_predictions_as_one(tmp_path: Path, write_config: Any) -> None:
    stages = {
        "other": {"stage": "kernel_regression", "kernel": ["embedding"]},
        "ensemble": {"predictions": ["kernel_regression", "other"]},
        "label_issues": {"predictions": "ensemble"},
    }
    path = write_config(tmp_path, stages=stages)
    assay("run", path)
    run = open_run(tmp_path / "run")
    judged = "SELECT count(*), count(margin) FROM label_issues WHERE method = 'label_issues'"
    assert run.sql(judged).fetchall() == [(96, 96)]
    away = (
        "SELECT max(abs(i.margin - (l.logits[l.label + 1] - l.logits[2 - l.label]))) FROM "
        "label_issues AS i JOIN (FROM predictions JOIN examples ON example_id = id WHERE "
        "source = 'ensemble' AND role = 'example') AS l USING (example_id)"
    )
    assert run.sql(away).fetchall()[0][0] == pytest.approx(0, abs=1e-6)
