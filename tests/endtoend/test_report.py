import base64
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from pages import HOSTILE, NAMESAKES, Page
from pandas.io.formats.style import Styler
from runs import assay, complaint, write_lines, write_run

from pipeline import api
from pipeline.errors import RunError
from pipeline.open_run import open_run
from pipeline.page.document import readable
from pipeline.page.subject import Subject
from pipeline.page.values import groups


@pytest.fixture(scope="module")
def page(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of the hostile run."""
    out = tmp_path_factory.mktemp("out") / "report.html"
    assay("report", hostile, "--out", out, "--by", "origin")
    return out.read_text(encoding="utf-8")


def test_texts_of_a_corpus_are_harmless(page: str) -> None:
    read = Page(page)
    assert [kind for kind, _ in read.scripts] == ["application/json", "module", "module"]
    forbidden = {"img", "iframe", "object", "embed", "base", "form", "link"}
    assert not forbidden & {tag for tag, _ in read.tags}
    for _, attributes in read.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert str(attributes.get("href", "#")).startswith("#")
    for text in HOSTILE[:5]:
        assert text in read.words
    assert "\u202e" not in page
    assert "\\u202eright to left" in read.words
    shown = read.words + "".join(text for kind, text in read.scripts if kind != "module")
    assert not [sign for sign in shown if ord(sign) < 32 and sign not in "\n\t"]
    assert "{{ 7 * 7 }} {% raw %}" in read.words


def test_only_the_scripts_of_the_page_may_run(page: str) -> None:
    read = Page(page)
    (policy,) = (
        str(attributes["content"])
        for tag, attributes in read.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}
    assert rules["default-src"] == ["'none'"]
    hashed = [hash_of(text) for kind, text in read.scripts if kind == "module"]
    assert rules["script-src"] == hashed
    assert rules["style-src"] == list(map(hash_of, read.styles))
    assert "unsafe" not in policy


def test_a_long_text_is_cut(page: str) -> None:
    assert len(page) < 3_000_000
    assert "x" * 1_499 + "…" in page
    assert "x" * 1_500 not in page


def test_every_statement_of_a_page_can_be_asked(page: str, hostile: Path) -> None:
    run = open_run(hostile)
    statements = [s for s in Page(page).statements if s.lstrip().startswith(("SELECT", "WITH"))]
    assert len(statements) >= 12
    for statement in set(statements):
        run.sql(statement).fetchall()


def test_the_top_says_what_the_run_found(page: str, hostile: Path) -> None:
    run = open_run(hostile)
    flagged = len(run.flag().fetchall())
    ((n, expected),) = run.sql("SELECT count(*), sum(p_wrong) FROM label_issues").fetchall()
    read = Page(page)
    assert f"{flagged} of {n} label" in read.words
    assert f"around {expected:,.0f}" in read.words
    assert "assay flag" in read.words
    # Twelve texts stand in the corpus four times each, but each with a number of its own.
    assert "Words" in read.words
    for title in ("Labels", "Helpful and harmful", "By column", "Queries", "Provenance"):
        assert title in read.words


def test_the_table_holds_every_row(page: str, hostile: Path) -> None:
    (data,) = (json.loads(text) for kind, text in Page(page).scripts if kind == "application/json")
    titles = [column["title"] for column in data["columns"]]
    shown = {tuple(row[titles.index(name)] for name in ("id", "given")) for row in data["rows"]}
    asked = open_run(hostile).sql("SELECT source_id, label_name FROM examples").fetchall()
    assert shown == {tuple(map(readable, row)) for row in asked}
    scores = [row[titles.index("score")] for row in data["rows"]]
    assert scores == sorted(scores)


def judged(folder: Path, vectors: np.ndarray, labels: list[str]) -> str:
    """The words of the report of a run that judges the labels of points."""
    np.save(folder / "points.npy", vectors.astype(np.float32))
    rows = [{"text": f"point {at}", "label": name} for at, name in enumerate(labels)]
    corpus = {
        "path": write_lines(folder / "points.jsonl", rows),
        "text": "text",
        "label": "label",
        "features": str(folder / "points.npy"),
    }
    stages = {"kernel_regression": {"kernel": ["features"]}, "label_issues": {}}
    assay("run", write_run(folder, corpus=corpus, stages=stages))
    out = api.report(folder / "run", folder / "report.html")
    return Page(out.read_text(encoding="utf-8")).words


def test_a_run_in_which_nothing_is_flagged(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    # More classes than a matrix has room for.
    labels = [f"colour {at}" for at in range(13)] * 7
    words = judged(
        tmp_path, np.tile(9 * np.eye(13), (7, 1)) + rng.normal(size=(91, 13)) / 2, labels
    )
    assert "None of 91 labels looks wrong" in words
    assert "which examples help and which harm" in words  # in the list of what is missing
    assert "Helpful and harmful" not in words
    matrix = open_run(tmp_path / "run").show("matrix").data
    assert matrix.shape == (13, 14)
    assert (matrix.set_index("") == "7").to_numpy().sum() == 13


def test_the_headline_says_that_predictions_hardly_know_the_labels(tmp_path: Path) -> None:
    labels = ["heads" if at % 3 else "tails" for at in range(60)]
    words = judged(tmp_path, np.random.default_rng(0).normal(size=(60, 3)), labels)
    assert "of 60 labels are flagged, which says little: predictions agree with" in words
    assert "the most frequent class alone with 67%" in words


def test_a_regression_without_texts_or_queries(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 3)).astype(np.float32)
    targets = vectors.sum(axis=1) * 10
    targets[7] += 500
    np.save(tmp_path / "x.npy", vectors)
    rows = [{"y": float(target), "id": f"row {at}"} for at, target in enumerate(targets)]
    corpus = {
        "path": write_lines(tmp_path / "x.jsonl", rows),
        "task": "regression",
        "text": None,
        "label": "y",
        "id": "id",
        "features": str(tmp_path / "x.npy"),
    }
    stages = {"kernel_regression": {"kernel": ["features"]}}
    assay("run", write_run(tmp_path, corpus=corpus, stages=stages))
    assay("report", tmp_path / "run", "--out", tmp_path / "report.html")
    words = Page((tmp_path / "report.html").read_text(encoding="utf-8")).words
    assert "60 targets" in words
    # The legend has the words of this page alone, and nothing is called a label or a class.
    assert "R²" in words
    assert "score of a label" not in words
    assert "no rare class" not in words
    assert "the most suspicious first" in words
    run = open_run(tmp_path / "run")
    assert run.show("flags").data["id in the source"][0] == "row 7"
    assert len(run.show("scores").axes[0].lines[0].get_xdata()) == 60
    farthest = words.split("that are farthest off")[1]
    assert farthest.index("row 7") < farthest.index("SQL")


def test_groups_are_of_the_columns_that_the_source_has(namesakes: Path) -> None:
    subject = Subject(open_run(namesakes))
    assert subject.values is not None
    for name in NAMESAKES:
        found = groups(subject, name)
        values = ["train", "test"] if name == "split" else ["x", "y"]
        assert [row["name"] for row in found.rows] == values, name
        assert found.has_values
    # Numbers in quarters.
    assert [row["name"] for row in groups(subject, "rank").rows] == [
        "0 to 9",
        "10 to 19",
        "20 to 29",
        "30 to 39",
    ]


def test_what_a_report_cannot_be_made_of(hostile: Path, tmp_path: Path) -> None:
    assert "expected .html" in complaint("report", hostile, "--out", tmp_path / "r.pdf")
    assert "found no such column" in complaint("report", hostile, "--by", "nothing")
    other = tmp_path / "other.json"
    other.write_text("{}")
    assert "found no evaluation" in complaint("report", hostile, "--evaluation", other)
    evaluation = {"run_id": "another", "metric": "x", "fields": {}, "facts": {}, "rows": [{"a": 1}]}
    other.write_text(json.dumps(evaluation))
    assert "of run another" in complaint("report", hostile, "--evaluation", other)
    gone = tmp_path / "gone.json"
    assert "cannot be read" in complaint("report", hostile, "--evaluation", gone)


def test_evaluations_are_shown(hostile: Path, tmp_path: Path) -> None:
    run = open_run(hostile)
    rows = [
        {
            "keep": keep,
            "n_rows": 5,
            "by": by,
            "accuracy": 0.5 + keep / 4,
            "accuracy_low": 0.4,
            "accuracy_high": 0.9,
        }
        for keep, by in ((0.1, "random"), (0.5, "random"), (0.1, "freeshap"), (0.5, "freeshap"))
    ]
    evaluation = {
        "run_id": run.record["run_id"],
        "metric": "selection",
        "fields": {"draws": 2},
        "facts": {},
        "rows": rows,
    }
    out = api.report(run, tmp_path / "report.html", evaluations=[evaluation])
    text = out.read_text(encoding="utf-8")
    (figure,) = run.show(evaluation=evaluation)
    drawn = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert list(drawn["freeshap"]) == [0.525, 0.625]
    assert 'aria-label="accuracy on queries by part of the rows that is kept' in text
    assert "0.625" in Page(text).words


def test_a_notebook_shows_the_top_of_the_report(hostile: Path) -> None:
    run = open_run(hostile)
    html = run._repr_html_()
    assert "look" in html
    assert "<script" not in html
    assert "assay flag" in html


def test_a_notebook_shows_what_the_report_shows(hostile: Path, page: str) -> None:
    run = open_run(hostile)
    listed = run.show().data["name"].tolist()
    assert {"flags", "classes", "matrix", "scores", "values", "issues", "cost"} <= set(listed)
    words = Page(page).words
    for name in listed:
        shown = run.show(name)
        if name == "scores":
            assert isinstance(shown, Figure)
            assert shown._repr_svg_().count("<svg") == 1
            continue
        html = shown._repr_html_()
        assert isinstance(shown, Styler)
        assert not {"script", "img", "iframe"} & {tag for tag, _ in Page(html).tags}, name
        assert "\u202e" not in html
    flags = run.show("flags").data
    asked = [readable(row) for (row,) in run.flag(top=20).project("source_id").fetchall()]
    assert flags["id in the source"].tolist() == asked
    assert all(text in words for text in run.show("values").data["example"])
    counted = dict(run.sql("SELECT given_label, count(*) FROM label_issues GROUP BY 1").fetchall())
    classes = run.show("classes").data
    assert dict(zip(classes["given label"], classes["rows"], strict=True)) == {
        readable(name): n for name, n in counted.items()
    }
    by = run.show(by="origin").data
    origins = run.sql("SELECT count(*) FROM examples GROUP BY origin").fetchall()
    assert sorted(by["rows"]) == sorted(n for (n,) in origins)
    with pytest.raises(RunError, match=r"found 'flaggs' \(did you mean flags"):
        run.show("flaggs")
    with pytest.raises(RunError, match="expected the results of outliers"):
        run.show("outliers")


@pytest.mark.system
@pytest.mark.slow
def test_a_browser_runs_nothing_of_a_corpus(page: str, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    done = subprocess.run(
        [*command, f"--user-data-dir={tmp_path}", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr  # neither an error nor a refusal of the policy
    assert done.stdout.count("<td") > 100
    assert "1 to 10 of 48" in done.stdout


def hash_of(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
