"""The rows of a run as the viewer lists them: filtered, sorted and paged in SQL.

What is shown of a row lies in a table of the viewer's own, made once, in a temporary file: views
join several tables, and a page of 25 rows must not wait for millions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.decided import decisions
from pipeline.errors import RunError
from pipeline.page.rows_table import LONGEST, Column, parts
from pipeline.page.subject import Subject
from pipeline.viewer.questions import Questions
from storage.schema import StorageError
from storage.sql import named, quoted

RESERVED = (
    *("decision", "example_id", "id", "new_label", "picture", "place", "reviewed", "verdict"),
    *("flagged", "given_label", "issues", "reason", "similarity", "suggested_label"),
    *("answer", "chosen", "prompt", "rejected", "text", "text_b"),
)
"""Columns that the viewer's pages read, whether or not the run has them."""
DECIDED = ("undecided", "decided", "accept", "fix", "drop")
ISSUES = "viewer.issues"
"""The rows of the view `issues`, which compares all texts whenever it is asked."""
FEW = 200
"""Most values of a column that are offered for choice."""
SEARCHED = {
    "completion": ("completions", "concat_ws(' ', prompt, answer)"),
    "preference": ("preferences", "concat_ws(' ', prompt, chosen, rejected)"),
}
"""Of a task, the view and expression of texts that are searched; of others those of the source."""


@dataclass(frozen=True)
class Filter:
    """Which rows are listed."""

    words: str = ""
    """Words that all stand in the text, or all in the id, in any case."""
    values: Mapping[str, str] = field(default_factory=dict)
    """The values that columns must have; an empty one stands for none."""
    is_flagged: bool = False
    decided: str = ""
    """One of `DECIDED`, or empty."""
    condition: str = ""
    """A condition in SQL on the columns."""


class Rows:
    """All rows of a run, with what it says of each and what people decided."""

    def __init__(self, questions: Questions, subject: Subject, by: Sequence[str] = ()):
        """Makes the table of rows; `by` are columns of the source that are listed, too.

        One whose name the viewer needs itself, such as decision, is listed as source_decision.

        Raises:
            pipeline.errors.RunError: the source has no such column.
        """
        self._questions, self._task = questions, subject.task
        columns, joins, order = parts(subject, LONGEST, ISSUES)
        taken = {*RESERVED, *(column.name for column in columns)}
        for name in dict.fromkeys(by):
            stored, own = named(subject.column(name)), name
            while own.lower() in taken:
                own = f"source_{own}"
            taken.add(own.lower())
            columns.insert(1, Column(own, own, f"e.{stored}::VARCHAR", "class"))
        self.columns = columns
        reviewed = decisions(questions.run)
        if reviewed:
            joins.append(f"LEFT JOIN ({reviewed}) AS d USING (example_id)")
        listed = ", ".join(f"{c.expression} AS {named(c.name)}" for c in self.columns)
        shut = questions.run.shut
        if shut is None:
            raise ValueError("expected a run that is opened with is_shut_in")
        questions.change(f"ATTACH {quoted(str(shut.place / 'rows.duckdb'))} AS viewer")
        self._make(ISSUES, "SELECT * EXCLUDE (run_id) FROM issues")
        self._make(
            "viewer.rows",
            f"SELECT row_number() OVER (ORDER BY {order}, e.example_id) AS place, e.example_id, "
            f"{'d.decision' if reviewed else 'NULL::VARCHAR'} AS reviewed, {listed} "
            f"FROM examples AS e {' '.join(joins)} ORDER BY place",
        )
        questions.change(
            "CREATE TABLE viewer.decisions (example_id BIGINT PRIMARY KEY, verdict VARCHAR, "
            "new_label VARCHAR)"
        )
        self.total = int(questions.ask("SELECT count(*) FROM viewer.rows").rows[0][0])
        self.choices = {c.name: self._values(c) for c in self.columns if c.kind == "class"}
        self.has_flags = any(column.kind == "flag" for column in self.columns)
        names = {column.name for column in self.columns}
        self.has_suggestions = subject.task == "preference" or "suggested_label" in names
        """Whether a row can be fixed without a label being named."""

    def _make(self, name: str, statement: str) -> None:
        self._questions.check(statement)
        self._questions.change(f"CREATE TABLE {name} AS {statement}")

    @property
    def names(self) -> list[str]:
        """What a condition may name."""
        return [*(c.name for c in self.columns), "example_id", "decision", "new_label"]

    def where(self, chosen: Filter) -> str:
        """The condition of a filter, as SQL; `true` where it takes all rows.

        Raises:
            storage.schema.StorageError: DuckDB refuses the condition.
            RunError: the filter names an unknown column.
        """
        words = chosen.words.lower().split()
        found = [self._with_words(words)] if words else []
        for name, value in chosen.values.items():
            if name not in self.choices:
                raise RunError(
                    f"found a filter by {name}, expected one of {', '.join(self.choices)}. "
                    "Reload the page."
                )
            found.append(f"{named(name)} = {quoted(value)}" if value else f"{named(name)} IS NULL")
        if chosen.is_flagged and self.has_flags:
            found.append("flagged")
        if chosen.decided in ("undecided", "decided"):
            found.append(f"decision IS {'NOT ' if chosen.decided == 'decided' else ''}NULL")
        elif chosen.decided:
            found.append(f"decision = {quoted(chosen.decided)}")
        if chosen.condition.strip():
            # The end of the line ends a comment in it, which would take the bracket with it.
            found.append(f"({chosen.condition}\n)")
            try:
                self._questions.ask(f"{self._select('1')} WHERE ({chosen.condition}\n) LIMIT 0")
            except StorageError as error:
                refused = str(error.__cause__ or error).splitlines()[0]
                raise RunError(
                    f"found a condition that DuckDB refuses ({refused}), expected one on "
                    f"{', '.join(self.names)}, such as p_wrong > 0.9. Correct it."
                ) from error
        return " AND ".join(found) or "true"

    def page(
        self, chosen: Filter, order: str = "", is_descending: bool = False, at: int = 0, n: int = 25
    ) -> tuple[int, list[dict[str, Any]]]:
        """How many rows a filter takes, and `n` of them from `at` on.

        By default in the run's order of suspicion, else by a column; where it has no value, last.
        """
        where = self.where(chosen)
        count = self.total if where == "true" else self._count(where)
        if order and order not in self.names:
            raise RunError(
                f"found an order by {order}, expected one of {', '.join(self.names)}. "
                "Reload the page."
            )
        by = f"{named(order)} {'DESC' if is_descending else ''} NULLS LAST, " if order else ""
        found = self._questions.ask(
            f"{self._select('*')} WHERE {where} ORDER BY {by}place LIMIT {n} OFFSET {at}"
        )
        return count, found.named()

    def of_ids(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """The rows with these ids, by id."""
        listed = ", ".join(map(str, ids)) or "NULL"
        rows = self._questions.ask(f"{self._select('*')} WHERE example_id IN ({listed})").named()
        return {row["example_id"]: row for row in rows}

    def ids(self, chosen: Filter) -> list[int]:
        """The ids of all rows that a filter takes, in the run's order."""
        where = self.where(chosen)
        rows = self._questions.ask(
            f"{self._select('example_id')} WHERE {where} ORDER BY place"
        ).rows
        return [row for (row,) in rows]

    def next(self, chosen: Filter, without: Sequence[int]) -> int | None:
        """The id of the first row that a filter takes, without some; None where there is none."""
        left_out = f"AND example_id NOT IN ({', '.join(map(str, without))})" if without else ""
        found = self._questions.ask(
            f"{self._select('example_id')} WHERE {self.where(chosen)} {left_out} "
            "ORDER BY place LIMIT 1"
        ).rows
        return found[0][0] if found else None

    def find(self, source_id: str) -> int | None:
        """The example_id of a row; None where there is none or several."""
        rows = self._questions.ask(
            f"SELECT example_id FROM viewer.rows WHERE source_id = {quoted(source_id)} LIMIT 2"
        ).rows
        return int(rows[0][0]) if len(rows) == 1 else None

    def decide(self, decided: Mapping[int, tuple[str, str]]) -> None:
        """Takes over decisions, empty ones to take them back: verdict and new label by id."""
        gone = [[row] for row, (verdict, _) in decided.items() if not verdict]
        if gone:
            self._questions.change("DELETE FROM viewer.decisions WHERE example_id = ?", gone)
        made = [[row, *decision] for row, decision in decided.items() if decision[0]]
        if made:
            self._questions.change("INSERT OR REPLACE INTO viewer.decisions VALUES (?, ?, ?)", made)

    def progress(self, chosen: Filter) -> dict[str, int]:
        """How many rows a filter takes, and how many of them are decided, by verdict."""
        where = self.where(chosen)
        rows = self._questions.ask(
            f"SELECT coalesce(decision, '') AS verdict, count(*) AS n "
            f"FROM ({self._select('*')}) WHERE {where} GROUP BY ALL"
        ).rows
        counts = {str(verdict): int(n) for verdict, n in rows}
        return {"total": sum(counts.values()), **{v: counts.get(v, 0) for v in DECIDED[2:]}}

    def _count(self, where: str) -> int:
        return int(self._questions.ask(f"{self._select('count(*)')} WHERE {where}").rows[0][0])

    def _select(self, what: str) -> str:
        return (
            f"SELECT {what} FROM (SELECT r.* EXCLUDE (reviewed), "
            "coalesce(d.verdict, r.reviewed) AS decision, d.verdict, nullif(d.new_label, '') AS "
            "new_label "
            "FROM viewer.rows AS r LEFT JOIN viewer.decisions AS d USING (example_id))"
        )

    def _with_words(self, words: Sequence[str]) -> str:
        view, text = SEARCHED.get(self._task, ("tables.text", "concat_ws(' ', text, text_b)"))
        of_id, of_text = (
            " AND ".join(f"contains(lower({where}), {quoted(word)})" for word in words)
            for where in ("source_id", text)
        )
        return (
            f"(({of_id}) OR example_id IN (SELECT id FROM {view} "
            f"WHERE role = 'example' AND {of_text}))"
        )

    def _values(self, column: Column) -> list[str | None]:
        """The values of a column, where they are few; else none."""
        rows = self._questions.ask(
            f"SELECT DISTINCT {named(column.name)} FROM viewer.rows ORDER BY 1 LIMIT {FEW + 1}"
        ).rows
        return [value for (value,) in rows] if len(rows) <= FEW else []
