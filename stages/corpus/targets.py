"""Regression targets: the label column as one finite number per row."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus.cells import NULLS, SourceRows, is_text
from stages.corpus.reasons import mark
from stages.corpus.source import Source
from stages.stage import DataError, Role


def read_targets(source: Source, loaded: SourceRows, reasons: np.ndarray, role: Role) -> np.ndarray:
    """The regression target of every row in float64, NaN where it has none.

    Only a query may lack one. Rows whose label is no number, or not a finite one, are marked in
    `reasons`.

    Raises:
        DataError: the label column is of a type that holds no numbers.
    """
    n_rows = loaded.table.num_rows
    if source.label is None:
        return np.full(n_rows, np.nan)
    column = loaded.table[source.label]
    kind = column.type
    if source.label in loaded.mixed:
        cells = loaded.values(source.label)
    elif is_text(kind):
        cells = column.to_pylist()
        if not loaded.is_typed:
            cells = [_parsed(cell) for cell in cells]
    else:
        plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
        if not any(check(kind) for check in plain):
            raise DataError(
                f"{source.path}: found {kind} in the label column {source.label}, expected "
                "numbers: targets of a regression. Name another column, or set task."
            )
        numbers = pc.cast(column, pa.float64(), safe=False)
        is_null = np.asarray(numbers.is_null())
        targets = pc.fill_null(numbers, np.nan).to_numpy()
        if role == "example":
            mark(reasons, is_null, "missing label")
        mark(reasons, ~is_null & ~np.isfinite(targets), "label is not finite")
        return np.array(targets)
    is_missing = np.array([cell is None for cell in cells], dtype=bool)
    is_number = np.array([_is_number(cell) for cell in cells], dtype=bool)
    if role == "example":
        mark(reasons, is_missing, "missing label")
    mark(reasons, ~is_number & ~is_missing, "label is not a number")
    targets = np.array(
        [float(cell) if ok else np.nan for cell, ok in zip(cells, is_number, strict=True)]
    )
    mark(reasons, is_number & ~np.isfinite(targets), "label is not finite")
    return targets


def parse_number(text: str) -> float | None:
    """The finite number that `text` reads as; None if it reads as none."""
    number = _parsed(text)
    return number if isinstance(number, float) and np.isfinite(number) else None


def _parsed(cell: str | None) -> float | str | None:
    """A CSV cell as a number if it reads as one, None for a word in NULLS, else the text."""
    if cell is None or cell in NULLS:
        return None
    try:
        return cell if "_" in cell else float(cell)
    except ValueError:
        return cell


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)
