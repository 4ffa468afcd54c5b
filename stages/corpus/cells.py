"""The unchecked rows of a source, and functions that read and show their cells."""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

NULLS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "<NA>", "#N/A")
SURROGATE = re.compile("[\ud800-\udfff]")


class SourceRows(NamedTuple):
    """All rows and columns of a source, before any row is rejected for its content.

    `table` has the source's columns under their own names, and all of its rows. `faults` holds the
    rows that could not be read, by row number, each as (reason, the row as text); the cells of such
    a row are null or meaningless.
    """

    table: pa.Table
    faults: Mapping[int, tuple[str, str]]
    class_names: tuple[str, ...] | None = None
    """Names of the classes by index when the label column is a `ClassLabel` of `datasets`."""
    mixed: frozenset[str] = frozenset()
    """Names of the columns whose cells are of several types; `table` holds each cell as JSON."""
    is_typed: bool = True
    """Whether the file format tells 7 from "7". CSV does not: all of its columns are text here."""

    def values(self, name: str) -> list[Any]:
        """The cells of the column `name` as Python values; JSON cells are parsed."""
        cells: list[Any] = self.table[name].to_pylist()
        if name in self.mixed:
            return [None if cell is None else json.loads(cell) for cell in cells]
        kind = self.table[name].type
        return [_plain(cell, kind) for cell in cells] if holds_json(kind) else cells


def typed(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """A CSV column of text as integers, floats or booleans if all cells are, otherwise unchanged.

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
    r"""A row as one line of JSON of at most 2,000 characters, bytes that are not UTF-8 as \xNN."""
    line = json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=str)
    return show(line)[:2000]


def is_broken(text: str) -> bool:
    """Whether UTF-8 cannot encode it: it has half a surrogate pair, or a byte that is no text."""
    return SURROGATE.search(text) is not None


def show(text: str) -> str:
    r"""The text with all that UTF-8 cannot encode escaped: bytes as \xNN, surrogates as \uNNNN."""

    def escaped(match: re.Match[str]) -> str:
        code = ord(match[0])
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"

    return SURROGATE.sub(escaped, text)


def holds_json(kind: pa.DataType) -> bool:
    """Whether cells of this Arrow type hold JSON, at any depth, in place of values of one type."""
    if isinstance(kind, pa.BaseExtensionType):
        return bool(kind == pa.json_(pa.string()))
    return any(holds_json(kind.field(at).type) for at in range(kind.num_fields))


def _plain(cell: Any, kind: pa.DataType) -> Any:
    """The cell with its JSON parsed, also inside of lists and structs."""
    if cell is None or not holds_json(kind):
        return cell
    if isinstance(kind, pa.BaseExtensionType):
        return json.loads(cell)
    if pa.types.is_struct(kind):
        return {f.name: _plain(cell[f.name], f.type) for f in kind}
    return [_plain(item, kind.field(0).type) for item in cell]


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this Arrow type holds strings."""
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(check(kind) for check in checks)
