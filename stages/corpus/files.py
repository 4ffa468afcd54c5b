"""CSV, JSONL and Parquet files as one Arrow table, and the rows that could not be read.

Two habits of `datasets`, which reads the files, are unwanted: one bad byte fails a whole CSV or
JSONL file, and types are guessed from the first rows. So files are scanned first, broken rows are
replaced by empty ones and remembered with their reason, and CSV is read as text and typed at the
end over whole columns.

The road not taken is reading Parquet, CSV and JSONL with pyarrow directly: it would lose the hub,
saved folders, `ClassLabel` names and split expressions, all of which users bring.
"""

import codecs
import csv
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus.cells import SURROGATE, SourceRows, compact
from stages.corpus.huggingface import as_data_error, build, from_dataset
from stages.corpus.source import ENDINGS, KINDS, Source
from stages.stage import DataError

_JSON_BLOCK_BYTES = 64 << 20
_MARK = re.compile("\ufdd0([0-9a-f]{2})\ufdd1")


def read_files(files: list[str], source: Source) -> SourceRows:
    """All rows of the files, which are of one type and have the same columns.

    Raises:
        DataError: a file cannot be read, or they do not fit together.
    """
    kind = _kind(files, source)
    if kind == "parquet":
        with as_data_error(source, "Write the files again, with the same columns in each."):
            # Without a batch size the reader fails on a file whose first row group is empty.
            return from_dataset(build(kind, files, batch_size=1 << 16), source)
    for file in files:
        with open(file, "rb") as stream:
            head = stream.read(2)
        if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise DataError(f"{file}: found UTF-16, expected UTF-8. Save the file as UTF-8.")
        if not head:
            raise DataError(f"{file}: found an empty file, expected rows. Remove it or fill it.")
    with tempfile.TemporaryDirectory() as folder:
        return (_read_csv if kind == "csv" else _read_json)(files, source, folder)


def _kind(files: Iterable[str], source: Source) -> str:
    kinds = {Path(file).suffix.lower(): file for file in files}
    for ending, file in kinds.items():
        if ending not in KINDS:
            raise DataError(
                f"{source.path}: found {os.path.basename(file)}, expected a file with an ending "
                f"among {ENDINGS}. Convert or rename it, or write a glob such as folder/*.csv."
            )
    if len({(KINDS[e], e == ".tsv") for e in kinds}) > 1:
        raise DataError(
            f"{source.path}: found files of different types ({', '.join(sorted(kinds))}), "
            "expected one type. Write a glob that ends in one of them."
        )
    return KINDS[next(iter(kinds))]


def _read_csv(files: list[str], source: Source, folder: str) -> SourceRows:
    separator = "\t" if files[0].lower().endswith(".tsv") else ","
    clean = [_marked(file, os.path.join(folder, f"{i}.csv")) for i, file in enumerate(files)]
    columns = _header(clean[0], files[0], separator)
    for copy, file in zip(clean, files, strict=True):
        found = _header(copy, file, separator)
        if set(found) != set(columns):
            raise DataError(
                f"{file}: found columns {found}, expected {columns} as in {files[0]}. "
                "Give all files of a glob the same columns."
            )
    with as_data_error(source, "Quote fields that hold the separator, and save the file again."):
        rows = build("csv", clean, columns, sep=separator, keep_default_na=False, na_values=[""])
    table = rows.with_format("arrow")[:].replace_schema_metadata(None)
    faults = {}
    if clean != files:
        bad = np.zeros(table.num_rows, dtype=bool)
        for column in table.columns:
            marked = pc.fill_null(pc.match_substring_regex(column, _MARK.pattern), False)
            bad |= marked.to_numpy()
        for row in np.flatnonzero(bad).tolist():
            cells = table.slice(row, 1).to_pylist()[0]
            shown = {k: v and _MARK.sub(_unmarked, v) for k, v in cells.items()}
            faults[row] = ("not UTF-8", compact(shown))
    return SourceRows(table, faults, is_typed=False)


def _marked(file: str, copy: str) -> str:
    """The path of a UTF-8 version of a CSV file: `file` itself, or else `copy`.

    In `copy` every byte that is not UTF-8 is written in hex between two noncharacters.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(file, "rb") as stream:
        try:
            while block := stream.read(1 << 20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
            return file
        except UnicodeDecodeError:
            stream.seek(0)
        with open(copy, "wb") as target:
            for line in stream:
                text = line.decode("utf-8", "surrogateescape")
                marked = SURROGATE.sub(lambda m: f"\ufdd0{ord(m[0]) - 0xDC00:02x}\ufdd1", text)
                target.write(marked.encode())
    return copy


def _unmarked(mark: re.Match[str]) -> str:
    return chr(0xDC00 + int(mark[1], 16))


def _header(file: str, name: str, separator: str) -> list[str]:
    """Column names of a CSV file; a column without one gets the name that pandas gives it."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            records = (row for row in csv.reader(stream, delimiter=separator) if row)
            header, first = next(records, []), next(records, [])
    finally:
        csv.field_size_limit(limit)
    columns = [cell or f"Unnamed: {index}" for index, cell in enumerate(header)]
    twice = [cell for index, cell in enumerate(columns) if cell in columns[:index]]
    if twice or any(_MARK.search(cell) for cell in columns):
        raise DataError(
            f"{name}: found the header {[_MARK.sub('?', cell) for cell in columns]}, expected "
            "different names in UTF-8. Rename the columns in the file's first line."
        )
    if len(first) > len(columns):
        raise DataError(
            f"{name}: found {len(first)} fields in the first row, expected the {len(columns)} of "
            "the header. Name every column in the first line."
        )
    return columns


def _read_json(files: list[str], source: Source, folder: str) -> SourceRows:
    options: dict[str, Any] = {"parse_agent_traces": False, "chunksize": _JSON_BLOCK_BYTES}
    n_lines, is_plain = 0, True
    for file in files:
        for line in _lines(file):
            n_lines += 1
            is_plain = is_plain and isinstance(line, bytes) and _is_utf8(line)
    rows = None
    if is_plain:
        try:
            rows = build("json", files, **options)
        except Exception:  # The reader names no row, so every line is looked at below.
            rows = None
    faults: dict[int, tuple[str, str]] = {}
    if rows is None or rows.num_rows != n_lines:
        copy = os.path.join(folder, "clean.jsonl")
        with open(copy, "wb") as target:
            for row, line in enumerate(line for file in files for line in _lines(file)):
                try:
                    target.write(_object(line) + b"\n")
                except _RowError as error:
                    faults[row] = (str(error), _shown(line))
                    target.write(b"{}\n")
        if len(faults) == n_lines:
            raise DataError(
                f"{source.path}: found no JSON object in {n_lines} lines (the first is "
                f"{faults[0][1][:80]!r}), expected one per line or one array of them. "
                "Write it as JSONL."
                if n_lines
                else f"{source.path}: found no rows, expected at least one. Fill the file."
            )
        with as_data_error(source, "Give a field the same type in every line."):
            rows = build("json", [copy], **options)
    loaded = from_dataset(rows, source)
    return loaded._replace(table=_undated(loaded.table, files, source), faults=faults)


def _lines(file: str) -> Iterator[Any]:
    """The nonblank lines of a JSONL file as bytes, or the parsed elements of one array."""
    with open(file, "rb") as stream:
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


class _RowError(ValueError):
    """A line cannot be read as a row; the message is the reason that it is rejected for."""


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _object(line: Any) -> bytes:
    """The JSON object of a line as UTF-8 bytes that every JSON reader takes.

    Raises:
        _RowError: the line is not UTF-8, or holds no JSON object.
    """
    if isinstance(line, bytes):
        if not _is_utf8(line):
            raise _RowError("not UTF-8")
        try:
            line = json.loads(line)
        except (ValueError, RecursionError):
            raise _RowError("not valid JSON") from None
    if not isinstance(line, dict):
        raise _RowError("not valid JSON")
    try:
        return json.dumps(line, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _RowError("not UTF-8") from None


def _shown(line: Any) -> str:
    if isinstance(line, bytes):
        return line.strip().decode(errors="backslashreplace")[:2000]
    return compact(line)


def _undated(table: pa.Table, files: list[str], source: Source) -> pa.Table:
    """The table with texts, labels and ids that were parsed as dates as the raw strings again."""
    named = {source.text, source.text_b, source.label, source.id}
    if source.task == "completion":
        # A cell of `messages` is a list; a string of prose is no date.
        named |= {source.prompt, source.completion, "prompt", "completion"}
    if source.task == "question_answering":
        named |= {"context", "question"}
    for name in named & set(table.column_names):
        at = table.column_names.index(name)
        if pa.types.is_temporal(table.column(at).type):
            cells = []
            for line in (line for file in files for line in _lines(file)):
                try:
                    cells.append(json.loads(_object(line)).get(name))
                except _RowError:
                    cells.append(None)
            table = table.set_column(at, name, pa.chunked_array([pa.array(cells, pa.string())]))
    return table
