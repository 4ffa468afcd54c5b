"""CSV files as a table of text: the separator is found, and a cell is what is written in the file.

No cell is taken for a number, a date or a missing value, for a column of codes may look like any of
these. Only a cell without anything in it is null; `""` is the empty text.
"""

import csv
import io
import itertools
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from stages.corpus.cells import SourceRows, compact, show
from stages.corpus.columns import used_columns
from stages.corpus.csv_quotes import Quoting, quotes, quoting_of, row_starts
from stages.corpus.pieces import Each, Layout, Split, in_order
from stages.corpus.source import Source, ending
from stages.corpus.source_files import SourceFile, open_file
from stages.stage import DataError

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_SNIFFED_ROWS = 200
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class CsvPiece:
    """Whole rows of a file, as bytes; the first piece begins with what is above the first row."""

    file: SourceFile
    start: int
    stop: int
    separator: str
    columns: tuple[str, ...]
    blank_lines: int
    """How many lines are above the header, in the first piece."""
    is_last: bool
    quoting: Quoting
    n_rows: int = -1

    def read(self, layout: Layout) -> SourceRows:
        """The rows as text; one that does not fit the header, or is not UTF-8, is a fault."""
        table, misfits = self.parsed()
        return layout.rows(table.select(layout.schema.names), misfits)

    def parsed(self) -> tuple[pa.Table, dict[int, tuple[str, str]]]:
        """The rows, and those that do not fit the header; their cells are null.

        Raises:
            DataError: it cannot be read, or a quote is never closed.
        """
        with open_file(self.file) as stream:
            stream.seek(self.start)
            data = stream.read(self.stop - self.start)
        if self.start and not data.strip(b"\r\n"):
            return _schema(self.columns).empty_table(), {}
        try:
            table, misfits, misfit = self._parse(data)
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{self.file.path}: found a file that cannot be read as CSV ({error}), expected "
                "rows of fields. Quote fields that hold the separator, and save the file again."
            ) from error
        n_rows = table.num_rows + len(misfits)
        may_be_open = self.is_last and self.quoting.is_used
        if may_be_open and n_rows - 1 in misfits:
            self._check_closed(data, misfit, misfit)
        elif may_be_open and n_rows:
            row = _last(table)
            self._check_closed(data, row, row[self.columns[-1]])
        if misfits:
            places = np.setdiff1d(np.arange(n_rows), list(misfits))
            at = np.full(n_rows, -1)
            at[places] = np.arange(table.num_rows)
            table = table.take(pa.array(at, mask=at < 0))
        return table, misfits

    def _parse(self, data: bytes) -> tuple[pa.Table, dict[int, tuple[str, str]], str]:
        """The rows that fit the header, by number those that do not, and the last of these."""
        # pyarrow cannot tell of a row to leave out that is not UTF-8. Latin-1 is any bytes.
        encoding = "utf8" if _is_utf8(data) else "latin-1"
        misfits: dict[int, tuple[str, str]] = {}
        last = ""
        n_above = 0 if self.start else self.blank_lines

        def left_out(row: pyarrow.csv.InvalidRow) -> str:
            # Rows are numbered from the first line above the header, which is row 1.
            nonlocal last
            text = row.text if encoding == "utf8" else _text_of(row.text.encode(encoding))
            reason, last = "other number of fields than the header", show(text).rstrip()
            misfits[row.number - 2 - n_above] = (reason, show(text)[:2000])
            return "skip"

        # A line in place of the header keeps what looks like a byte order mark in the first row.
        head = b"-\n" if self.start else b""
        table = pyarrow.csv.read_csv(
            pa.BufferReader(head + data if head else data),
            pyarrow.csv.ReadOptions(
                use_threads=False,
                block_size=_BLOCK_BYTES,
                column_names=self.columns,
                skip_rows=n_above,
                skip_rows_after_names=1,
                encoding=encoding,
            ),
            pyarrow.csv.ParseOptions(
                delimiter=self.separator,
                quote_char='"' if self.quoting.is_used else False,
                newlines_in_values=self.quoting.is_used,
                invalid_row_handler=left_out,
            ),
            pyarrow.csv.ConvertOptions(
                check_utf8=False,
                column_types=_schema(self.columns),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        if encoding != "utf8":
            bytes_of = [
                [None if cell is None else cell.encode(encoding) for cell in column.to_pylist()]
                for column in table.columns
            ]
            texts = [pc.cast(pa.array(c, pa.binary()), pa.string(), safe=False) for c in bytes_of]
            table = pa.table(texts, schema=table.schema)
        return table, misfits, last

    def _check_closed(self, data: bytes, row: Any, end: str | None) -> None:
        """Raises where a quote opens in the last row and is never closed: it holds the rest.

        `end` is the field that would hold it, of a row that does not fit the header all of it.
        """
        if end and ("\n" in end or "\r" in end) and len(quotes(data, self.separator)) % 2:
            raise DataError(
                f"{self.file.path}: found a quote that opens in the last row, "
                f"{compact(row)[:200]}, and is never closed, expected one at the end of "
                "its field. Close it, and write two quotes for one inside of a field."
            )


def csv_split(files: Sequence[SourceFile], source: Source, each: Each, piece_bytes: int) -> Split:
    """All rows of CSV files with the same columns, as text.

    A row with another number of fields than the header, or with bytes that are not UTF-8, is a
    fault. A separator that is not the usual one of the file's ending is told in `notices`, and so
    are quotes that are not as a writer of CSV has them.

    Raises:
        DataError: a file has no header that can be used or no rows, its separator is in doubt, a
            quote is never closed, or the columns of two files differ.
    """
    cut = in_order(each, _pieces, (source, piece_bytes), files)
    columns, notices = cut[0][0].columns, []
    for file, (piece, *_) in zip(files, cut, strict=True):
        if set(piece.columns) != set(columns):
            raise DataError(
                f"{file.path}: found columns {list(piece.columns)}, expected {list(columns)} as in "
                f"{files[0].path}. Give all files of a glob the same columns."
            )
        usual = "\t" if ending(file.path) == ".tsv" else ","
        if piece.separator != usual:
            notices.append(
                f"{os.path.basename(file.path)}: its fields are separated by "
                f"{_SEPARATORS[piece.separator]}, not {_SEPARATORS[usual]}; columns "
                f"{', '.join(piece.columns)}"
            )
        if piece.quoting.n_odd:
            notices.append(f"{os.path.basename(file.path)}: {_odd_quotes(piece.quoting)}")
    pieces = [piece for of_file in cut for piece in of_file]
    counts = in_order(each, _count, None, pieces)
    if not sum(counts):
        raise DataError(f"{source.path}: found no rows, expected at least one. Fill the file.")
    counted = tuple(replace(piece, n_rows=n) for piece, n in zip(pieces, counts, strict=True))
    return Split(Layout(_schema(columns), is_typed=False), counted, tuple(notices))


def _odd_quotes(quoting: Quoting) -> str:
    """What a person should know of quotes that are not as a writer of CSV has them."""
    told = f"fields of {quoting.n_odd} lines go on behind the quote that closes them"
    if not quoting.is_used:
        return f"quotes are read as part of its texts, as {told}"
    return (
        f"{told}, so that quotes are lost, and rows may be joined. Write two for one inside of a "
        'field, and not \\", or save the file as JSONL or Parquet'
    )


def _pieces(shared: tuple[Source, int], file: SourceFile) -> list[CsvPiece]:
    """The pieces of a file, whose rows are not counted yet."""
    source, piece_bytes = shared
    separator = _separator(file, source)
    columns, n_above = tuple(_header(file, separator)), _blank_lines(file)
    with open_file(file) as stream:
        quoting = quoting_of(stream, separator, len(columns), n_above)
        of_fields = separator if quoting.is_used else None
        starts, size = row_starts(stream, of_fields, piece_bytes, n_above)
    bounds = list(itertools.pairwise([*starts, size]))
    return [
        CsvPiece(file, start, stop, separator, columns, n_above, stop == size, quoting)
        for start, stop in bounds
    ]


def _count(_: None, piece: CsvPiece) -> int:
    """The number of rows of a piece, those that do not fit the header included."""
    return int(piece.parsed()[0].num_rows)


def _schema(columns: Sequence[str]) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in columns])


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _text_of(data: bytes) -> str:
    """Bytes as text; those that are not UTF-8 are surrogates."""
    return data.decode(errors="surrogateescape")


def _last(table: pa.Table) -> dict[str, str | None]:
    row = table.slice(table.num_rows - 1)
    return {
        name: cell if cell is None else cell.decode(errors="backslashreplace")
        for name, cell in zip(
            row.column_names, (c.cast(pa.binary())[0].as_py() for c in row.columns), strict=True
        )
    }


def _separator(file: SourceFile, source: Source) -> str:
    """The separator of the fields: that with which all of the first rows have as many fields.

    Where several do, the one whose header has the columns that the source names.

    Raises:
        DataError: more than one is as good as the others.
    """
    fits = {}
    for separator in _SEPARATORS:
        header, *rows = [*_records(file, separator, _SNIFFED_ROWS)] or [[]]
        if len(header) > 1:
            fits[separator] = (header, all(len(row) == len(header) for row in rows))
    wanted = used_columns(source)
    for test in (
        lambda header, is_even: wanted <= set(header) and is_even,
        lambda header, is_even: wanted <= set(header),
        lambda header, is_even: is_even,
        lambda header, is_even: True,
    ):
        chosen = [s for s, (header, is_even) in fits.items() if test(header, is_even)]
        if len(chosen) == 1:
            return chosen[0]
        if chosen:
            first, second = chosen[:2]
            raise DataError(
                f"{file.path}: found that {_SEPARATORS[first]} and {_SEPARATORS[second]} both "
                f"separate its rows into columns ({', '.join(fits[first][0])} or "
                f"{', '.join(fits[second][0])}), expected one of them. Quote the fields that hold "
                "the other, or save the file as JSONL or Parquet."
            )
    return "\t" if ending(file.path) == ".tsv" else ","


def _records(file: SourceFile, separator: str, n_rows: int) -> Iterable[list[str]]:
    """The first rows of a file, the header first; bytes that are not UTF-8 are surrogates."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with _text(file, newline="") as stream:
            rows = (row for row in csv.reader(stream, delimiter=separator) if row)
            return list(itertools.islice(rows, n_rows))
    finally:
        csv.field_size_limit(limit)


def _text(file: SourceFile, newline: str | None = None) -> io.TextIOWrapper:
    """A file as text; bytes that are not UTF-8 are surrogates."""
    return io.TextIOWrapper(open_file(file), "utf-8-sig", "surrogateescape", newline)


def _blank_lines(file: SourceFile) -> int:
    """How many lines are above the header."""
    with _text(file) as stream:
        return sum(1 for _ in itertools.takewhile(lambda line: line == "\n", stream))


def _header(file: SourceFile, separator: str) -> list[str]:
    """Column names of a CSV file; a column without one gets the name that pandas gives it."""
    header, first = [*_records(file, separator, 2), [], []][:2]
    columns = [cell or f"Unnamed: {index}" for index, cell in enumerate(header)]
    twice = [cell for index, cell in enumerate(columns) if cell in columns[:index]]
    if twice or any(show(cell) != cell for cell in columns):
        raise DataError(
            f"{file.path}: found the header {[show(cell) for cell in columns]}, expected "
            "different names in UTF-8. Rename the columns in the file's first line."
        )
    if len(first) > len(columns):
        raise DataError(
            f"{file.path}: found {len(first)} fields in the first row, expected the "
            f"{len(columns)} of the header. Name every column in the first line."
        )
    return columns
