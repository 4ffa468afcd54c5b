"""`assay explain` over a small run: its own queries, texts that it never saw, and files."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from runs import DATA, Rows, write_lines

from pipeline import OpenedRun, open_run
from pipeline.errors import RunError
from pipeline.explain.new_query import NewQuery
from pipeline.finished import Finished
from pipeline.progress import Progress
from stages.pairs.scores import ATTRIBUTION
from stages.stage import Inputs, Split
from storage.schema import TableSpec

EVIL = "<script>alert('&')</script> a dull film"
ALL = 1000


def rows_of(name: str, n: int) -> Rows:
    table = pq.read_table(DATA / f"sst2_{name}.parquet").slice(0, n)
    return [
        {"key": f"{name}-{at}", "text": row["text"], "label": row["label"]}
        for at, row in enumerate(table.to_pylist())
    ]


def write(path: Path, rows: Rows) -> dict[str, Any]:
    return {"path": write_lines(path, rows), "id": "key"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, assay: Any, reader: Any) -> Iterator[Path]:
    """A finished run in which nothing may change while this module asks questions."""
    place = tmp_path_factory.mktemp("explain")
    examples, queries = rows_of("train", 40), rows_of("validation", 7)
    examples[0]["text"] = EVIL
    queries[2]["label"] = None
    classes = ["negative", "positive"]
    raw = {
        "run": str(place / "run"),
        "model": reader,
        "corpus": {**write(place / "train.jsonl", examples), "classes": classes},
        "queries": write(place / "queries.jsonl", queries),
        "shard_size": 16,
        "ray": {"engine": "in_process"},
        "stages": {
            "prediction": {},
            "gradient": {},
            "tracin": {"top_k": 30},
            "freeshap": {"rounds": 2, "units_per_round": 2, "utilities": ["margin"]},
            "shapley_by_query": {"units": 2, "utilities": ["margin"]},
            "kernel_regression": {},
            "kernel_representer": {"top_k": 30},
        },
    }
    (place / "config.yaml").write_text(yaml.safe_dump(raw))
    assay("run", place / "config.yaml")
    before = files_of(place)
    yield place / "run"
    assert files_of(place) == before


def files_of(place: Path) -> dict[Path, tuple[bytes, int]]:
    # What was hashed once is remembered (`storage.hashed`).
    found = [p for p in place.rglob("*") if p.is_file() and p.parent.name != "hashed"]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


@pytest.fixture
def run(folder: Path) -> OpenedRun:
    return open_run(folder)


def scores(found: Any, column: str = "score", at: int = 0) -> dict[int, float]:
    entry = found["methods" if column == "score" else "values"][at]
    return {row["example_id"]: row[column] for row in entry["helpful"] + entry["harmful"]}


def test_a_query_is_answered_from_the_views(folder: Path, run: OpenedRun, assay: Any) -> None:
    result = assay("explain", folder, "--query", "validation-1", "--json", "--top", 3)
    found = json.loads(result.stdout)
    assert found == run.explain("validation-1", top=3)
    assert found == run.explain(found["query"]["query_id"], top=3)
    assert found["run_id"] == run.record["run_id"]
    assert found["query"]["source_id"] == "validation-1"
    assert [p["source"] for p in found["predictions"]] == ["kernel", "probe"]
    for prediction in found["predictions"]:
        shares = prediction["probabilities"]
        assert list(shares) == ["negative", "positive"]
        assert sum(shares.values()) == pytest.approx(1)
        assert shares[prediction["predicted"]] == pytest.approx(prediction["confidence"])
    assert [entry["method"] for entry in found["methods"]] == ["kernel_representer", "tracin"]
    tracin = found["methods"][1]
    for side, order in (("helpful", "DESC"), ("harmful", "ASC")):
        best = run.sql(
            "SELECT example_id, score, global_score, local_score, text, label_name FROM "
            "attributions JOIN components USING (method, query_id, example_id) JOIN examples USING "
            f"(example_id) WHERE method = 'tracin' AND query_id = {found['query']['query_id']} "
            f"ORDER BY score {order} LIMIT 3"
        ).fetchall()
        names = ("example_id", "score", "global_score", "local_score", "text", "label")
        assert [tuple(row[name] for name in names) for row in tracin[side]] == best
    (values,) = found["values"]
    assert (values["method"], values["utility"]) == ("shapley_by_query", "margin")
    assert len(values["helpful"]) == 3
    assert found["spectra"] == []


def test_on_the_terminal_texts_stand_beside_their_numbers(folder: Path, assay: Any) -> None:
    result = assay("explain", folder, "--query", "validation-0", "--top", 2)
    lines = result.stdout.splitlines()
    title = "examples that speak for the query's label (negative)"
    assert f"tracin: {title}" in lines
    assert f"shapley_by_query (shapley, margin): {title.replace(' for ', ' against ')}" in lines
    assert any(line.startswith("The probe (prediction) predicts ") for line in lines)
    assert result.stderr.splitlines() == ["Reading the run ..."]


def test_a_method_that_is_named_is_shown_alone(folder: Path, assay: Any) -> None:
    asked = ("explain", folder, "--query", "validation-0")
    assert {"kernel_representer: ", "tracin: "} <= {
        line[: line.find(": ") + 2] for line in assay(*asked).stdout.splitlines()
    }
    alone = assay(*asked, "--method", "tracin").stdout
    assert "tracin: " in alone
    assert "kernel_representer: " not in alone
    assert not any(line.startswith("support: ") for line in alone.splitlines())


def test_a_text_is_answered_as_the_query_that_it_could_be(run: OpenedRun) -> None:
    """That of the query without a label, whose class is the predicted one, as the text's is."""
    stored = run.explain("validation-2", top=ALL)
    found = run.explain(text=stored["query"]["text"], top=ALL)
    assert found["query"]["query_id"] is None
    assert len(found["predictions"]) == len(stored["predictions"]) == 2
    by_source = {p["source"]: p for p in stored["predictions"]}
    for now in found["predictions"]:
        before = by_source[now["source"]]
        assert now["predicted"] == before["predicted"]
        for name in ("confidence", "margin"):
            # The kernel's features lie in the store as float16.
            assert now[name] == pytest.approx(before[name], abs=1e-3)
    for at in range(2):
        given, seen = scores(stored, at=at), scores(found, at=at)
        largest = max(map(abs, given.values()))
        assert given.keys() == seen.keys()
        for example, score in given.items():
            assert seen[example] == pytest.approx(score, abs=1e-5 * largest)
    assert found["values"] == []


def test_rounds_are_drawn_again_for_a_query_or_a_text(
    folder: Path, run: OpenedRun, assay: Any
) -> None:
    labelled = [f"validation-{at}" for at in range(7) if at != 2]
    total: dict[int, float] = {}
    for name in labelled:
        for example, value in scores(
            run.explain(name, methods=["freeshap"], top=ALL), "value"
        ).items():
            total[example] = total.get(example, 0.0) + value / len(labelled)
    stored = run.sql("SELECT example_id, value FROM shapley WHERE method = 'freeshap'").fetchall()
    for example, value in stored:
        assert total.get(example, 0.0) == pytest.approx(value, abs=1e-9)
    unlabelled = run.explain("validation-2", methods=["freeshap"], top=ALL)
    result = assay(
        "explain", folder, "--text", unlabelled["query"]["text"], "--method", "freeshap",
        "--top", ALL, "--json",
    )  # fmt: skip
    assert "2 rounds of 2 units are drawn again for this query" in result.stderr
    assert "FLOPs" in result.stderr
    given = scores(unlabelled, "value")
    seen = scores(json.loads(result.stdout), "value")
    largest = max(map(abs, given.values()))
    for example, value in given.items():
        # Features lie in the store as float16.
        assert seen[example] == pytest.approx(value, abs=2e-3 * largest)


class Page(HTMLParser):
    """Tags and words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words += data


def test_files_hold_what_was_found(
    folder: Path, assay: Any, tmp_path: Path, complaint: Any
) -> None:
    asked = ("--query", "validation-0", "--top", 40)
    for name in ("why.html", "why.json"):
        result = assay("explain", folder, *asked, "--out", tmp_path / name)
        assert result.stdout == ""
        assert f"Explanation written to {tmp_path / name}" in result.stderr
    found = json.loads((tmp_path / "why.json").read_text())
    texts = {row["text"] for row in found["methods"][1]["helpful"] + found["methods"][1]["harmful"]}
    assert EVIL in texts
    read = Page((tmp_path / "why.html").read_text())
    assert "script" not in read.tags
    assert all(text in read.words for text in texts)
    assert "found no image" in complaint("explain", folder, *asked, "--out", tmp_path / "why.png")


def test_a_query_is_found_by_what_a_screen_shows_of_its_id(
    folder: Path, assay: Any, complaint: Any
) -> None:
    for name in ("validation-3", "valid…-3", "val...3"):
        found = json.loads(assay("explain", folder, "--query", name, "--json").stdout)
        assert found["query"]["source_id"] == "validation-3"
    said = complaint("explain", folder, "--query", "valid…")
    assert "several queries whose id may be meant (validation-0, validation-1" in said
    assert "found no such query" in complaint("explain", folder, "--query", "validation-")


def test_what_cannot_be_asked(folder: Path, tmp_path: Path, complaint: Any) -> None:
    said = complaint("explain", folder, "--query", "zz")
    assert "found no such query in the run, expected a source_id or query_id such as" in said
    for wrong in ((), ("--query", "1", "--text", "x")):
        said = complaint("explain", folder, *wrong, code=2)
        assert "of --query, --queries, --text, --prompt, --interactive, expected one" in said
    said = complaint("explain", folder, "--query", "validation-0", "--text-b", "x")
    assert "found text_b without text" in said
    said = complaint("explain", folder, "--text", "x", "--text-b", "y")
    assert "found a second text, expected one" in said
    assert "found no text, expected some" in complaint("explain", folder, "--text", " ")
    said = complaint("explain", folder, "--query", "validation-0", "--method", "influence")
    assert "found --method influence, expected one of kernel_representer, tracin, freeshap" in said
    said = complaint("explain", folder, "--query", "validation-0", "--out", tmp_path / "why.pdf")
    assert "expected .html, .json, .png" in said


def test_a_run_without_pairwise_methods_says_what_to_add(
    assay: Any, tmp_path: Path, complaint: Any
) -> None:
    g = np.random.default_rng(0)
    sources = {}
    for name, n in (("corpus", 12), ("queries", 4)):
        grids = (g.random((n, 9)) + np.arange(n)[:, None] % 2).tolist()
        rows = [{"key": at, "v": v, "image": v, "label": at % 2} for at, v in enumerate(grids)]
        sources[name] = {**write(tmp_path / f"{name}.jsonl", rows), "text": None, "features": "v"}
    kernel = {"kernel": ["features"]}
    raw = {
        "run": str(tmp_path / "run"),
        **sources,
        "ray": {"engine": "in_process"},
        "stages": {"kernel_regression": kernel, "freeshap": {"rounds": 1, **kernel}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    assay("run", tmp_path / "config.yaml")
    said = complaint("explain", tmp_path / "run", "--query", "1")
    assert "found no pairwise method in the run" in said
    assert "Add `similarity: {features: features}`" in said
    assert "--method freeshap" in said
    said = complaint("explain", tmp_path / "run", "--text", "x", "--method", "freeshap")
    assert "found a corpus of vectors without text" in said
    # Rows with images are drawn.
    out = tmp_path / "why.png"
    assay("explain", tmp_path / "run", "--query", 1, "--method", "freeshap", "--out", out)
    assert out.read_bytes().startswith(b"\x89PNG")


@dataclass(frozen=True)
class Seen:
    """Says what it is shown of a text; `reads` can be anything."""

    reads: tuple[str, ...] = ("embedding", "label", "tracin", "probe")

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "query"
    writes: ClassVar[tuple[TableSpec, ...]] = (ATTRIBUTION,)

    def open(self, inputs: Inputs) -> list[Any]:
        embedded = inputs.vectors("embedding", "query").ids.tolist()
        return [embedded, inputs.table("label", "query")["id"].to_pylist()]

    def compute(self, inputs: Inputs) -> Iterator[tuple[str, pa.RecordBatch]]:
        embedded, labelled = inputs.opened
        assert embedded == labelled
        assert inputs.table("label", "query")["id"].to_pylist() == labelled
        assert inputs.table("label", "query")["label"].to_pylist() == [None]
        assert inputs.table("label", "example").num_rows == 40
        assert inputs.table("label").num_rows == 41
        assert inputs.table("embedding").num_rows == 41
        assert len(inputs.vectors("embedding", "example").ids) == 40
        assert inputs.table("tracin")["query_id"].unique().to_pylist() == embedded
        assert inputs.table("probe").num_rows == 2
        row = {"query_id": embedded[0], "example_id": 0, "score": float(len(embedded))}
        yield ATTRIBUTION.name, pa.RecordBatch.from_pylist([row], schema=ATTRIBUTION.schema)


def test_a_stage_sees_the_text_as_the_only_query(run: OpenedRun) -> None:
    finished = Finished(run.folder)
    finished.stages["seen"] = Seen()
    asked = NewQuery(finished, "a film")
    (row,) = asked.rows("seen")["attribution"].to_pylist()
    assert (row["query_id"], row["score"]) == (asked.id, 1.0)
    known = run.sql("SELECT id FROM embeddings").fetchall()
    assert (asked.id,) not in known
    assert asked.id >= 0


@dataclass(frozen=True)
class AtOnce(Seen):
    """Writes scores of all queries in one task."""

    reads: tuple[str, ...] = ("label",)

    split: ClassVar[Split] = "whole"


def test_what_is_computed_for_all_queries_at_once_is_refused(
    run: OpenedRun, monkeypatch: pytest.MonkeyPatch, reader: Any
) -> None:
    finished = Finished(run.folder)
    asked = NewQuery(finished, "a film")
    finished.stages["at_once"] = AtOnce()
    with pytest.raises(RunError, match="found a stage that works on all queries at once"):
        asked.rows("at_once")
    finished.stages["reader"] = Seen(reads=("freeshap",))
    assert asked.inputs("reader").table("freeshap").num_rows > 0
    # As if no stage answered for new queries: of nothing is anything an instance.
    monkeypatch.setattr("pipeline.explain.new_query.AnswersQueries", ())
    finished.stages["reader"] = Seen(reads=("kernel_regression",))
    with pytest.raises(RunError, match="kernel_regression, which is computed for all queries"):
        asked.inputs("reader").table("kernel_regression", "query")
    assert [p["source"] for p in asked.predictions()] == ["probe"]
    finished.stages["reader"] = Seen(reads=("extra",))
    with pytest.raises(RunError, match="found that it reads extra of a row"):
        asked.inputs("reader")


def test_a_method_that_cannot_be_asked_is_left_out_unless_it_is_named(
    run: OpenedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    progress = Progress()
    monkeypatch.setattr(progress, "say", said.append)

    def refuse(self: NewQuery, method: str) -> Any:
        raise RunError(f"{method} cannot")

    monkeypatch.setattr(NewQuery, "scores", refuse)
    assert run.explain(text="a film", progress=progress)["methods"] == []
    assert said == ["left out: kernel_representer cannot", "left out: tracin cannot"]
    with pytest.raises(RunError, match="tracin cannot"):
        run.explain(text="a film", methods=["tracin"], progress=progress)


def test_words_of_a_query_and_of_a_text(assay: Any, reader: Any, tmp_path: Path) -> None:
    """A run of token methods alone: udig's anchors of new words are searched on the spot."""
    rows = write(tmp_path / "train.jsonl", rows_of("train", 24))
    asked = write(tmp_path / "validation.jsonl", rows_of("validation", 3))
    methods = {
        "ig": {"steps": 4},
        "udig": {"anchors": 3, "neighbours": 5, "midpoints": 0},
        "lafa": {"limit": 3, "quantile": None},
    }
    raw = {
        "run": str(tmp_path / "run"),
        "model": reader,
        "corpus": rows,
        "queries": asked,
        "ray": {"engine": "in_process"},
        "stages": methods,
    }
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(raw))
    assay("run", str(config))
    run = open_run(tmp_path / "run")
    query, text = run.sql(
        "SELECT query_id, text FROM queries ORDER BY query_id LIMIT 1"
    ).fetchall()[0]
    found = run.explain(query=query)["tokens"]
    assert {entry["method"] for entry in found} == set(methods)
    again = run.explain(text=text)["tokens"]
    for one, other in zip(found, again, strict=True):
        assert one["output_name"] == other["output_name"] in ("0", "1")
        assert [w["word"] for w in one["words"]] == [w["word"] for w in other["words"]]
        scores = [w["score"] for w in one["words"]]
        assert [w["score"] for w in other["words"]] == pytest.approx(scores, rel=1e-3, abs=1e-5)
    assert [e["method"] for e in run.explain(text="zany gizmos", methods=["udig"])["tokens"]] == [
        "udig"
    ]
    shown = assay("explain", str(run.folder.path), "--query", str(query), "--method", "ig")
    assert f" (-) {found[0]['output_name']}\n{text}\n" in shown.stdout
    page = tmp_path / "why.html"
    assay("explain", str(run.folder.path), "--query", str(query), "--out", str(page))
    assert page.read_text().count('<p class="words"') == 3
    metric = assay(
        "evaluate", str(run.folder.path), "faithfulness", "--set", "methods=[ig,udig,lafa]"
    )
    assert "comprehensiveness" in metric.stdout
