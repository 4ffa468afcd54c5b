"""Gradients of the doubtful rows alone: cheap scores choose, dear features follow."""

from pathlib import Path
from typing import Any

import yaml

from pipeline.open_run import open_run

STAGES: dict[str, Any] = {
    "embedding": {},
    "cheap": {"stage": "kernel_regression", "kernel": ["embedding"]},
    "label_issues": {"predictions": "cheap"},
    "row_selection": {"top": 0.25},
    "ntk": {"rows": "row_selection", "projection": {"dim": 64}},
    "dear": {"stage": "kernel_regression", "kernel": ["ntk"]},
    "second": {"stage": "label_issues", "predictions": "dear"},
}


def test_only_chosen_rows_get_gradients_and_a_second_judgement(
    tmp_path: Path, write_config: Any, assay: Any
) -> None:
    config = write_config(tmp_path / "run", n_examples=96, n_queries=8, stages=STAGES)
    assay("run", config)
    run = open_run(yaml.safe_load(config.read_text())["run"])
    chosen = {row[0] for row in run.sql("SELECT id FROM tables.row_selection").fetchall()}
    assert len(chosen) == 48
    rows = run.sql("SELECT id, role FROM ntk").fetchall()
    assert {i for i, role in rows if role == "example"} == chosen
    assert sum(role == "query" for _, role in rows) == 8
    judged = run.sql("SELECT example_id FROM label_issues WHERE method = 'second'").fetchall()
    assert {row[0] for row in judged} == chosen
    lowest = run.sql(
        "SELECT example_id FROM label_issues WHERE method = 'label_issues' "
        "ORDER BY label_score, example_id LIMIT 24"
    ).fetchall()
    assert {row[0] for row in lowest} <= chosen
    # The same features as without a choice: rows do not depend on which others are computed.
    whole = {**STAGES, "ntk": {"projection": {"dim": 64}}}
    everything = write_config(tmp_path / "all", n_examples=96, n_queries=8, stages=whole)
    assay("run", everything)
    full = open_run(yaml.safe_load(everything.read_text())["run"])
    vectors = {row[0]: row[1] for row in full.sql("SELECT id, vector FROM ntk").fetchall()}
    for row_id, vector in run.sql("SELECT id, vector FROM ntk").fetchall():
        close = [abs(a - b) for a, b in zip(vector, vectors[row_id], strict=True)]
        assert max(close) <= 2e-3 * max(map(abs, vectors[row_id]))
