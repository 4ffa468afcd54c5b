"""A question to a run in SQL, with its answer: every number of a page comes with its statement."""

import inspect
from dataclasses import dataclass
from typing import Any

from storage.catalog import fetch

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Asked:
    """A statement, and the rows that it gave."""

    statement: str
    rows: Rows

    @property
    def first(self) -> dict[str, Any]:
        """The first row."""
        return self.rows[0]

    @property
    def number(self) -> Any:
        """The one value of the one row."""
        ((value,),) = (row.values() for row in self.rows)
        return value


def ask(run: Any, statement: str) -> Asked:
    """The rows of a statement over the views of `run`, an `OpenedRun`; all files are hashed."""
    text = inspect.cleandoc(statement)
    rows = run.decided(text)
    return Asked(text, [dict(zip(rows.columns, row, strict=True)) for row in fetch(rows)])
