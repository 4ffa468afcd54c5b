"""The views of a catalog (`storage.views`), asked: SQL statements, and what their errors mean."""

import contextlib
import datetime
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from storage.catalog_files import catalog_read, damaged_catalog, is_damage
from storage.export import new_file
from storage.manifest import HEALS
from storage.names import near
from storage.read_only import Shut, refuse_changes
from storage.schema import CorruptError, MissingError, StorageError
from storage.spreadsheet import escaped_column, mark
from storage.sql import named, quoted

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
UNKNOWN_COLUMN = re.compile(r'(?:Referenced column|does not have a column named) "([^"]*)"')
"""What DuckDB says of a column that it does not find."""
ZONED = "TIMESTAMP WITH TIME ZONE"
_MICROSECONDS = (
    "CASE WHEN isfinite({0}) THEN epoch_us({0}) WHEN {0} > now() THEN 9223372036854775807 "
    "WHEN {0} < now() THEN -9223372036854775807 END"
)


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
    """The relation of one SQL statement, in which every column has a name of its own.

    Raises:
        StorageError: the statement does more than read, or DuckDB refuses it; the message is
            DuckDB's, with the views listed.
        CorruptError: the catalog's file is damaged.
    """
    try:
        refuse_changes(connection, sql)
        relation = connection.sql(sql)
        apart = told_apart(sql, relation.columns)
        return relation if apart is sql else connection.sql(apart)
    except duckdb.PermissionException as error:
        raise StorageError(
            f"sql: found a statement that leaves the run's tables ({error}), expected one over "
            f"the views {', '.join(view_names(connection))}. Other files are joined from Python: "
            "open_run(RUN).sql(...), for a run of your own (`assay status RUN` makes it that)."
        ) from error
    except duckdb.Error as error:
        if is_damage(error):
            raise damaged_catalog(error) from error
        if unknown := UNKNOWN_COLUMN.search(str(error)):
            raise _without_column(connection, sql, unknown[1]) from error
        raise StorageError(
            f"sql: found a statement DuckDB refuses ({error}), expected one over the views "
            f"{', '.join(view_names(connection))}. Correct the statement."
        ) from error


def distinct(names: Sequence[str]) -> list[str]:
    """The names, in which each that one before has, in any case, has a number behind it."""
    every, taken, found = {name.lower() for name in names}, set[str](), []
    for name in names:
        free, n = name, 0
        while free.lower() in taken or (n and free.lower() in every):
            n += 1
            free = f"{name}_{n}"
        taken.add(free.lower())
        found.append(free)
    return found


def told_apart(sql: str, names: Sequence[str]) -> str:
    """A statement with columns of these `names`, with another name for each that is there twice.

    The second `a` becomes `a_1`, as in files that DuckDB writes: whoever asks for a column by its
    name would get the values of the first one.
    """
    own = distinct(names)
    if own == list(names):
        return sql
    return f"SELECT * FROM {inner(sql)} AS t({', '.join(map(named, own))})"


def inner(sql: str) -> str:
    """A statement in brackets, whatever it ends with: a comment would swallow the bracket."""
    return f"({sql.rstrip().rstrip(';')}\n)"


def _without_column(connection: duckdb.DuckDBPyConnection, sql: str, name: str) -> StorageError:
    """The error of a statement that asks for a column that its views do not have."""
    columns: dict[str, list[str]] = {}
    with catalog_read():
        for view, column in connection.execute(
            "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal AND "
            "schema_name = 'main' ORDER BY table_name, column_index"
        ).fetchall():
            columns.setdefault(view, []).append(column)
    words = set(re.findall(r"\w+", sql.lower()))
    asked = {view: names for view, names in columns.items() if view in words}
    known = [column for names in asked.values() for column in names]
    elsewhere = [view for view, names in columns.items() if name in names and view not in asked]
    there = f" It is a column of {', '.join(elsewhere)}." if elsewhere else ""
    of_views = "; ".join(f"{view} has {', '.join(names)}" for view, names in asked.items())
    return StorageError(
        f"sql: found no column {name!r}{near(name, known)}, expected one of the views that the "
        f"statement reads: {of_views or 'it names none'}.{there} Correct the statement."
    )


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


def values(relation: duckdb.DuckDBPyRelation) -> list[tuple[Any, ...]]:
    """Rows of a relation as Python's values, with moments of time zones in UTC.

    DuckDB makes such moments by a package that nothing else needs. It has its own for those that
    Python's calendar does not reach, and for those inside of lists.

    Raises:
        StorageError: as `fetch`.
    """
    zoned = [at for at, kind in enumerate(relation.types) if str(kind) == ZONED]
    if not zoned:
        return relation.fetchall()
    columns = [
        f"{_MICROSECONDS.format(named(name))} AS {named(name)}" if at in zoned else named(name)
        for at, name in enumerate(relation.columns)
    ]
    rows = relation.project(", ".join(columns)).fetchall()
    return [
        tuple(_moment(cell) if at in zoned else cell for at, cell in enumerate(row)) for row in rows
    ]


def _moment(microseconds: int | None) -> datetime.datetime | None:
    """The moment so long after 1970, or the first or last one that Python knows."""
    if microseconds is None:
        return None
    try:
        return EPOCH + datetime.timedelta(microseconds=microseconds)
    except OverflowError:
        last = datetime.datetime.max if microseconds > 0 else datetime.datetime.min
        return last.replace(tzinfo=datetime.UTC)


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


def export(
    connection: duckdb.DuckDBPyConnection, sql: str, path: Path, shut: Shut | None = None
) -> int:
    """Writes the rows of `sql` to `path`, in the format of its ending; returns how many.

    The file appears whole or not at all. A CSV is for people (`storage.spreadsheet`). `shut` is
    what the connection is shut in by.

    Raises:
        StorageError: the ending is none of these, or the file cannot be written.
    """
    formats = {
        ".parquet": "FORMAT parquet, COMPRESSION zstd",
        ".jsonl": "FORMAT json",
        ".json": "FORMAT json, ARRAY true",
        ".csv": "FORMAT csv, HEADER",
    }
    with explained():
        relation = connection.sql(sql)
        names = distinct(relation.columns)
        sql = told_apart(sql, relation.columns)
        if path.suffix == ".csv":
            pairs = zip(names, map(str, relation.types), strict=True)
            sql = f"SELECT {', '.join(escaped_column(*pair) for pair in pairs)} FROM {inner(sql)}"
    with new_file(path, tuple(formats)) as temporary, _writable(temporary, shut) as written:
        try:
            row = connection.execute(
                f"COPY {inner(sql)} TO {quoted(str(written))} ({formats[path.suffix]})"
            ).fetchone()
        except duckdb.IOException as error:
            raise OSError(str(error)) from error
        except duckdb.Error as error:
            raise _stopped(error) from error
        if path.suffix == ".csv":
            mark(written)
    return int(row[0]) if row else 0


def _writable(path: Path, shut: Shut | None) -> contextlib.AbstractContextManager[Path]:
    return contextlib.nullcontext(path) if shut is None else shut.written(path)


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
