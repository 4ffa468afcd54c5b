"""The views of a catalog (`storage.views`), asked: SQL statements, and what their errors mean."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from storage.catalog_files import catalog_read, damaged_catalog, is_damage
from storage.export import new_file
from storage.manifest import HEALS
from storage.schema import CorruptError, MissingError, StorageError
from storage.sql import named, quoted


def open_catalog(path: Path) -> duckdb.DuckDBPyConnection:
    """A read-only connection to the catalog at `path`.

    DuckDB opens a file for its header and again for the rest: where another catalog took its place
    in between, it is opened anew.

    Raises:
        MissingError: there is no catalog yet.
        CorruptError: the file is no DuckDB database.
    """
    if not path.exists():
        raise MissingError(
            f"{path}: found no catalog, expected one. Run `assay run` first, or `assay status` on "
            "the run's folder to rebuild it."
        )
    # Attached, not connected to: a process that holds a connection to a path gets the same database
    # for every other connection to that path, hence an old catalog after a new one took its place.
    inode = path.stat().st_ino
    connection = duckdb.connect()
    try:
        connection.execute(f"ATTACH {quoted(str(path))} AS run (READ_ONLY)")
        connection.execute("USE run")
    except duckdb.Error as error:
        connection.close()
        if path.exists() and path.stat().st_ino != inode:
            return open_catalog(path)
        raise CorruptError(
            f"{path}: found a file that DuckDB cannot open ({error}), expected a catalog. "
            "Run `assay status` on the run's folder: it builds the catalog anew."
        ) from error
    return connection


def query(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation:
    """The relation of one SQL statement.

    Raises:
        StorageError: DuckDB refuses the statement; the message is DuckDB's, with the views listed.
        CorruptError: the catalog's file is damaged.
    """
    try:
        relation = connection.sql(sql)
        if relation is None:
            raise StorageError(
                "sql: found a statement without rows, expected a SELECT. The catalog is read-only."
            )
        return relation
    except duckdb.Error as error:
        if is_damage(error):
            raise damaged_catalog(error) from error
        raise StorageError(
            f"sql: found a statement DuckDB refuses ({error}), expected one over the views "
            f"{', '.join(view_names(connection))}. Correct the statement."
        ) from error


def fetch(relation: duckdb.DuckDBPyRelation) -> list[tuple[Any, ...]]:
    """Rows of a relation.

    Raises:
        StorageError: DuckDB fails while it reads them, at a value or at a damaged shard.
    """
    # DuckDB makes Python's moments of time zones by a package that nothing else here needs.
    columns = [
        f"{named(name)}::VARCHAR AS {named(name)}" if "WITH TIME ZONE" in str(kind) else named(name)
        for name, kind in zip(relation.columns, relation.types, strict=True)
    ]
    with explained():
        if any("::VARCHAR" in column for column in columns):
            relation = relation.project(", ".join(columns))
        return relation.fetchall()


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Within this context errors of DuckDB are raised as StorageError, with advice."""
    try:
        yield
    except duckdb.Error as error:
        raise _stopped(error) from error


def view_names(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Names of the catalog's views."""
    with catalog_read():
        rows = connection.execute(
            "SELECT view_name FROM duckdb_views() WHERE NOT internal AND schema_name = 'main' "
            "ORDER BY view_name"
        ).fetchall()
    return [str(row[0]) for row in rows]


def export(connection: duckdb.DuckDBPyConnection, sql: str, path: Path) -> int:
    """Writes the rows of `sql` to `path`, as Parquet, JSONL or CSV by its ending; returns how many.

    The file appears whole or not at all.

    Raises:
        StorageError: the ending is none of these, or the file cannot be written.
    """
    formats = {
        ".parquet": "FORMAT parquet, COMPRESSION zstd",
        ".jsonl": "FORMAT json",
        ".csv": "FORMAT csv, HEADER",
    }
    with new_file(path) as temporary:
        try:
            row = connection.execute(
                f"COPY ({sql}) TO {quoted(str(temporary))} ({formats[path.suffix]})"
            ).fetchone()
        except duckdb.IOException as error:
            raise OSError(str(error)) from error
        except duckdb.Error as error:
            raise _stopped(error) from error
    return int(row[0]) if row else 0


def to_arrow(relation: duckdb.DuckDBPyRelation) -> pa.Table:
    """The rows of a relation as an Arrow table.

    Raises:
        StorageError: DuckDB fails while it reads them, at a value or at a damaged shard.
    """
    with explained():
        return relation.to_arrow_table()


def _stopped(error: duckdb.Error) -> StorageError:
    """The error of a statement that DuckDB could not finish."""
    if is_damage(error):
        return damaged_catalog(error)
    return StorageError(
        f"sql: found a statement DuckDB refuses ({error}), expected one that fits the values. "
        f"Correct it; if it names a file of the store, that is damaged. {HEALS}"
    )
