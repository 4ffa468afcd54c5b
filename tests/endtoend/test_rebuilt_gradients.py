"""A corrected label and gradients that are put together from those of the logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import open_run

STAGES = {"gradient": {"ntk": "ntk", "projection": {"inputs": 4, "outputs": 4, "dim": 64}}}
LOADERS = (
    "stages.gradients.passes.load_measurement",
    "stages.predictions.prediction.load_measurement",
    "stages.model.averaged.load_embedder",
)


def vectors_of(run: Path) -> tuple[list[int], np.ndarray]:
    rows = open_run(run).sql("SELECT id, vector FROM gradients ORDER BY role, id").fetchall()
    return [row[0] for row in rows], np.array([row[1] for row in rows])


def test_a_corrected_label_rebuilds_its_shard_without_the_model(
    write_config: Any, assay: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, stages=STAGES)
    ran = assay("run", config)
    assert "gradient: 5 of 5 tasks" in ran.stderr
    run = open_run(tmp_path / "run")
    ((kind, dtype),) = run.sql(
        "SELECT fields->>'logit', dtype FROM runs WHERE \"table\" = 'ntk'"
    ).fetchall()
    assert (kind, dtype) == ("all", "float32")
    counts = "SELECT method, count(*), count(n_tokens) FROM diagnostics GROUP BY 1 ORDER BY 1"
    assert run.sql(counts).fetchall() == [("gradient", 136, 0), ("ntk", 136, 136)]

    def load(*_: Any, **__: Any) -> Any:
        raise AssertionError("found that a model is loaded, expected none")

    source, name = run.sql(
        "SELECT source_id, label_name FROM examples WHERE shard = 1 ORDER BY example_id LIMIT 1"
    ).fetchall()[0]
    other = {"negative": "positive", "positive": "negative"}[name]
    review = tmp_path / "review.csv"
    review.write_text(f"source_id,decision,new_label\n{source},fix,{other}\n")
    stored = tmp_path / "run/store/gradient"
    before = {path: path.read_bytes() for path in stored.glob("*.parquet")}
    with monkeypatch.context() as patch:
        for loader in LOADERS:
            patch.setattr(loader, load)
        applied = assay("apply", tmp_path / "run", review, "--to", tmp_path / "corrected")
    assert "gradient: 1 of 5 tasks" in applied.stderr
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(stored.glob("*.parquet"))) == len(before) + 1

    # What the model itself gives for the corrected corpus, at the probe that was kept.
    options = ("--set", "stages.gradient.ntk=null", "--set", f"run={tmp_path / 'passes'}")
    passed = assay("run", tmp_path / "corrected/config.yaml", *options)
    assert "gradient: 5 tasks" in passed.stderr
    (ids, found), (same, expected) = (vectors_of(tmp_path / n) for n in ("corrected", "passes"))
    assert ids == same
    assert len(ids) == 136
    size = np.linalg.norm(expected, axis=1)
    assert (np.linalg.norm(found - expected, axis=1) <= 1e-5 * size).all()
    _, at_first = vectors_of(tmp_path / "run")
    changed = [i for i, row in zip(ids, found != at_first, strict=True) if row.any()]
    assert len(changed) == 1
