"""Labels are names: one spelling, joined by it, and told where a column is doubtful."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from whole_corpus import Corpus, read

from stages.corpus.labels import spelled
from stages.corpus.source import Source
from stages.stage import DataError


@pytest.mark.parametrize(
    ("cells", "name"),
    [
        ((1, "1", 1.0, " 1 ", "1.0", "+1", "1.000"), "1"),
        ((0, "0", -0.0, "-0"), "0"),
        ((-3, "-3", -3.0), "-3"),
        ((True, "True", "true", " TRUE"), "True"),
        (("pos", " pos", "pos\n"), "pos"),
        (("007", " 007"), "007"),
        (("1E5",), "1E5"),
        (("0x10",), "0x10"),
        (("1_000",), "1_000"),
        ((2**60 + 1, str(2**60 + 1)), str(2**60 + 1)),
        ((None, "", "  ", float("nan")), None),
    ],
)
def test_one_spelling(cells: tuple[Any, ...], name: str | None) -> None:
    assert {spelled(cell) for cell in cells} == {name}


def rows_of(path: Path, labels: list[Any]) -> str:
    lines = [json.dumps({"text": f"t{i}", "label": value}) for i, value in enumerate(labels)]
    path.write_text("\n".join(lines))
    return str(path)


def corpus(folder: Path, labels: list[Any], **fields: Any) -> Corpus:
    options = {"keeps_absent": fields.pop("keeps_absent", False)}
    return read(Source(rows_of(folder / "a.jsonl", labels), **fields), "example", **options)


def test_booleans_of_parquet_meet_the_words_of_csv(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b", "c"], "label": [True, False, True]})
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("text,label\na,True\nb,False\nc,true\n")
    paths = [str(tmp_path / "a.parquet"), str(tmp_path / "a.csv")]
    for mine, other in (paths, paths[::-1]):
        classes = read(Source(mine), "example").classes
        assert classes == ("False", "True")
        assert read(Source(other), "query", classes).rows["label"].to_pylist() == [1, 0, 1]


@pytest.mark.parametrize("ending", ["parquet", "saved"])
def test_labels_may_be_floats_of_16_bits(tmp_path: Path, ending: str) -> None:
    half = pa.array(np.array([1, 0, 2], np.float16))
    table = pa.table({"text": ["a", "b", "c"], "label": half, "weight": half})
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        pq.write_table(table, path)
    else:
        datasets.Dataset(table).save_to_disk(path)
    found = read(Source(str(path)), "example")
    assert found.rows["label"].to_pylist() == [1, 0, 2]
    assert found.rows["weight"].to_pylist() == [1, 0, 2]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array([0]), pa.array([1])], ["text", "label", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"several columns that are called label, expected names"):
        read(Source(str(tmp_path / "a.parquet")), "example")


@pytest.mark.parametrize(
    ("names", "labels"),
    [(("1", "2"), ["a", "b"]), (("a", "b"), [7, 8]), (("False", "True"), [0, 1])],
)
def test_labels_of_queries_that_match_none_are_refused_with_both_sets(
    tmp_path: Path, names: tuple[str, ...], labels: list[Any]
) -> None:
    source = Source(rows_of(tmp_path / "q.jsonl", labels), classes=None)
    if labels == [0, 1]:  # Places among the names of the corpus; the pipeline asks for an order.
        assert read(source, "query", names).label_kind == "int"
        return
    with pytest.raises(DataError) as caught:
        read(source, "query", names)
    said = str(caught.value)
    assert f"found the labels {labels[0]}, {labels[1]} in column label" in said
    assert f"expected those of the corpus: {names[0]}, {names[1]}. Name" in said


def test_some_strangers_among_queries_are_told(tmp_path: Path) -> None:
    source = Source(rows_of(tmp_path / "q.jsonl", ["a", "x", None, "b", "y"]))
    found = read(source, "query", ("a", "b"))
    assert found.rows["label"].to_pylist() == [0, None, 1]
    assert found.rejected["reason"].to_pylist() == ["unknown label"] * 2
    (notice,) = found.notices
    assert "found x, y in column label, expected a, b" in notice


def test_declared_classes_without_rows_are_none_and_told(tmp_path: Path) -> None:
    plain = corpus(tmp_path, ["b", "a"] * 20)
    declared = corpus(tmp_path, ["b", "a"] * 20, classes=("a", "never", "b", "nor this"))
    assert declared.classes == plain.classes == ("a", "b")
    assert declared.rows.equals(plain.rows)
    (notice,) = declared.notices
    assert "no row of the corpus has never, nor this" in notice
    assert "left out of the classes" in notice
    kept = corpus(tmp_path, ["b", "a"] * 20, classes=("a", "never", "b"), keeps_absent=True)
    assert kept.classes == ("a", "never", "b")
    assert kept.rows["label"].to_pylist() == [2, 0] * 20
    assert "declared classes without rows, kept" in kept.notices[0]


def test_a_class_that_a_review_puts_in_is_one(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("source_id,decision,new_label\n3,fix, never\n")
    fields = {"classes": ("a", "never", "b"), "corrections": (str(tmp_path / "r.csv"),)}
    found = corpus(tmp_path, ["b", "a"] * 3, **fields)
    assert found.classes == ("a", "never", "b")
    assert found.rows["label"].to_pylist() == [2, 0, 2, 1, 2, 0]


def test_numbers_that_are_partly_names_and_partly_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found the labels 4 .*none of classes: 1, 2, 3.*expected"):
        corpus(tmp_path, [1, 2, 3, 4], classes=("1", "2", "3"))


def test_classes_of_several_spellings_are_told(tmp_path: Path) -> None:
    (told,) = corpus(tmp_path, [1, "1", "0", 0.0, 1, "0"]).notices
    assert "spelled in several ways are one class: '0', 0.0 (written as '0'), 1, '1'" in told


def test_doubtful_columns_are_told_with_examples(tmp_path: Path) -> None:
    assert corpus(tmp_path, ["a", "b"] * 10).notices == ()
    (single,) = corpus(tmp_path, ["a", "b"] * 15 + ["lonely"]).notices
    assert "1 classes of column label have one row, which nothing can be compared with: lonely" in (
        single
    )
    texts = [f"this is sentence number {i // 2} which is no label at all" for i in range(40)]
    (many,) = corpus(tmp_path, texts).notices
    assert "found 20 classes in 40 rows of column label (this is sentence number 0" in many
    assert "and 15 more" in many
    assert "It reads like a text: name another label column." in many
    (targets,) = corpus(tmp_path, [i // 2 for i in range(40)]).notices
    assert "more than one in ten. If these are ids or texts, name another label column" in targets
