from types import SimpleNamespace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from pipeline.page.asked import Asked
from pipeline.page.values import groups
from storage.catalog import fetch

N = 48


def groups_of(column: pa.Array) -> list[tuple[str | None, int]]:
    """The name and number of rows of each group by the column, in a run that judged nothing."""
    connection = duckdb.connect()
    connection.register("examples", pa.table({"x": column}))

    def ask(statement: str) -> Asked:
        rows: Any = connection.sql(statement)
        return Asked(statement, [dict(zip(rows.columns, row, strict=True)) for row in fetch(rows)])

    subject: Any = SimpleNamespace(ask=ask, column=lambda name: name, judged=None, values=None)
    return [(row["name"], row["n"]) for row in groups(subject, "x").rows]


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint8", "uint64", "float32"])
def test_numbers_of_every_kind_are_grouped_in_quarters(kind: str) -> None:
    found = groups_of(pa.array(np.arange(N).astype(kind)))
    point = ".0" if kind == "float32" else ""
    quarters = [(f"{at}{point} to {at + 11}{point}", 12) for at in range(0, N, 12)]
    assert sorted(found) == sorted(quarters)


def test_rows_without_a_number_are_a_group_of_their_own() -> None:
    found = groups_of(pa.array([at if at % 2 else None for at in range(N)]))
    assert found[0] == (None, N // 2)
    assert sorted(found[1:]) == [(f"{at} to {at + 10}", 6) for at in (1, 13, 25, 37)]


def test_texts_that_are_no_numbers_are_groups_as_they_are() -> None:
    names = [f"name {at}" for at in range(20)]
    assert sorted(groups_of(pa.array(names))) == [(name, 1) for name in sorted(names)]
