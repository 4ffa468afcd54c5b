"""What an opened run writes: rows as files, reviews, and the corpus.

Methods of `pipeline.open_run.OpenedRun`, which takes these functions.
"""

from pathlib import Path
from typing import Any

from storage.sql import named


def write(run: Any, rows: Any, path: str | Path) -> int:
    """Writes rows to a .parquet, .jsonl or .csv file; returns how many.

    The source's columns come first, under their own names and in their own order; a column of
    assay whose name is taken gets `assay_` in front.

    Args:
        run: The opened run.
        rows: The rows that `flag` or `select` returned.
        path: The file, replaced as a whole if it exists.
    """
    from storage.export import write_rows

    table = source_table(run, rows.sql_query(), list(rows.columns))
    return write_rows(table, Path(path))


def write_corpus(run: Any, path: str | Path) -> int:
    """Writes every example, in the source's order and as labelled now; returns how many."""
    from storage.export import write_rows

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
        RunError: there is something at `path` already; it may hold decisions.
    """
    from pipeline.handover.review_file import write_review as write_tasks

    return write_tasks(run, rows, Path(path), form)


def source_table(run: Any, statement: str, columns: list[str] | None = None) -> Any:
    """The rows of the source whose example_id a statement gives, in its order, as an Arrow table.

    `columns` of the statement stand beside the source's own (`pipeline.source_rows`).
    """
    from pipeline.source_rows import source_rows

    added = columns or []
    chosen = ", ".join(map(named, dict.fromkeys(["example_id", *added])))
    results = run.to_arrow(f"SELECT {chosen} FROM ({statement})")
    return source_rows(run.store, run.corpus_manifests(), results, added)
