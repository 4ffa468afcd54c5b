"""CSV files as a table of text: the separator is found, and a cell is what is written in the file.

No cell is taken for a number, a date or a missing value, for a column of codes may look like any of
these. Only a cell without anything in it is null; `""` is the empty text.
"""

import csv
import io
import itertools
import os
import sys
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.csv

from stages.corpus.cells import SourceRows, compact, show
from stages.corpus.columns import used_columns
from stages.corpus.source import Source, ending, is_url
from stages.corpus.source_files import open_file
from stages.stage import DataError

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_SNIFFED_ROWS = 200
_BLOCK_BYTES = 64 << 20


def read_csv(files: list[str], source: Source) -> SourceRows:
    """All rows of CSV files with the same columns, as text.

    A row with another number of fields than the header, or with bytes that are not UTF-8, is a
    fault. A separator that is not the usual one of the file's ending is told in `notices`.

    Raises:
        DataError: a file has no header that can be used or no rows, its separator is in doubt, a
            quote is never closed, or the columns of two files differ.
    """
    tables, faults, notices, n_rows = [], {}, [], 0
    columns: list[str] = []
    for file in files:
        separator = _separator(file, source)
        found = _header(file, separator)
        columns = columns or found
        if set(found) != set(columns):
            raise DataError(
                f"{file}: found columns {found}, expected {columns} as in {files[0]}. "
                "Give all files of a glob the same columns."
            )
        usual = "\t" if ending(file) == ".tsv" else ","
        if separator != usual:
            notices.append(
                f"{os.path.basename(file)}: its fields are separated by {_SEPARATORS[separator]}, "
                f"not {_SEPARATORS[usual]}; columns {', '.join(found)}"
            )
        table, bad = _read(file, separator, found)
        tables.append(table.select(columns))
        faults.update({n_rows + row: fault for row, fault in bad.items()})
        n_rows += table.num_rows
    if not n_rows:
        raise DataError(f"{source.path}: found no rows, expected at least one. Fill the file.")
    table = pa.concat_tables(tables)
    return SourceRows(table, faults, is_typed=False, notices=tuple(notices))


def _read(
    file: str, separator: str, columns: list[str]
) -> tuple[pa.Table, dict[int, tuple[str, str]]]:
    """The rows of one file; those that do not fit the header are null, and among the faults."""
    misfits: dict[int, tuple[str, str]] = {}

    def left_out(row: pyarrow.csv.InvalidRow) -> str:
        # Rows are numbered from the header, which is row 1.
        reason = "other number of fields than the header"
        misfits[row.number - 2] = (reason, show(row.text)[:2000])
        return "skip"

    try:
        table = pyarrow.csv.read_csv(
            open_file(file) if is_url(file) else file,
            pyarrow.csv.ReadOptions(
                use_threads=False,
                block_size=_BLOCK_BYTES,
                column_names=columns,
                skip_rows=_blank_lines(file),
                skip_rows_after_names=1,
            ),
            pyarrow.csv.ParseOptions(
                delimiter=separator, newlines_in_values=True, invalid_row_handler=left_out
            ),
            pyarrow.csv.ConvertOptions(
                check_utf8=False,
                column_types=dict.fromkeys(columns, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{file}: found a file that cannot be read as CSV ({error}), expected rows of fields. "
            "Quote fields that hold the separator, and save the file again."
        ) from error
    if table.num_rows and _ends_in_quotes(file, table):
        raise DataError(
            f"{file}: found a quote that opens in the last row, {compact(_last(table))[:200]}, and "
            "is never closed, expected one at the end of its field. Close it, and write two quotes "
            "for one inside of a field."
        )
    n_rows = table.num_rows + len(misfits)
    places = np.setdiff1d(np.arange(n_rows), list(misfits))
    if misfits:
        at = np.full(n_rows, -1)
        at[places] = np.arange(table.num_rows)
        table = table.take(pa.array(at, mask=at < 0))
    return table, misfits


def _ends_in_quotes(file: str, table: pa.Table) -> bool:
    """Whether the last field began with a quote that nothing closes; it holds the file's end."""
    cell = _last(table)[table.column_names[-1]]
    if not isinstance(cell, str) or not ("\n" in cell or "\r" in cell):
        return False
    with open_file(file) as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - 4096))
        return not stream.read().rstrip(b"\r\n").endswith(b'"')


def _last(table: pa.Table) -> dict[str, str | None]:
    row = table.slice(table.num_rows - 1)
    return {
        name: cell if cell is None else cell.decode(errors="backslashreplace")
        for name, cell in zip(
            row.column_names, (c.cast(pa.binary())[0].as_py() for c in row.columns), strict=True
        )
    }


def _separator(file: str, source: Source) -> str:
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
                f"{file}: found that {_SEPARATORS[first]} and {_SEPARATORS[second]} both separate "
                f"its rows into columns ({', '.join(fits[first][0])} or "
                f"{', '.join(fits[second][0])}), expected one of them. Quote the fields that hold "
                "the other, or save the file as JSONL or Parquet."
            )
    return "\t" if ending(file) == ".tsv" else ","


def _records(file: str, separator: str, n_rows: int) -> Iterable[list[str]]:
    """The first rows of a file, the header first; bytes that are not UTF-8 are surrogates."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with _text(file, newline="") as stream:
            rows = (row for row in csv.reader(stream, delimiter=separator) if row)
            return list(itertools.islice(rows, n_rows))
    finally:
        csv.field_size_limit(limit)


def _text(file: str, newline: str | None = None) -> io.TextIOWrapper:
    """A file as text; bytes that are not UTF-8 are surrogates."""
    return io.TextIOWrapper(open_file(file), "utf-8-sig", "surrogateescape", newline)


def _blank_lines(file: str) -> int:
    """How many lines are above the header."""
    with _text(file) as stream:
        return sum(1 for _ in itertools.takewhile(lambda line: line == "\n", stream))


def _header(file: str, separator: str) -> list[str]:
    """Column names of a CSV file; a column without one gets the name that pandas gives it."""
    header, first = [*_records(file, separator, 2), [], []][:2]
    columns = [cell or f"Unnamed: {index}" for index, cell in enumerate(header)]
    twice = [cell for index, cell in enumerate(columns) if cell in columns[:index]]
    if twice or any(show(cell) != cell for cell in columns):
        raise DataError(
            f"{file}: found the header {[show(cell) for cell in columns]}, expected "
            "different names in UTF-8. Rename the columns in the file's first line."
        )
    if len(first) > len(columns):
        raise DataError(
            f"{file}: found {len(first)} fields in the first row, expected the {len(columns)} of "
            "the header. Name every column in the first line."
        )
    return columns
