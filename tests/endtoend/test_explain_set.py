"""`assay explain --queries`: planted rows that make queries fail are named, and what helps."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import Rows, write_lines, write_run

from pipeline import OpenedRun, open_run
from pipeline.api import explain
from pipeline.errors import RunError
from pipeline.explain.query_set import read_query_set
from pipeline.explain.set_forecast import refit_of
from pipeline.finished import Finished
from pipeline.progress import Progress
from stages.surrogate.refit import judged

GROUPS, DIM, PER_GROUP, ASKED = 6, 12, 20, 14
FAILING = 2
"""The group whose examples lie to it: its label is the even ones', theirs that of the odd."""
PLANTED = 8
FEATURES = {"kernel": ["features"]}
STAGES = {
    "kernel_regression": {**FEATURES, "ridge": 0.1},
    "by_shard": {"stage": "kernel_regression", **FEATURES, "ridge": 0.1, "form": "primal"},
    "kernel_representer": {**FEATURES, "top_k": None},
    "similarity": {"features": "features", "top_k": 5},
    "label_issues": {},
    "shapley_by_query": {**FEATURES, "units": 4, "utilities": ["margin"]},
}


def source(folder: Path, name: str, n: int) -> dict[str, Any]:
    """Rows around six points, each a class of its own side; of one group there are few examples.

    Of that group's ten examples eight have the wrong label, and the rest of the corpus says nothing
    about its place.
    """
    g = np.random.default_rng(len(name))
    groups = np.repeat(np.arange(GROUPS), n)
    if name == "train":
        groups = groups[(groups != FAILING) | (np.arange(len(groups)) % n < PLANTED + 2)]
    points = np.eye(GROUPS, DIM)[groups] + 0.04 * g.normal(size=(len(groups), DIM))
    np.save(folder / f"{name}.npy", points)
    rows: Rows = []
    for group in groups:
        nth = sum(row["group"] == int(group) for row in rows)
        is_wrong = name == "train" and group == FAILING and nth < PLANTED
        label = "ab"[(int(group) + is_wrong) % 2]
        key = f"{name}-{group}-{nth}"
        rows.append({"key": key, "group": int(group), "label": label, "text": f"row {key}"})
    if name == "ask":
        rows[-1]["label"] = None
    path = write_lines(folder / f"{name}.jsonl", rows)
    return {"path": path, "id": "key", "features": str(folder / f"{name}.npy")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, assay: Any) -> Path:
    """The folder of a finished run."""
    place = tmp_path_factory.mktemp("sets")
    corpus, queries = source(place, "train", PER_GROUP), source(place, "ask", ASKED)
    assay("run", write_run(place, corpus=corpus, queries=queries, stages=STAGES))
    return place / "run"


@pytest.fixture
def run(folder: Path) -> OpenedRun:
    return open_run(folder)


@pytest.fixture
def failing(run: OpenedRun, tmp_path: Path) -> Path:
    """A CSV of the queries that the kernel gets wrong, as a person would write it."""
    rows = run.sql(
        "SELECT q.source_id AS key, p.predicted_name AS predicted FROM predictions AS p JOIN "
        "queries AS q ON q.query_id = p.id WHERE p.role = 'query' AND p.predicted <> q.label "
        "AND p.method = 'kernel_regression'"
    )
    assert run.write_rows(rows, tmp_path / "failing.csv") == ASKED
    return tmp_path / "failing.csv"


def planted(rows: Rows) -> list[bool]:
    wrong = {f"train-{FAILING}-{nth}" for nth in range(PLANTED)}
    return [row["source_id"] in wrong for row in rows]


def of(found: Any, action: str, by: str | None) -> Any:
    (row,) = (r for r in found["forecast"]["rows"] if (r["action"], r["by"]) == (action, by))
    return row


def test_the_planted_rows_are_named_and_leaving_them_out_cures(
    folder: Path, run: OpenedRun, failing: Path, assay: Any
) -> None:
    asked = ("--queries", failing, "--top", 8, "--remove", PLANTED)
    found = json.loads(assay("explain", folder, *asked, "--json").stdout)
    assert {row["source_id"] for row in found["queries"]} == {f"ask-2-{i}" for i in range(ASKED)}
    assert {row["label"] for row in found["queries"]} == {"a"}
    (kernel,) = (p for p in found["predictions"] if p["method"] == "kernel_regression")
    assert (kernel["n"], kernel["n_right"]) == (ASKED, 0)
    representer, similarity = found["methods"]
    # It explains the predicted class, which is the wrong one: the sign is turned.
    assert representer["speaks_for"] == "prediction"
    for entry in (representer, *found["values"]):
        assert planted(entry["harmful"])[:PLANTED] == [True] * PLANTED
        assert not any(planted(entry["helpful"]))
        assert [row["in_top"] for row in entry["harmful"][:PLANTED]] == [ASKED] * PLANTED
        assert not any(row["is_outlier"] for row in entry["cosines"])
    assert similarity["top_k"] == 5
    forecast = found["forecast"]
    assert forecast["is_cross_fitted"]
    assert forecast["n_others"] == GROUPS * ASKED - ASKED - 1
    before, cured = of(found, "none", None), of(found, "remove", "kernel_representer")
    chance = of(found, "remove", "random")
    assert (before["set"]["accuracy"], cured["set"]["accuracy"]) == (0.0, 1.0)
    assert before["others"]["accuracy"] == cured["others"]["accuracy"] == 1.0
    assert chance["set"]["accuracy"] < 0.5
    assert cured["set"]["margin"] > chance["set"]["margin"] + 2 * chance["set_sd"]["margin"]


def test_the_terminal_and_the_page_say_so(
    folder: Path, failing: Path, assay: Any, tmp_path: Path, complaint: Any
) -> None:
    asked = ("--queries", failing, "--remove", PLANTED)
    said = assay("explain", folder, *asked).stdout
    assert f"{ASKED} queries of {failing}: {ASKED} a" in said
    assert f"The kernel (kernel_regression) is right on 0 of {ASKED} a" in said
    title = "examples that speak against the queries' labels, for the wrong predictions"
    assert f"kernel_representer: {title}" in said
    assert "similarity: examples most like the queries" in said
    assert "Best for the set (without the 8 worst of " in said
    assert "accuracy" in said
    assert "row train-2-0" in said
    for name in ("why.html", "why.json"):
        assay("explain", folder, *asked, "--out", tmp_path / name)
    page = (tmp_path / "why.html").read_text()
    HTMLParser().feed(page)
    assert page.count("<html") == page.count("</html>") == 1
    assert "Best for the set (without the 8 worst of " in page
    assert "row train-2-0" in page
    assert json.loads((tmp_path / "why.json").read_text())["file"] == str(failing)
    said = complaint("explain", folder, *asked, "--out", tmp_path / "why.png")
    assert "found a set of queries, expected a single one" in said


def test_a_set_may_be_a_list_or_any_table_of_ids(
    run: OpenedRun, failing: Path, tmp_path: Path
) -> None:
    names = [f"ask-2-{i}" for i in range(ASKED)]
    ids = [
        run.sql(f"SELECT query_id FROM queries WHERE source_id = '{name}'").fetchall()[0][0]
        for name in names
    ]
    pq.write_table(pa.table({"query_id": ids}), tmp_path / "ids.parquet")
    write_lines(tmp_path / "ids.jsonl", [{"source_id": name} for name in names])
    expected = read_query_set(run, failing, "key", Progress()).rows
    for given in (names, ids, tmp_path / "ids.parquet", str(tmp_path / "ids.jsonl")):
        assert read_query_set(run, given, None, Progress()).rows == expected
    found = explain(run, queries=names, methods=["kernel_representer"], remove=PLANTED)
    assert [row["source_id"] for row in found["queries"]] == [row["source_id"] for row in expected]
    assert "Best for the set (without the 8 worst of kernel_representer" in repr(found)


def test_the_forecast_is_a_fit_without_these_rows(run: OpenedRun) -> None:
    """Of fewer than ten queries, which judge the examples that they chose, as is said."""
    asked = ["ask-2-0", "ask-2-1", "ask-1-3"]
    found = run.explain(queries=asked, methods=["kernel_representer"], remove=5)
    assert not found["forecast"]["is_cross_fitted"]
    assert "chose the examples" in repr(found)
    scores = run.sql(
        "SELECT a.example_id, sum(if(p.predicted = q.label, 1, -1) * a.score) AS total "
        "FROM attributions AS a JOIN predictions AS p ON p.id = a.query_id AND p.role = 'query' "
        "JOIN queries AS q USING (query_id) WHERE a.method = 'kernel_representer' AND p.method = "
        f"'kernel_regression' AND q.source_id IN ({str(asked)[1:-1]}) "
        "GROUP BY 1 ORDER BY 2, 1 LIMIT 5"
    ).fetchall()
    worst = [row[0] for row in scores]
    (damping,) = run.sql(
        "SELECT (details->'damping')::DOUBLE FROM runs WHERE instance = 'kernel_regression' LIMIT 1"
    ).fetchall()[0]
    rows = run.sql(
        "SELECT id, role, vector, label FROM features JOIN tables.label USING (id, role) "
        "WHERE label IS NOT NULL ORDER BY id"
    ).fetchall()
    kept = [row for row in rows if row[1] == "example" and row[0] not in worst]
    judges = [row for row in rows if row[1] == "query"]
    unit = [np.array([r[2] for r in part], float) for part in (kept, judges)]
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in unit]
    targets = np.eye(2)[[row[3] for row in kept]] - 0.5
    kernel = unit[0] @ unit[0].T + damping * np.eye(len(kept))
    outputs = unit[1] @ unit[0].T @ np.linalg.solve(kernel, targets) + 0.5
    expected = judged(outputs, np.array([row[3] for row in judges], float))
    in_set = np.isin([row[0] for row in judges], [row["query_id"] for row in found["queries"]])
    row = next(r for r in found["forecast"]["rows"] if r["action"] == "remove" and r["of"] == "set")
    for name, values in expected.items():
        assert row["set"][name] == pytest.approx(values[in_set].mean(), abs=1e-6)
        assert row["others"][name] == pytest.approx(values[~in_set].mean(), abs=1e-6)
        assert row["all"][name] == pytest.approx(values.mean(), abs=1e-6)


def test_both_forms_of_the_regression_forecast_the_same(run: OpenedRun) -> None:
    finished = Finished(run.folder)
    rows = run.sql("SELECT example_id FROM examples ORDER BY example_id").fetchall()
    # All of one shard, and some of another: the third is not read.
    ids = [row[0] for row in rows[:47]]
    dual, primal = (
        refit_of(run, finished, name, ids) for name in ("kernel_regression", "by_shard")
    )
    assert dual.example_ids.tolist() == primal.example_ids.tolist() == ids
    assert dual.query_ids.tolist() == primal.query_ids.tolist()
    removed, changed = np.array(ids[:9]), {ids[12]: 0.0, ids[46]: 1.0}
    expected = dual.after(removed, changed)
    assert np.abs(expected - dual.outputs.numpy()).max() > 0.01
    np.testing.assert_allclose(primal.after(removed, changed), expected, rtol=0, atol=1e-9)


def test_what_cannot_be_asked(folder: Path, run: OpenedRun, tmp_path: Path, complaint: Any) -> None:
    def said(text: str) -> str:
        (tmp_path / "asked.csv").write_text(text)
        return str(complaint("explain", folder, "--queries", tmp_path / "asked.csv"))

    last = f"ask-{GROUPS - 1}-{ASKED - 1}"
    assert "found 2 ids that no query of the run has, the first nine" in said(
        "key\nask-2-0\nnine\n9\n"
    )
    assert "found 1 id that no query of the run has, the first ask-2-0" in said(
        "query_id\nask-2-0\n"
    )
    assert f"found 1 query without a label, the first {last}" in said(
        f"source_id\nask-2-0\n{last}\n"
    )
    assert "found no rows, expected at least one" in said("key\n")
    assert "found the columns name, expected query_id or source_id or key among" in said(
        "name\nx\n"
    )
    assert "row 1: found no id in the column key" in said("key,x\nask-2-0,1\n,2\n")
    assert "expected" in said("")
    assert "asked2.csv" in complaint("explain", folder, "--queries", tmp_path / "asked2.csv")
    (tmp_path / "asked.csv").write_text("key\nask-2-0\nask-2-0\n")
    asked = ("--queries", tmp_path / "asked.csv")
    assert "found --method tracin, expected one of kernel_representer, similarity" in complaint(
        "explain", folder, *asked, "--method", "tracin"
    )
    assert "found queries beside a single query or a text" in complaint(
        "explain", folder, *asked, "--text-b", "x"
    )
    with pytest.raises(RunError, match="found no query"):
        run.explain(queries=[])


def test_a_query_that_is_named_twice_counts_once(folder: Path, assay: Any, tmp_path: Path) -> None:
    (tmp_path / "asked.csv").write_text("key\nask-2-0\nask-2-0\n")
    result = assay("explain", folder, "--queries", tmp_path / "asked.csv", "--json")
    assert "asked.csv:1namedagain" in "".join(result.stderr.split())
    assert len(json.loads(result.stdout)["queries"]) == 1
