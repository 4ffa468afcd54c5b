"""The section on labels: classes, which are taken for which, scores, and the worst labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.agreement import barely_knows
from pipeline.page.asked import Asked, Rows
from pipeline.page.chart import Chart, histogram
from pipeline.page.document import readable, share
from pipeline.page.subject import Subject, flag
from storage.sql import quoted

WORST = 20
"""Labels that are shown in full, with their neighbours."""
NEAR = 2
"""Nearest examples with the given label, and as many with the suggested one."""
MATRIX = 12
"""Most classes whose matrix is shown; of more, the pairs with the most rows."""
BINS = 40


@dataclass(frozen=True)
class Labels:
    """What the section shows."""

    classes: Asked
    pairs: Asked
    names: list[str]
    cells: Mapping[tuple[str, str], Mapping[str, Any]]
    histogram: Chart
    scores: Asked
    worst: Asked
    neighbours: Asked | None
    cards: Rows

    @property
    def different_pairs(self) -> Rows:
        """The pairs whose labels differ, those with the most flags first."""
        return [row for row in self.pairs.rows if row["given_label"] != row["suggested_label"]]


def barely_known(subject: Subject, rows: str) -> str | None:
    """What speaks against all flags of labels: predictions that hardly know them; else None."""
    assert subject.judged is not None
    asked = subject.ask(
        f"""
        SELECT (details->>'$.n_agreeing')::DOUBLE / (details->>'$.n_judged')::DOUBLE AS agreement,
               (SELECT max(n) / sum(n) FROM (SELECT count(*) AS n FROM {rows} GROUP BY given_label))
               AS most_frequent
        FROM runs WHERE instance = {quoted(subject.judged.method)} AND "table" = 'label_issues'"""
    )
    agreement, most_frequent = asked.first["agreement"], asked.first["most_frequent"]
    if agreement is None or most_frequent is None or not barely_knows(agreement, most_frequent):
        return None
    return (
        f"predictions agree with {share(agreement)} of the labels, the most frequent class alone "
        f"with {share(most_frequent)}"
    )


def labels(subject: Subject) -> Labels | None:
    """The section of a run that judged labels; None of another."""
    if subject.judged is None or subject.task != "classification":
        return None
    rows = subject.judged.rows
    classes = subject.ask(
        f"""
        SELECT given_label, count(*) AS n, count(*) FILTER (is_label_issue) AS flagged,
               avg((suggested_label = given_label)::INT) AS agreeing, sum(p_wrong) AS expected_wrong
        FROM {rows} GROUP BY ALL ORDER BY n DESC, given_label"""
    )
    pairs = subject.ask(
        f"""
        SELECT given_label, suggested_label, count(*) AS n,
               count(*) FILTER (is_label_issue) AS flagged
        FROM {rows} GROUP BY ALL ORDER BY flagged DESC, n DESC, given_label, suggested_label"""
    )
    scores = subject.ask(
        f"""
        SELECT least(floor(label_score * {BINS}), {BINS - 1})::INT AS bin,
               count(*) FILTER (NOT is_label_issue) AS kept,
               count(*) FILTER (is_label_issue) AS flagged,
               max(label_score) FILTER (is_label_issue) AS last_flagged
        FROM {rows} GROUP BY ALL ORDER BY bin"""
    )
    worst = subject.ask(
        f"""
        SELECT i.example_id, e.source_id, e.text, e.text_b, i.given_label, i.suggested_label,
               i.label_score, i.p_wrong, i.is_label_issue
        FROM (FROM {rows} ORDER BY label_score, example_id LIMIT {WORST}) AS i
        JOIN examples AS e USING (example_id) ORDER BY i.label_score, i.example_id"""
    )
    neighbours = _neighbours(subject, rows)
    return Labels(
        classes,
        pairs,
        [row["given_label"] for row in classes.rows],
        {(row["given_label"], row["suggested_label"]): row for row in pairs.rows},
        histogram(
            [(row["bin"] / BINS, row["kept"], row["flagged"]) for row in scores.rows],
            1 / BINS,
            max((row["last_flagged"] or 0.0 for row in scores.rows), default=0.0),
        ),
        scores,
        worst,
        neighbours,
        _cards(worst.rows, flag(subject, neighbours.rows) if neighbours else []),
    )


def _neighbours(subject: Subject, rows: str) -> Asked | None:
    """The nearest examples of the worst labels that have the given label, or the suggested one.

    Where the suggestion is the given label, those with any other.
    """
    if subject.features is None:
        return None
    vectors = subject.features.rows
    similarity = "list_cosine_similarity(p.vector, o.vector)"
    return subject.ask(
        f"""
        WITH pair AS MATERIALIZED (
            SELECT w.example_id AS of_id, v.vector, c.label, c.label_name,
                   c.label_name = w.given_label AS is_given
            FROM (FROM {rows} ORDER BY label_score, example_id LIMIT {WORST}) AS w
            JOIN (FROM {vectors} AND role = 'example') AS v ON v.id = w.example_id
            JOIN provenance.class AS c
              ON c.label_name = w.given_label OR w.suggested_label IN (w.given_label, c.label_name)
        ), other AS NOT MATERIALIZED (
            SELECT o.id, o.vector, l.label
            FROM (FROM {vectors} AND role = 'example') AS o
            JOIN tables.label AS l ON l.id = o.id AND l.role = 'example'
        ), least AS MATERIALIZED (
            -- A filter of the sum, not of the rows, which DuckDB would make a loop of all pairs.
            SELECT of_id, is_given, list_min(max({similarity}, {NEAR})
                   FILTER (o.id <> of_id)) AS similarity
            FROM other AS o JOIN pair AS p USING (label) GROUP BY ALL
        ), near AS (
            SELECT of_id, is_given, p.label_name, list({{'id': o.id, 's': {similarity}}})
                   FILTER (o.id <> of_id AND {similarity} >= p.similarity) AS found
            FROM other AS o JOIN (FROM pair JOIN least USING (of_id, is_given)) AS p
            USING (label) GROUP BY ALL
        )
        SELECT of_id, is_given, e.label_name, found.s AS similarity, e.example_id, e.source_id,
               e.text, e.text_b
        FROM (SELECT * REPLACE (unnest(found) AS found) FROM near)
        JOIN examples AS e ON e.example_id = found.id
        QUALIFY row_number() OVER (
            PARTITION BY of_id, is_given ORDER BY found.s DESC, e.example_id
        ) <= {NEAR}
        ORDER BY of_id, is_given, similarity DESC, example_id"""
    )


def _cards(worst: Rows, neighbours: Rows) -> Rows:
    """The worst labels, each with its neighbours: those that speak for the label, and against."""
    cards = []
    for row in worst:
        near = [other for other in neighbours if other["of_id"] == row["example_id"]]
        other_label = row["suggested_label"]
        against = (
            "another label" if other_label == row["given_label"] else readable(other_label, 60)
        )
        cards.append(
            {
                **row,
                "against_name": against,
                "likely": share(row["p_wrong"]),
                "sides": [
                    [other for other in near if not other["is_given"]],
                    [other for other in near if other["is_given"]],
                ],
            }
        )
    return cards
