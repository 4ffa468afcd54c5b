"""The unchecked rows of a source, and functions that read and show their cells."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from stages.stage import DataError

NULLS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "<NA>", "#N/A")
_NUMBER = re.compile("0|-?[1-9][0-9]*")
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
    notices: tuple[str, ...] = ()
    """What a person should know of how the files were read."""

    def values(self, name: str) -> list[Any]:
        """The cells of the column `name` as Python values; JSON cells are parsed."""
        cells: list[Any] = self.table[name].to_pylist()
        if name in self.mixed:
            return [None if cell is None else json.loads(cell) for cell in cells]
        kind = self.table[name].type
        return [_plain(cell, kind) for cell in cells] if holds_json(kind) else cells


def from_table(table: pa.Table) -> SourceRows:
    """The rows of an Arrow table as they are; those with bytes that are not UTF-8 are in `faults`.

    Layouts of a type that Parquet has no other name for (views, dictionaries) become the plain one,
    and a column of JSON is one of `mixed`.
    """
    table = table.replace_schema_metadata(None)
    mixed = frozenset(f.name for f in table.schema if f.type == pa.json_(pa.string()))
    bad: set[int] = set()
    whole = table
    for at, field in enumerate(table.schema):
        column = _in_plain_layout(table.column(at))
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            column, rows = _decoded(column)
            bad.update(rows)
        whole = whole.set_column(at, pa.field(field.name, column.type), column)
    faults = {row: ("not UTF-8", compact(row_of(table, row))) for row in sorted(bad)}
    return SourceRows(whole, faults, mixed=mixed)


def join(parts: Sequence[SourceRows]) -> SourceRows:
    """The rows of all parts, without their faults; a column that is JSON in one is so in all.

    Raises:
        pyarrow.ArrowException: there is no type that holds a column of all parts without loss.
    """
    mixed = frozenset[str]().union(*(part.mixed for part in parts))
    tables = []
    for part in parts:
        table = part.table
        for name in (mixed - part.mixed) & set(table.column_names):
            cells = [None if cell is None else as_json(cell) for cell in part.values(name)]
            at = table.column_names.index(name)
            table = table.set_column(at, name, pa.chunked_array([pa.array(cells, pa.string())]))
        tables.append(table)
    schema = pa.unify_schemas([table.schema for table in tables], promote_options="permissive")
    whole = as_schema(pa.concat_tables(tables, promote_options="permissive"), schema)
    return parts[0]._replace(table=whole, mixed=mixed)


def as_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema from a table, each in its type there.

    Those that have it already are not cast: Arrow fails to cast a list of objects of which a key
    is null in all of them, such as `tool_calls` of chats without any, to its own type.

    Raises:
        pyarrow.ArrowException: a column cannot be had in its type.
    """
    columns = [
        column if column.type == field.type else column.cast(field.type)
        for column, field in zip(table.select(schema.names).columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def decoded(loaded: SourceRows, names: set[str]) -> SourceRows:
    """The rows with binary columns among `names` as text; rows that are not UTF-8 are faults."""
    table, faults = loaded.table, dict(loaded.faults)
    for at, field in enumerate(table.schema):
        if field.name in names and (pa.types.is_binary(field.type) or _is_large(field.type)):
            text = pa.string() if pa.types.is_binary(field.type) else pa.large_string()
            column = pc.cast(table.column(at), text, safe=False)
            try:
                column.validate(full=True)
            except pa.ArrowInvalid:
                column, bad = _decoded(column)
                shown = {row: ("not UTF-8", compact(row_of(table, row))) for row in bad}
                faults = {**shown, **faults}
            table = table.set_column(at, field.name, column)
    return loaded._replace(table=table, faults=faults)


def _is_large(kind: pa.DataType) -> bool:
    return bool(pa.types.is_large_binary(kind))


def _in_plain_layout(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column in the layout that Parquet gives back.

    Raises:
        DataError: pyarrow cannot bring it into that layout. Python's values are no way round: they
            have no nanoseconds.
    """
    if pa.types.is_run_end_encoded(column.type):
        whole = [pc.run_end_decode(chunk) for chunk in column.chunks]
        return _in_plain_layout(pa.chunked_array(whole, column.type.value_type))
    kind = _plain_layout(column.type)
    if kind == column.type:
        return column
    try:
        return pc.cast(column, kind)
    except pa.ArrowNotImplementedError as error:
        raise DataError(
            f"source: found a column of {column.type}, expected a layout that Parquet has. Write "
            f"it as {kind}."
        ) from error


def _plain_layout(kind: pa.DataType) -> pa.DataType:
    """The type of the same values in the layout that Parquet gives back."""
    if kind == pa.json_(pa.string()) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _plain_layout(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(kind.value_field.with_type(_plain_layout(kind.value_type)))
    if pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(kind.value_field.with_type(_plain_layout(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain_layout(field.type)) for field in kind])
    return kind


def _decoded(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, list[int]]:
    """The column with bytes that are not UTF-8 escaped, and the numbers of the rows with such.

    A nested cell with such bytes becomes null.
    """
    cells: list[Any] = []
    bad: list[int] = []
    is_string = is_text(column.type)
    for row, cell in enumerate(pc.cast(column, pa.large_binary()) if is_string else column):
        try:
            value = cell.as_py()
            cells.append(value.decode() if is_string and value is not None else value)
        except UnicodeDecodeError:
            cells.append(value.decode(errors="backslashreplace") if is_string else None)
            bad.append(row)
    return pa.chunked_array([pa.array(cells, column.type)]), bad


def row_of(table: pa.Table, row: int) -> dict[str, Any]:
    """A row by column, for a person: with bytes that are not UTF-8 as surrogates."""
    shown: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.slice(row, 1).columns, strict=True):
        if is_text(column.type) or pa.types.is_binary(column.type):
            cell = pc.cast(column, pa.large_binary())[0].as_py()
            shown[name] = cell if cell is None else cell.decode(errors="surrogateescape")
            continue
        try:
            shown[name] = column[0].as_py()
        except (ValueError, OverflowError):  # Not UTF-8 inside, or a date that Python has not.
            shown[name] = str(column[0]) if pa.types.is_temporal(column.type) else None
    return shown


def as_json(cell: Any) -> str:
    """The cell as JSON on one line."""
    return json.dumps(cell, ensure_ascii=False, separators=(",", ":"), default=str)


def compact(row: Any) -> str:
    r"""A row as one line of JSON of at most 2,000 characters, bytes that are not UTF-8 as \xNN."""
    return show(as_json(row))[:2000]


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


def is_number(text: str) -> bool:
    """Whether a text is an integer of 64 bits, written as Python writes it."""
    return _NUMBER.fullmatch(text) is not None and -(2**63) <= int(text) < 2**63
