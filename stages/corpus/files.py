"""CSV, JSONL and Parquet files as one Arrow table, and the rows that could not be read.

What is read is what is kept: no reader here guesses a type from the first rows, takes a text for a
number or a date, rounds an integer, or reads anything from the name of a folder. The readers of
`datasets` do all of these, so it is used for what it alone can: the hub, saved folders, split
expressions, and the names of a `ClassLabel`.
"""

import codecs
import json
import os
from collections.abc import Iterable

import pyarrow as pa

from stages.corpus.cells import SourceRows, from_table
from stages.corpus.csv_files import read_csv
from stages.corpus.json_files import read_json
from stages.corpus.source import ENDINGS, KINDS, Source, ending
from stages.corpus.source_files import open_file
from stages.stage import DataError


def read_files(files: list[str], source: Source) -> SourceRows:
    """All rows of the files, which are of one type and have the same columns.

    Raises:
        DataError: a file cannot be read, or they do not fit together.
    """
    kind = _kind(files, source)
    if kind == "parquet":
        return _read_parquet(files, source)
    for file in files:
        with open_file(file) as stream:
            head = stream.read(2)
        if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise DataError(f"{file}: found UTF-16, expected UTF-8. Save the file as UTF-8.")
        if not head:
            raise DataError(f"{file}: found an empty file, expected rows. Remove it or fill it.")
    loaded = (read_csv if kind == "csv" else read_json)(files, source)
    checked = from_table(loaded.table)
    return loaded._replace(table=checked.table, faults={**checked.faults, **loaded.faults})


def _kind(files: Iterable[str], source: Source) -> str:
    kinds = {ending(file): file for file in files}
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


def _read_parquet(files: list[str], source: Source) -> SourceRows:
    """All rows of Parquet files; columns of several widths get the widest, if nothing is lost."""
    import pyarrow.dataset  # It imports pandas, which `assay --help` should not pay for.

    parquet = pyarrow.dataset.ParquetFileFormat()
    tables: list[pa.Table] = []
    names = None
    for file in files:
        try:
            with open_file(file) as stream:
                table = parquet.make_fragment(stream).to_table()
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{file}: found a file that cannot be loaded ({error}), expected Parquet. Write "
                "the file again."
            ) from error
        if tables and set(table.column_names) != set(tables[0].column_names):
            raise DataError(
                f"{file}: found columns {table.column_names}, expected {tables[0].column_names} as "
                f"in {files[0]}. Write the files again, with the same columns in each."
            )
        names = names or _class_names(table.schema, source)
        tables.append(table.replace_schema_metadata(None))
    try:
        schema = pa.unify_schemas([t.schema for t in tables], promote_options="permissive")
        table = pa.concat_tables(t.select(schema.names).cast(schema) for t in tables)
    except pa.ArrowException as error:
        raise DataError(
            f"{source.path}: found columns of types that do not fit together ({error}), expected "
            "one type in all files. Write the files again, with the same types in each."
        ) from error
    if not table.num_rows:
        raise DataError(f"{source.path}: found no rows, expected at least one. Fill the file.")
    return from_table(table)._replace(class_names=names)


def _class_names(schema: pa.Schema, source: Source) -> tuple[str, ...] | None:
    """The names of the label's classes that `datasets` has written into a file; None without."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        feature = features[source.label]
    except (KeyError, TypeError, ValueError):
        return None
    is_class = isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    return tuple(feature["names"]) if is_class and feature.get("names") else None
