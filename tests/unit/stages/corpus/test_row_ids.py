"""Ids of rows, whatever type of column they come in."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_rows import reasons
from whole_corpus import read

from stages.corpus.source import Source

TEXTS, LABELS = ["a", "b", "c", "d"], [0, 1, 0, 1]
NAN = float("nan")


def rows_without_an_id(path: Path) -> None:
    found = read(Source(str(path), id="id"), "example")
    assert found.rows["source_id"].to_pylist() == ["7", "9", "8"]
    assert reasons(found) == {1: "null id"}


@pytest.mark.parametrize("ids", [[7.0, NAN, 9.0, 8.0], [7, NAN, "9", 8]])
def test_nan_is_no_id(tmp_path: Path, ids: list[object]) -> None:
    rows = zip(TEXTS, LABELS, ids, strict=True)
    lines = [json.dumps({"text": text, "label": label, "id": i}) for text, label, i in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    rows_without_an_id(tmp_path / "rows.jsonl")


def test_nor_in_a_column_of_floats(tmp_path: Path) -> None:
    cells = {"text": TEXTS, "label": LABELS, "id": pa.array([7.0, NAN, 9.0, 8.0])}
    pq.write_table(pa.table(cells), tmp_path / "rows.parquet")
    rows_without_an_id(tmp_path / "rows.parquet")


def test_a_column_that_tells_no_rows_apart_is_told_of(tmp_path: Path) -> None:
    rows = [{"text": f"t{at}", "label": at % 2, "topic": "ab"[at % 2]} for at in range(6)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    said = " ".join(read(Source(str(path), id="topic"), "example").notices)
    assert "4 of 6 rows cannot be used: duplicate id in topic. Name a column" in said
    without = [{**row, "text": None} for row in rows[2:]]
    path.write_text("\n".join(map(json.dumps, rows[:2] + without)))
    said = " ".join(read(Source(str(path)), "example").notices)
    assert "4 of 6 rows cannot be used: null text. See the view `rejected`" in said
