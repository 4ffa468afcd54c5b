"""What people decided in an annotation tool, as a review that `assay apply` takes."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import RunError
from pipeline.handover import argilla, label_studio
from pipeline.handover.tasks import CONTENT, NAMES, choices
from stages.corpus.review import ALIKE, short
from storage.names import near

Answers = Iterator[tuple[Mapping[str, Any], list[tuple[str, Any]]]]
TOOLS: dict[str, tuple[Callable[[Sequence[Any]], bool], Callable[[Sequence[Any]], Answers]]] = {
    "Label Studio": (label_studio.is_export, label_studio.answers),
    "Argilla": (argilla.is_export, argilla.answers),
}


def review_of(opened: Callable[[], Any], path: Path) -> bytes | None:
    """The decisions of an export, as a review in JSONL with a row per task, undecided ones too.

    A folder is one that `argilla.Dataset.to_disk` wrote. None where the file is no export of a
    tool that is known here, but may be a review itself.

    Args:
        opened: Opens the run that tasks were made of, which says what is in its rows now.
        path: The export.

    Raises:
        RunError: a task names no row of the run, or one that was another when the task was made;
            a choice is none of those offered; or several people chose differently.
    """
    items = _items(path)
    found = next((name for name, (is_its, _) in TOOLS.items() if is_its(items)), None)
    if found is None:
        if path.is_dir():
            raise RunError(
                f"{path}: found {argilla.RECORDS} without answers of Argilla, expected what "
                "`Dataset.to_disk` writes. Export the dataset with its records."
            )
        return None
    run = opened()
    options = choices(run)
    rows = _rows_now(run)
    lines = []
    placed: dict[str, int] = {}
    for place, (names, given) in enumerate(TOOLS[found][1](items), 1):
        row_id = str(names.get("example_id"))
        where = f"{path}: task {place} (example_id {short(row_id)})"
        if row_id in placed:
            raise RunError(
                f"{where}: found the same example_id as in task {placed[row_id]}, expected each "
                "once. Export one project alone."
            )
        placed[row_id] = place
        label = _check_row(where, names, rows, run)
        chosen = _one(where, given, options, found)
        decision, new_label = options[chosen] if chosen is not None else ("", None)
        if decision == "fix" and new_label is not None and new_label == label:
            decision = "accept"
        line = {"example_id": row_id, "decision": decision, "new_label": new_label}
        lines.append(json.dumps(line, ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines).encode()


def _items(path: Path) -> list[Any]:
    """The elements of a JSON array; none where the file is something else."""
    file = path / argilla.RECORDS if path.is_dir() else path
    if not file.is_file():
        raise RunError(
            f"{file}: found no such file, expected a reviewed CSV, or a folder that Argilla's "
            "`Dataset.to_disk` wrote. Name the CSV, or export the dataset with its records."
        )
    if file.suffix.lower() != ".json":
        return []
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError:
        return []  # a review in lines is read, and refused, as one
    return found if isinstance(found, list) else []


def _rows_now(run: Any) -> dict[str, tuple[str, str | None]]:
    """The content and the label of every example, by id."""
    rows = run.decided(
        f"SELECT e.example_id::VARCHAR, {CONTENT}, e.label_name FROM examples AS e"
    ).fetchall()
    return {row_id: (content, label) for row_id, content, label in rows}


def _check_row(
    where: str, names: Mapping[str, Any], rows: Mapping[str, tuple[str, str | None]], run: Any
) -> str | None:
    """The label that the row of a task has now.

    Raises:
        RunError: the run has no such row, or another one under this id.
    """
    absent = [name for name in NAMES if names.get(name) is None]
    if absent:
        raise RunError(
            f"{where}: found no {' and no '.join(absent)}, expected what `assay flag --review` "
            "put into each task. Export the project that these tasks were imported into."
        )
    row = rows.get(str(names["example_id"]))
    if row is None or row[0] != str(names["content"]):
        found = "another row under this id"
        if row is None:
            found = f"no such row{near(names['example_id'], rows, short, ALIKE)}"
        raise RunError(
            f"{where}: found {found} in {run.folder.path}, expected the one that source_id "
            f"{short(names['source_id'])} named when the task was written. Give the run that the "
            "tasks are of, or remove the task."
        )
    return row[1]


def _one(
    where: str, given: Sequence[tuple[str, Any]], options: Mapping[str, Any], tool: str
) -> str | None:
    """The choice that all who answered made; None where nobody did.

    Raises:
        RunError: it is none of those offered, or there are several.
    """
    for _, choice in given:
        if choice not in options:
            raise RunError(
                f"{where}: found the choice {short(choice)!r}{near(choice, options)}, expected one "
                f"of {', '.join(options)}. Correct the answer in {tool}."
            )
    chosen = {choice: who for who, choice in reversed(given)}
    if len(chosen) > 1:
        told = " and ".join(f"{short(choice)} by {who}" for choice, who in sorted(chosen.items()))
        raise RunError(
            f"{where}: found answers that differ, {told}, expected one decision about each row. "
            f"Settle it in {tool}, and export again."
        )
    return next(iter(chosen), None)
