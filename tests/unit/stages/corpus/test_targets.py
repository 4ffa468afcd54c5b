"""Targets of a regression: what counts as one, what is refused and why, reviews."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from source_rows import reasons
from whole_corpus import Corpus, read

from stages.corpus.ingest import LABEL, tables
from stages.corpus.source import Source
from stages.stage import ConfigError, DataError, Role


def jsonl(path: Path, labels: list[Any]) -> str:
    rows = [{"text": f"t {i}", "score": label} for i, label in enumerate(labels)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def parquet(path: Path, labels: pa.Array) -> str:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"text": ["t"] * len(labels), "score": labels}), path)
    return str(path)


def numbers(path: str, role: Role = "example", **fields: Any) -> Corpus:
    return read(Source(path, task="regression", label="score", **fields), role)


def test_numbers_of_a_typed_format(tmp_path: Path) -> None:
    corpus = numbers(jsonl(tmp_path / "a.jsonl", [0.5, 2, None, -1e300]))
    assert corpus.rows["target"].to_pylist() == [0.5, 2.0, -1e300]
    assert corpus.rows["label"].null_count == corpus.rows["true_label"].null_count == 3
    assert (corpus.classes, corpus.label_kind, corpus.task) == ((), "float", "regression")
    assert reasons(corpus) == {2: "missing label"}
    assert corpus.columns[1] == {"name": "score", "stored": "target", "type": "double"}
    LABEL.check(tables(corpus.rows)["label"])


def test_what_is_no_finite_number_is_rejected(tmp_path: Path) -> None:
    labels = ["high", 1.5, True, [1], {"a": 1}, 3]
    corpus = numbers(jsonl(tmp_path / "mixed.jsonl", labels))
    assert corpus.rows["target"].to_pylist() == [1.5, 3.0]
    assert reasons(corpus) == dict.fromkeys((0, 2, 3, 4), "label is not a number")
    floats = pa.array([1.0, float("nan"), float("inf"), None])
    corpus = numbers(parquet(tmp_path / "a.parquet", floats))
    assert corpus.rows["target"].to_pylist() == [1.0]
    assert reasons(corpus) == {
        1: "label is not finite",
        2: "label is not finite",
        3: "missing label",
    }
    decimals = pa.array([Decimal("1.25"), None], pa.decimal128(5, 2))
    assert numbers(parquet(tmp_path / "d.parquet", decimals)).rows["target"].to_pylist() == [1.25]


def test_numbers_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,score\na,1\nb,2.5e-1\nc,\nd,NA\ne,high\nf,inf\ng,1_0\nh,007\n")
    corpus = numbers(str(path))
    assert corpus.rows["target"].to_pylist() == [1.0, 0.25, 7.0]
    assert reasons(corpus) == {
        2: "missing label",
        3: "missing label",
        4: "label is not a number",
        5: "label is not finite",
        6: "label is not a number",
    }


def test_queries_may_lack_a_target(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [1.0, None, "x"])
    corpus = numbers(path, "query")
    assert corpus.rows["target"].to_pylist() == [1.0, None]
    assert corpus.n_unlabelled == 1
    assert reasons(corpus) == {2: "label is not a number"}
    bare = read(Source(path, task="regression", label=None), "query")
    assert bare.n_unlabelled == bare.rows.num_rows == 3
    with pytest.raises(ConfigError, match="found label: null for examples"):
        read(Source(path, task="regression", label=None), "example")


def test_columns_that_hold_no_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found bool in the label column score, expected numbers"):
        numbers(jsonl(tmp_path / "a.jsonl", [True, False]))
    with pytest.raises(DataError, match=r"no usable row among 2 \(2 label is not a number\)"):
        numbers(jsonl(tmp_path / "a.jsonl", ["4", "5"]))


def test_a_review_fixes_a_target(tmp_path: Path) -> None:
    path, review = jsonl(tmp_path / "a.jsonl", [1.0, 2.0, 3.0]), tmp_path / "review.csv"
    review.write_text("source_id,decision,new_label\n0,fix,2.5\n1,drop,\n2,accept,9\n")
    corpus = numbers(path, corrections=(str(review),))
    assert corpus.rows["target"].to_pylist() == [2.5, 2.0, 3.0]
    assert tables(corpus.rows)["label"]["target"].to_pylist() == [2.5, 3.0]
    for wrong in ("good", "inf", ""):
        review.write_text(f"source_id,decision,new_label\n0,fix,{wrong}\n")
        with pytest.raises(DataError, match="expected a finite number. Write the target"):
            numbers(path, corrections=(str(review),))
