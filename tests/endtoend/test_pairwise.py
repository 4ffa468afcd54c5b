"""Scores of pairs over runs: what adds up does, also for other queries and corrected labels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline import open_run

N_EXAMPLES, N_QUERIES, N_CLASSES = 90, 20, 3
FEATURES = {"embedding": "features"}
STAGES = {
    "probe": FEATURES,
    "prediction": FEATURES,
    "head_influence": {**FEATURES, "top_k": 4},
    "representer": {**FEATURES, "top_k": None},
    "kernel_regression": {"kernel": ["features"]},
    "kernel_representer": {"kernel": ["features"], "top_k": None},
    "tracin": {"layer": "last", **FEATURES},
    "similarity": {"features": "features"},
    "random_score": {"top_k": 3},
    "support": {"features": "features"},
}


def source(folder: Path, name: str, n: int, seed: int) -> dict[str, Any]:
    """Labels, and a file of vectors that lie around one of three points."""
    points = np.random.default_rng(0).normal(size=(N_CLASSES, 12))
    g = np.random.default_rng(seed)
    labels = g.integers(0, N_CLASSES, size=n)
    np.save(folder / f"{name}.npy", points[labels] + 0.8 * g.normal(size=(n, 12)))
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"kind": f"is {y}"}) + "\n" for y in labels))
    vectors = str(folder / f"{name}.npy")
    return {"path": str(path), "text": None, "label": "kind", "features": vectors}


def run(folder: Path, assay: Any, queries: int) -> Any:
    raw = {
        "run": str(folder / "run"),
        "shard_size": 40,
        "ray": {"engine": "in_process"},
        "corpus": source(folder, "train", N_EXAMPLES, 1),
        "queries": source(folder, f"test{queries}", N_QUERIES, queries),
        "stages": STAGES,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(raw))
    done = assay("run", folder / "config.yaml")
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, assay: Any) -> Path:
    """A folder with a finished run."""
    made = tmp_path_factory.mktemp("pairs")
    assert "values miss" not in run(made, assay, 2).stderr
    return made


def misses(folder: Path) -> tuple[float, float]:
    """How far values of the kernel and of the probe are from adding up, at most."""
    opened = open_run(folder / "run")
    weight = opened.sql("SELECT weight, bias FROM tables.probe ORDER BY class").fetchall()
    mean = opened.sql("SELECT vector FROM features WHERE role = 'example'").fetchall()
    at_mean = np.array([w for w, _ in weight]) @ np.mean([v for (v,) in mean], axis=0)
    at_mean += [b for _, b in weight]
    found = []
    for method, who in (("kernel_representer", "kernel"), ("representer", "probe")):
        rows = opened.sql(
            f"""SELECT any_value(p.logits), any_value(p.predicted), sum(a.score), count(*)
                FROM attributions AS a JOIN predictions AS p ON p.id = a.query_id
                WHERE a.method = '{method}' AND p.source = '{who}' AND p.role = 'query'
                GROUP BY a.query_id"""
        ).fetchall()
        assert [row[3] for row in rows] == [N_EXAMPLES] * N_QUERIES
        offset = [1 / N_CLASSES] * N_CLASSES if who == "kernel" else at_mean
        found.append(max(abs(row[0][row[1]] - offset[row[1]] - row[2]) for row in rows))
    return found[0], found[1]


def test_values_add_up_and_come_apart(folder: Path) -> None:
    opened = open_run(folder / "run")
    counted = opened.sql("SELECT method, count(*) FROM attributions GROUP BY 1 ORDER BY 1")
    counts = dict(counted.fetchall())
    pairwise = {"head_influence", "kernel_representer", "representer", "tracin"}
    assert set(counts) == pairwise | {"similarity", "random_score"}
    assert counts["head_influence"] == N_QUERIES * 8
    assert counts["tracin"] == N_QUERIES * N_EXAMPLES
    worst = opened.sql(
        """SELECT max(abs(c.global_score * c.local_score - a.score) / abs(a.score)),
                  min(c.global_score)
           FROM components AS c JOIN attributions AS a USING (method, query_id, example_id)
           WHERE a.score <> 0"""
    ).fetchall()
    assert worst[0][0] <= 1e-14
    assert worst[0][1] >= 0
    kernel, probe = misses(folder)
    assert kernel <= 1e-5
    assert probe <= 1e-4


def test_other_queries_get_scores_of_their_own(folder: Path, assay: Any, tmp_path: Path) -> None:
    """In a store that has those of other queries the rows are those of an empty store."""
    run(folder, assay, 3)
    kernel, probe = misses(folder)
    assert kernel <= 1e-5
    assert probe <= 1e-4
    run(tmp_path, assay, 3)
    tables = {
        "attribution": "method, query_id, example_id, score",
        "support": "method, query_id, contrast, rank, example_id, global_score, local_score",
        "support_size": "method, query_id, contrast, n_support",
    }
    for table, columns in tables.items():
        asked = f"SELECT {columns} FROM tables.{table} ORDER BY ALL"
        found = [open_run(at / "run").sql(asked).fetchall() for at in (folder, tmp_path)]
        assert len(found[0]) > 0
        assert found[0] == found[1]


def test_a_kept_probe_over_corrected_labels_is_told(folder: Path, assay: Any) -> None:
    review, to = folder / "review.csv", folder / "corrected"
    labels = open_run(folder / "run").sql("SELECT example_id, label FROM examples").fetchall()
    fixed = [f"{i},fix,is {(y + 1) % N_CLASSES}" for i, y in labels[:9]]
    review.write_text("\n".join(["source_id,decision,new_label", *fixed]) + "\n")
    done = assay("apply", folder / "run", review, "--to", to)
    (told,) = [line for line in done.stderr.splitlines() if "values miss the logits" in line]
    assert "representer" in told
    assert "in 3 tasks" not in told


def test_influence_alone(write_config: Any, assay: Any, tmp_path: Path) -> None:
    config = write_config(tmp_path, shard_size=4, stages={"influence": {"top_k": None}})
    text = config.read_text().replace("train[:96]", "train[:8]")
    config.write_text(text.replace("train[:40]", "train[:3]"))
    assay("run", config)
    rows = open_run(tmp_path / "run").sql("SELECT count(*), count(score) FROM attributions")
    assert rows.fetchall() == [(24, 24)]
