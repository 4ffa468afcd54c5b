"""What an opened run writes and shows: files and folders, reviews, tables and charts.

Methods of `pipeline.open_run.OpenedRun`, which takes these functions.
"""

from pathlib import Path
from typing import Any

MARKS = ("example_id", "keep", "value", "rank", "weight")
"""Columns beside those of the source, where all rows are written."""


def write(run: Any, rows: Any, path: str | Path, is_marked: bool = False) -> int:
    """Writes rows to a .parquet, .jsonl or .csv file, or to a folder; returns how many.

    The source's columns come first, under their own names and in their own order; a column of
    assay whose name is taken gets `assay_` in front. Of completions and preferences that `select`
    chose, what a person reads of them is left out: trainers take `prompt`, `answer` or `chosen`
    beside the source's own columns for other columns to learn from.

    Args:
        run: The opened run.
        rows: The rows that `flag` or `select` returned.
        path: The file, replaced as a whole if it exists; or a name without ending, of a new folder
            for the hub, with the rows that `select` left out (`pipeline.handover.folder`).
        is_marked: Of rows that `select` returned, whether all rows of the corpus are written in the
            source's order, with a column `keep` that is true of these; `weight` is 0 of others.

    Raises:
        RunError: a folder, or marks, are to hold rows that are not what `select` returned; or a
            folder is to have marks.
        storage.schema.StorageError: the folder holds something.
    """
    from pipeline.decisions import OF_TEXTS
    from pipeline.errors import RunError
    from pipeline.handover.folder import OWN, is_folder, write_selected
    from pipeline.source_rows import source_table
    from storage.export import write_rows

    if is_marked and (rows.chosen is None or is_folder(path)):
        raise RunError(
            f"{path}: found {'rows that are no selection' if rows.chosen is None else 'a folder'} "
            "to be marked, expected what `select` returned, as it came, and a file that ends in "
            ".parquet, .jsonl or .csv. A folder has the rows that are left out in `removed`."
        )
    if is_marked:
        weight = ", coalesce(c.weight, 0) AS weight" if "weight" in rows.columns else ""
        statement = (
            f"SELECT e.example_id, c.rank IS NOT NULL AS keep, c.value, c.rank{weight} "
            f"FROM examples AS e LEFT JOIN ({rows.chosen[0].statement}) AS c "
            "ON c.example_id = e.example_id ORDER BY e.row_number"
        )
        return write_rows(source_table(run, statement, MARKS[: 5 if weight else 4]), Path(path))
    if is_folder(path):
        return write_selected(run, rows, Path(path))

    columns = list(rows.columns)
    if rows.chosen is not None and run.task() in OF_TEXTS:
        columns = [name for name in columns if name in OWN]
    table = source_table(run, rows.sql_query(), columns)
    return write_rows(table, Path(path))


def write_corpus(run: Any, path: str | Path, before: Any = None) -> int:
    """Writes every example, in the source's order and as labelled now; returns how many.

    Args:
        run: The opened run.
        path: A file as of `write`, or a name without ending, of a new folder for the hub.
        before: Of a folder, the opened run that was reviewed: what the review changed is told.
    """
    from pipeline.handover.folder import is_folder, write_corrected
    from pipeline.source_rows import source_table
    from storage.export import write_rows

    if is_folder(path):
        return write_corrected(run, Path(path), before)
    table = source_table(run, "SELECT example_id FROM examples ORDER BY row_number")
    return write_rows(table, Path(path))


def write_review(run: Any, rows: Any, path: str | Path, form: str = "csv") -> int:
    """Writes rows that `flag` returned, to decide about; returns how many.

    Args:
        run: The opened run.
        rows: The rows.
        path: A CSV of `pipeline.decided.review_columns`; of `label-studio` a .json to import, with
            the labelling interface in an .xml beside it; of `argilla` a folder for
            `Dataset.from_disk`.
        form: `csv`, `label-studio` or `argilla`.

    Raises:
        RunError: there is something at `path` already, which may hold decisions; or its ending is
            not that of the form.
    """
    from pipeline.handover.review_file import write_review as write_tasks

    return write_tasks(run, rows, Path(path), form)


def show(run: Any, name: str | None = None, by: str | None = None, evaluation: Any = None) -> Any:
    """A table or chart of the report as an object, for a notebook; see `pipeline.page.notebook`.

    `show()` lists what there is. Tables are Stylers of pandas, charts figures of matplotlib.

    Args:
        run: The opened run.
        name: What to show, such as `flags`, `matrix`, `scores` or `values`.
        by: In place of a name: flags and values by this column of the source.
        evaluation: In place of a name: the curves of what `evaluate` returned, as a list.

    Raises:
        RunError: there is nothing of this name, or the run has no tables for it.
    """
    from pipeline.page.notebook import show as shown

    return shown(run, name, by, evaluation)
