"""What Python gets: rows that DuckDB holds, and mappings that show themselves."""

import copy
import json
from collections.abc import Mapping
from typing import Any

import click
import duckdb
import pyarrow as pa
import pytest

from pipeline.results import Answer, Rows
from storage.schema import StorageError


@pytest.fixture
def rows() -> Rows:
    return Rows(duckdb.sql("SELECT i, 'a' || i AS name FROM range(3) AS t(i)"))


def test_rows_hand_on_what_duckdb_can_do(rows: Rows) -> None:
    assert rows.columns == ["i", "name"]
    assert rows.fetchall() == [(0, "a0"), (1, "a1"), (2, "a2")]
    assert pa.table(rows).to_pylist() == rows.df().to_dict("records")
    assert len(rows) == 3
    assert "a2" in repr(rows)


def test_a_relation_of_rows_is_rows(rows: Rows) -> None:
    few = rows.filter("i > 0").limit(1)
    assert isinstance(few, Rows)
    assert few.to_dataset().to_list() == [{"i": 1, "name": "a1"}]
    assert few["name"].to_dataset().to_list() == few.name.to_dataset().to_list() == [{"name": "a1"}]


def test_another_connection_reads_rows_by_their_name(rows: Rows) -> None:
    with duckdb.connect() as other:
        assert other.sql("SELECT sum(i) FROM rows").fetchall() == [(3,)]


def test_what_duckdb_refuses_is_an_error_of_storage(rows: Rows) -> None:
    with pytest.raises(StorageError, match="found a statement DuckDB refuses"):
        rows.filter("nothing = 1")
    with pytest.raises(AttributeError):
        rows.to_nothing  # noqa: B018
    assert copy.copy(rows).fetchall() == rows.fetchall()


def show(values: Mapping[str, Any], is_json: bool) -> None:
    click.echo("json" if is_json else f"{values['n']} rows\n")


def test_an_answer_reads_like_its_command() -> None:
    answer = Answer({"n": 3}, show)
    assert repr(answer) == "3 rows"
    assert answer == {"n": 3}
    assert answer.to_dict() == json.loads(json.dumps(answer))
    assert repr(copy.deepcopy(answer)) == "3 rows"
