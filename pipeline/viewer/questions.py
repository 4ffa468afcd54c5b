"""Statements of the viewer: several at once, over files that are as they were written."""

import threading

from pipeline.open_run import OpenedRun
from storage.cursors import Cursors, Found

SECONDS = 10.0
"""After so long a statement is stopped."""


class Questions:
    """A run that several people ask at once; its connection reads nothing but the store."""

    def __init__(self, run: OpenedRun):
        """Holds `run`, opened with `is_shut_in`."""
        self.run = run
        self._lock = threading.Lock()  # the run's own connection takes one statement at a time
        self._cursors = Cursors(run.connection)
        self.change = self._cursors.change

    def ask(self, statement: str, most_rows: int | None = None, seconds: float = SECONDS) -> Found:
        """The rows of a statement that reads, at most `most_rows` of them.

        Raises:
            storage.schema.StorageError: DuckDB refuses it, or it takes longer than `seconds`.
            storage.schema.FileError: a file that it reads is damaged.
        """
        self.check(statement)
        return self._cursors.ask(statement, seconds, most_rows)

    def check(self, statement: str) -> None:
        """Raises FileError where a file that a statement reads is damaged."""
        with self._lock:
            self.run.check(statement)
