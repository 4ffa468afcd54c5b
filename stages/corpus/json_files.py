"""JSONL files, or files of one JSON array, as pieces without loss.

The lines are read twice: once to learn the type of every column from all of its cells, once to
fill it. A column whose cells fit no one Arrow type exactly, such as numbers and strings in turns,
integers beyond 64 bits or objects with different keys, holds each cell as JSON. Nothing is taken
for a date, and no integer becomes a float that is another number. A file of one array is one piece.
"""

import codecs
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyarrow as pa

from stages.corpus.cells import SourceRows, as_json, compact
from stages.corpus.json_kinds import both, kind_of_all, type_of
from stages.corpus.pieces import Each, Layout, Split, in_order
from stages.corpus.source import Source
from stages.corpus.source_files import SourceFile, open_file
from stages.stage import DataError

_BLOCK_ROWS = 4096
_PARSE: Any = vars(json.JSONDecoder())["scan_once"]
_BLANKS = " \t\n\r"


@dataclass(frozen=True)
class JsonPiece:
    """Whole lines of a file, as bytes, or a file that is one array."""

    file: SourceFile
    start: int
    stop: int
    may_be_array: bool
    n_rows: int = -1

    def read(self, layout: Layout) -> SourceRows:
        """The rows; a line that is no JSON object in UTF-8 is a fault, and its cells are null."""
        faults: dict[int, tuple[str, str]] = {}
        blocks = []
        for start, rows, bad in self.blocks():
            faults |= {start + row: (fault.reason, fault.raw) for row, fault in bad.items()}
            columns = []
            for field in layout.schema:
                cells = [row.get(field.name) for row in rows]
                if field.name in layout.mixed:
                    cells = [None if cell is None else as_json(cell) for cell in cells]
                columns.append(pa.array(cells, field.type))
            blocks.append(pa.RecordBatch.from_arrays(columns, schema=layout.schema))
        return layout.rows(pa.Table.from_batches(blocks, layout.schema), faults)

    def blocks(self) -> Iterator[tuple[int, list[dict[str, Any]], dict[int, "_Fault"]]]:
        """Some rows at a time: the number of the first, the rows, and the faults among them.

        In place of a fault there is an empty row.
        """
        start, lines = 0, self._lines()
        while block := list(itertools.islice(lines, _BLOCK_ROWS)):
            read = [_row(line) for line in block]
            bad = {row: fault for row, fault in enumerate(read) if isinstance(fault, _Fault)}
            yield start, [{} if isinstance(row, _Fault) else row for row in read], bad
            start += len(block)

    def _lines(self) -> Iterator[Any]:
        """The nonblank lines as bytes, or the parsed elements of one array."""
        with open_file(self.file) as stream:
            stream.seek(self.start)
            data = stream.read(self.stop - self.start)
        if self.may_be_array:
            try:
                yield from json.loads(data.decode("utf-8-sig", "surrogateescape"))
                return
            except ValueError:
                pass  # Lines that are arrays themselves: each is rejected on its own.
        if not self.start:
            data = data.removeprefix(codecs.BOM_UTF8)
        yield from (line for line in data.split(b"\n") if line.strip())


class _Learnt(NamedTuple):
    """What the lines of a piece say of the columns and rows of all."""

    kinds: dict[str, Any]
    n_rows: int
    n_faults: int
    first: str
    """The first fault."""


def json_split(files: Sequence[SourceFile], source: Source, each: Each, piece_bytes: int) -> Split:
    """All rows of the files; a line that is no JSON object in UTF-8 is a fault.

    Raises:
        DataError: there is no row, or none that can be read.
    """
    pieces = [piece for file in files for piece in _pieces(file, piece_bytes)]
    learnt: list[_Learnt] = in_order(each, _learn, None, pieces)
    n_rows, n_faults = (sum(counts) for counts in zip(*(part[1:3] for part in learnt), strict=True))
    if n_faults == n_rows:
        first = next((part.first for part in learnt if part.n_faults), "")
        raise DataError(
            f"{source.path}: found no JSON object in {n_rows} lines (the first is "
            f"{first[:80]!r}), expected one per line or one array of them. "
            "Write it as JSONL."
            if n_rows
            else f"{source.path}: found no rows, expected at least one. Fill the file."
        )
    kinds: dict[str, Any] = {}
    for part in learnt:
        for name, kind in part.kinds.items():
            kinds[name] = both(kinds[name], kind) if name in kinds else kind
    types = {name: type_of(kind) for name, kind in kinds.items()}
    schema = pa.schema([(n, pa.string() if t is None else t) for n, t in types.items()])
    mixed = frozenset(name for name, kind in types.items() if kind is None)
    counted = tuple(
        replace(piece, n_rows=part.n_rows) for piece, part in zip(pieces, learnt, strict=True)
    )
    return Split(Layout(schema, mixed), counted)


def _pieces(file: SourceFile, piece_bytes: int) -> Iterator[JsonPiece]:
    """The pieces of a file, which begin where lines do; their rows are not counted yet."""
    with open_file(file) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        head = stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
        if head.startswith(b"["):
            yield JsonPiece(file, 0, size, may_be_array=True)
            return
        start = 0
        while start < size:
            stream.seek(min(start + piece_bytes, size))
            stream.readline()
            stop = stream.tell()
            yield JsonPiece(file, start, stop, may_be_array=False)
            start = stop


def _learn(_: None, piece: JsonPiece) -> _Learnt:
    kinds: dict[str, Any] = {}
    n_rows = n_faults = 0
    first = ""
    for _start, rows, bad in piece.blocks():
        first = first or next((fault.raw for fault in bad.values()), "")
        n_rows, n_faults = n_rows + len(rows), n_faults + len(bad)
        for name in dict.fromkeys(name for row in rows for name in row):
            kind = kind_of_all([row[name] for row in rows if name in row])
            kinds[name] = both(kinds[name], kind) if name in kinds else kind
    return _Learnt(kinds, n_rows, n_faults, first)


class _Fault(NamedTuple):
    """A line that cannot be read as a row."""

    reason: str
    raw: str


def _row(line: Any) -> dict[str, Any] | _Fault:
    """The object in a line, or in an element of an array; a fault where there is none."""
    parsed = line
    may_be_broken = True
    if isinstance(line, bytes):
        may_be_broken = b"\\u" in line
        try:
            text = line.decode().strip(_BLANKS)
            parsed, stop = _PARSE(text, 0)
        except UnicodeDecodeError:
            return _Fault("not UTF-8", _shown(line))
        except (ValueError, RecursionError, StopIteration):
            return _Fault("not valid JSON", _shown(line))
        if stop != len(text):
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
