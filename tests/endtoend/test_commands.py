"""Every command as a person and as a program meets it: what is printed, where, and what is left."""

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from runs import DATA, Rows, assay, complaint, write_lines, write_run

from pipeline import OpenedRun, open_run
from pipeline.cli import main

N_EXAMPLES, N_QUERIES, SHARD = 48, 16, 16
COLUMNS = ["method", "review", "stars", "id", "Text", "tags"]

# The first columns of every view.
VIEWS = {
    "position_weighted": "id role vector",
    "query_relevance": "method example_id rank similarity query_id is_taken",
    "selection_trial": "method trained_on draw query_id loss n_rows n_tokens",
    "trial_margins": "method trained_on draw query_id margin",
    "adam_steps": "id role vector",
    "less": "id role vector",
    "spectral_entropies": "method example_id spectral_entropy n_tokens",
    "completions": "id role prompt answer n_turns",
    "answer_losses": "id role n_tokens loss difficulty gain end_loss worst_loss",
    "preferences": "id role prompt chosen rejected",
    "answer_margins": "id role margin mean_margin reward_margin loss",
    "answer_sides": "id side role n_tokens loss difficulty gain",
    "preference_issues": "method example_id p_wrong reason score is_preference_issue",
    "answer_issues": "method example_id p_wrong reason p_reason is_answer_issue p_other_class",
    "examples": "example_id source_id text label label_name split shard",
    "queries": "query_id source_id text label label_name split shard",
    "rejected": "source row_number source_id reason raw",
    "embeddings": "id role vector",
    "hidden_states": "id role vector",
    "gradients": "id role vector",
    "features": "id role vector",
    "ntk": "id role vector",
    "diagnostics": "method id role n_tokens measured norm status is_outlier",
    "predictions": "id role source predicted predicted_name confidence margin loss logits",
    "shapley": "method semivalue utility example_id value stderr n_samples n_observed p_helpful "
    "rank",
    "shapley_by_query": "method utility query_id example_id value stderr",
    "shapley_strata": "method utility smallest_size largest_size n_marginals",
    "attributions": "method query_id example_id score",
    "components": "method query_id example_id global_score local_score",
    "support": "method query_id contrast rank example_id global_score local_score",
    "tokens": "method query_id token_index token char_start char_end score",
    "label_issues": "method example_id given_label suggested_label label_score is_label_issue",
    "label_noise": "method class given_label rate expected",
    "issues": "example_id issue other_id other_role",
    "runs": "stage version fields model revision seed rows bytes seconds packages",
}


def sentences(name: str, n: int) -> Rows:
    rows: Rows = pq.read_table(DATA / name).slice(0, n).to_pylist()
    return rows


def examples() -> Rows:
    """Usable rows whose carried columns have the names of ours, as `COLUMNS` orders them."""
    return [
        {
            "method": "by hand",
            "review": row["text"],
            "stars": ["bad", "good"][row["label"]],
            "id": f"review-{row['id']}",
            "Text": f"carried {row['id']}",
            "tags": ["a", "b"],
        }
        for row in sentences("sst2_train.parquet", N_EXAMPLES)
    ]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, reader: Any) -> Path:
    """A configuration over three shards of usable rows, two unusable ones and 2 bare queries."""
    folder = tmp_path_factory.mktemp("commands")
    broken = [{**examples()[0], "review": " ", "id": "x"}, {**examples()[0], "stars": 5, "id": "y"}]
    queries: Rows = [
        {"text": row["text"], "label": ["bad", "good"][row["label"]], "id": row["id"]}
        for row in sentences("sst2_validation.parquet", N_QUERIES)
    ]
    queries[3]["label"] = queries[7]["label"] = None
    source = {"text": "review", "label": "stars", "id": "id", "classes": ["bad", "good"]}
    return write_run(
        folder,
        model=reader,
        corpus={"path": write_lines(folder / "rows.jsonl", [*broken, *examples()]), **source},
        queries={"path": write_lines(folder / "queries.jsonl", queries), "id": "id"},
        shard_size=SHARD,
        stages={
            "prediction": {},
            "gradient": {},
            "label_issues": {},
            "freeshap": {"rounds": 2, "units_per_round": 3},
        },
    )


@pytest.fixture(scope="module")
def planned(config: Path) -> dict[str, Any]:
    """What `assay plan --json` says before anything is computed."""
    before = sorted(config.parent.iterdir())
    plan: dict[str, Any] = json.loads(assay("plan", config, "--json").stdout)
    assert sorted(config.parent.iterdir()) == before, "plan wrote something"
    return plan


@pytest.fixture(scope="module")
def said(config: Path, planned: dict[str, Any]) -> Result:
    """What `assay run` prints."""
    return assay("run", config)


@pytest.fixture(scope="module")
def run(config: Path, said: Result) -> Path:
    """The folder of the finished run; tests only read it."""
    return config.parent / "run"


def read(path: Path) -> Rows:
    """Rows of a file that was written; cells of a CSV are text."""
    if path.suffix == ".parquet":
        rows: Rows = pq.read_table(path).to_pylist()
        return rows
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_plan_counts_what_will_be_done(planned: dict[str, Any]) -> None:
    assert (planned["examples"], planned["queries"], planned["rejected"]) == (48, 16, 2)
    assert planned["shards"] == 4
    stages = {row["stage"]: row for row in planned["stages"]}
    for name in ("embedding", "gradient", "ntk"):
        assert stages[name]["forward_rows"] == N_EXAMPLES + N_QUERIES, name
        assert (stages[name]["tasks"], stages[name]["reused"]) == (4, 0), name
    assert stages["gradient"]["backward_rows"] == N_EXAMPLES + N_QUERIES
    assert stages["freeshap"]["tasks"] == 2
    assert stages["freeshap"]["forward_rows"] == 0
    assert planned["seconds"] > 0
    assert planned["written_bytes"] > 0
    assert planned["memory_bytes"] >= max(row["memory_bytes"] for row in planned["stages"])


def test_plan_of_a_finished_run_reuses_everything_and_writes_nothing(
    config: Path, run: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in config.parent.rglob("*")}
    plan = json.loads(assay("plan", config, "--json").stdout)
    assert {row["stage"]: row["tasks"] for row in plan["stages"] if row["tasks"]} == {}
    assert sum(row["reused"] for row in plan["stages"]) > 10
    assert (plan["seconds"], plan["written_bytes"], plan["memory_bytes"]) == (0, 0, 0)
    more = assay("plan", config, "--json", "--set", "stages.freeshap.rounds=6")
    stages = {row["stage"]: row for row in json.loads(more.stdout)["stages"]}
    assert (stages["freeshap"]["tasks"], stages["freeshap"]["reused"]) == (4, 2)
    ruled = ("--set", "stages.freeshap.rounds=6", "--set", "stages.freeshap.stderr=0.1")
    told = assay("plan", config, *ruled).stdout
    assert "at most 4" in told
    assert "In all at most about" in told
    printed = assay("plan", config)
    assert "Nothing is left to compute" in printed.stdout
    assert "48 examples, 16 queries, 2 rejected rows, 4 shards" in printed.stdout
    assert {p: p.stat().st_mtime_ns for p in config.parent.rglob("*")} == before


def test_run_tells_on_stderr_and_shows_results_on_stdout(said: Result, run: Path) -> None:
    told = " ".join(said.stderr.split())
    assert "48 examples and 16 queries in 4 shards, 2 classes: bad, good" in told
    assert "2 queries have no label" in told
    assert "2 rows could not be used" in told
    for title in ("Most suspicious labels", "Most helpful examples", "Most harmful examples"):
        assert title in said.stdout
        assert title not in said.stderr
    near = min(str(run), os.path.relpath(run), key=len)
    assert f"assay sql {shlex.quote(near)} " in said.stdout


def test_run_again_prints_json(config: Path, run: Path) -> None:
    again = assay("run", config, "--json")
    summary = json.loads(again.stdout)
    assert summary["run"] == str(run)
    assert summary["examples"] == N_EXAMPLES
    assert summary["utility"] == "cross_entropy"
    assert len(summary["helpful"]) == len(summary["harmful"]) == 10
    assert {line["source"] for line in summary["accuracy"]} == {"kernel", "probe"}
    assert "0 tasks to do" in " ".join(again.stderr.split())


def test_status(run: Path) -> None:
    status = json.loads(assay("status", run, "--json").stdout)
    assert status["is_whole"]
    assert not status["is_catalog_rebuilt"]
    assert all(table["done"] == table["shards"] for table in status["tables"])
    assert status["run_id"] in assay("status", run).stdout


def test_status_rebuilds_the_catalog_of_a_moved_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    place = tmp_path / 'it\'s moved, "really" [1]'
    shutil.copytree(run, place)
    assert json.loads(assay("status", place, "--json").stdout)["is_catalog_rebuilt"]
    rows = assay("sql", place, "SELECT count(*) AS n FROM embeddings", "--json")
    assert json.loads(rows.stdout) == [{"n": N_EXAMPLES + N_QUERIES}]
    (place / "catalog.duckdb").unlink()
    assert "(rebuilt)" in assay("status", place).stdout
    out = place / "it's out.csv"
    assay("flag", place, "--top", "3", "--out", out)
    assert len(read(out)) == 3
    monkeypatch.chdir(place.parent)
    assert open_run(place.name).sql("SELECT 1 AS one").fetchall() == [(1,)]


def test_sql(run: Path, tmp_path: Path) -> None:
    statement = "SELECT label_name, count(*) AS n FROM examples GROUP BY ALL ORDER BY ALL"
    rows = json.loads(assay("sql", run, statement, "--json").stdout)
    assert [row["label_name"] for row in rows] == ["bad", "good"]
    assert sum(row["n"] for row in rows) == N_EXAMPLES
    table = assay("sql", run, statement)
    assert table.stdout.split()[:2] == ["label_name", "n"]
    assert table.stderr == ""
    for ending in ("parquet", "jsonl", "csv"):
        out = tmp_path / f"rows.{ending}"
        told = assay("sql", run, statement, "--out", out)
        assert told.stdout == ""
        assert "2 rows in" in told.stderr
        assert [row["label_name"] for row in read(out)] == ["bad", "good"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_flag_writes_every_column_of_the_source(run: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"flagged.{ending}"
    told = assay("flag", run, "--top", "7", "--out", out)
    assert told.stdout == ""
    assert "7 rows in" in told.stderr
    rows = read(out)
    assert len(rows) == 7
    assert list(rows[0])[: len(COLUMNS)] == COLUMNS
    originals = {row["id"]: row for row in examples()}
    for row in rows:
        own = {name: row[name] for name in COLUMNS}
        if ending == "csv":
            own["tags"] = originals[row["id"]]["tags"]
        assert own == originals[row["id"]]
    assert {"given_label", "suggested_label", "label_score", "is_label_issue"} <= set(rows[0])
    scores = [float(row["label_score"]) for row in rows]
    assert scores == sorted(scores)


def test_flag_prints_and_writes_a_review(run: Path, tmp_path: Path) -> None:
    rows = json.loads(assay("flag", run, "--top", "4", "--json").stdout)
    names = "example_id source_id text given_label suggested_label label_score p_wrong"
    true = ["true_label", "true_label_name"]
    assert list(rows[0]) == [*names.split(), "is_label_issue", "method", *true]
    assert len(rows) == 4
    assert assay("flag", run, "--top", "4", "--method", "label_issues").stdout.startswith("example")
    review = tmp_path / "review.csv"
    assay("flag", run, "--top", "4", "--review", review)
    found = read(review)
    assert list(found[0])[:2] == ["source_id", "decision"]
    assert [row["source_id"] for row in found] == [row["source_id"] for row in rows]
    assert {row["decision"] for row in found} == {""}
    assert [row["new_label"] for row in found] == [row["suggested_label"] for row in rows]
    assert [float(row["p_wrong"]) for row in found] == [round(row["p_wrong"], 4) for row in rows]
    flagged = ["yes" if row["is_label_issue"] else "no" for row in rows]
    assert [row["flagged"] for row in found] == flagged
    told = complaint("flag", run, "--review", tmp_path / "review.json")
    assert "found the ending '.json', expected .csv" in told


def test_flags_reach_as_far_as_their_expected_precision(run: Path) -> None:
    statement = "SELECT label_score, p_wrong FROM label_issues ORDER BY label_score, example_id"
    p_wrong = [p for _, p in open_run(run).sql(statement).fetchall()]
    wanted = (p_wrong[0] + p_wrong[-1]) / 2
    reached = [sum(p_wrong[: n + 1]) / (n + 1) >= wanted for n in range(len(p_wrong))]
    rows = json.loads(assay("flag", run, "--precision", repr(wanted), "--json").stdout)
    assert len(rows) == sum(reached)
    failed = assay("flag", run, "--precision", "0.5", "--top", "3", code=1)
    assert "found precision 0.5 with top 3, expected" in failed.stderr


def test_pairs_of_classes_add_up_to_the_labels(run: Path) -> None:
    statement = (
        "SELECT sum(expected), sum(rate) FILTER (class <> given_label) >= 0 FROM label_noise"
    )
    assert open_run(run).sql(statement).fetchall() == [(pytest.approx(N_EXAMPLES), True)]
    by_class = open_run(run).sql("SELECT sum(rate) FROM label_noise GROUP BY class").fetchall()
    assert by_class == [(pytest.approx(1),)] * 2


def test_a_review_goes_through_apply(run: Path, tmp_path: Path) -> None:
    review, out = tmp_path / "review.csv", tmp_path / "corrected.parquet"
    assay("flag", run, "--top", "3", "--review", review)
    rows = read(review)
    for row, decision in zip(rows, ["fix", "drop", "accept"], strict=True):
        row["decision"] = decision
        row["new_label"] = "bad" if row["given_label"] == "good" else "good"
    with review.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    told = assay("apply", run, review, "--out", out, "--to", tmp_path / "corrected", "--json")
    assert json.loads(told.stdout)["examples"] == N_EXAMPLES - 1
    expected = [row for row in examples() if row["id"] != rows[1]["source_id"]]
    for row in expected:
        if row["id"] == rows[0]["source_id"]:
            row["stars"] = rows[0]["new_label"]
    assert read(out) == expected
    assert list(read(out)[0]) == COLUMNS


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["--keep", "20%"], 10),
        (["--keep", "30"], 30),
        (["--drop", "5%"], 46),
        (["--keep", "5", "--by", "label_score"], 5),
        (["--keep", "5", "--utility", "cross_entropy"], 5),
        (["--keep", "5", "--utility", "cross_entropy", "--overall"], 5),
        (["--keep", "5", "--method", "freeshap"], 5),
    ],
)
def test_select(run: Path, options: list[str], count: int) -> None:
    rows = json.loads(assay("select", run, *options, "--no-forecast", "--json").stdout)
    assert len(rows) == count
    assert list(rows[0]) == "example_id source_id text label label_name value rank".split()
    assert [row["rank"] for row in rows] == list(range(1, count + 1))
    is_overall = "--overall" in options
    for label in {row["label"] for row in rows}:
        values = [row["value"] for row in rows if is_overall or row["label"] == label]
        assert values == sorted(values, reverse=True)
    statement = "SELECT label_name, count(*) FROM examples GROUP BY ALL"
    for name, n in open_run(run).sql(statement).fetchall():
        kept = sum(row["label_name"] == name for row in rows)
        assert is_overall or abs(kept - count * n / N_EXAMPLES) < 1
    if is_overall:
        statement = "SELECT example_id FROM shapley WHERE utility = 'cross_entropy' AND rank <= 5"
        best = {row[0] for row in open_run(run).sql(statement).fetchall()}
        assert {row["example_id"] for row in rows} == best


def test_a_choice_of_no_row_is_refused(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "none.jsonl"
    said = complaint("select", run, "--keep", "0", "--out", out)
    assert "found keep 0, by which no row is kept, expected at least one" in said
    assert not out.exists()


def test_select_keeps_as_many_rows_as_have_so_many_tokens(run: Path) -> None:
    asked = ("select", run, "--no-forecast", "--json", "--keep")
    rows = json.loads(assay(*asked, "150 tokens").stdout)
    every = json.loads(assay(*asked, "100%").stdout)
    counted = open_run(run).sql("SELECT id, max(n_tokens) FROM diagnostics GROUP BY id").fetchall()
    tokens = [dict(counted)[row["example_id"]] for row in every]
    assert rows == every[: len(rows)]
    assert sum(tokens[: len(rows)]) <= 150 < sum(tokens[: len(rows) + 1])
    assert complaint("select", run, "--keep", "few tokens") == (
        "assay: select: found 'few tokens', expected a number such as '50000 tokens', 200k-tokens "
        "or 2M-tokens. Say for example --keep 200k-tokens."
    )


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_select_writes_a_corpus_that_can_be_run(run: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"best.{ending}"
    assay("select", run, "--keep", "25%", "--no-forecast", "--out", out)
    rows = read(out)
    assert len(rows) == N_EXAMPLES // 4
    assert list(rows[0])[: len(COLUMNS)] == COLUMNS
    assert {"value", "rank"} <= set(rows[0])


def test_columns_of_the_source_named_like_ours_keep_their_meaning(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "flagged.parquet"
    assay("flag", run, "--top", "2", "--out", out)
    for row in read(out):
        assert (row["method"], row["assay_method"]) == ("by hand", "label_issues")
        assert row["Text"].startswith("carried")
        assert row["assay_text"] == row["review"]


def test_open_run(run: Path) -> None:
    opened = open_run(str(run))
    assert isinstance(opened, OpenedRun)
    relation = opened.sql("SELECT example_id, value FROM shapley WHERE utility = 'accuracy'")
    assert len(relation.df()) == N_EXAMPLES
    arrow = relation.arrow()
    arrow = arrow.read_all() if isinstance(arrow, pa.RecordBatchReader) else arrow
    assert arrow.num_rows == N_EXAMPLES
    assert len(relation.fetchall()) == N_EXAMPLES
    assert len(opened.flag(top=2).fetchall()) == 2
    assert len(opened.select(keep="50%").fetchall()) == N_EXAMPLES // 2
    assert opened.config().shard_size == SHARD


def test_views_have_the_promised_columns(run: Path) -> None:
    opened = open_run(run)
    views = set(opened.views())
    wanted = {"examples", "queries", "rejected", "embeddings", "gradients", "ntk", "predictions"}
    assert wanted | {"shapley", "label_issues", "label_noise", "runs"} <= views
    assert views <= set(VIEWS)
    for view in sorted(views):
        relation = opened.sql(f"SELECT * FROM {view}")
        first = VIEWS[view].split()
        assert list(relation.columns)[: len(first)] == first, view
        assert "run_id" in relation.columns, view
        ids = {row[0] for row in opened.sql(f"SELECT DISTINCT run_id FROM {view}").fetchall()}
        assert ids == ({opened.record["run_id"]} if view != "issues" else set()), view
    types = opened.sql("SELECT typeof(example_id), typeof(source_id) FROM examples LIMIT 1")
    assert types.fetchall() == [("BIGINT", "VARCHAR")]
    assert opened.sql("SELECT DISTINCT typeof(vector) FROM embeddings").fetchall()[0][0] in (
        "FLOAT[]",
        "FLOAT[32]",
    )


def test_rejected_rows_say_why(run: Path) -> None:
    rows = open_run(run).sql("SELECT row_number, source_id, reason FROM rejected ORDER BY 1")
    assert rows.fetchall() == [(0, "x", "empty text"), (1, "y", "unknown label")]


def test_unlabelled_queries_are_kept_and_left_out_of_utilities(run: Path) -> None:
    opened = open_run(run)
    counts = opened.sql("SELECT count(*), count(label) FROM queries").fetchall()
    assert counts == [(N_QUERIES, N_QUERIES - 2)]
    details = opened.sql("SELECT details FROM runs WHERE stage = 'freeshap'").fetchall()[0][0]
    facts = json.loads(details)
    assert (facts["n_queries"], facts["n_unlabelled_queries"]) == (N_QUERIES - 2, 2)
    lost = opened.sql(
        "SELECT count(*) FILTER (loss IS NULL), count(*) FROM predictions "
        "WHERE role = 'query' AND source = 'probe'"
    )
    assert lost.fetchall() == [(2, N_QUERIES)]


@pytest.fixture
def small(tmp_path: Path, reader: Any) -> Callable[..., OpenedRun]:
    """Runs the embedding stage over a small corpus."""

    def run(corpus: dict[str, Any], **more: Any) -> OpenedRun:
        stages = {"embedding": {}}
        assay("run", write_run(tmp_path, model=reader, corpus=corpus, stages=stages, **more))
        return open_run(tmp_path / "run")

    return run


def test_pairs(tmp_path: Path, small: Any) -> None:
    rows = sentences("sst2_train.parquet", 6)
    pairs = [{"a": r["text"], "b": f"pair {i}", "label": i % 2} for i, r in enumerate(rows)]
    pairs[2]["b"] = None
    path = write_lines(tmp_path / "pairs.jsonl", pairs)
    opened = small({"path": path, "text": "a", "text_b": "b"})
    found = opened.sql("SELECT text_b FROM examples ORDER BY example_id").fetchall()
    assert [row[0] for row in found] == ["pair 0", "pair 1", "pair 3", "pair 4", "pair 5"]
    assert opened.sql("SELECT reason FROM rejected").fetchall() == [("null second text",)]
    opened.write_corpus(tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl") == [pair for pair in pairs if pair["b"] is not None]


def test_class_labels_of_a_saved_folder(tmp_path: Path, small: Any) -> None:
    rows = sentences("sst2_train.parquet", 6)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    cells = {name: [row[name] for row in rows] for name in ("text", "label")}
    datasets.Dataset.from_dict(cells, features=features).save_to_disk(str(tmp_path / "saved"))
    opened = small({"path": str(tmp_path / "saved")})
    found = opened.sql("SELECT label_name FROM examples ORDER BY example_id").fetchall()
    assert [row[0] for row in found] == [["no", "yes"][row["label"]] for row in rows]
    opened.write_corpus(tmp_path / "out.parquet")
    assert read(tmp_path / "out.parquet") == [
        {"text": row["text"], "label": row["label"]} for row in rows
    ]


def test_negative_integer_ids_come_back_as_integers(tmp_path: Path, small: Any) -> None:
    rows = [
        {"id": i - 3, "text": r["text"], "label": i % 2}
        for i, r in enumerate(sentences("sst2_train.parquet", 6))
    ]
    opened = small({"path": write_lines(tmp_path / "a.jsonl", rows), "id": "id"})
    opened.write_corpus(tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl") == rows


def test_queries_whose_classes_are_numbered_otherwise(tmp_path: Path, small: Any) -> None:
    rows = sentences("sst2_train.parquet", 6)
    named = [{"text": r["text"], "label": ["no", "yes"][i % 2]} for i, r in enumerate(rows)]
    other: Rows = [
        {"text": r["text"], "label": ["yes", "no", "maybe"][i % 3]} for i, r in enumerate(rows)
    ]
    corpus = {"path": write_lines(tmp_path / "a.jsonl", named)}
    queries = {"path": write_lines(tmp_path / "q.jsonl", other)}
    opened = small(corpus, queries=queries)
    found = opened.sql("SELECT label_name, label FROM queries ORDER BY query_id").fetchall()
    assert found == [("yes", 1), ("no", 0), ("yes", 1), ("no", 0)]
    told = opened.sql("SELECT reason, count(*) FROM rejected GROUP BY 1").fetchall()
    assert told == [("unknown label", 2)]


def test_set_overrides(config: Path, run: Path, tmp_path: Path) -> None:
    def override(*settings: str) -> dict[str, Any]:
        options = [part for setting in settings for part in ("--set", setting)]
        plan: dict[str, Any] = json.loads(assay("plan", config, "--json", *options).stdout)
        return plan

    assert override("queries.split='train[:5]'")["queries"] == 5
    assert override("corpus.split=train[:20]", "shard_size=10")["shards"] == 4
    stages = override("stages={embedding: {}}")["stages"]
    assert [row["stage"] for row in stages] == ["embedding"]
    stages = override("stages.freeshap.rounds=3", "stages.freeshap.seed=1")["stages"]
    assert {row["stage"]: row["tasks"] for row in stages}["freeshap"] == 3


def leaves() -> list[str]:
    return sorted(main.commands)


@pytest.mark.parametrize("command", leaves())
def test_every_command_shows_an_example(command: str) -> None:
    shown = assay(command, "--help").stdout
    assert f"Example: assay {command} " in " ".join(shown.split())


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom pipeline.cli import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        "assert CliRunner().invoke(main, ['run', '--help']).exit_code == 0\n"
        "heavy = {'torch', 'ray', 'transformers', 'datasets', 'duckdb', 'pyarrow', 'numpy'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    before = os.times().children_user
    assert python(code).split() == []
    # An eighth of a second of a core; the limit only tells it from what torch alone takes.
    assert os.times().children_user - before < 2


def test_help_lists_every_command() -> None:
    shown = assay("--help").stdout
    assert all(command in shown for command in leaves())
    wanted: Callable[[str], bool] = lambda name: name in leaves()  # noqa: E731
    assert all(map(wanted, ("plan", "run", "status", "sql", "flag", "apply", "select")))
