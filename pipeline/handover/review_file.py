"""The file or folder that a review is written to: a CSV to fill in, or tasks for a tool."""

import re
from pathlib import Path
from typing import Any

from pipeline.decided import review_columns
from pipeline.errors import RunError
from pipeline.handover import argilla, label_studio
from pipeline.handover.tasks import review_tasks
from pipeline.page.document import write_output
from storage.names import near

FORMATS = ("csv", "label-studio", "argilla")


def write_review(run: Any, rows: Any, path: Path, form: str) -> int:
    """Writes rows to be decided about; returns how many. See `OpenedRun.write_review`.

    Raises:
        RunError: there is something at `path` already, the format is unknown, or the path has
            another ending than it needs.
    """
    if form not in FORMATS:
        raise RunError(
            f"found format {form!r}{near(form, FORMATS)}, expected one of {', '.join(FORMATS)}. "
            "Correct it."
        )
    if form == "argilla":
        refuse_taken(path, is_folder=True)
        tasks = review_tasks(run, rows)
        name = re.sub(r"[^a-zA-Z0-9-]+", "-", f"assay-{tasks.run_id}")
        for below, data in argilla.dataset_files(tasks, name).items():
            write_output(path / below, data)
        return len(tasks.rows)
    if form == "label-studio":
        if path.suffix != ".json":
            raise RunError(
                f"{path}: found the ending {path.suffix!r}, expected .json, which Label Studio "
                "imports. Rename the review."
            )
        interface = path.with_suffix(".xml")
        for file in (path, interface):
            refuse_taken(file)
        tasks = review_tasks(run, rows)
        write_output(interface, label_studio.labelling_config(tasks))
        write_output(path, label_studio.import_file(tasks))
        return len(tasks.rows)
    if path.suffix != ".csv":
        raise RunError(
            f"{path}: found the ending {path.suffix!r}, expected .csv, the form that is filled in "
            "by hand. Rename the review, or say --format label-studio or --format argilla."
        )
    refuse_taken(path)
    columns = review_columns(list(rows.columns))
    return int(run.write_rows(run.sql(f"SELECT {columns} FROM ({rows.sql_query()})"), path))


def refuse_taken(path: Path, is_folder: bool = False) -> None:
    """Raises where there is a file, or a folder that is not empty; it may hold decisions.

    Raises:
        RunError: there is.
    """
    if is_folder and path.suffix:
        raise RunError(
            f"{path}: found the ending {path.suffix!r}, expected the name of a folder. Rename it."
        )
    if path.exists() and not (is_folder and path.is_dir() and not any(path.iterdir())):
        raise RunError(
            f"{path}: found a {'folder' if path.is_dir() else 'file'} there already, expected a "
            "new one: it may hold decisions. Name another."
        )
