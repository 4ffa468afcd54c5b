"""The sections on numbers to predict, and on questions about texts."""

from dataclasses import dataclass

from pipeline.page.asked import Asked, Rows
from pipeline.page.chart import Chart, scatter
from pipeline.page.document import significant
from pipeline.page.subject import Subject

WORST = 20
POINTS = 800
"""Points that are drawn of a larger corpus: the first of a fixed shuffle."""


@dataclass(frozen=True)
class Targets:
    """What the section shows of a regression."""

    method: str
    chart: Chart
    points: Asked
    worst: Asked
    cards: Rows


def targets(subject: Subject) -> Targets | None:
    """The section of a regression with predictions out of sample; None of another run."""
    if subject.task != "regression" or "predictions" not in subject.views:
        return None
    methods = subject.ask(
        "SELECT DISTINCT method FROM predictions WHERE source = 'kernel' AND role = 'example' "
        "ORDER BY method"
    ).rows
    if not methods:
        return None
    method = str(methods[0]["method"])
    rows = (
        f"FROM predictions AS p JOIN examples AS e ON e.example_id = p.id WHERE p.role = 'example' "
        f"AND p.source = 'kernel' AND p.method = '{method}'"
    )
    points = subject.ask(
        "SELECT e.target, p.logits[1] AS predicted\n"
        f"{rows} AND e.target IS NOT NULL ORDER BY hash(p.id) LIMIT {POINTS}"
    )
    worst = subject.ask(
        "SELECT e.example_id, e.source_id, e.text, e.text_b, e.target, p.logits[1] AS predicted\n"
        f"{rows} AND p.loss IS NOT NULL ORDER BY p.loss DESC, e.example_id LIMIT {WORST}"
    )
    largest = max((abs(row["target"] - row["predicted"]) for row in worst.rows), default=0.0)
    cards = [
        {
            **row,
            "bar": abs(row["target"] - row["predicted"]) / (largest or 1.0),
            "facts": f"target {significant(row['target'], 5)} · predicted "
            f"{significant(row['predicted'], 5)}"
            + (f" · id {row['source_id']}" if row["text"] or row["text_b"] else ""),
        }
        for row in worst.rows
    ]
    drawn = scatter([(row["target"], row["predicted"]) for row in points.rows])
    return Targets(method, drawn, points, worst, cards)


@dataclass(frozen=True)
class Questions:
    """What the section shows of questions about texts."""

    asked: Asked
    cards: Rows


def questions(subject: Subject) -> Questions | None:
    """The answers that the model is least sure of; None where no model answers."""
    found = subject.instance("answers")
    if found is None:
        return None
    asked = subject.ask(
        f"""
        SELECT a.role, coalesce(e.source_id, q.source_id) AS source_id, a.question, a.answer,
               a.probability, a.char_start, a.char_end, coalesce(e.text, q.text) AS text
        FROM (FROM {found.rows} ORDER BY role = 'example', probability, id LIMIT {WORST}) AS a
        LEFT JOIN examples AS e ON a.role = 'example' AND e.example_id = a.id
        LEFT JOIN queries AS q ON a.role = 'query' AND q.query_id = a.id
        ORDER BY a.role = 'example', a.probability"""
    )
    cards = []
    for row in asked.rows:
        start, end = row["char_start"], row["char_end"]
        has_place = row["text"] is not None and start is not None and end is not None
        parts = (
            (row["text"][:start], row["text"][start:end], row["text"][end:])
            if has_place
            else (row["text"], "", "")
        )
        cards.append({**row, "parts": parts})
    return Questions(asked, cards)
