"""A catalog that several threads ask at once, on a connection each, with a limit of time."""

import threading
from typing import Any, NamedTuple

import duckdb

from storage.catalog import fetch, query
from storage.schema import StorageError
from storage.sql import named


class Found(NamedTuple):
    """The rows of a statement."""

    columns: list[str]
    rows: list[tuple[Any, ...]]

    def named(self) -> list[dict[str, Any]]:
        """Each row by the names of its columns."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


class Cursors:
    """Connections to the database of one that is open already; they are shut in as that is."""

    def __init__(self, connection: duckdb.DuckDBPyConnection):
        """Holds the open connection, whose current catalog all others have."""
        self._connection = connection
        self._catalog = str(connection.execute("SELECT current_catalog()").fetchall()[0][0])

    def ask(self, statement: str, seconds: float, most_rows: int | None = None) -> Found:
        """The rows of a statement that reads, at most `most_rows` of them.

        Raises:
            StorageError: DuckDB refuses it, or it takes longer than `seconds`.
        """
        connection = self._open()
        stop = threading.Timer(seconds, connection.interrupt)
        stop.start()
        try:
            relation = query(connection, statement)
            if most_rows is not None:
                relation = relation.limit(most_rows)
            return Found(relation.columns, fetch(relation))
        except StorageError as error:
            if not isinstance(error.__cause__, duckdb.InterruptException):
                raise
            raise StorageError(
                f"sql: found a statement that takes longer than {seconds:g} s, expected a quicker "
                "one. Filter more, or ask it with `assay sql`, which waits."
            ) from error
        finally:
            stop.cancel()
            connection.close()

    def change(self, statement: str, rows: list[list[Any]] | None = None) -> None:
        """Executes a statement of our own, which may write, once or for each of `rows`."""
        connection = self._open()
        try:
            if rows is None:
                connection.execute(statement)
            else:
                connection.executemany(statement, rows)
        finally:
            connection.close()

    def _open(self) -> duckdb.DuckDBPyConnection:
        connection: duckdb.DuckDBPyConnection = self._connection.cursor()
        connection.execute(f"USE {named(self._catalog)}")
        return connection
