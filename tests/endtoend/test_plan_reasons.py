"""Why `assay plan` says that tasks must run, after one change each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from runs import Rows, assay, write_lines, write_run

import pipeline.task
from stages.pairs.similarity import Similarity

SHARD, N_EXAMPLES, N_QUERIES = 20, 60, 10
STAGES = {
    "bm25": {},
    "random_score": {},
    "similarity": {"features": "features"},
    "knn_shapley": {"features": "features", "neighbours": 4},
    "probe": {"embedding": "features"},
    "prediction": {"embedding": "features"},
    "freeshap": {"kernel": ["features"], "rounds": 2, "units_per_round": 3},
}
Reasons = dict[str, dict[str, int]]
RECUT = "settings changed (shard_size: 20 -> 30)"
READS_WORDS = "reads word_frequency, which is computed again"
READS_PROBE = "reads probe, which is computed again"


def made_rows(n: int, seed: int) -> Rows:
    """Rows with a text, a vector near the centre of its class, and two columns of labels."""
    g = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(3, 4))
    return [
        {
            "id": 1000 * seed + i,
            "text": f"row {i} of {seed} words",
            "kind": f"is {i % 3}",
            "other": f"is {(i + (i == 25)) % 3}",
            "numbers": (centres[i % 3] + g.normal(size=4) * 0.3).round(3).tolist(),
        }
        for i in range(n)
    ]


def write(folder: Path, rows: Rows, **changes: Any) -> Path:
    """The YAML of a run over these rows, in three shards."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"id": "id", "label": "kind", "features": "numbers"}
    queries = write_lines(folder / "queries.jsonl", made_rows(N_QUERIES, 2))
    raw = {
        "shard_size": SHARD,
        "corpus": {"path": write_lines(folder / "rows.jsonl", rows), **columns},
        "queries": {"path": queries, **columns},
        "stages": STAGES,
    }
    return write_run(folder, **{**raw, **changes})


def reasons(config: Path, *options: str) -> Reasons:
    """The reasons of every stage that has something to do; their numbers are its tasks.

    What `bm25` reads, words of the whole corpus, is its own affair: of it and what is added for it
    one reason is left, that of the rows.
    """
    planned = json.loads(assay("plan", config, "--json", *options).stdout)["stages"]
    for row in planned:
        assert sum(row["reasons"].values()) == row["tasks"], row
    found = {row["stage"]: row["reasons"] for row in planned if row["tasks"]}
    of_text = [found.pop(stage) for stage in ("word_frequency", "bm25") if stage in found]
    if of_text:
        told = {reason for of in of_text for reason in of} - {READS_WORDS}
        found["bm25"] = {" ".join(told): 1}
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("reasons")
    assay("run", write(folder, made_rows(N_EXAMPLES, 1)))
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, where the YAML names the copy."""
    place = tmp_path / "copy"
    shutil.copytree(finished, place)
    write(place, made_rows(N_EXAMPLES, 1))
    return place


def everywhere(reason: str, **other: int) -> Reasons:
    """A reason of all stages but the kept probe, where one shard of examples is another."""
    tasks = {"bm25": 1, "random_score": 2, "similarity": 2, "knn_shapley": 1, "prediction": 1}
    return {stage: {reason: n} for stage, n in {**tasks, "freeshap": 2, **other}.items() if n}


def corrected(rows: Rows) -> None:
    rows[3]["kind"] = "is 1"


def reworded(rows: Rows) -> None:
    rows[24]["text"] = "something else"


def moved(rows: Rows) -> None:
    rows[24]["numbers"] = [0.5, 0.5, 0.5, 0.5]


def appended(rows: Rows) -> None:
    rows += made_rows(N_EXAMPLES + 7, 1)[-7:]


def one_dropped(rows: Rows) -> None:
    del rows[24]


def a_shard_dropped_and_a_label_corrected(rows: Rows) -> None:
    rows[50]["kind"] = "is 1"
    del rows[SHARD : 2 * SHARD]


OF_LABELS = {"random_score": 2, "knn_shapley": 1, "freeshap": 2}
OF_VECTORS = {"similarity": 2, "knn_shapley": 1, "prediction": 1, "freeshap": 2}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (appended, everywhere("new rows")),
        (corrected, {stage: {"label corrected": n} for stage, n in OF_LABELS.items()}),
        (reworded, {"bm25": {"text changed": 1}}),
        (moved, {stage: {"vectors changed": n} for stage, n in OF_VECTORS.items()}),
        (one_dropped, everywhere("rows removed")),
        (
            a_shard_dropped_and_a_label_corrected,
            {
                "bm25": {"rows removed": 1},
                "random_score": {"label corrected": 2},
                "similarity": {"rows removed": 1},
                "knn_shapley": {"label corrected": 1},
                "freeshap": {"label corrected": 2},
            },
        ),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_rows_that_changed(folder: Path, change: Callable[[Rows], None], expected: Reasons) -> None:
    rows = made_rows(N_EXAMPLES, 1)
    change(rows)
    assert reasons(write(folder, rows)) == expected


def test_nothing_is_left_to_do(folder: Path) -> None:
    assert reasons(folder / "given.yaml") == {}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (
            "stages.knn_shapley.neighbours=3",
            {"knn_shapley": {"settings changed (neighbours: 4 -> 3)": 1}},
        ),
        ("stages.freeshap.rounds=5", {"freeshap": {"more rounds": 3}}),
        (
            "shard_size=30",
            {
                **everywhere(RECUT, random_score=3, similarity=3, probe=1),
                # The queries are in the one shard that they were in.
                "prediction": {RECUT: 2, READS_PROBE: 1},
            },
        ),
        # The other column differs in one row of the second shard.
        (
            "corpus.label=other",
            {
                "random_score": {"settings changed (corpus.label: kind -> other)": 2},
                "knn_shapley": {"settings changed (corpus.label: kind -> other)": 1},
                "probe": {"settings changed (corpus.label: kind -> other)": 1},
                "prediction": {READS_PROBE: 4},
                "freeshap": {"settings changed (corpus.label: kind -> other)": 2},
            },
        ),
    ],
)
def test_settings_that_changed(folder: Path, setting: str, expected: Reasons) -> None:
    assert reasons(folder / "given.yaml", "--set", setting) == expected


def test_a_probe_that_is_fitted_again(folder: Path) -> None:
    rows = made_rows(N_EXAMPLES, 1)
    corrected(rows)
    found = reasons(write(folder, rows), "--set", "artefacts.probe=refit")
    assert found["probe"] == {"label corrected": 1}
    assert found["prediction"] == {READS_PROBE: 4}
    appended(rows)
    found = reasons(write(folder, rows), "--set", "artefacts.probe=refit")
    assert found["probe"] == {"new rows": 1}
    # One task for each cause: its own rows are new, or the labels of its shard are others.
    assert found["random_score"] == {"label corrected": 1, "new rows": 2}


def test_a_stage_of_another_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    was = Similarity.version
    monkeypatch.setattr(Similarity, "version", was + 1)
    found = reasons(folder / "given.yaml")
    assert found == {"similarity": {f"stage version ({was} -> {was + 1})": 4}}


def test_files_that_are_gone_or_damaged(folder: Path) -> None:
    shards = sorted((folder / "run/store/prediction").glob("*.parquet"))
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-10])
    for path in (folder / "run/store/probe").glob("*.parquet"):
        path.unlink()
    found = reasons(folder / "given.yaml")
    assert found == {"prediction": {"damaged or removed": 2}, "probe": {"damaged or removed": 1}}


def test_a_run_that_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path, made_rows(N_EXAMPLES, 1))
    assert {reason for found in reasons(config).values() for reason in found} == {"nothing before"}
    perform = pipeline.task.Worker.run_task

    def failing(worker: Any, job: Any, part: Any, key: str, *rest: Any) -> Any:
        if job.instance == "prediction" and part.index == 2:
            raise MemoryError
        return perform(worker, job, part, key, *rest)

    monkeypatch.setattr(pipeline.task.Worker, "run_task", failing)
    assay("run", config, code=1)
    found = reasons(config)
    assert found["prediction"]["not finished before"] < 4
    assert {reason for of in found.values() for reason in of} == {"not finished before"}


def test_another_run_over_the_store(folder: Path, tmp_path: Path) -> None:
    """What it has in common with the store's tables is compared with them, all else with none."""
    other = {"store": str(folder / "run/store"), "stages": {"knn_shapley": STAGES["knn_shapley"]}}
    same = write(tmp_path / "same", made_rows(N_EXAMPLES, 1), **other)
    assert reasons(same) == {}
    found = reasons(same, "--set", "stages.knn_shapley.neighbours=2")
    assert found == {"knn_shapley": {"settings changed (neighbours: 4 -> 2)": 1}}
    # What the run itself recorded is of its own store.
    found = reasons(folder / "given.yaml", "--set", f"store={tmp_path / 'empty'}")
    assert {reason for of in found.values() for reason in of} == {"nothing before"}
    rows = made_rows(N_EXAMPLES, 1)
    corrected(rows)
    assert reasons(write(tmp_path / "corrected", rows, **other)) == {
        "knn_shapley": {"label corrected": 1}
    }
    changed = write(tmp_path / "changed", made_rows(N_EXAMPLES, 3), **other)
    raw = yaml.safe_load(changed.read_text())
    raw["queries"]["path"] = raw["corpus"]["path"]
    changed.write_text(yaml.safe_dump(raw))
    assert reasons(changed) == {"knn_shapley": {"nothing before": 3}}


def test_another_model(tmp_path: Path, reader: dict[str, Any], write_config: Any) -> None:
    model = Path(shutil.copytree(reader["path"], tmp_path / "model"))
    given = {"model": {**reader, "path": str(model)}, "stages": {"embedding": {}}}
    config = write_config(tmp_path, n_examples=8, n_queries=4, shard_size=4, **given)
    assay("run", config)
    assert reasons(config) == {}
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "layer_norm_eps": 1e-3}))
    assert reasons(config) == {"embedding": {"model changed": 3}}
    moved = shutil.copytree(model, tmp_path / "moved")
    found = reasons(config, "--set", f"model.path={moved}")
    assert [reason.split(" (")[0] for reason in found["embedding"]] == ["model changed"]
    assert reasons(config, "--set", "stages.embedding.layer=1", "--set", f"model.path={model}")


def test_reasons_in_words(folder: Path) -> None:
    rows = made_rows(N_EXAMPLES, 1)
    corrected(rows)
    appended(rows)
    told = [
        " ".join(line.split()) for line in assay("plan", write(folder, rows)).stdout.split("\n")
    ]
    assert any(line.startswith("stage ") and " because " in line for line in told)
    (line,) = (line for line in told if line.startswith("random_score "))
    assert "new rows: 2, label corrected: 1" in line
    (line,) = (line for line in told if line.startswith("prediction "))
    assert " s new rows 0 0 " in line
