"""Data files as pieces, and the readers of their types: Parquet, JSONL and CSV.

What is read is what is kept: no reader here guesses a type from the first rows, takes a text for a
number or a date, rounds an integer, or reads anything from the name of a folder. The readers of
`datasets` do all of these, so it is used for what it alone can: the hub, saved folders, split
expressions, and the names of a `ClassLabel`.
"""

import codecs
import os
from collections.abc import Iterable, Sequence

from stages.corpus.csv_files import csv_split
from stages.corpus.json_files import json_split
from stages.corpus.parquet_files import parquet_split
from stages.corpus.pieces import Each, Split
from stages.corpus.source import ENDINGS, KINDS, Source, ending
from stages.corpus.source_files import SourceFile, open_file
from stages.stage import DataError


def file_split(files: Sequence[SourceFile], source: Source, each: Each, piece_bytes: int) -> Split:
    """All rows of the files, which are of one type and have the same columns, as pieces.

    Raises:
        DataError: a file cannot be read, or they do not fit together.
    """
    kind = _kind(files, source)
    if kind == "parquet":
        return parquet_split(files, source, each, piece_bytes)
    for file in files:
        with open_file(file) as stream:
            head = stream.read(2)
        if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise DataError(f"{file.path}: found UTF-16, expected UTF-8. Save the file as UTF-8.")
        if not head:
            raise DataError(
                f"{file.path}: found an empty file, expected rows. Remove it or fill it."
            )
    read = csv_split if kind == "csv" else json_split
    return read(files, source, each, piece_bytes)


def _kind(files: Iterable[SourceFile], source: Source) -> str:
    kinds = {ending(file.path): file.path for file in files}
    for kind, file in kinds.items():
        if kind not in KINDS:
            raise DataError(
                f"{source.path}: found {os.path.basename(file)}, expected a file with an ending "
                f"among {ENDINGS}. Convert or rename it, or write a glob such as folder/*.csv."
            )
    if len({KINDS[kind] for kind in kinds}) > 1:
        raise DataError(
            f"{source.path}: found files of different types ({', '.join(sorted(kinds))}), "
            "expected one type. Write a glob that ends in one of them."
        )
    return KINDS[next(iter(kinds))]
