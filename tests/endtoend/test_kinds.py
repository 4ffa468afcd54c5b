"""Runs over every kind of corpus: vectors of one's own, targets of a regression, completions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import Rows, write_lines, write_run
from tiny_models import word_model

from pipeline import open_run

N_EXAMPLES, N_QUERIES = 90, 30


def digits(n: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """Images of 8 x 8 integers that look like one of three patterns, and which one."""
    patterns = np.random.default_rng(0).integers(0, 12, size=(3, 8, 8))
    g = np.random.default_rng(seed)
    labels = g.integers(0, 3, size=n)
    return (patterns[labels] + g.integers(0, 5, size=(n, 8, 8))).astype(np.uint8), labels.tolist()


def bag(folder: Path, name: str, n: int, seed: int) -> dict[str, Any]:
    """A source of labels alone, with a file of images."""
    images, labels = digits(n, seed)
    np.save(folder / f"{name}.npy", images)
    path = write_lines(folder / f"{name}.jsonl", [{"digit": f"is {y}"} for y in labels])
    return {"path": path, "text": None, "label": "digit", "features": str(folder / f"{name}.npy")}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a run over images, with planted wrong labels and without a model."""
    folder = tmp_path_factory.mktemp("images")
    stages = {
        "probe": {"embedding": "features"},
        "prediction": {"embedding": "features"},
        "kernel_regression": {"kernel": ["features"]},
        "freeshap": {"kernel": ["features"], "rounds": 2, "units_per_round": 3},
        "label_issues": {},
    }
    corpus = {**bag(folder, "train", N_EXAMPLES, 1), "flip_labels": {"fraction": 0.1}}
    queries = bag(folder, "test", N_QUERIES, 2)
    return write_run(folder, corpus=corpus, queries=queries, stages=stages)


@pytest.fixture(scope="module")
def done(images: Path, assay: Any) -> Path:
    """The folder of that run, finished."""
    planned = assay("plan", images, "--json")
    assert {row["stage"]: row["tasks"] for row in json.loads(planned.stdout)["stages"]} == {
        "probe": 1,
        "prediction": 4,
        "kernel_regression": 1,
        "freeshap": 2,
        "label_noise": 1,
        "label_issues": 3,
    }
    ran = assay("run", images)
    assert "Accuracy of the kernel on the queries: 1.000" in ran.stdout
    assert "Accuracy of the probe on the queries: 1.000" in ran.stdout
    return images.parent / "run"


def test_planted_flips_of_images_are_found(done: Path, assay: Any) -> None:
    run = open_run(done)
    flagged = {row[0] for row in run.flag().fetchall()}
    wrong = run.sql("SELECT example_id FROM examples WHERE label <> true_label").fetchall()
    assert len(wrong) == 9
    assert flagged == {row[0] for row in wrong}
    names = dict(run.sql("SELECT label, label_name FROM examples").fetchall())
    told = run.flag().project("true_label, true_label_name, given_label").fetchall()
    assert all(names[true] == name != given for true, name, given in told)
    heading, *shown = assay("flag", done).stdout.splitlines()
    assert heading.split()[-1] == "true_label_name"
    assert all(line.rstrip().endswith(name) for line, (_, name, _) in zip(shown, told, strict=True))
    lowest = run.select(drop="81").fetchall()
    assert not {row[0] for row in lowest} & flagged


def test_the_view_of_features_holds_the_vectors(done: Path) -> None:
    run = open_run(done)
    rows = run.sql("SELECT id, vector FROM features WHERE role = 'query' ORDER BY id").fetchall()
    expected, _ = digits(N_QUERIES, 2)
    assert [row[0] for row in rows] == list(range(N_QUERIES))
    np.testing.assert_array_equal([row[1] for row in rows], expected.reshape(N_QUERIES, 64))
    assert list(run.sql("FROM features").columns) == ["id", "role", "vector", "method", "run_id"]
    assert run.sql("SELECT DISTINCT text FROM examples").fetchall() == [("",)]


def test_rows_without_texts_are_no_duplicates(done: Path) -> None:
    found = open_run(done).sql("SELECT DISTINCT issue FROM issues").fetchall()
    assert not {issue for (issue,) in found} & {"duplicate", "also a query", "no words"}


@pytest.mark.slow
def test_a_corpus_that_is_written_brings_its_vectors(
    done: Path, images: Path, tmp_path: Path, assay: Any
) -> None:
    out, review = tmp_path / "corrected.parquet", tmp_path / "review.csv"
    review.write_text("source_id,decision,new_label\n0,drop,\n5,fix,is 2\n")
    arguments = ("apply", done, review, "--out", out, "--to", tmp_path / "run", "--json")
    assay(*arguments)
    table = pq.read_table(out)
    assert table.column_names == ["digit", "features"]
    assert table["digit"][4].as_py() == "is 2"
    expected, _ = digits(N_EXAMPLES, 1)
    vectors = np.array(table["features"].to_pylist())
    np.testing.assert_array_equal(vectors, expected.reshape(N_EXAMPLES, 64)[1:])
    status = json.loads(assay("status", tmp_path / "run", "--json").stdout)
    assert status["is_whole"]
    best = tmp_path / "best.jsonl"
    assay("select", done, "--keep", "5", "--out", best)
    lines = [json.loads(line) for line in best.read_text().splitlines()]
    assert [len(line["features"]) for line in lines] == [64] * 5
    assert "text" not in lines[0]


def test_what_vectors_alone_cannot_do_is_said_at_once(
    images: Path, tmp_path: Path, complaint: Any, reader: Any
) -> None:
    plan = ("plan", images, "--set")
    said = complaint(*plan, "stages={label_issues: {}}")
    assert "reads 'hidden_states', which needs a model" in said
    assert "kernel: [features]" in said
    said = complaint(*plan, "stages={prediction: {embedding: features}}")
    assert "stages.prediction: found that probe, which it adds, reads 'embedding'" in said
    assert "Say `probe: {embedding: features}` under `stages:`" in said
    said = complaint(*plan, "stages={embedding: {}}", "--set", f"model={json.dumps(reader)}")
    assert "expected a corpus with text" in said
    said = complaint(*plan, "stages={features: {stage: probe}}")
    assert "found the name of a table of the corpus" in said
    said = complaint(*plan, "queries.features=null", "--set", "queries.text=digit")
    assert "queries.features: found None with corpus.features" in said
    np.save(tmp_path / "short.npy", np.zeros((N_QUERIES, 5)))
    said = complaint(*plan, f"queries.features={tmp_path / 'short.npy'}")
    assert "found vectors of length 5" in said
    assert "expected 64, as in the corpus" in said


def line(n: int, seed: int) -> pa.Table:
    """Vectors, and targets that are nearly a linear function of them."""
    g = np.random.default_rng(seed)
    vectors = g.normal(size=(n, 6)).astype(np.float32)
    targets = 50 + 4 * vectors[:, 0] - 3 * vectors[:, 1] + g.normal(size=n) / 10
    columns = {"name": [f"row {i}" for i in range(n)], "price": targets, "vector": vectors.tolist()}
    return pa.table(columns)


@pytest.fixture(scope="module")
def prices(tmp_path_factory: pytest.TempPathFactory, assay: Any) -> Path:
    """The configuration of a finished run over a regression corpus with a column of vectors."""
    folder = tmp_path_factory.mktemp("prices")
    pq.write_table(line(N_EXAMPLES, 1), folder / "train.parquet")
    test = line(N_QUERIES, 2).to_pylist()
    test[4]["price"], test[5]["vector"] = None, [1.0]
    pq.write_table(pa.Table.from_pylist(test), folder / "test.parquet")
    columns = {"text": "name", "label": "price", "features": "vector"}
    config = write_run(
        folder,
        corpus={"path": str(folder / "train.parquet"), "task": "regression", **columns},
        queries={"path": str(folder / "test.parquet"), **columns},
        stages={
            "kernel_regression": {"kernel": ["features"], "normalize": False},
            "probe": {"embedding": "features", "regularization": 1e-6},
        },
    )
    assay("plan", config)
    ran = assay("run", config)
    assert "targets of a regression" in ran.stderr
    assert "1 query has no label" in ran.stderr
    assert "Error of the kernel on the queries: R^2 0.99" in ran.stdout
    return config


def test_targets_are_predicted_and_judged(prices: Path, assay: Any) -> None:
    run = open_run(prices.parent / "run")
    rows = run.sql(
        "SELECT q.target, p.logits, p.loss, p.predicted, p.predicted_name, p.confidence, p.margin "
        "FROM predictions AS p JOIN queries AS q ON q.query_id = p.id AND p.role = 'query'"
    ).fetchall()
    assert len(rows) == N_QUERIES - 1
    for target, logits, loss, *of_classes in rows:
        assert of_classes == [None] * 4
        assert len(logits) == 1
        assert loss == (None if target is None else pytest.approx((logits[0] - target) ** 2))
    known = [(row[0], row[2]) for row in rows if row[0] is not None]
    targets, losses = np.array(known).T
    assert losses.mean() < 0.05
    summary = json.loads(assay("run", prices, "--json").stdout)
    (judged,) = summary["regression"]
    assert summary["accuracy"] == []
    assert judged["mean_squared_error"] == pytest.approx(losses.mean())
    assert judged["r_squared"] == pytest.approx(1 - losses.mean() / targets.var())
    for statement in summary["try"]:
        assay("sql", prices.parent / "run", statement)


def test_the_probe_of_a_regression_is_the_least_squares_line(prices: Path) -> None:
    run = open_run(prices.parent / "run")
    ((weight, bias),) = run.sql("SELECT weight, bias FROM tables.probe").fetchall()
    train = line(N_EXAMPLES, 1)
    columns = [*np.array(train["vector"].to_pylist()).T, np.ones(N_EXAMPLES)]
    expected = np.linalg.lstsq(np.array(columns).T, train["price"].to_numpy(), rcond=None)[0]
    # A penalty of 1e-6 in units where six equal variances add up to 1 shrinks by 6e-6.
    np.testing.assert_allclose([*weight, bias], expected, rtol=0, atol=5e-5)


def test_columns_of_a_regression(prices: Path) -> None:
    run = open_run(prices.parent / "run")
    first = "example_id source_id text label label_name split shard target".split()
    assert list(run.sql("FROM examples").columns)[: len(first)] == first
    assert list(run.sql("FROM queries").columns)[1 : len(first)] == first[1:]
    counts = run.sql("SELECT count(target), count(label), typeof(any_value(target)) FROM examples")
    assert counts.fetchall() == [(N_EXAMPLES, 0, "DOUBLE")]
    assert run.sql("SELECT reason FROM rejected").fetchall() == [("vector of another length",)]


def test_a_target_is_corrected_and_written(prices: Path, tmp_path: Path, assay: Any) -> None:
    review, out = tmp_path / "review.csv", tmp_path / "out.parquet"
    review.write_text("source_id,decision,new_label\n3,fix,12.5\n4,drop,\n")
    run = prices.parent / "run"
    assay("apply", run, review, "--out", out, "--to", tmp_path / "run")
    expected = line(N_EXAMPLES, 1).to_pylist()
    expected[3]["price"] = 12.5
    del expected[4]
    assert pq.read_table(out).to_pylist() == expected


def test_what_a_regression_cannot_do_is_said_at_once(prices: Path, complaint: Any) -> None:
    run = prices.parent / "run"
    said = complaint("flag", run)
    assert "found a corpus with task: regression, expected classification" in said
    assert "ORDER BY loss DESC" in said
    said = complaint("select", run, "--keep", "5")
    assert "Add `freeshap: {kernel: [gradient], utilities: [loss]}` under `stages:`" in said
    for stage in ("label_issues", "freeshap", "leave_one_out"):
        given = {stage: {} if stage == "label_issues" else {"kernel": ["features"]}}
        stages = {"kernel_regression": {"kernel": ["features"]}, **given}
        said = complaint("plan", prices, "--set", f"stages={json.dumps(stages)}")
        assert f"stages.{stage}: found a corpus with task: regression" in said
    said = complaint("plan", prices, "--set", "queries.task=classification")
    assert "queries.task: found classification, expected regression" in said


FORMS: dict[str, Rows] = {
    "prompt_completion": [
        {"prompt": p, "completion": c, "id": i}
        for i, (p, c) in enumerate([("2+2=", "4"), ("", "once upon a time"), ("sky?", "blue")])
    ],
    "messages": [
        {
            "messages": [
                {"role": "user", "content": f"question {i}"},
                {"role": "assistant", "content": f"answer {i}"},
            ],
            "id": i,
        }
        for i in range(3)
    ],
    "text": [{"text": f"some text {i}", "id": i} for i in range(3)],
}


@pytest.mark.parametrize("form", FORMS)
def test_completions(form: str, tmp_path: Path, assay: Any, complaint: Any, reader: Any) -> None:
    rows = FORMS[form]
    path = write_lines(tmp_path / "rows.jsonl", [*rows, {**rows[0], "id": None}])
    config = write_run(
        tmp_path,
        model=reader,
        corpus={"path": path, "task": "completion", "id": "id"},
        queries={"path": write_lines(tmp_path / "queries.jsonl", rows[:1])},
        stages={"embedding": {}},
    )
    assay("plan", config)
    ran = assay("run", config)
    assert "3 examples and 1 query in 2 shards, texts to complete" in ran.stderr
    assert "no label" not in ran.stderr
    run = open_run(tmp_path / "run")
    facts = run.sql("SELECT details FROM runs WHERE \"table\" = 'text'").fetchall()[0][0]
    assert json.loads(facts)["format"] == form
    counts = run.sql("SELECT count(*), count(label), count(target), count(text_b) FROM examples")
    assert counts.fetchall() == [(3, 0, 0, 3 if form == "prompt_completion" else 0)]
    review = tmp_path / "review.csv"
    review.write_text("source_id,decision\n1,drop\n")
    out, to = tmp_path / "out.jsonl", tmp_path / "corrected"
    assay("apply", tmp_path / "run", review, "--out", out, "--to", to)
    assert [json.loads(text) for text in out.read_text().splitlines()] == [rows[0], rows[2]]
    said = complaint("flag", tmp_path / "run")
    assert "found no view answer_issues, expected the results of a stage" in said
    for stage in ("probe", "kernel_regression", "label_issues", "freeshap"):
        said = complaint("plan", config, "--set", f"stages={{{stage}: {{}}}}")
        assert "found a corpus with task: completion, expected classification" in said


def test_completions_are_valued_by_the_loss(tmp_path: Path, assay: Any) -> None:
    rows = [{**row, "id": i} for i, row in enumerate(FORMS["prompt_completion"] * 3)]
    config = write_run(
        tmp_path,
        model={
            "path": str(
                word_model(tmp_path / "model", "2+2= 4 once upon a time sky? blue".split())
            ),
            "head": "completion",
            "max_length": 16,
        },
        corpus={"path": write_lines(tmp_path / "rows.jsonl", rows), "task": "completion"},
        queries={"path": write_lines(tmp_path / "queries.jsonl", rows[:2])},
        stages={
            "freeshap": {"kernel": ["gradient"], "utilities": ["loss"], "rounds": 3},
            "shapley_by_query": {"kernel": ["gradient"], "utilities": ["loss"], "units": 3},
            "leave_one_out": {"kernel": ["gradient"], "utilities": ["loss"]},
        },
    )
    assay("run", config)
    run = open_run(tmp_path / "run")
    values = run.sql(
        "SELECT method, utility, count(*), count(stderr) FROM shapley GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    assert values == [("freeshap", "loss", 9, 9), ("leave_one_out", "loss", 9, 9)]
    assert run.sql("SELECT count(*) FROM shapley_by_query").fetchall() == [(18,)]
    # Rows of the same text are worth the same, up to chance.
    spread = run.sql(
        "SELECT max(v) - min(v) FROM (SELECT text, value AS v FROM shapley JOIN examples "
        "USING (example_id) WHERE method = 'leave_one_out') GROUP BY text"
    ).fetchall()
    assert len(spread) == 3
    assert max(difference for (difference,) in spread) < 1e-6
    assay("report", tmp_path / "run", "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    listed = page.partition("Most helpful examples</h3>")[2].partition("</table>")[0]
    assert '<p class="text" dir="auto">2+2=</p><p class="text" dir="auto">4</p>' in listed
    assert "label</th>" not in listed
    assert {"2+2= | 4"} <= set(run.show("values").data["example"])


def test_conversations_survive_parquet(tmp_path: Path, assay: Any, reader: Any) -> None:
    rows = FORMS["messages"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    source = {"path": str(tmp_path / "rows.parquet"), "task": "completion"}
    config = write_run(tmp_path, model=reader, corpus=source, stages={"embedding": {}})
    assay("run", config)
    run = open_run(tmp_path / "run")
    texts = run.sql("SELECT text FROM examples ORDER BY example_id").fetchall()
    assert [json.loads(text) for (text,) in texts] == [row["messages"] for row in rows]
    out = tmp_path / "out.parquet"
    run.write_corpus(out)
    again = write_run(
        tmp_path, model=reader, corpus={**source, "path": str(out)}, stages={"embedding": {}}
    )
    planned = json.loads(assay("plan", again, "--json").stdout)
    assert [row["tasks"] for row in planned["stages"]] == [0]
