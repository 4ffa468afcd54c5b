"""The section in which some queries are explained: first those that fail."""

from dataclasses import dataclass
from typing import Any

from pipeline.errors import RunError
from pipeline.explain.explanation import explain
from pipeline.explain.query import shown_text
from pipeline.page.asked import Asked
from pipeline.page.explanation import all_rows, explained, largest_numbers
from pipeline.page.subject import Subject
from pipeline.progress import Progress

WRONG, UNSURE, SURE = 6, 3, 3
"""Queries that are explained: predicted wrong with most confidence, least and most sure."""
TOP = 3
"""Examples on each side of a method."""


@dataclass(frozen=True)
class Explorer:
    """What the section shows."""

    asked: Asked
    queries: list[dict[str, Any]]
    total: int


def explorer(subject: Subject, progress: Progress) -> Explorer | None:
    """Some queries with all that the run says of them; None where it says nothing of queries."""
    total = int(subject.n_queries.number)
    if not total:
        return None
    asked = _chosen(subject)
    explanations = []
    for row in asked.rows:
        try:
            one = explain(subject.run, row["query_id"], None, None, (), TOP, progress)
        except RunError as error:  # the run has no method that scores examples or words
            progress.say(f"queries are not explained: {error}")
            return None
        subject.mark(all_rows(one))
        explanations.append(one)
    scales = largest_numbers(explanations)
    found = [
        {
            "query": {**one["query"], "shown": shown_text(one["query"])},
            "why": row["why"],
            "explained": explained(one, scales),
            "rows": all_rows(one),
        }
        for row, one in zip(asked.rows, explanations, strict=True)
    ]
    return Explorer(asked, found, total)


def _chosen(subject: Subject) -> Asked:
    """The queries that are explained, and why these."""
    if "predictions" not in subject.views or subject.task not in ("classification", "regression"):
        return subject.ask(
            "SELECT query_id, 'one of the first' AS why FROM queries ORDER BY query_id "
            f"LIMIT {WRONG + UNSURE}"
        )
    first = (
        "SELECT method, source FROM predictions WHERE role = 'query' "
        "ORDER BY source <> 'model', source <> 'probe', method LIMIT 1"
    )
    if subject.task == "regression":
        return subject.ask(
            f"""
            SELECT p.id AS query_id, 'far from its target' AS why FROM predictions AS p
            JOIN ({first}) USING (method, source)
            WHERE p.role = 'query' ORDER BY p.loss DESC NULLS LAST, p.id LIMIT {WRONG}"""
        )
    return subject.ask(
        f"""
        WITH predicted AS (
            SELECT p.id AS query_id, p.confidence, p.predicted = l.label AS is_right
            FROM predictions AS p JOIN ({first}) USING (method, source)
            JOIN tables.label AS l ON l.id = p.id AND l.role = 'query' WHERE p.role = 'query'
        ), placed AS (
            SELECT *, row_number() OVER (PARTITION BY coalesce(is_right, true)
                                         ORDER BY confidence DESC, query_id) AS from_sure,
                   row_number() OVER (PARTITION BY coalesce(is_right, true)
                                      ORDER BY confidence, query_id) AS from_unsure
            FROM predicted
        )
        SELECT query_id, CASE WHEN NOT is_right THEN 'predicted wrong'
                              WHEN from_sure <= {SURE} THEN 'sure' ELSE 'unsure' END AS why
        FROM placed
        WHERE (NOT is_right AND from_sure <= {WRONG})
           OR (coalesce(is_right, true) AND (from_sure <= {SURE} OR from_unsure <= {UNSURE}))
        ORDER BY coalesce(is_right, true), from_sure"""
    )
