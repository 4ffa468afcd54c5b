"""What the viewer shows of one row: all of it, what is near it, and what it stands behind."""

from collections.abc import Sequence
from typing import Any

from pipeline.errors import RunError
from pipeline.explain.picture import data_url, image_of, largest
from pipeline.page.asked import Rows as Found
from pipeline.page.rows_table import cell, shortened
from pipeline.page.subject import Subject
from pipeline.viewer.questions import Questions
from pipeline.viewer.rows import ISSUES, SEARCHED, Rows
from storage.sql import quoted

NEAR = 4
"""Nearest rows of each side."""
SUPPORTED = 8
"""Queries that a row speaks for or against most."""
TOLD = ("given_label", "suggested_label", "flagged", "reason")
"""Columns that are told in words, and not again among the numbers."""
LONGEST = 20_000
"""Characters of a text that are shown, as templates have it."""


class OneRow:
    """Rows of a run, one at a time."""

    def __init__(self, questions: Questions, subject: Subject, rows: Rows):
        """Holds what is asked."""
        self._questions, self._subject, self._rows = questions, subject, rows
        self.has_images = "image" in questions.ask("FROM examples LIMIT 0").columns

    def shown(self, example_id: int) -> dict[str, Any]:
        """A row as the template `viewer/row.html` shows it: `row`, `facts`, `issues`, `image`.

        Raises:
            RunError: there is no such row.
        """
        rows = self._rows.of_ids([example_id])
        if example_id not in rows:
            raise RunError(
                f"found no row {example_id}, expected an example_id of this run. "
                "Choose one under Rows."
            )
        row = {**rows[example_id], **self._texts(example_id, "example")}
        return {
            "row": row,
            "facts": [
                (column.title, cell(row[column.name]))
                for column in self._rows.columns
                if column.kind != "text"
                and column.name not in TOLD
                and row[column.name] is not None
            ],
            "issues": self._issues(example_id),
            "image": self.images([example_id]).get(example_id),
        }

    def near(self, example_id: int) -> list[dict[str, Any]]:
        """The most alike rows: with the given label, with the suggested one; or of all.

        By the cosine of the vectors that the run has; each side has `title` and `rows`.
        """
        of = self._subject.features
        if of is None:
            return []
        row = self._rows.of_ids([example_id])[example_id]
        sides: list[tuple[str, str]] = [("Most alike", "")]
        label = row.get("given_label")
        if self._subject.task == "classification" and label is not None:
            other = row.get("suggested_label")
            sides = [(f"Most alike with {label}", f"AND given_label = {quoted(label)}")]
            if other not in (None, label):
                sides.append((f"Most alike with {other}", f"AND given_label = {quoted(other)}"))
            else:
                sides.append(("Most alike with another", f"AND given_label <> {quoted(label)}"))
        return [
            {"title": title, "rows": self._nearest(of.rows, example_id, "example", condition)}
            for title, condition in sides
        ]

    def query(self, query_id: int) -> dict[str, Any]:
        """A query that no method explains: its texts as `row`, and `near`, the most alike rows."""
        of = self._subject.features
        found = [] if of is None else self._nearest(of.rows, query_id, "query")
        return {
            "row": self._texts(query_id, "query"),
            "near": [{"title": "Most alike", "rows": found}] if found else [],
        }

    def supported(self, example_id: int) -> Found:
        """The queries for whose predictions a row has the largest scores, by method."""
        if "attributions" not in self._subject.views:
            return []
        joined, text = self._subject.query_text
        return self._questions.ask(
            f"""
            SELECT a.method, a.query_id, a.score, q.source_id, {shortened(text, 300)} AS text
            FROM (FROM attributions WHERE example_id = {example_id}
                  QUALIFY row_number() OVER (PARTITION BY method ORDER BY abs(score) DESC)
                      <= {SUPPORTED}) AS a
            JOIN queries AS q USING (query_id) {joined} ORDER BY a.method, abs(a.score) DESC"""
        ).named()

    def _texts(self, row_id: int, role: str) -> dict[str, Any]:
        """The whole texts of a row."""
        view, _ = SEARCHED.get(self._subject.task, ("tables.text", ""))
        columns = {
            "completions": ("prompt", "answer"),
            "preferences": ("prompt", "chosen", "rejected"),
        }.get(view, ("text", "text_b"))
        listed = ", ".join(f"left({name}, {LONGEST + 1}) AS {name}" for name in columns)
        found = self._questions.ask(
            f"SELECT {listed} FROM {view} WHERE role = '{role}' AND id = {row_id}"
        ).named()
        return {"text": None, "text_b": None, **(found[0] if found else {})}

    def _issues(self, example_id: int) -> Found:
        return self._questions.ask(
            f"SELECT issue, other_role, other_id FROM {ISSUES} "
            f"WHERE example_id = {example_id} ORDER BY ALL"
        ).named()

    def _nearest(self, vectors: str, row_id: int, role: str, condition: str = "") -> Found:
        """Examples whose vectors are most like that of a row, which is none of them."""
        itself = f"AND v.id <> {row_id}" if role == "example" else ""
        return self._questions.ask(
            f"""
            WITH near AS (
                SELECT v.id AS example_id, list_cosine_similarity(v.vector, w.vector) AS similarity
                FROM (FROM {vectors} AND role = 'example') AS v
                JOIN viewer.rows AS r ON r.example_id = v.id,
                     (FROM {vectors} AND role = '{role}' AND id = {row_id}) AS w
                WHERE true {itself} {condition}
                ORDER BY similarity DESC, v.id LIMIT {NEAR}
            )
            SELECT r.* EXCLUDE (place), n.similarity FROM near AS n
            JOIN viewer.rows AS r USING (example_id) ORDER BY n.similarity DESC, example_id"""
        ).named()

    def images(self, ids: Sequence[int]) -> dict[int, str]:
        """Images of rows as `data:` URLs, by id, of those that have one; all as bright."""
        if not ids or not self.has_images:
            return {}
        cells = self._questions.ask(
            "SELECT example_id, image FROM examples WHERE example_id IN "
            f"({', '.join(map(str, ids))})"
        ).rows
        found = {row: image for row, of_row in cells if (image := image_of(of_row)) is not None}
        white = largest(list(found.values()))
        return {row: data_url(image, white) for row, image in found.items()}
