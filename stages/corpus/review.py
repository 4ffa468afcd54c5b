"""A person's review of a corpus, a file of decisions: labels to be fixed, rows to be dropped."""

from typing import Any

import pyarrow as pa

from stages.corpus.cells import SourceRows
from stages.corpus.labels import class_code
from stages.corpus.load import load_file
from stages.corpus.source import LABELLED
from stages.corpus.targets import parse_number
from stages.stage import CorpusTask, DataError


def correct(
    rows: pa.Table, rejected: pa.Table, path: str, task: CorpusTask, classes: tuple[str, ...]
) -> pa.Table:
    """The rows with the decisions of the review at `path`: labels or targets fixed, rows dropped.

    A dropped row stays, marked in `is_dropped`.

    Raises:
        DataError: the review cannot be read, or names a row twice or unknown rows, decisions
            or labels; a label is to be fixed though the task has none.
    """
    reviewed = load_file(path)
    key = _review_column(path, reviewed, "source_id", "example_id")
    ids = rows["source_id" if key == "source_id" else "id"].to_pylist()
    row_of = {str(value): row for row, value in enumerate(ids)}
    refused = dict(zip(*(rejected[c].to_pylist() for c in ("source_id", "reason")), strict=True))
    decisions = reviewed.values(_review_column(path, reviewed, "decision"))
    names: list[Any] = [None] * len(decisions)
    if any(str(d).strip().lower() == "fix" for d in decisions):
        names = reviewed.values(_review_column(path, reviewed, "new_label", "suggested_label"))
    column = "target" if task == "regression" else "label"
    fixed = rows[column].to_pylist()
    is_dropped = rows["is_dropped"].to_pylist()
    seen: dict[str, int] = {}
    for at, (value, decision, name) in enumerate(
        zip(reviewed.values(key), decisions, names, strict=True)
    ):
        row_id, verdict = str(value), "" if decision is None else str(decision).strip().lower()
        where = f"{path}: row {at} ({key} {row_id})"
        if at in reviewed.faults:
            raise DataError(
                f"{where}: found a row that is {reviewed.faults[at][0]}, expected UTF-8 rows. "
                "Save the review again."
            )
        if row_id in seen:
            raise DataError(
                f"{where}: found the same {key} as in row {seen[row_id]}, expected each once. "
                "Remove one of the two rows."
            )
        seen[row_id] = at
        if row_id not in row_of:
            note = f", where it was rejected: {refused[row_id]}" if row_id in refused else ""
            raise DataError(
                f"{where}: found a {key} that no row has, expected one of the source{note}. "
                "Remove the row or correct its id."
            )
        if verdict not in {"", "accept", "fix", "drop"}:
            raise DataError(
                f"{where}: found decision {decision!r}, expected accept, fix, drop or nothing. "
                "Correct it."
            )
        if verdict == "fix":
            fixed[row_of[row_id]] = _new_label(where, name, task, classes)
        if verdict:
            is_dropped[row_of[row_id]] = verdict == "drop"
    for name, values in ((column, fixed), ("is_dropped", is_dropped)):
        at = rows.column_names.index(name)
        rows = rows.set_column(at, name, pa.array(values, rows.schema.field(name).type))
    return rows


def new_labels(path: str) -> set[str]:
    """The labels that the review at `path` puts in the place of others.

    Raises:
        DataError: the review cannot be read.
    """
    reviewed = load_file(path)
    found: set[str] = set()
    for name in {"new_label", "suggested_label"} & set(reviewed.table.column_names):
        found |= {str(value) for value in reviewed.values(name) if value is not None}
    return found


def _new_label(where: str, name: Any, task: CorpusTask, classes: tuple[str, ...]) -> int | float:
    """The class index or target that a person wrote in new_label; `where` begins the messages.

    Raises:
        DataError: it is no class or number, or the task has no labels.
    """
    if task not in LABELLED:
        raise DataError(
            f"{where}: found decision fix, expected accept, drop or nothing: rows of task: {task} "
            "have no label. Correct the text in the source instead."
        )
    if task == "regression":
        number = parse_number(str(name))
        if number is None:
            raise DataError(
                f"{where}: found new_label {name!r}, expected a finite number. Write the target."
            )
        return number
    if (code := class_code(str(name), classes)) < 0:
        raise DataError(
            f"{where}: found new_label {name!r}, expected one of {', '.join(classes)}. "
            "Write the name of the class."
        )
    return code


def _review_column(path: str, reviewed: SourceRows, *names: str) -> str:
    for name in names:
        if name in reviewed.table.column_names:
            return name
    raise DataError(
        f"{path}: found the columns {', '.join(reviewed.table.column_names)}, expected "
        f"{' or '.join(names)} among them. Add the column to the review."
    )
