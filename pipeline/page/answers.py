"""The section on answers: prompts with their answers, those first that are probably bad."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.page.asked import Asked, Rows
from pipeline.page.chart import Chart, histogram
from pipeline.page.document import share, significant
from pipeline.page.subject import Subject, flag
from storage.sql import quoted

WORST = 20
BINS = 40
WORDS = {
    "completion": {
        "all": "answers",
        "reasons": "What is wrong with them",
        "scores": "How likely answers are good",
        "axis": "probability that the answer is good",
        "worst": "answers that are most likely bad",
        "none": "No answer is flagged.",
        "if": "if bad",
    },
    "preference": {
        "all": "pairs",
        "reasons": "What speaks against their order",
        "scores": "How likely pairs are in the right order",
        "axis": "probability that the chosen answer is the better one",
        "worst": "pairs that are most likely in the wrong order",
        "none": "No pair is flagged.",
        "if": "if wrong",
    },
}
"""Of a task, how the section calls what it shows."""
SHOWN = {
    "completion": ("completions", "c.answer, NULL AS rejected"),
    "preference": ("preferences", "c.chosen AS answer, c.rejected"),
}
"""Of a task, the view of what people read, and its answers."""


@dataclass(frozen=True)
class Answers:
    """What the section shows of a corpus of completions."""

    reasons: Asked | None
    scores: Asked | None
    histogram: Chart | None
    worst: Asked
    cards: Rows
    is_judged: bool
    words: Mapping[str, str]


def answers(subject: Subject) -> Answers | None:
    """The section of a corpus of completions; None of another."""
    if subject.task not in SHOWN:
        return None
    words = WORDS[subject.task]
    worst = _worst(subject)
    cards = [{**row, "facts": _facts(row)} for row in flag(subject, worst.rows)]
    if subject.judged is None:
        return Answers(None, None, None, worst, cards, False, words)
    rows = subject.judged.rows
    reasons = subject.ask(
        f"""
        SELECT reason, count(*) AS n, avg(p_wrong) AS p_wrong, count(*) / (SELECT count(*) FROM
               {rows}) AS share
        FROM {rows} AND {subject.flag} GROUP BY ALL ORDER BY n DESC, reason"""
    )
    scores = subject.ask(
        f"""
        SELECT least(floor((1 - p_wrong) * {BINS}), {BINS - 1})::INT AS bin,
               count(*) FILTER (NOT {subject.flag}) AS kept,
               count(*) FILTER ({subject.flag}) AS flagged,
               max(1 - p_wrong) FILTER ({subject.flag}) AS last_flagged
        FROM {rows} GROUP BY ALL ORDER BY bin"""
    )
    drawn = histogram(
        [(row["bin"] / BINS, row["kept"], row["flagged"]) for row in scores.rows],
        1 / BINS,
        max((row["last_flagged"] or 0.0 for row in scores.rows), default=0.0),
        words["all"],
        words["axis"],
    )
    return Answers(reasons, scores, drawn, worst, cards, True, words)


def _worst(subject: Subject) -> Asked:
    """Answers that are probably bad, or else those that the model finds least likely."""
    view, said = SHOWN[subject.task]
    columns, joins, order = [], [], "c.id"
    if (lost := subject.instance("answer_losses")) is not None:
        columns.append("o.loss, o.difficulty, o.n_tokens")
        joins.append(f"LEFT JOIN (FROM {lost.rows} AND role = 'example') AS o ON o.id = c.id")
        order = "o.loss DESC NULLS LAST, c.id"
    if (relevance := subject.instance("query_relevance")) is not None:
        columns.append("r.similarity AS on_task")
        joins.append(f"LEFT JOIN (FROM {relevance.rows}) AS r ON r.example_id = c.id")
    if subject.values is not None:
        method, utility = subject.values
        columns.append("v.value, v.stderr")
        joins.append(
            "LEFT JOIN (FROM shapley WHERE semivalue = 'shapley' AND method = "
            f"{quoted(method)} AND utility = {quoted(utility)}) AS v ON v.example_id = c.id"
        )
    if subject.judged is not None:
        columns.append(f"i.p_wrong, i.reason, i.{subject.flag}")
        joins.insert(0, f"JOIN (FROM {subject.judged.rows}) AS i ON i.example_id = c.id")
        order = "i.p_wrong DESC, c.id"
    return subject.ask(
        f"SELECT c.id AS example_id, e.source_id, c.prompt, {said}, length(answer) AS length"
        f"{''.join(f', {column}' for column in columns)}\n"
        f"FROM {view} AS c JOIN examples AS e ON e.example_id = c.id {' '.join(joins)}\n"
        f"WHERE c.role = 'example' ORDER BY {order} LIMIT {WORST}"
    )


def _facts(row: dict[str, Any]) -> str:
    """The numbers below an answer."""
    told = [f"{share(row['p_wrong'])} likely wrong"] if row.get("p_wrong") is not None else []
    if row["rejected"] is None:
        told.append(f"{row['length']:,} characters")
    named = {"loss": "loss", "difficulty": "difficulty", "on_task": "on task", "value": "value"}
    told += [
        f"{words} {significant(row[name])}"
        for name, words in named.items()
        if row.get(name) is not None
    ]
    if row.get("stderr") is not None:
        told[-1] += f" ± {significant(1.96 * row['stderr'], 2)}"
    return " · ".join([*told, f"id {row['source_id']}"])
