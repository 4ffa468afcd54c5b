"""Rows to be reviewed in an annotation tool: what is asked of a person, and what it decides.

One question with one choice per row, in every tool: the label that is right, or the fate of an
answer or of a pair. A choice is turned into a decision of a review (`stages.corpus.review`) by the
run that it is given back to, whose labels count.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import RunError
from pipeline.terminal import CONTROLS
from storage.catalog import fetch

SHOWN = {code: sign for code, sign in CONTROLS.items() if code not in (0x09, 0x0A)}
"""What stands for characters that tools cannot store or that would turn other text."""
FIELDS = {
    "text": "Text",
    "text_b": "Second text",
    "prompt": "Prompt",
    "answer": "Answer",
    "chosen": "Chosen answer",
    "rejected": "Rejected answer",
}
"""Columns of flagged rows that a person reads, with their titles."""
FACTS = ("given_label", "suggested_label", "label_score", "reason", "p_wrong")
"""Columns that are told beside them."""
NAMES = ("example_id", "source_id", "content")
"""What names the row of a task; `content` changes with its id in the source and its texts."""
CONTENT = "left(md5(concat_ws(chr(31), e.source_id, e.text, e.text_b)), 16)"
QUESTION = "decision"
"""What the question is called in every tool."""
TITLES = {
    "classification": "Which label is right?",
    "completion": "Should a model learn from this answer?",
    "preference": "Is the chosen answer better than the rejected one?",
}
CHOICES = {
    "completion": {"accept": "accept", "drop": "drop"},
    "preference": {"accept": "accept", "swap": "fix", "drop": "drop"},
}
"""Of corpora without labels, what may be chosen, and the decision that it is."""


@dataclass(frozen=True)
class Task:
    """A row to be reviewed."""

    names: Mapping[str, str]
    """`NAMES`, as text: browsers round large integers."""
    fields: Mapping[str, str]
    facts: Mapping[str, str | float]
    suggestion: str
    """The choice that the run would make."""
    score: float
    """How likely it is right, by the run."""


@dataclass(frozen=True)
class Tasks:
    """Rows to be reviewed, and the question about each."""

    run_id: str
    title: str
    choices: tuple[str, ...]
    fields: tuple[str, ...]
    rows: Sequence[Task]


def review_tasks(run: Any, rows: Any) -> Tasks:
    """The tasks of the rows that `OpenedRun.flag` gave, in their order.

    Args:
        run: The opened run (`pipeline.open_run.OpenedRun`).
        rows: What its `flag` returned.

    Raises:
        RunError: two classes cannot be told apart when shown, or rows have no texts.
    """
    options = choices(run)
    if not run.facts("text").get("has_text", True):
        raise RunError(
            f"{run.folder.path}: found rows that are vectors alone, expected texts that a person "
            "can read in an annotation tool. Review them in a CSV, beside the source."
        )
    task = run.task()
    fields = tuple(name for name in FIELDS if name in rows.columns)
    facts = [name for name in FACTS if name in rows.columns]
    columns = [f"f.{name}" for name in (*fields, *facts)]
    asked = run.decided(
        f"SELECT f.example_id, f.source_id, {CONTENT} AS content, {', '.join(columns)} "
        f"FROM (SELECT *, row_number() OVER () AS place FROM ({rows.sql_query()})) AS f "
        f"JOIN examples AS e USING (example_id) ORDER BY f.place"
    )
    shown = {decision: name for name, decision in options.items()}
    made = []
    for values in fetch(asked):
        row = dict(zip(asked.columns, values, strict=True))
        wrong = row["p_wrong"]
        if task == "classification":
            suggestion = shown["fix", row["suggested_label"]]
            agrees = row["suggested_label"] == row["given_label"]
        else:
            agrees = wrong <= 0.5
            worst = "fix" if task == "preference" else "drop"
            suggestion = shown["accept" if agrees else worst, None]
        made.append(
            Task(
                {name: readable(str(row[name])) for name in NAMES},
                {name: readable(row[name] or "") for name in fields},
                {name: _fact(row[name]) for name in facts if row[name] is not None},
                suggestion,
                round(1 - wrong if agrees else wrong, 4),
            )
        )
    return Tasks(run.record["run_id"], TITLES[task], tuple(options), fields, made)


def choices(run: Any) -> dict[str, tuple[str, str | None]]:
    """What may be chosen about a row of `run`: the decision that it is, and its new label.

    Raises:
        RunError: two classes cannot be told apart when shown, or rows of the task are not reviewed.
    """
    task = run.task()
    if task in CHOICES:
        return {name: (decision, None) for name, decision in CHOICES[task].items()}
    if task != "classification":
        raise RunError(
            f"{run.folder.path}: found a corpus with task: {task}, expected labels, answers or "
            "preferences, which a person can decide about. Correct the targets in the source."
        )
    rows = run.sql("SELECT label_name FROM provenance.class ORDER BY label").fetchall()
    options: dict[str, tuple[str, str | None]] = {}
    for (name,) in rows:
        shown = readable(name)
        if shown in options:
            raise RunError(
                f"{run.folder.path}: found the classes {options[shown][1]!r} and {name!r}, which "
                "look the same in an annotation tool, expected names that differ. Review them in "
                "a CSV, or rename one."
            )
        options[shown] = ("fix", name)
    return {**options, _drop(options): ("drop", None)}


def _drop(classes: Mapping[str, Any]) -> str:
    """The choice that drops a row; longer where a class is called so."""
    names: Iterator[str] = itertools.accumulate(itertools.repeat("drop"), lambda a, _: f"{a} row")
    return next(name for name in names if name not in classes)


def readable(text: str) -> str:
    """The text as every tool can store and show it."""
    return text.translate(SHOWN)


def _fact(value: Any) -> str | float:
    return round(value, 4) if isinstance(value, float) else readable(str(value))
