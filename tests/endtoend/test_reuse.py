"""What is computed again after a change, counted in rows that pass through the model."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import Result
from runs import DATA, Rows, assay, complaint, write_lines

import pipeline.task
import stages.gradients.passes
import stages.model.measurement
from pipeline import OpenedRun, open_run
from pipeline.progress import Progress
from pipeline.task import Job, Worker
from stages.stage import Part
from storage.manifest import ShardRecord

FEATURES = ("embedding", "hidden_states", "gradient", "ntk")
N_EXAMPLES, N_QUERIES, SHARD = 64, 20, 16


def read_rows(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text().splitlines()]


def original_rows(n: int) -> Rows:
    """Rows with columns in an order of their own and names that the views also use."""
    found = pq.read_table(DATA / "sst2_train.parquet").slice(0, n).to_pylist()
    names = ["negative", "positive"]
    return [
        {
            "label_name": f"carried {row['id']}",
            "sentiment": names[row["label"]],
            "uid": row["id"],
            "value": row["id"] / 2,
            "sentence": row["text"],
            "example_id": -1,
        }
        for row in found
    ]


def config(folder: Path, rows: Rows, reader: Any) -> dict[str, Any]:
    """The configuration of a run in `folder`, over `rows` written beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"text": "sentence", "label": "sentiment", "id": "uid"}
    corpus = {"path": write_lines(folder / "corpus.jsonl", rows), **columns}
    return {
        "run": str(folder / "it's a run"),
        "model": dict(reader),
        "corpus": {**corpus, "classes": ["negative", "positive"]},
        "queries": {
            "path": str(DATA / "sst2_validation.parquet"),
            "split": f"train[:{N_QUERIES}]",
            "id": "id",
        },
        "shard_size": SHARD,
        "ray": {"engine": "in_process"},
        "stages": {
            "gradient": {},
            "freeshap": {"rounds": 2, "units_per_round": 3},
            "label_issues": {},
        },
    }


def run(folder: Path, raw: dict[str, Any], *options: str) -> Result:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    return assay("run", path, *options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, reader: Any) -> Path:
    """A folder with a corpus, a configuration and its finished run; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("reuse")
    run(folder, config(folder, original_rows(N_EXAMPLES), reader))
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished folder."""
    place = tmp_path / "copy"
    shutil.copytree(finished, place)
    return place


@pytest.fixture
def again(folder: Path, reader: Any) -> dict[str, Any]:
    """The configuration of the copied run."""
    raw = config(folder / "unused", [], reader)
    raw["run"] = str(folder / "it's a run")
    raw["corpus"]["path"] = str(folder / "corpus.jsonl")
    return raw


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Rows of the corpus that pass through the model, by the stage instance at work.

    The model's check before the first task runs random words, which do not count.
    """
    counts: Counter[str] = Counter()
    at_work = [""]
    forward, perform = stages.model.measurement.forward, pipeline.task.Worker.run_task

    def counting(network: Any, batch: Any) -> torch.Tensor:
        if at_work[0]:
            counts[at_work[0]] += int(batch["attention_mask"].shape[0])
        return forward(network, batch)

    def performing(worker: Worker, job: Job, part: Part, key: str, *rest: Any) -> list[ShardRecord]:
        at_work[0] = job.instance
        return perform(worker, job, part, key, *rest)

    monkeypatch.setattr(stages.model.measurement, "forward", counting)
    # Random text, once per worker, is no row of the corpus.
    monkeypatch.setattr(stages.gradients.passes, "_calibrate", lambda passes, seed: None)
    monkeypatch.setattr(pipeline.task.Worker, "run_task", performing)
    return counts


def shards(opened: OpenedRun, table: str, role: str | None = None) -> list[str]:
    """Keys of the shards of a table of the run."""
    manifest = opened.sql(f"SELECT manifest FROM runs WHERE \"table\" = '{table}'").fetchall()[0][0]
    records = opened.folder.store().read_manifest(table, manifest).shards
    return [record.key for record in records if role in (None, record.role)]


def values(opened: OpenedRun) -> list[tuple[Any, ...]]:
    statement = "SELECT utility, example_id, value, n_samples FROM shapley ORDER BY 1, 2"
    return list(opened.sql(statement).fetchall())


def test_everything_passes_the_model_once(
    tmp_path: Path, reader: Any, forwards: Counter[str]
) -> None:
    raw = config(tmp_path, original_rows(16), reader)
    run(tmp_path, raw, "--set", "queries.split=train[:4]")
    assert forwards == dict.fromkeys(FEATURES, 20)


def test_the_same_command_again_computes_nothing(
    folder: Path, again: dict[str, Any], forwards: Counter[str]
) -> None:
    # The copy lies elsewhere, so this is also a run that was moved together with its store.
    before = values(open_run(folder / "it's a run"))
    stamps = {p: p.stat().st_mtime_ns for p in (folder / "it's a run/store").rglob("*.parquet")}
    said = run(folder, again)
    assert forwards == {}
    assert "0 tasks to do" in " ".join(said.stderr.split())
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    assert values(open_run(folder / "it's a run")) == before


def test_another_run_over_the_store_with_other_freeshap(
    folder: Path, again: dict[str, Any], forwards: Counter[str]
) -> None:
    again["store"] = str(folder / "it's a run/store")
    again["run"] = str(folder / "other")
    again["stages"]["freeshap"] |= {"seed": 7, "rounds": 1}
    run(folder, again)
    assert forwards == {}
    first, other = open_run(folder / "it's a run"), open_run(folder / "other")
    assert shards(first, "ntk") == shards(other, "ntk")
    assert not set(shards(first, "shapley_round")) & set(shards(other, "shapley_round"))
    assert values(other)[0][3] == 3


def test_corrected_labels_move_no_label_free_feature(
    folder: Path, again: dict[str, Any], forwards: Counter[str]
) -> None:
    before = shards(open_run(folder / "it's a run"), "probe")
    rows = read_rows(folder / "corpus.jsonl")
    for at in (3, 5):
        flipped = {"negative": "positive", "positive": "negative"}[rows[at]["sentiment"]]
        rows[at]["sentiment"] = flipped
    write_lines(Path(again["corpus"]["path"]), rows)
    said = " ".join(run(folder, again).stderr.split())
    # Both rows lie in the first shard, and the gradient of the loss alone reads their labels.
    assert forwards == {"gradient": SHARD}
    opened = open_run(again["run"])
    assert shards(opened, "probe") == before
    assert f"probe {before[0]} is kept" in said
    assert "artefacts.probe=refit" in said
    labels = opened.sql("SELECT source_id, label_name FROM examples ORDER BY example_id").fetchall()
    assert labels == [(str(row["uid"]), row["sentiment"]) for row in rows]

    forwards.clear()
    run(folder, again, "--set", "artefacts.probe=refit")
    assert forwards == {"gradient": N_EXAMPLES + N_QUERIES, "ntk": N_EXAMPLES + N_QUERIES}
    refitted = shards(open_run(again["run"]), "probe")
    assert refitted != before
    forwards.clear()
    run(folder, again)
    assert forwards == {}
    assert shards(open_run(again["run"]), "probe") == refitted


@pytest.mark.parametrize("other", ["file", "column", "none"])
def test_another_run_over_the_store_fits_its_own_probe(
    folder: Path, again: dict[str, Any], forwards: Counter[str], other: str
) -> None:
    """Its scores are those that it has in a store of its own; with the same labels all is there."""
    rows = read_rows(folder / "corpus.jsonl")
    flipped = {"negative": "positive", "positive": "negative"}
    column = "second" if other == "column" else "sentiment"
    for at, row in enumerate(rows):
        was = row["sentiment"]
        row[column] = flipped[was] if at % 3 == 0 and other != "none" else was
    again["corpus"] |= {"path": write_lines(folder / "other.jsonl", rows), "label": column}
    again["stages"] = {"prediction": {}}
    found = []
    for name, store in (("beside", folder / "it's a run/store"), ("alone", folder / "own")):
        again |= {"store": str(store), "run": str(folder / name)}
        assert "is kept" not in run(folder, again).stderr
        opened = open_run(folder / name)
        logits = opened.sql("SELECT id, role, logits FROM predictions ORDER BY ALL").fetchall()
        found.append((shards(opened, "probe"), logits))
    assert found[0] == found[1]
    same = found[0][0] == shards(open_run(folder / "it's a run"), "probe")
    assert same == (other == "none")


def test_appended_rows_alone_pass_the_model(
    folder: Path, again: dict[str, Any], forwards: Counter[str]
) -> None:
    first = open_run(folder / "it's a run")
    before = {table: shards(first, table) for table in (*FEATURES, "probe")}
    rows = original_rows(N_EXAMPLES + 10)
    # New rows need not come last.
    write_lines(Path(again["corpus"]["path"]), [*rows[-10:], *rows[:-10]])
    run(folder, again)
    assert forwards == dict.fromkeys(FEATURES, 10)
    opened = open_run(again["run"])
    assert shards(opened, "probe") == before["probe"]
    for table in FEATURES:
        assert set(before[table]) < set(shards(opened, table))
    assert opened.sql("SELECT count(*) FROM examples").fetchall() == [(N_EXAMPLES + 10,)]


def test_more_rounds_extend_the_values(
    folder: Path, again: dict[str, Any], forwards: Counter[str]
) -> None:
    store = folder / "it's a run/store/shapley_round"
    before = {path: path.read_bytes() for path in store.glob("*.parquet")}
    assert len(before) == 2
    run(folder, again, "--set", "stages.freeshap.rounds=5")
    assert forwards == {}
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(store.glob("*.parquet"))) == 5
    assert {row[3] for row in values(open_run(again["run"]))} == {15}
    summed = store.parent / "shapley_value"
    (old, new) = (
        {s for s in summed.glob("*.parquet") if (s.stem in listed(again)) == is_new}
        for is_new in (False, True)
    )
    assert len(old) == len(new) == 1
    run(folder, again, "--set", "stages.freeshap.rounds=2")
    assert {row[3] for row in values(open_run(again["run"]))} == {6}
    # The values over two rounds were still there; those over five are nobody's now.
    assert {s.stem for s in old} <= listed(again)
    assert set(summed.glob("*.parquet")) == old | new
    assay("clean", again["run"], "--remove")
    assert set(summed.glob("*.parquet")) == old


def listed(again: dict[str, Any]) -> set[str]:
    """Keys of the files that the run's catalog reads."""
    rows = open_run(again["run"]).sql("SELECT key FROM provenance.file").fetchall()
    return {key for (key,) in rows}


def review(path: Path, decisions: dict[int, tuple[str, str]]) -> Path:
    lines = [f"{uid},{decision},{label}" for uid, (decision, label) in decisions.items()]
    path.write_text("\n".join(["source_id,decision,new_label", *lines]) + "\n")
    return path


def test_apply_fixes_and_drops_and_a_second_review_adds_to_the_first(
    folder: Path, forwards: Counter[str]
) -> None:
    rows = read_rows(folder / "corpus.jsonl")
    first, second, third = rows[0]["uid"], rows[20]["uid"], rows[40]["uid"]
    names = ["negative", "positive"]
    fixed = {row["uid"]: names[row["sentiment"] == "negative"] for row in rows}
    one = {first: ("fix", fixed[first]), second: ("drop", ""), rows[2]["uid"]: ("accept", "")}
    out = folder / "corrected.jsonl"
    said = assay(
        "apply",
        folder / "it's a run",
        review(folder / "one.csv", one),
        "--out",
        out,
        "--to",
        folder / "better",
    )
    assert "is kept" in said.stderr
    assert forwards == {"gradient": 2 * SHARD - 1}

    expected = [dict(row) for row in rows if row["uid"] != second]
    expected[0]["sentiment"] = fixed[first]
    assert read_rows(out) == expected
    assert [list(row) for row in read_rows(out)] == [list(row) for row in expected]
    opened = open_run(folder / "better")
    for view, column in (("examples", "example_id"), ("shapley", "example_id")):
        found = opened.sql(f"SELECT DISTINCT {column} FROM {view} ORDER BY 1").fetchall()
        assert [row[0] for row in found] == sorted(row["uid"] for row in expected), view

    # In place: the corrected run is corrected once more.
    forwards.clear()
    two = {third: ("drop", ""), rows[41]["uid"]: ("fix", fixed[rows[41]["uid"]])}
    assay(
        "apply",
        folder / "better",
        review(folder / "two.csv", two),
        "--out",
        out,
        "--to",
        folder / "better",
    )
    assert forwards == {"gradient": SHARD - 1}
    expected = [row for row in expected if row["uid"] != third]
    next(r for r in expected if r["uid"] == rows[41]["uid"])["sentiment"] = fixed[rows[41]["uid"]]
    assert read_rows(out) == expected

    # The first run is as it was.
    counted = open_run(folder / "it's a run").sql("SELECT count(*) FROM examples").fetchall()
    assert counted == [(N_EXAMPLES,)]


def test_integer_labels_and_ids_come_back_as_integers(
    folder: Path, again: dict[str, Any], forwards: Counter[str]
) -> None:
    rows = read_rows(folder / "corpus.jsonl")
    for row in rows:
        row["sentiment"] = int(row["sentiment"] == "positive")
    write_lines(folder / "numbers.jsonl", rows)
    again["store"] = str(folder / "it's a run/store")
    again["run"] = str(folder / "numbers")
    again["corpus"] |= {"path": str(folder / "numbers.jsonl"), "classes": ["negative", "positive"]}
    run(folder, again)
    assert forwards == {}
    right = ["positive", "negative"][rows[7]["sentiment"]]
    decisions = {rows[7]["uid"]: ("fix", right)}
    out = folder / "numbers-corrected.parquet"
    assay("apply", folder / "numbers", review(folder / "r.csv", decisions), "--out", out)
    rows[7]["sentiment"] = 1 - rows[7]["sentiment"]
    assert pq.read_table(out).to_pylist() == rows
    assert (folder / "numbers-corrected" / "run.json").exists()


@pytest.mark.slow
def test_a_resolved_config_over_an_empty_store(
    folder: Path, again: dict[str, Any], forwards: Counter[str]
) -> None:
    resolved = folder / "it's a run/config.yaml"
    elsewhere = [f"run={folder / 'elsewhere'}", f"store={folder / 'empty'}"]
    options = [part for setting in elsewhere for part in ("--set", setting)]
    # The labels are those that the probe was fitted on: it is fitted again, and is the same.
    raw = yaml.safe_load(resolved.read_text())
    assert raw["artefacts"]["probe"]["key"] in shards(open_run(resolved.parent), "probe")
    raw["corpus"]["path"] = str(folder / "corpus.jsonl")
    rows = read_rows(folder / "corpus.jsonl")
    rows[0]["sentiment"] = "positive" if rows[0]["sentiment"] == "negative" else "negative"
    write_lines(folder / "corpus.jsonl", rows)
    path = folder / "resolved.yaml"
    path.write_text(yaml.safe_dump(raw))

    said = complaint("run", path, *options)
    assert forwards == {}
    for part in ("artefacts.probe", raw["artefacts"]["probe"]["key"], "probe: refit"):
        assert part in said
    assert not list((folder / "empty").rglob("*.parquet")) or forwards == {}

    assay("run", path, *options, "--set", "artefacts.probe=refit")
    assert forwards == dict.fromkeys(FEATURES, N_EXAMPLES + N_QUERIES)


def test_a_probe_is_not_kept_for_another_question(
    folder: Path, again: dict[str, Any], forwards: Counter[str]
) -> None:
    rows = read_rows(folder / "corpus.jsonl")
    for at, row in enumerate(rows):
        row["topic"] = ["short", "middle", "long"][at % 3]
    write_lines(folder / "topics.jsonl", rows)
    before = shards(open_run(folder / "it's a run"), "probe")
    again["store"] = str(folder / "it's a run/store")
    again["run"] = str(folder / "topics")
    again["corpus"] |= {"path": str(folder / "topics.jsonl"), "label": "topic"}
    again["corpus"]["classes"] = ["short", "middle", "long"]
    again["queries"]["label"] = None
    again["stages"] = {"prediction": {}}
    said = run(folder, again)
    assert forwards == {}
    assert "is kept" not in said.stderr
    opened = open_run(folder / "topics")
    assert shards(opened, "probe") != before
    widths = opened.sql("SELECT DISTINCT len(logits) FROM predictions").fetchall()
    assert widths == [(3,)]
    # Labels that are flipped on purpose must not meet a probe that saw the right ones.
    again["run"] = str(folder / "flipped")
    again["corpus"] |= {"label": "sentiment", "flip_labels": {"fraction": 0.1}}
    again["corpus"]["classes"] = ["negative", "positive"]
    said = run(folder, again)
    assert "is kept" not in said.stderr
    assert shards(open_run(folder / "flipped"), "probe") != before


def test_numbers_in_the_queries_are_not_taken_for_names_in_some_order(
    folder: Path, again: dict[str, Any]
) -> None:
    del again["corpus"]["classes"]
    (folder / "numbers.yaml").write_text(yaml.safe_dump(again))
    said = complaint("run", folder / "numbers.yaml")
    assert "found whole numbers in the label column label" in said
    assert "expected class names such as negative, positive" in said
    assert "list `classes:` of the corpus" in said


@pytest.mark.slow
def test_a_refused_review_leaves_the_corrected_run_as_it_was(folder: Path) -> None:
    name = folder / "it's a run"
    good, bad = folder / "good.csv", folder / "bad.csv"
    source_id = open_run(name).sql("SELECT source_id FROM examples LIMIT 1").fetchall()[0][0]
    good.write_text(f"source_id,decision,new_label\n{source_id},drop,\n")
    bad.write_text(f"source_id,decision,new_label\n{source_id},fix,nonsense\n")
    assay("apply", name, good)
    corrected = folder / "it's a run-corrected"
    before = {p.name: p.read_bytes() for p in corrected.glob("*.*") if p.suffix != ".log"}
    complaint("apply", name, bad)
    assert before == {p.name: p.read_bytes() for p in corrected.glob("*.*") if p.suffix != ".log"}
    # The same review has its folder; another one gets a folder of its own.
    assay("apply", name, good)
    assert not (folder / "it's a run-corrected-2" / "run.json").exists()
    bad.write_text(f"source_id,decision,new_label\n{source_id},accept,\n")
    assay("apply", name, bad)
    assert (folder / "it's a run-corrected-2" / "run.json").exists()


def test_a_deleted_shard_of_the_corpus_is_written_again(
    folder: Path, again: dict[str, Any], forwards: Counter[str]
) -> None:
    store = folder / "it's a run/store"
    before = shards(open_run(folder / "it's a run"), "text")
    (store / "text" / f"{before[1]}.parquet").unlink()
    run(folder, again)
    assert forwards == {}
    assert shards(open_run(folder / "it's a run"), "text") == before
    found = open_run(folder / "it's a run").sql("SELECT count(text) FROM examples").fetchall()
    assert found == [(N_EXAMPLES,)]


def test_all_rows_of_a_shard_are_dropped(
    folder: Path, again: dict[str, Any], forwards: Counter[str]
) -> None:
    rows = read_rows(folder / "corpus.jsonl")
    decisions = {row["uid"]: ("drop", "") for row in rows[SHARD : 2 * SHARD]}
    out = folder / "rest.csv"
    assay("apply", folder / "it's a run", review(folder / "r.csv", decisions), "--out", out)
    assert forwards == {}
    opened = open_run(folder / "it's a run-corrected")
    for view in ("examples", "label_issues"):
        assert opened.sql(f"SELECT count(*) FROM {view}").fetchall() == [(N_EXAMPLES - SHARD,)]
    counted = "SELECT count(DISTINCT example_id), count(*) FROM shapley"
    assert opened.sql(counted).fetchall() == [(N_EXAMPLES - SHARD, 2 * (N_EXAMPLES - SHARD))]
    kept = opened.sql("SELECT count(*) FROM gradients WHERE role = 'example'").fetchall()
    assert kept == [(N_EXAMPLES - SHARD,)]


@pytest.mark.slow
def test_two_corpora_with_the_same_ids_share_a_store(
    folder: Path, again: dict[str, Any], forwards: Counter[str]
) -> None:
    store = folder / "it's a run/store"
    before = values(open_run(folder / "it's a run"))
    rows = read_rows(folder / "corpus.jsonl")[: 2 * SHARD]
    others = original_rows(N_EXAMPLES + 2 * SHARD)[N_EXAMPLES:]
    for row, other in zip(rows, others, strict=True):
        row["sentence"], row["sentiment"] = other["sentence"], other["sentiment"]
    write_lines(folder / "others.jsonl", rows)
    again |= {"store": str(store), "run": str(folder / "others")}
    again["corpus"]["path"] = str(folder / "others.jsonl")
    said = run(folder, again)
    # The embeddings of the queries are shared; the probe, hence what hangs on it, is not.
    assert "is kept" not in said.stderr
    assert forwards["embedding"] == 2 * SHARD
    found = open_run(folder / "others").sql("SELECT text FROM examples ORDER BY example_id")
    assert [row[0] for row in found.fetchall()] == [row["sentence"] for row in rows]
    forwards.clear()
    again |= {"run": str(folder / "it's a run")}
    again["corpus"]["path"] = str(folder / "corpus.jsonl")
    again.pop("store")
    run(folder, again)
    assert forwards == {}
    assert values(open_run(folder / "it's a run")) == before


def test_python_sees_the_progress(folder: Path, again: dict[str, Any]) -> None:
    from pipeline.config import read_config
    from pipeline.run import execute_run

    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(again))
    assert (
        execute_run(read_config(path), Progress()).read_record()["run_id"].startswith("it's a run-")
    )
