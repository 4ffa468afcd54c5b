"""JSONL files, or files of one JSON array, as one Arrow table without loss.

The lines are read twice: once to learn the type of every column from all of its cells, once to
fill it. A column whose cells fit no one Arrow type exactly, such as numbers and strings in turns,
integers beyond 64 bits or objects with different keys, holds each cell as JSON. Nothing is taken
for a date, and no integer becomes a float that is another number. Memory: the table, and a block
of parsed lines.
"""

import codecs
import itertools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from stages.corpus.cells import SourceRows, as_json, compact
from stages.corpus.source import Source
from stages.corpus.source_files import open_file
from stages.stage import DataError

_BLOCK_ROWS = 4096
_EXACT = 2**53
"""Integers up to this absolute value are floats without loss."""


class _JSON(NamedTuple):
    """Cells of several types, kept as JSON."""


class _Whole(NamedTuple):
    """Whole numbers, the smallest and the largest."""

    low: int
    high: int

    def type(self) -> pa.DataType | None:
        """The Arrow type that holds them; None if there is none."""
        if -(2**63) <= self.low and self.high < 2**63:
            return pa.int64()
        return pa.uint64() if 0 <= self.low and self.high < 2**64 else None


class _Objects(NamedTuple):
    """Objects with the same keys."""

    fields: dict[str, Any]


class _Lists(NamedTuple):
    items: Any


_PLAIN = {bool: pa.bool_(), str: pa.string(), float: pa.float64()}
_MIXED = _JSON()


def read_json(files: list[str], source: Source) -> SourceRows:
    """All rows of the files; a line that is no JSON object in UTF-8 is a fault.

    Raises:
        DataError: there is no row, or none that can be read.
    """
    kinds: dict[str, Any] = {}
    faults: dict[int, tuple[str, str]] = {}
    n_rows = 0
    for row in _rows(files):
        if isinstance(row, _Fault):
            faults[n_rows] = (row.reason, row.raw)
        else:
            for name, cell in row.items():
                kind = _kind(cell)
                kinds[name] = _both(kinds[name], kind) if name in kinds else kind
        n_rows += 1
    if len(faults) == n_rows:
        raise DataError(
            f"{source.path}: found no JSON object in {n_rows} lines (the first is "
            f"{faults[0][1][:80]!r}), expected one per line or one array of them. "
            "Write it as JSONL."
            if n_rows
            else f"{source.path}: found no rows, expected at least one. Fill the file."
        )
    types = {name: _type(kind) for name, kind in kinds.items()}
    schema = pa.schema([(n, pa.string() if t is None else t) for n, t in types.items()])
    blocks, rows = [], _rows(files)
    while block := list(itertools.islice(rows, _BLOCK_ROWS)):
        given = [{} if isinstance(row, _Fault) else row for row in block]
        columns = [
            pa.array([_cell(row, n, t) for row in given], schema.field(n).type)
            for n, t in types.items()
        ]
        blocks.append(pa.RecordBatch.from_arrays(columns, schema=schema))
    mixed = frozenset(name for name, kind in types.items() if kind is None)
    return SourceRows(pa.Table.from_batches(blocks, schema), faults, mixed=mixed)


def _cell(row: dict[str, Any], name: str, kind: pa.DataType | None) -> Any:
    cell = row.get(name)
    if kind is not None or cell is None:
        return cell
    return as_json(cell)


def _kind(cell: Any) -> Any:
    """What the cell is: None, a class of `_PLAIN`, `_Whole`, `_Lists`, `_Objects` or `_MIXED`."""
    kind = type(cell)
    if kind is int:
        return _Whole(cell, cell)
    if kind is list:
        types = set(map(type, cell))
        if types == {float}:
            return _Lists(float)
        if types == {int}:
            return _Lists(_Whole(min(cell), max(cell)))
        items = None
        for item in cell:
            items = _both(items, _kind(item))
        return _MIXED if items is _MIXED else _Lists(items)
    if kind is dict:
        fields = {name: _kind(value) for name, value in cell.items()}
        # An object without keys has no type in a file of Parquet.
        return _Objects(fields) if fields and _MIXED not in fields.values() else _MIXED
    return None if cell is None else kind


def _both(first: Any, second: Any) -> Any:
    """The kind of cells some of which are of the first kind and some of the second."""
    if first is None or first == second:
        return second
    if second is None:
        return first
    if isinstance(first, _Whole) and isinstance(second, _Whole):
        return _Whole(min(first.low, second.low), max(first.high, second.high))
    for whole, other in ((first, second), (second, first)):
        if isinstance(whole, _Whole) and other is float:
            return float if -_EXACT <= whole.low and whole.high <= _EXACT else _MIXED
    if isinstance(first, _Lists) and isinstance(second, _Lists):
        items = _both(first.items, second.items)
        return _MIXED if items is _MIXED else _Lists(items)
    if isinstance(first, _Objects) and isinstance(second, _Objects):
        if first.fields.keys() == second.fields.keys():
            fields = {n: _both(kind, second.fields[n]) for n, kind in first.fields.items()}
            return _MIXED if _MIXED in fields.values() else _Objects(fields)
    return _MIXED


def _type(kind: Any) -> pa.DataType | None:
    """The Arrow type of a column of this kind; None if its cells are kept as JSON."""
    if kind is None:
        return pa.null()
    if isinstance(kind, _Whole):
        return kind.type()
    if isinstance(kind, _Lists):
        items = _type(kind.items)
        return None if items is None else pa.list_(items)
    if isinstance(kind, _Objects):
        fields = {name: _type(value) for name, value in kind.fields.items()}
        return None if None in fields.values() else pa.struct(list(fields.items()))
    return None if kind is _MIXED else _PLAIN[kind]


class _Fault(NamedTuple):
    """A line that cannot be read as a row."""

    reason: str
    raw: str


def _rows(files: list[str]) -> Iterator[dict[str, Any] | _Fault]:
    """The rows of the files in order, or what is wrong with them."""
    for file in files:
        for line in _lines(file):
            yield _row(line)


def _lines(file: str) -> Iterator[Any]:
    """The nonblank lines of a JSONL file as bytes, or the parsed elements of one array."""
    with open_file(file) as stream:
        start = stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
        stream.seek(0)
        if start.startswith(b"["):
            try:
                yield from json.loads(stream.read().decode("utf-8-sig", "surrogateescape"))
                return
            except ValueError:
                # Lines that are arrays themselves: each is rejected on its own.
                stream.seek(0)
        for at, line in enumerate(stream):
            line = line.removeprefix(codecs.BOM_UTF8) if at == 0 else line
            if line.strip():
                yield line


def _row(line: Any) -> dict[str, Any] | _Fault:
    """The object in a line, or in an element of an array; a fault where there is none."""
    parsed = line
    may_be_broken = True
    if isinstance(line, bytes):
        may_be_broken = b"\\u" in line
        try:
            parsed = json.loads(line.decode())
        except UnicodeDecodeError:
            return _Fault("not UTF-8", _shown(line))
        except (ValueError, RecursionError):
            return _Fault("not valid JSON", _shown(line))
    if not isinstance(parsed, dict):
        return _Fault("not valid JSON", _shown(line))
    if may_be_broken:
        try:
            json.dumps(parsed, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return _Fault("not UTF-8", _shown(line))
    return parsed


def _shown(line: Any) -> str:
    if isinstance(line, bytes):
        return line.strip().decode(errors="backslashreplace")[:2000]
    return compact(line)
