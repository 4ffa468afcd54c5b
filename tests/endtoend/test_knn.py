"""Values of a vote of neighbours through the command line, over vectors of one's own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import write_lines, write_run

from pipeline import open_run

N_EXAMPLES, N_QUERIES, NEIGHBOURS = 90, 50, 4
UNLABELLED = (7, 33)


def vectors(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points around one of three centres, and which one."""
    g = np.random.default_rng(seed)
    labels = g.integers(0, 3, n)
    centres = np.random.default_rng(0).normal(size=(3, 6))
    return (centres[labels] + g.normal(size=(n, 6)) * 0.4).astype(np.float32), labels


def write_source(folder: Path, name: str, n: int, seed: int, unknown: Any = ()) -> dict[str, Any]:
    rows, labels = vectors(n, seed)
    np.save(folder / f"{name}.npy", rows)
    cells = [None if i in unknown else f"is {y}" for i, y in enumerate(labels)]
    path = write_lines(folder / f"{name}.jsonl", [{"kind": cell} for cell in cells])
    features = str(folder / f"{name}.npy")
    return {"path": path, "text": None, "label": "kind", "features": features}


def write(folder: Path, **changes: Any) -> Path:
    """A run over 90 examples, nine with a wrong label, and 50 queries, two without one."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = write_source(folder, "train", N_EXAMPLES, 1)
    raw = {
        "store": str(folder / "store"),
        "shard_size": 20,
        "corpus": {**corpus, "flip_labels": {"fraction": 0.1}},
        "queries": write_source(folder, "test", N_QUERIES, 2, UNLABELLED),
        "stages": {"knn_shapley": {"features": "features", "neighbours": NEIGHBOURS}},
    }
    return write_run(folder, **{**raw, **changes})


def values_of(run: Path) -> np.ndarray:
    rows = open_run(run).sql("SELECT value FROM shapley ORDER BY example_id").fetchall()
    return np.array(rows).ravel()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, assay: Any) -> Path:
    """The folder of a finished run."""
    config = write(tmp_path_factory.mktemp("knn"))
    planned = json.loads(assay("plan", config, "--json").stdout)["stages"]
    assert [(row["stage"], row["tasks"]) for row in planned] == [("knn_shapley", 3)]
    ran = assay("run", config)
    harmful = "Most harmful examples of each class (value below 0: worsens predictions of the "
    assert f"{harmful}queries, by knn)" in ran.stdout
    return config.parent / "run"


def test_values_add_up_to_what_the_vote_is_worth(done: Path) -> None:
    run = open_run(done)
    labels = run.sql("SELECT label FROM examples ORDER BY example_id").fetchall()
    given = np.array(labels).ravel()
    (examples, _), (queries, truth) = vectors(N_EXAMPLES, 1), vectors(N_QUERIES, 2)
    cosines = queries @ (examples / np.linalg.norm(examples, axis=1, keepdims=True)).T
    nearest = np.argsort(-cosines, axis=1)[:, :NEIGHBOURS]
    shares = (given[nearest] == truth[:, None]).mean(axis=1)
    worth = np.delete(shares, UNLABELLED).mean() - 1 / 3
    assert values_of(done).sum() == pytest.approx(worth, abs=1e-12)
    rows = run.sql(
        "SELECT DISTINCT method, semivalue, utility, stderr, n_samples, n_observed FROM shapley"
    )
    assert rows.fetchall() == [("knn_shapley", "shapley", "knn", 0.0, None, None)]


def test_planted_flips_are_worth_least(done: Path) -> None:
    run = open_run(done)
    wrong = run.sql("SELECT example_id FROM examples WHERE label <> true_label").fetchall()
    lowest = run.sql(f"SELECT example_id FROM shapley ORDER BY rank DESC LIMIT {len(wrong)}")
    assert len(wrong) == 9
    assert set(lowest.fetchall()) == set(wrong)
    kept = {row[:1] for row in run.select(drop="9", per_class=False).fetchall()}
    assert len(kept) == N_EXAMPLES - 9
    assert not kept & set(wrong)


def test_queries_without_a_label_are_counted(done: Path) -> None:
    rows = open_run(done).sql("SELECT details FROM runs WHERE stage = 'knn_shapley'").fetchall()
    details = json.loads(rows[0][0])
    assert details.pop("efficiency")["knn"]["gap"] == pytest.approx(0, abs=1e-12)
    assert details == {
        "notices": {},
        "n_not_finite": 0,
        "n_examples": N_EXAMPLES,
        "n_without_features": 0,
        "n_without_label": len(UNLABELLED),
        "n_left_out": 0,
    }


@pytest.mark.parametrize("shard_size", [7, 1000])
def test_shards_change_nothing(done: Path, tmp_path: Path, assay: Any, shard_size: int) -> None:
    config = write(tmp_path, shard_size=shard_size)
    assay("run", config)
    np.testing.assert_allclose(values_of(tmp_path / "run"), values_of(done), rtol=0, atol=1e-15)


def test_a_new_label_of_a_query_recomputes_its_block_alone(
    done: Path, tmp_path: Path, assay: Any
) -> None:
    store = str(done.parent / "store")
    config = write(tmp_path, store=store)
    write_source(tmp_path, "test", N_QUERIES, 2, UNLABELLED[:1])
    planned = json.loads(assay("plan", config, "--json").stdout)["stages"]
    assert [(row["tasks"], row["reused"]) for row in planned] == [(1, 2)]
    assay("run", config)
    details = open_run(tmp_path / "run").sql("SELECT details FROM runs WHERE stage = 'knn_shapley'")
    assert json.loads(details.fetchall()[0][0])["n_without_label"] == 1


@pytest.mark.slow
def test_beside_other_values_each_utility_has_its_method(
    tmp_path: Path, assay: Any, complaint: Any
) -> None:
    freeshap = {"kernel": ["features"], "rounds": 1, "units_per_round": 2}
    stages = {
        "knn": {"stage": "knn_shapley", "features": "features"},
        "euclid": {"stage": "knn_shapley", "features": "features", "normalize": False},
        "wide": {**freeshap, "stage": "freeshap", "utilities": ["accuracy", "margin"]},
    }
    config = write(tmp_path, stages=stages)
    ran = assay("run", config)
    assert "improves predictions of the queries, by knn)" in ran.stdout
    run = tmp_path / "run"
    of_margin = assay("select", run, "--keep", "3", "--utility", "margin", "--json")
    assert len(json.loads(of_margin.stdout)) == 3
    said = complaint("select", run, "--keep", "3", "--utility", "knn")
    assert "found no --method, expected one of euclid, knn" in said


def test_without_queries_nothing_can_be_valued(tmp_path: Path, complaint: Any) -> None:
    said = complaint("run", write(tmp_path, queries=None))
    assert "stages.knn_shapley: found no queries, expected some" in said


def test_queries_that_all_lack_a_label(tmp_path: Path, complaint: Any) -> None:
    config = write(tmp_path)
    write_source(tmp_path, "test", N_QUERIES, 2, range(N_QUERIES))
    said = complaint("run", config)
    assert "found 90 examples and 0 queries with a label and features" in said
