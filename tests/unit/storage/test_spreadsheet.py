"""CSV files for people: no cell is computed, and every text is read back as it was."""

import csv
from pathlib import Path

import duckdb
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.catalog import export
from storage.spreadsheet import escaped, is_computed, unescaped

FORMULAS = [
    "=1+1",
    "+cmd",
    "-x",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "\uff1d1",
    "'=1",
    "''=1",
    "-1-1",
]
PLAIN = ["", "a=b", "'", "'quoted'", "-1", "-1.5", "12", "it's", " =1", "a\n=b", "'-1"]
TEXTS = st.text("'=+-@\t\r\n\uff1d1.a ", max_size=8) | st.text(max_size=8)


def test_what_a_spreadsheet_computes_is_escaped() -> None:
    for text in FORMULAS:
        assert escaped(text) == f"'{text}"
    for text in PLAIN:
        assert escaped(text) == text
    for text in ("-1\n", "-1\t"):
        assert escaped(text) == f"'{text}"


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_every_text_is_read_back_as_it_was(text: str) -> None:
    cell = escaped(text)
    assert unescaped(cell) == text
    assert cell == text or cell[0] == "'"
    assert not is_computed(text) or cell != text


def test_the_statement_escapes_like_the_function(tmp_path: Path) -> None:
    texts = [*FORMULAS, *PLAIN, "-1\n", "ü"]
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE t (n BIGINT, \"=name\" VARCHAR, kind ENUM ('=a'))")
        connection.executemany("INSERT INTO t VALUES (-5, ?, '=a')", [[text] for text in texts])
        export(connection, "FROM t ORDER BY rowid", tmp_path / "t.csv")
        export(connection, "FROM t ORDER BY rowid", tmp_path / "t.jsonl")
    data = (tmp_path / "t.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")
    with (tmp_path / "t.csv").open(encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["n", "'=name", "kind"]
    assert rows == [["-5", escaped(text), "'=a"] for text in texts]
    # What is for programs is as it is.
    assert '"=1+1"' in (tmp_path / "t.jsonl").read_text()


def test_a_file_of_ascii_has_no_mark(tmp_path: Path) -> None:
    with duckdb.connect() as connection:
        export(connection, "SELECT 1 AS a", tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_bytes() == b"a\n1\n"
