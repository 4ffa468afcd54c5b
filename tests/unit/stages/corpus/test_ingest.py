"""Rows of a source: stable ids, reasons of refusal, classes."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from source_rows import Rows, by_source_id, csv, jsonl, reasons, reviews
from whole_corpus import read

from stages.corpus.ingest import EXTRA, LABEL, REASONS, REJECTED, TEXT, tables
from stages.corpus.source import Source
from stages.stage import DataError


def test_rows_without_id_column_are_known_by_their_row_number(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "naïve 映画 🎬", "label": 0}, *reviews(3)[1:]])
    corpus = read(Source(path), "example")
    assert corpus.rows["id"].to_pylist() == [0, 1, 2]
    assert corpus.rows["source_id"].to_pylist() == ["0", "1", "2"]
    assert corpus.rows["text"].to_pylist()[0] == "naïve 映画 🎬"
    assert corpus.rows["role"].to_pylist() == ["example"] * 3
    assert corpus.rows["true_label"].null_count == 3
    assert corpus.rejected.num_rows == 0
    assert corpus.rejected.schema == REJECTED.schema


def test_ids_survive_appending_reordering_and_correcting(tmp_path: Path) -> None:
    rows = reviews()
    before = by_source_id(read(Source(jsonl(tmp_path / "a.jsonl", rows), id="id"), "example"), "id")
    more = [{"id": "new", "text": "new", "label": 1}, *reversed(rows)]
    more[3]["label"] = 1 - more[3]["label"]
    after = by_source_id(read(Source(jsonl(tmp_path / "b.jsonl", more), id="id"), "example"), "id")
    assert {key: after[key] for key in before} == before
    assert all(0 <= value < 2**63 for value in after.values())


def test_integer_ids_are_the_example_ids_and_csv_counts_decimals_as_integers(
    tmp_path: Path,
) -> None:
    rows = [{"id": i, "text": "t", "label": i % 2} for i in (7, 2**62, 0)]
    corpus = read(Source(jsonl(tmp_path / "a.jsonl", rows), id="id"), "example")
    assert corpus.rows["id"].to_pylist() == [7, 2**62, 0]
    path = csv(tmp_path / "a.csv", "id,text,label\n7,a,0\n007,b,1\nx,c,1\n")
    ids = by_source_id(read(Source(path, id="id"), "example"), "id")
    assert ids["7"] == 7
    assert ids["007"] > 2**32
    assert set(ids) == {"7", "007", "x"}


def test_string_ids_that_look_like_numbers_are_hashed_where_types_are_known(tmp_path: Path) -> None:
    rows = [{"id": str(i), "text": "t", "label": i % 2} for i in range(2)]
    corpus = read(Source(jsonl(tmp_path / "a.jsonl", rows), id="id"), "example")
    assert corpus.rows["id"].to_pylist() != [0, 1]
    assert corpus.rows["source_id"].to_pylist() == ["0", "1"]


def test_negative_and_missing_integer_ids(tmp_path: Path) -> None:
    rows = [{"id": i, "text": "t", "label": n % 2} for n, i in enumerate((-1, 5, None, 5))]
    corpus = read(Source(jsonl(tmp_path / "a.jsonl", rows), id="id"), "example")
    assert corpus.rows["source_id"].to_pylist() == ["-1", "5"]
    assert corpus.rows["id"].to_pylist()[1] == 5
    assert reasons(corpus) == {2: "null id", 3: "duplicate id"}


def test_a_row_that_a_model_refuses_is_rejected_with_its_reason(tmp_path: Path) -> None:
    """Its label makes no class, and a second row of its id takes its place."""
    rows = [{"id": n // 2, "text": f"t {n}", "label": f"c{n % 3}"} for n in range(7)]
    path = jsonl(tmp_path / "a.jsonl", rows)

    def refusals(texts: Any, pairs: Any, form: str) -> list[str | None]:
        assert (form, set(pairs)) == ("text", {None})
        return ["odd: 2" if text in ("t 2", "t 5") else None for text in texts]

    corpus = read(Source(path, id="id"), "example", refusals=refusals)
    assert corpus.classes == ("c0", "c1")
    assert corpus.rows["text"].to_pylist() == ["t 0", "t 3", "t 4", "t 6"]
    assert reasons(corpus) == {1: "duplicate id", 2: "odd: 2", 5: "odd: 2"}
    REJECTED.check(corpus.rejected)
    with pytest.raises(DataError, match=r"no usable row among 7 \(7 odd\), expected at least one"):
        read(Source(path), "example", refusals=lambda texts, *_: ["odd"] * len(texts))


def test_every_reason_in_jsonl(tmp_path: Path) -> None:
    lines: list[Any] = [
        {"id": "a", "text": "good", "second": "x", "label": "pos"},
        {"id": "b", "text": None, "second": "x", "label": "pos"},
        {"id": "c", "text": " \n\u3000", "second": "x", "label": "pos"},
        {"id": "d", "text": "t", "second": None, "label": "pos"},
        {"id": "e", "text": "t", "second": "", "label": "pos"},
        {"id": "f", "text": "t", "second": "x", "label": None},
        {"id": "g", "text": "t", "second": "x", "label": "odd"},
        {"id": "a", "text": "t", "second": "x", "label": "neg"},
        {"id": None, "text": "t", "second": "x", "label": "neg"},
        {"id": "h", "text": 5, "second": "x", "label": "neg"},
        b'{"id": "i", "text": "bad \xff byte", "second": "x", "label": "neg"}',
        b'{"id": "j", "text": "cut off',
        b"5",
        {"id": "k", "text": "fine", "second": "x", "label": "neg"},
    ]
    coded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (tmp_path / "a.jsonl").write_bytes(b"\n\n".join(coded))
    source = Source(str(tmp_path / "a.jsonl"), text_b="second", id="id", classes=("neg", "pos"))
    corpus = read(source, "example")
    assert corpus.rows["source_id"].to_pylist() == ["a", "k"]
    assert corpus.rows["row_number"].to_pylist() == [0, 13]
    assert corpus.rows["label"].to_pylist() == [1, 0]
    assert corpus.rows["text_b"].to_pylist() == ["x", "x"]
    assert reasons(corpus) == {
        1: "null text",
        2: "empty text",
        3: "null second text",
        4: "empty second text",
        5: "missing label",
        6: "unknown label",
        7: "duplicate id",
        8: "null id",
        9: "text is not a string",
        10: "not UTF-8",
        11: "not valid JSON",
        12: "not valid JSON",
    }
    of_others = (
        *("prompt", "completion", "instruction", "messages", "tools", "vector", "label is"),
        *("fields", "by a model", "chosen", "rejected"),
    )
    told = {reason for reason in REASONS if reason and not any(o in reason for o in of_others)}
    assert set(reasons(corpus).values()) == told
    raw = dict(zip(reasons(corpus), corpus.rejected["raw"].to_pylist(), strict=True))
    assert "bad \\xff byte" in raw[10]
    assert raw[11] == '{"id": "j", "text": "cut off'
    assert json.loads(raw[6])["label"] == "odd"
    ids = corpus.rejected["source_id"].to_pylist()
    assert ids[:7] == ["b", "c", "d", "e", "f", "g", "a"]
    assert ids[7] is None
    assert corpus.rejected["source"].to_pylist()[0] == source.path
    REJECTED.check(corpus.rejected)


def test_raw_is_cut_after_2000_characters(tmp_path: Path) -> None:
    rows = [*reviews(4), {"id": "x", "text": "t", "label": None, "note": "n" * 5000}]
    corpus = read(Source(jsonl(tmp_path / "a.jsonl", rows)), "example")
    assert len(corpus.rejected["raw"].to_pylist()[0]) == 2000


def test_queries_may_lack_labels_but_not_have_unknown_ones(tmp_path: Path) -> None:
    rows: Rows = [{"text": "a", "label": "pos"}, {"text": "b", "label": None}]
    path = jsonl(tmp_path / "q.jsonl", [*rows, {"text": "c", "label": "odd"}])
    corpus = read(Source(path), "query", ("neg", "pos"))
    assert corpus.rows["label"].to_pylist() == [1, None]
    assert reasons(corpus) == {2: "unknown label"}
    unlabelled = read(Source(path, label=None), "query", ("neg", "pos"))
    assert unlabelled.rows["label"].null_count == 3
    assert unlabelled.classes == ("neg", "pos")


@pytest.mark.parametrize(
    ("labels", "given", "classes", "codes", "kind"),
    [
        ([0, 1, 3], None, ("0", "1", "3"), [0, 1, 2], "int"),
        ([150, 9, -2], None, ("-2", "9", "150"), [2, 1, 0], "int"),
        ([-1, 1, 1], None, ("-1", "1"), [0, 1, 1], "int"),
        ([1.0, 0.0, 1.0], None, ("0", "1"), [1, 0, 1], "int"),
        ([True, False, True], None, ("False", "True"), [1, 0, 1], "str"),
        ([True, "false", "TRUE"], None, ("false", "True"), [1, 0, 1], "str"),
        (["true", " false", "true"], None, ("false", "true"), [1, 0, 1], "str"),
        ([True, False, True], ("no", "yes"), ("no", "yes"), [1, 0, 1], "str"),
        ([1, "1", 1.0, " 0", "0.0", 0], None, ("0", "1"), [1, 1, 1, 0, 0, 0], "int"),
        (["007", "7", "1E5"], None, ("7", "007", "1E5"), [1, 0, 2], "str"),
        (["b", "a", "b"], None, ("a", "b"), [1, 0, 1], "str"),
        ([0, 1, 0], ("no", "yes"), ("no", "yes"), [0, 1, 0], "int"),
        (["b", "a", "b"], ("b", "a"), ("b", "a"), [0, 1, 0], "str"),
        (["c", "a", "c"], ("c", "b", "a"), ("c", "a"), [0, 1, 0], "str"),
        ([20, 10, 20], ("10", "15", "20"), ("10", "20"), [1, 0, 1], "int"),
        ([0, 1, 0], ("1", "2"), ("1", "2"), [0, 1, 0], "int"),
        (["0", "1", "0"], ("no", "yes"), ("no", "yes"), [0, 1, 0], "int"),
        ([0, "x", 0], None, ("0", "x"), [0, 1, 0], "str"),
    ],
)
def test_classes(
    tmp_path: Path,
    labels: list[Any],
    given: tuple[str, ...] | None,
    classes: tuple[str, ...],
    codes: list[int],
    kind: str,
) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "t", "label": value} for value in labels])
    corpus = read(Source(path, classes=given), "example")
    assert corpus.classes == classes
    assert corpus.rows["label"].to_pylist() == codes
    assert corpus.label_kind == kind


def test_integer_labels_of_queries_follow_the_classes_of_the_corpus(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", [{"text": "t", "label": value} for value in (-1, 1)])
    assert read(Source(path), "query", ("-1", "1")).rows["label"].to_pylist() == [0, 1]
    named = read(Source(path), "query", ("neg", "pos"))
    assert named.rows["label"].to_pylist() == [1]
    assert reasons(named) == {0: "unknown label"}
    own = read(Source(path, classes=("pos", "neg")), "query", ("neg", "pos"))
    assert own.rows["label"].to_pylist() == [0]


def test_csv_labels_with_gaps_stay_whole_numbers(tmp_path: Path) -> None:
    text = "text,label,stars,note\na,1,4,NA\nb,,5,\nc,0.0,NA,x\nNA,1,3,y\n"
    corpus = read(Source(csv(tmp_path / "a.csv", text)), "example")
    assert corpus.rows["label"].to_pylist() == [1, 0, 1]
    assert corpus.rows["text"].to_pylist() == ["a", "c", "NA"]
    assert corpus.rows["stars"].to_pylist() == ["4", "NA", "3"]
    assert corpus.rows["note"].to_pylist() == ["NA", "x", "y"]
    assert reasons(corpus) == {1: "missing label"}


def test_labels_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    def error(*labels: Any) -> str:
        path = jsonl(tmp_path / "a.jsonl", [{"text": "t", "label": value} for value in labels])
        with pytest.raises(DataError) as caught:
            read(Source(path), "example")
        return str(caught.value)

    assert "found 1001 classes in 1001 rows of column label (0, 1, 2" in (
        message := error(*range(1001))
    )
    assert "expected classes with rows" in message
    assert "regression" in message
    assert "found the label 0.5" in (message := error(0.5, 1.0))
    assert "expected whole numbers or strings" in message
    assert "found 1 class (a)" in (message := error("a", "a"))
    assert "expected at least two" in message
    assert "found 1 class" in error(1, 1)
    assert "found list<item: int64> in the label column label" in (message := error([0], [1]))
    assert "Give every row one class" in message
    assert "found 0 class (no label at all)" in error(None, None)


def test_missing_columns_name_what_is_there(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"sentence": "t", "labels": 0}])
    with pytest.raises(DataError) as caught:
        read(Source(path, text="sentense"), "example")
    assert "found no column 'sentense' for text (did you mean text: sentence?)" in str(caught.value)
    assert "expected one of the columns sentence, labels." in str(caught.value)
    with pytest.raises(DataError, match=r"did you mean label: labels.*set label: null"):
        read(Source(path, text="sentence"), "query")
    with pytest.raises(DataError, match=r"no column 'zzz' for id, .*\. Set id to one of them"):
        read(Source(path, text="sentence", label="labels", id="zzz"), "example")


def test_no_usable_row_says_why(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": None, "label": 0}, {"text": " ", "label": 1}])
    with pytest.raises(DataError) as caught:
        read(Source(path, classes=("a", "b")), "example")
    assert "no usable row among 2 (1 null text, 1 empty text)" in str(caught.value)
    assert "Check which columns" in str(caught.value)
    path = jsonl(tmp_path / "a.jsonl", [{"text": i, "label": i} for i in range(2)])
    with pytest.raises(DataError, match=r"among 2 \(2 text is not a string\)"):
        read(Source(path), "example")
    path = jsonl(tmp_path / "a.jsonl", [{"text": "t", "label": 7}])
    with pytest.raises(DataError) as caught:
        read(Source(path), "query", ("no", "yes"))
    assert "found the labels 7 in column label, expected those of the corpus: no, yes" in str(
        caught.value
    )


@pytest.mark.parametrize(("ids", "shown"), [([[1]], r"\[1\]"), ([1, True, "1"], "True")])
def test_odd_id_columns_are_refused(tmp_path: Path, ids: list[Any], shown: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"id": i, "text": "t", "label": 0} for i in ids])
    with pytest.raises(DataError, match=rf"found {shown} in the id column.*integers or strings"):
        read(Source(path, id="id"), "query")


def test_other_columns_are_carried_and_can_be_traced_back(tmp_path: Path) -> None:
    row = {"Text": 1, "split": "s", "review": "t", "source_split": 2.5, "y": "a", "tags": ["x"]}
    path = jsonl(tmp_path / "a.jsonl", [row, row | {"y": "b"}])
    corpus = read(Source(path, text="review", label="y"), "example")
    assert corpus.columns == [
        {"name": "Text", "stored": "source_Text", "type": "int64"},
        {"name": "split", "stored": "source_source_split", "type": "string"},
        {"name": "review", "stored": "text", "type": "string"},
        {"name": "source_split", "stored": "source_split", "type": "double"},
        {"name": "y", "stored": "label", "type": "string", "cells": ["a", "b"]},
        {"name": "tags", "stored": "tags", "type": "list<item: string>"},
    ]
    own = (
        "id",
        "role",
        *LABEL.schema.names[2:],
        "text",
        "text_b",
        "is_dropped",
        *EXTRA.schema.names[2:],
    )
    assert set(corpus.rows.column_names[len(own) :]) == {
        *("source_Text", "source_source_split", "source_split", "tags"),
    }
    assert corpus.rows["tags"].to_pylist()[0] == ["x"]
    assert corpus.rows.schema.field("source_Text").type == pa.int64()


def test_tables_fit_their_declarations(tmp_path: Path) -> None:
    review = csv(tmp_path / "review.csv", "source_id,decision,new_label\n3,drop,\n")
    path = jsonl(tmp_path / "a.jsonl", reviews())
    corpus = read(Source(path, corrections=(review,)), "example")
    parts = tables(corpus.rows.slice(2, 5))
    for spec in (TEXT, LABEL, EXTRA):
        spec.check(parts[spec.name])
    assert parts["text"].num_rows == parts["extra"].num_rows == 5
    assert parts["label"]["id"].to_pylist() == [2, 4, 5, 6]
    names = ["id", "role", "source_id", "row_number", "source_source_id"]
    assert parts["extra"].column_names == names
