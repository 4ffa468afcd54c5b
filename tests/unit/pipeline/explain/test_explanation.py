"""Explanations of a query: what is asked of the views, and how it is shown."""

import io
import json
import shlex
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import PIL.Image
import pytest

from pipeline.errors import RunError
from pipeline.explain.explanation import _spectra
from pipeline.explain.on_terminal import (
    _spread,
    prediction_lines,
    print_examples,
    print_explanation,
)
from pipeline.explain.picture import MOST, data_url, draw, image_of, largest, png
from pipeline.explain.stored_query import LISTED, StoredQuery
from pipeline.explain.titles import legend, lists_of_examples, shown_sides, side_title
from pipeline.explain.words import title
from pipeline.finished import Finished
from pipeline.open_run import OpenedRun
from pipeline.page.explanation import explained, largest_numbers, page
from pipeline.page.explanation_file import check_ending, write_explanation
from pipeline.page.subject import Subject
from stages.features.gradient import Gradient
from stages.model.spec import ModelSpec
from stages.pairs.similarity import Similarity
from stages.pairs.tracin import TracIn
from storage import catalog

VIEWS = """
CREATE SCHEMA tables;
CREATE VIEW queries AS SELECT * FROM (VALUES
    (5, 'five', 'a query', NULL, 'b', NULL), (6, '5', 'another', NULL, NULL, NULL)
) AS t(query_id, source_id, text, text_b, label_name, target);
CREATE VIEW attributions AS SELECT 'one' AS method, q AS query_id, i AS example_id,
    (CASE WHEN i % 2 = 0 THEN 1.0 ELSE -1.0 END) * (i // 2) AS score
    FROM range(5, 7) AS q(q), range(22) AS e(i);
CREATE VIEW tables.label AS SELECT i AS id, 'example' AS role FROM range(20) AS e(i);
CREATE VIEW components AS SELECT method, query_id, example_id, 2.0 AS global_score,
    score / 2 AS local_score FROM attributions WHERE example_id > 14;
CREATE VIEW support AS SELECT * FROM (VALUES
    ('s', 5, -1, 2, 11, 0.5, 4.0, 7), ('s', 5, -1, 1, 10, 1.5, 3.0, 7),
    ('s', 5, 2, NULL, NULL, NULL, NULL, 0), ('s', 6, 2, 1, 10, 1.0, 1.0, 3)
) AS t(method, query_id, contrast, rank, example_id, global_score, local_score, n_support);
"""


@pytest.fixture
def run() -> OpenedRun:
    """A run of hand-made views."""
    made = OpenedRun.__new__(OpenedRun)
    made.connection, made._catalog = duckdb.connect(), catalog
    made.folder = SimpleNamespace(path="runs/it's mine")  # type: ignore[assignment]
    made._files = SimpleNamespace(tables_read=lambda _: [], check=lambda _: None)
    for statement in VIEWS.split(";\n"):
        made.connection.execute(statement)
    return made


def example(number: int, **more: Any) -> dict[str, Any]:
    own = {"example_id": number, "source_id": str(number), "text": f"text {number}"}
    return {**own, "text_b": None, "label": "b", **more}


def explanation(text: str = "a query") -> dict[str, Any]:
    sides = {
        "helpful": [example(1, score=2.0, global_score=4.0, local_score=0.5)],
        "harmful": [example(2, score=-1.0, global_score=None, local_score=None)],
    }
    towards = [
        {
            "contrast": -1,
            "contrast_name": "general",
            "n_support": 9,
            "examples": [
                example(i, rank=i, global_score=9.0 - i, local_score=float(i)) for i in range(1, 8)
            ],
        },
        {"contrast": 0, "contrast_name": "a", "n_support": 0, "examples": []},
    ]
    return {
        "run_id": "r-1",
        "query": {
            "query_id": 5,
            "source_id": "five",
            "text": text,
            "text_b": None,
            "label": None,
        },
        "answers": [],
        "predictions": [
            {
                "method": "prediction",
                "source": "probe",
                "predicted": "b",
                "confidence": 0.75,
                "margin": 1.1,
                "logits": [0.0, 1.1],
            }
        ],
        "methods": [{"method": "tracin", "speaks_for": "label", **sides}],
        "values": [],
        "tokens": [],
        "spectra": [{"method": "support", "contrasts": towards}],
    }


def test_a_query_is_found_by_its_id_and_then_by_the_users(run: OpenedRun) -> None:
    assert StoredQuery(run, "five", 3).id == 5
    assert StoredQuery(run, "5", 3).id == 5
    assert StoredQuery(run, "6", 3).facts["text"] == "another"
    with pytest.raises(RunError, match=r"found no such query.*such as five \('a query'\)"):
        StoredQuery(run, "x' OR true --", 3)


def test_what_looks_a_query_up_can_be_pasted(run: OpenedRun) -> None:
    run.connection.execute(
        "CREATE OR REPLACE VIEW queries AS SELECT 7 AS query_id, 'seven' AS source_id, "
        "NULL AS text, NULL AS text_b, NULL AS label_name, NULL AS target"
    )
    with pytest.raises(RunError) as caught:
        StoredQuery(run, "nobody", 3)
    told = str(caught.value)
    assert "such as seven. Look it up: " in told
    words = shlex.split(told.rpartition("Look it up: ")[2])
    assert words == ["assay", "sql", "runs/it's mine", LISTED.strip('"')]


@pytest.mark.parametrize("answer", [None, " Vienna"])
def test_rows_without_labels_have_no_column_of_labels(answer: str | None, capsys: Any) -> None:
    """Nor is a completion, which is to be learned, said to have no label."""
    said = {"prompt": None if answer is None else "text 1", "answer": answer}
    rows = [example(at, score=0.5, **said) | {"label": None} for at in range(2)]
    print_examples(rows)
    heading = capsys.readouterr().out.splitlines()[0].split()
    assert heading == [*(["text"] if answer is None else ["prompt", "answer"]), "score"]
    query = {"label": None, "target": None, **said}
    found = {"query": query, "predictions": [], "answers": []}
    assert bool(prediction_lines(found)) == (answer is None)


def test_the_best_of_each_sign_come_with_their_parts(run: OpenedRun) -> None:
    """But for those that a review dropped, 20 and 21."""
    found = {row["example_id"]: row for row in StoredQuery(run, "5", 3).scores("one")}
    assert sorted(found) == [14, 15, 16, 17, 18, 19]
    assert (found[19]["score"], found[19]["global_score"], found[19]["local_score"]) == (
        -9,
        2,
        -4.5,
    )
    assert found[14]["global_score"] is None
    assert StoredQuery(run, "5", 3).scores("two") == []
    assert StoredQuery(run, "5", 3).predictions() == []
    assert StoredQuery(run, "5", 3).values() == {}


@pytest.mark.parametrize(
    ("queries", "layer", "expected"),
    [
        ("label", "all", "label"),
        ("predicted", "all", "prediction"),
        ("label", "last", "prediction"),
    ],
)
def test_scores_of_gradients_speak_for_what_these_were_taken_at(
    queries: Any, layer: Any, expected: str
) -> None:
    stages = {
        "gradient": Gradient(ModelSpec("m"), queries=queries),
        "tracin": TracIn(layer=layer),
        "similarity": Similarity(),
    }
    reads = {"tracin": "gradient" if layer == "all" else "embedding", "similarity": "embedding"}
    finished: Any = SimpleNamespace(
        stages=stages, sources=lambda name: {reads[name]: (reads[name], reads[name])}
    )
    assert Finished.speaks_for(finished, "tracin") == expected
    assert Finished.speaks_for(finished, "similarity") == "likeness"


def test_a_set_without_examples_is_a_result(run: OpenedRun) -> None:
    rows, sizes = StoredQuery(run, "5", 3).support("s")
    spectra = _spectra(rows, sizes, {2: "c"})
    assert [(s["contrast_name"], s["n_support"]) for s in spectra] == [("general", 7), ("c", 0)]
    assert [row["example_id"] for row in spectra[0]["examples"]] == [10, 11]
    assert spectra[1]["examples"] == []


def test_the_screen_shows_numbers_and_sets(capsys: pytest.CaptureFixture[str]) -> None:
    print_explanation(explanation(), top=3, is_json=False)
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == [
        "a query",
        "The probe (prediction) predicts b with confidence 0.750; it has no label",
    ]
    assert shown[5] == "tracin: examples that speak for the predicted class (b)"
    assert [line.split() for line in shown[6:8]] == [
        ["text", "label", "score", "global", "local"],
        ["text", "1", "b", "2", "4", "0.5"],
    ]
    assert any(line.startswith("3 of 7, from the one that matters for all") for line in shown)
    assert shown[-1] == "support: no example supports the prediction against a"
    print_explanation(explanation(), top=3, is_json=True)
    assert json.loads(capsys.readouterr().out) == explanation()


@pytest.mark.parametrize(
    ("speaks_for", "label", "predicted", "expected"),
    [
        ("label", "a", ["b"], "examples that speak against the query's label (a)"),
        ("label", "3.5", [None], "examples that speak against the query's target (3.5)"),
        ("label", None, ["b", "b"], "examples that speak against the predicted class (b)"),
        ("label", None, [], "examples that speak against the predicted class or text"),
        ("prediction", "a", ["a", "b"], "examples that speak against the predicted class"),
        ("prediction", "3.5", [None], "examples that speak against a larger prediction"),
        ("likeness", "a", ["b"], "examples least like the query"),
        (None, "a", ["b"], "lowest scores below 0"),
    ],
)
def test_a_list_is_called_after_what_its_examples_do(
    speaks_for: Any, label: Any, predicted: Any, expected: str
) -> None:
    found = explanation()
    found["query"]["label"] = label
    found["predictions"] = [{"predicted": name} for name in predicted]
    found["methods"][0]["speaks_for"] = speaks_for
    assert side_title(found["methods"][0], "harmful", found) == expected


def test_both_texts_of_a_pair_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"source_id": "p1", "text": "a plum", "text_b": "a fruit", "label": "yes", "score": 1.5}
    print_examples([row, {**row, "text_b": None}])
    heading, pair, single = capsys.readouterr().out.splitlines()
    assert heading.split() == ["text", "text_b", "label", "score"]
    assert pair.split() == ["a", "plum", "a", "fruit", "yes", "1.5"]
    assert single.split() == ["a", "plum", "yes", "1.5"]
    print_examples([{**row, "text_b": None}])
    assert "text_b" not in capsys.readouterr().out


def test_a_regression_has_targets() -> None:
    found = explanation()
    found["query"]["label"] = "1053.0"
    row = {"source": "kernel", "method": "k", "predicted": None, "logits": [1190.4]}
    found["predictions"] = [row]
    assert prediction_lines(found) == ["The kernel (k) predicts 1190; its target is 1053"]
    for _, rows in lists_of_examples(found):
        for listed in rows:
            listed["label"] = "17.50"
    card = explained(found)["methods"][0]["sides"][0]["rows"][0]
    assert card["facts"].startswith("target 17.5 · score 2 · ")


def test_words_of_an_answer_are_about_its_ends() -> None:
    entry = {"method": "ig", "output_name": "start", "words": [{"score": -1.0}]}
    assert (
        title(entry, True) == "ig: words that speak for (+) or against (-) the start of the answer"
    )
    assert title(entry) == "ig: words that speak for (+) or against (-) start"


def test_bars_of_a_method_have_one_scale_on_a_page() -> None:
    small, large = explanation(), explanation()
    large["methods"][0]["helpful"][0]["score"] = 8.0
    scales = largest_numbers([small, large])
    assert scales == {"tracin": 8.0}
    bars = [
        side["rows"][0]["bar"]
        for found in (small, large)
        for side in explained(found, scales)["methods"][0]["sides"]
    ]
    assert bars == [0.25, 0.125, 1.0, 0.125]
    assert explained(small)["methods"][0]["sides"][0]["rows"][0]["bar"] == 1.0


def test_the_likeliest_classes_and_the_rest() -> None:
    found = explanation()
    shares = {f"class {at}": (7 - at) / 28 for at in range(7)}
    found["predictions"][0]["probabilities"] = shares
    (model,) = explained(found)["probabilities"]
    assert model["classes"] == list(shares.items())[:5]
    assert (model["more"], model["rest"]) == (2, pytest.approx(3 / 28))


def test_likeness_of_no_sign_has_one_list() -> None:
    found = explanation()
    entry = found["methods"][0]
    assert shown_sides(entry) == ("helpful", "harmful")
    assert legend(found).startswith("An example with a number above 0 speaks for an output")
    entry.update(speaks_for="likeness", harmful=[])
    assert shown_sides(entry) == ("helpful",)
    assert legend(found) == "score = global (the same for every query) x local (of this query)."


@pytest.mark.parametrize(("n", "places"), [(1, [0]), (2, [0, 6]), (4, [0, 2, 4, 6]), (9, range(7))])
def test_what_is_left_of_a_spectrum_keeps_its_ends(n: int, places: Any) -> None:
    rows = [{"at": at} for at in range(7)]
    assert [row["at"] for row in _spread(rows, n)] == list(places)


class Parsed(HTMLParser):
    """The tags of a page, its words, and the addresses it needs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_whole_and_escapes_what_it_shows() -> None:
    evil = "<script>alert('&')</script>"
    found = explanation(evil)
    found["methods"][0]["helpful"][0].update(text=evil, label='"><b>')
    grid = np.arange(4.0).reshape(2, 2)
    pictures = {1: data_url(grid, 3.0), None: data_url(b"\xff\xd8 jpeg", 3.0)}
    read = Parsed(page(found, pictures))
    assert read.open == []
    assert "script" not in read.tags
    # In the title of the window, the heading, and the example.
    assert read.words.count(evil) == 3
    assert "support: no example supports the prediction against a" in read.words
    assert len(read.addresses) == 3
    assert all(address.startswith("data:image/") for address in read.addresses)
    assert {"viewport" in page(found, {}), "prefers-color-scheme: dark" in page(found, {})} == {
        True
    }


def pixels_of(data: bytes) -> np.ndarray:
    return np.array(PIL.Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("cell", "shape"),
    [
        ([0.0, 1.0, 2.0, 3.0], (2, 2)),
        ([[0, 1, 2], [3, 4, 5]], (2, 3)),
        ([[[0, 1, 2]], [[3, 4, 5]]], (2, 1, 3)),
    ],
)
def test_grids_of_numbers_are_images(cell: Any, shape: tuple[int, ...]) -> None:
    found = image_of(cell)
    assert isinstance(found, np.ndarray)
    assert found.shape == shape
    assert data_url(found, 5.0).startswith("data:image/png;base64,")


@pytest.mark.parametrize("cell", [None, "x", 3, [], [1.0, 2.0], [[1], [1, 2]], [None] * 4, b"text"])
def test_other_cells_are_none(cell: Any) -> None:
    assert image_of(cell) is None


def test_encoded_images_stay_as_they_are() -> None:
    data = png(PIL.Image.new("RGB", (2, 2), "red"))
    assert image_of(data) == image_of({"bytes": data, "path": None}) == data
    assert data_url(data, 1.0).startswith("data:image/png;base64,")
    assert largest([data, None]) == 1.0


def test_rows_of_images_are_drawn_in_their_order() -> None:
    dark, light = np.zeros((8, 8)), np.full((8, 8), 16.0)
    red = png(PIL.Image.new("RGB", (2, 2), "red"))
    drawn = draw([("query", [light]), ("one", [dark, None, red])], largest([dark, light, red]))
    canvas = np.array(drawn)
    assert canvas.shape == (6 + 2 * (16 + 64 + 6), 3 * 70 + 12, 3)
    middle = 6 + (16 + 64 + 6) + 16 + 32
    shown = [canvas[middle, 6 + 70 * at + 32].tolist() for at in range(3)]
    assert shown == [[0, 0, 0], [211, 211, 211], [255, 0, 0]]
    assert (canvas[6:20, 6:46] < 100).any()


def test_of_a_long_row_some_are_drawn_with_both_ends() -> None:
    grids = [np.full((2, 2), float(at)) for at in range(31)]
    canvas = np.array(draw([("", grids)], 30.0))
    assert canvas.shape[1] == MOST * 70 + 12
    shown = [int(canvas[6 + 16 + 32, 6 + 70 * at + 32, 0]) for at in range(MOST)]
    assert (shown[0], shown[-1]) == (0, 255)
    assert shown == sorted(shown)


def test_files_by_their_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = duckdb.connect()
    rows.execute(
        "CREATE TABLE examples AS SELECT i AS example_id, [0, 1, 2, i] AS image "
        "FROM range(10) AS e(i)"
    )
    rows.execute("CREATE TABLE queries AS SELECT 5 AS query_id, 'no image' AS text")
    run: Any = SimpleNamespace(sql=rows.sql)
    found = explanation()
    write_explanation(run, found, tmp_path / "made" / "why.png")
    canvas = pixels_of((tmp_path / "made" / "why.png").read_bytes())
    assert canvas.shape[0] == 6 + (1 + len(lists_of_examples(found))) * (16 + 64 + 6)
    monkeypatch.setattr(Subject, "__init__", lambda subject, run: None)
    monkeypatch.setattr(Subject, "doubts", lambda subject, ids: {min(ids): "flagged: c?"})
    write_explanation(run, found, tmp_path / "why.html")
    html = (tmp_path / "why.html").read_text()
    assert html.count("data:image/png") == 9
    assert html.count("flagged: c?") == 2  # it stands in two lists
    write_explanation(run, found, tmp_path / "why.json")
    assert json.loads((tmp_path / "why.json").read_text()) == found
    rows.execute("CREATE OR REPLACE TABLE examples AS SELECT 1 AS example_id")
    with pytest.raises(RunError, match="found no image of these rows"):
        write_explanation(run, found, tmp_path / "none.png")
    with pytest.raises(RunError, match=r"found the ending '.pdf', expected .html, .json, .png"):
        check_ending(tmp_path / "why.pdf")
    with pytest.raises(RunError, match="cannot be written"):
        write_explanation(run, found, tmp_path / "why.json" / "x.json")
    assert not (tmp_path / "none.png").exists()
