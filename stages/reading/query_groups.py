"""The groups of queries that a column of their source names."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from stages.stage import Inputs


def query_groups(
    inputs: Inputs, column: str | None, query_ids: Int64[np.ndarray, " queries"]
) -> Int64[np.ndarray, " queries"] | None:
    """The number of each query's group, in the order in which groups first come; None without.

    Queries of the same cell in `column`, by its name in the source, are a group, and so are those
    whose cell is empty. The table `extra` is read, whose column the plan has checked
    (`Stage.query_column`).
    """
    if column is None:
        return None
    stored = next(
        of["stored"] for of in inputs.details("extra")["columns"]["query"] if of["name"] == column
    )
    table = inputs.table("extra", "query")
    cells = dict(zip(table["id"].to_pylist(), table[stored].to_pylist(), strict=True))
    return _numbers([_cell(cells[query]) for query in query_ids.tolist()])


def _numbers(cells: Sequence[str]) -> Int64[np.ndarray, " queries"]:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(cell, len(numbers)) for cell in cells], np.int64)


def _cell(cell: Any) -> str:
    """A cell as text; no text, and what pandas writes for nothing, are empty as nothing is."""
    is_empty = cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell))
    return "" if is_empty else repr(cell)
