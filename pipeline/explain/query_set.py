"""A set of queries that a person names in a file or a list, such as those that a model fails on."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.copied import command
from pipeline.errors import RunError
from pipeline.explain.query import Rows
from pipeline.explain.stored_query import COLUMNS, LISTED, dicts
from pipeline.progress import Progress
from stages.corpus.load import load_file
from storage.sql import quoted

LABELLED = ("classification", "regression")
"""Tasks whose queries have an answer that they can fail at."""


class QuerySet(NamedTuple):
    """Queries of a run, each once, by ascending query_id."""

    name: str
    """The file, or what stands for a list, in messages."""
    rows: Rows
    """query_id, source_id, text, text_b, label (its name, or the target), answer (number)."""

    @property
    def ids(self) -> list[int]:
        """Their query_ids."""
        return [int(row["query_id"]) for row in self.rows]


def read_query_set(
    run: Any, given: str | Path | Iterable[str | int], id_column: str | None, progress: Progress
) -> QuerySet:
    """The queries of `run` that a file (CSV, Parquet, JSONL) or a list names.

    A file has a column `query_id` or `source_id`, or the column `id_column` that the source of the
    queries has its ids in; the first of these that it has counts. A list holds query_ids or
    source_ids, as `--query` takes them. A query that is named twice counts once, which is said.

    Raises:
        RunError: there is no such column or no row, an id is missing or is no query's, or a query
            has no label where the corpus has labels.
        stages.stage.DataError: the file cannot be read.
    """
    if isinstance(given, str | Path):
        name = str(given)
        key, wanted = _named_in(name, id_column)
    else:
        name, key, wanted = "queries", None, [str(one) for one in given]
    if not wanted:
        raise RunError(
            f"{name}: found no query, expected at least one row or id. Name the queries on which "
            "the model fails."
        )
    ids = _ids_of(run, name, key, wanted)
    if len(set(ids)) < len(ids):
        progress.say(f"{name}: {len(ids) - len(set(ids))} named again; a query counts once")
    id_list = ", ".join(map(str, sorted(set(ids))))
    rows = dicts(
        run.sql(
            f"SELECT query_id, {COLUMNS}, coalesce(label::DOUBLE, target) AS answer FROM queries "
            f"WHERE query_id IN ({id_list}) ORDER BY query_id"
        )
    )
    without = [row for row in rows if row["answer"] is None]
    if without and run.task() in LABELLED:
        raise RunError(
            f"{name}: found {_count(len(without), 'query')} without a label, the first "
            f"{without[0]['source_id']}, expected labelled ones: what speaks against a label "
            "can be told only where there is one. Label them, or leave them out."
        )
    return QuerySet(name, rows)


def _named_in(path: str, id_column: str | None) -> tuple[str, list[str]]:
    """The kind of id in a file, "query_id" or "source_id", and the ids as text, in its order."""
    read = load_file(path)
    columns = {
        "query_id": "query_id",
        "source_id": "source_id",
        id_column or "source_id": "source_id",
    }
    names = [name for name in columns if name in read.table.column_names]
    if not names:
        raise RunError(
            f"{path}: found the columns {', '.join(read.table.column_names) or 'none'}, expected "
            f"{' or '.join(columns)} among them. Add the column, or rename the one with the ids."
        )
    ids = read.values(names[0])
    for at, value in enumerate(ids):
        if at in read.faults or value is None or not str(value).strip():
            raise RunError(
                f"{path}: row {at}: found {read.faults[at][0] if at in read.faults else 'no id'} "
                f"in the column {names[0]}, expected the id of a query. Fill it in, or remove the "
                "row."
            )
    return columns[names[0]], [str(value).strip() for value in ids]


def _ids_of(run: Any, name: str, key: str | None, wanted: Sequence[str]) -> list[int]:
    """The query_ids of what is wanted, in its order; without `key` either id will do."""
    texts = ", ".join(map(quoted, dict.fromkeys(wanted)))
    found: dict[str, dict[str, list[int]]] = {"query_id": {}, "source_id": {}}
    for query_id, source_id in run.sql(
        "SELECT t.id, x.source_id FROM tables.text AS t JOIN tables.extra AS x "
        "ON x.id = t.id AND x.role = t.role WHERE t.role = 'query' "
        f"AND (t.id::VARCHAR IN ({texts}) OR x.source_id IN ({texts}))"
    ).fetchall():
        found["query_id"].setdefault(str(query_id), []).append(int(query_id))
        found["source_id"].setdefault(str(source_id), []).append(int(query_id))
    kinds = [key] if key is not None else ["query_id", "source_id"]
    ids, unknown = [], []
    for text in wanted:
        matches = next((found[kind][text] for kind in kinds if text in found[kind]), [])
        if len(matches) > 1:
            raise RunError(
                f"{name}: found the source_id {text}, which {len(matches)} queries have, expected "
                "one. Name the queries by their query_id."
            )
        ids += matches
        if not matches:
            unknown.append(text)
    if unknown:
        ids_named = " or ".join(kinds)
        raise RunError(
            f"{name}: found {_count(len(unknown), 'id')} that no query of the run has, the first "
            f"{unknown[0]}, expected a {ids_named} of the run. Look them up: "
            f"{command('sql', run.folder.path, LISTED)}"
        )
    return ids


def _count(number: int, noun: str) -> str:
    plural = "queries" if noun == "query" else f"{noun}s"
    return f"1 {noun}" if number == 1 else f"{number} {plural}"
