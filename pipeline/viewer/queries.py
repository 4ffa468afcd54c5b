"""The queries of a run in the viewer: listed, and explained one at a time."""

from contextlib import AbstractContextManager
from typing import Any

from pipeline.errors import RunError
from pipeline.explain.query import shown_text
from pipeline.page.explanation import all_rows, explained
from pipeline.page.explanation_file import pictures_of
from pipeline.page.rows_table import shortened
from pipeline.page.subject import Subject
from pipeline.viewer.questions import Questions
from stages.stage import StageError
from storage.schema import StorageError
from storage.sql import quoted

PAGE = 25
TOP = 5
"""Examples on each side of a method."""


class Queries:
    """Queries and what stands behind their predictions."""

    def __init__(self, questions: Questions, subject: Subject, slow: AbstractContextManager[Any]):
        """Holds what is asked; `slow` is held while the run of `subject` is asked."""
        self._questions, self._subject, self._slow = questions, subject, slow
        self._kept: dict[str, Any] = {}

    def page(self, words: str, is_wrong: bool, at: int) -> dict[str, Any]:
        """Some queries with their predictions, those that are predicted wrong first."""
        joined, columns, order = self._predictions()
        texts, text = self._subject.query_text
        found = [
            f"contains(lower(concat_ws(' ', q.source_id, {text})), {quoted(word)})"
            for word in words.lower().split()
        ]
        if is_wrong and columns:
            found.append("is_wrong")
        where = " AND ".join(found) or "true"
        rows = self._questions.ask(
            f"SELECT q.query_id, q.source_id, {shortened(text, 200)} AS text{columns} "
            f"FROM queries AS q {joined} {texts} WHERE {where} "
            f"ORDER BY {order} q.query_id LIMIT {PAGE + 1} OFFSET {at}"
        ).named()
        return {"rows": rows[:PAGE], "has_more": len(rows) > PAGE, "page": PAGE,
                "has_predictions": bool(columns), "is_wrong": is_wrong}  # fmt: skip

    def one(self, query_id: int) -> dict[str, Any]:
        """A query explained, as the template shows it; or `failed`, why that cannot be."""
        return self._explained(f"Query {query_id}", query=query_id)

    def of_text(self, text: str, text_b: str | None) -> dict[str, Any]:
        """A text that the run does not have, or a prompt that its language model answers.

        The models are opened with the first one, and kept.
        """
        if self._subject.task == "completion":
            return self._explained(text, prompt=text, kept=self._kept)
        return self._explained(text, text=text, text_b=text_b or None, kept=self._kept)

    def _explained(self, heading: str, **asked: Any) -> dict[str, Any]:
        with self._slow:
            run = self._subject.run
            try:
                found = run.explain(top=TOP, **asked)
            except (RunError, StageError, StorageError) as error:
                return {"heading": heading, "failed": str(error), "images": {}}
            rows = all_rows(found)
            self._subject.mark(rows)
            for row in rows:
                row["href"] = f"/example/{row['example_id']}"
            return {
                "heading": shown_text(found["query"]) or heading,
                "explained": explained(found),
                "images": pictures_of(run, found),
                "failed": "",
            }

    def _predictions(self) -> tuple[str, str, str]:
        """The join of predictions, the columns and order that it brings; empty without any."""
        if "predictions" not in self._subject.views or self._subject.task != "classification":
            return "", "", ""
        first = (
            "SELECT method, source FROM predictions WHERE role = 'query' "
            "ORDER BY source <> 'model', source <> 'probe', method LIMIT 1"
        )
        joined = (
            "LEFT JOIN (SELECT p.id, p.confidence, c.label_name AS predicted, g.label_name AS "
            f"given, p.predicted <> l.label AS is_wrong FROM predictions AS p JOIN ({first}) USING "
            "(method, source) JOIN tables.label AS l ON l.id = p.id AND l.role = 'query' "
            "LEFT JOIN provenance.class AS c ON c.label = p.predicted "
            "LEFT JOIN provenance.class AS g ON g.label = l.label "
            "WHERE p.role = 'query') AS p ON p.id = q.query_id"
        )
        columns = ", p.predicted, p.given, p.confidence, coalesce(p.is_wrong, false) AS is_wrong"
        return joined, columns, "coalesce(p.is_wrong, false) DESC, p.confidence DESC,"
