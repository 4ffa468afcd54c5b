"""Rows of a source as they were found, and how their cells are read and shown."""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

NULLS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "<NA>", "#N/A")
SURROGATE = re.compile("[\ud800-\udfff]")


class Loaded(NamedTuple):
    """The rows of a source as they were found, before any is judged by its content.

    `table` has the source's columns and all of its rows; a row that could not be read is in
    `faults`, by row number, as (reason, what it looked like), and its cells mean nothing.
    """

    table: pa.Table
    faults: Mapping[int, tuple[str, str]]
    class_names: tuple[str, ...] | None = None
    """Names of the label column when it is a `ClassLabel`."""
    mixed: frozenset[str] = frozenset()
    """Columns that hold values of several types, each written as JSON."""
    is_typed: bool = True
    """Whether the format tells 7 from "7"; CSV does not, all its columns are text here."""

    def values(self, name: str) -> list[Any]:
        """Cells of a column as Python values, also where they are of several types."""
        cells: list[Any] = self.table[name].to_pylist()
        if name in self.mixed:
            return [None if cell is None else json.loads(cell) for cell in cells]
        kind = self.table[name].type
        return [_plain(cell, kind) for cell in cells] if holds_json(kind) else cells


def typed(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """A CSV column as integers, floats or booleans if every cell is one, otherwise as it was.

    Empty cells and the usual words for a missing value (NA, null, nan) count as null in a column
    that is not text. Digits that a number would lose, such as the zero of 01234, keep it text.
    """
    if pc.any(pc.match_substring_regex(column, "^[+-]?(0[0-9]|[0-9]{19})")).as_py():
        return column
    values = pc.if_else(pc.is_in(column, value_set=pa.array(NULLS)), None, column)
    if values.null_count < len(values):
        for kind in (pa.int64(), pa.float64(), pa.bool_()):
            try:
                return pc.cast(values, kind)
            except pa.ArrowInvalid:
                continue
    return column


def compact(row: Any) -> str:
    r"""A row as one line of JSON, bytes that are no text as \xNN, cut after 2,000 characters."""
    line = json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=str)
    return show(line)[:2000]


def show(text: str) -> str:
    r"""The text with what UTF-8 cannot hold written out: bytes as \xNN, surrogates as \uNNNN."""

    def written(match: re.Match[str]) -> str:
        code = ord(match[0])
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"

    return SURROGATE.sub(written, text)


def holds_json(kind: pa.DataType) -> bool:
    """Whether cells of this type have, anywhere inside, values of several types as JSON."""
    if isinstance(kind, pa.BaseExtensionType):
        return bool(kind == pa.json_(pa.string()))
    return any(holds_json(kind.field(at).type) for at in range(kind.num_fields))


def _plain(cell: Any, kind: pa.DataType) -> Any:
    """The cell with everything that is JSON by its type read; lists and structs are entered."""
    if cell is None or not holds_json(kind):
        return cell
    if isinstance(kind, pa.BaseExtensionType):
        return json.loads(cell)
    if pa.types.is_struct(kind):
        return {f.name: _plain(cell[f.name], f.type) for f in kind}
    return [_plain(item, kind.field(0).type) for item in cell]


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings."""
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(check(kind) for check in checks)
