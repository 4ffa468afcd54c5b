"""Metrics over a finished run: how far its results can be trusted.

Computed in this process, printed and not stored: a metric is a question about a run, not a part of
it, and is computed again when it is needed again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import parse_metric, plain
from pipeline.errors import RunError
from pipeline.finished import Finished
from pipeline.folder import RunFolder
from pipeline.node import CORPUS_INSTANCE
from pipeline.table_kinds import check_kinds, columns_of
from pipeline.task import StoredInputs
from stages.corpus.source import LEARNED
from stages.corpus.yaml_value import in_yaml
from stages.metrics.metric import Instance

OF_TEXTS = "What chosen rows train is measured by the stage selection_trial."
"""What stands beside metrics of classes where rows are learned."""
Stepped = Callable[[str, int, int], None]
"""Hears the metric's name, and how many steps of how many are done."""


def evaluate(
    run: Path, metric: str, overrides: Sequence[str] = (), stepped: Stepped | None = None
) -> dict[str, Any]:
    """The result of a metric over the run in a folder.

    Keys: run_id, metric, fields (with every default), facts, rows, details; see
    `stages.metrics.metric.Result`.

    Args:
        run: Folder of the run; the tables that the metric reads are whole.
        metric: The name of a file in `stages/metrics/`.
        overrides: `field=value` each.
        stepped: Hears how far the metric is.

    Raises:
        RunError: there is no such run, metric or field, or the run lacks a table.
        stages.stage.StageError: the rows cannot be used.
    """
    configured = parse_metric(metric, overrides)
    folder = RunFolder(run.expanduser().resolve())
    record = folder.read_record()
    finished = Finished(folder)
    task = finished.run.corpus.task
    if task not in configured.tasks:
        beside = OF_TEXTS if task in LEARNED else "Evaluate another run, or set other fields."
        raise RunError(
            f"{folder.path}: found a corpus with task: {task}, expected "
            f"{' or '.join(configured.tasks)} for {metric} with these fields. {beside}"
        )
    configured = configured.with_instances(lambda: _instances(finished))
    tables = {read: _table(read, record["tables"], folder) for read in configured.reads}
    columns = columns_of(finished.stages)
    check_kinds(configured, {read: columns[table] for read, (table, _) in tables.items()})
    inputs = StoredInputs(tables, "whole", folder.store(record))

    def tell(done: int, total: int) -> None:
        if stepped is not None:
            stepped(metric, done, total)

    rows, facts, details = configured.compute(inputs, tell)
    return {
        "run_id": record["run_id"],
        "metric": metric,
        "fields": plain(configured),
        "facts": facts,
        "rows": rows,
        "details": details,
    }


def _instances(finished: Finished) -> dict[str, Instance]:
    """What each instance of a run writes, runs and speaks for."""
    return {
        name: Instance(
            stage.model_ref, tuple(spec.name for spec in stage.writes), finished.speaks_for(name)
        )
        for name, stage in finished.stages.items()
    }


def _table(read: str, tables: dict[str, Any], folder: RunFolder) -> tuple[str, str]:
    """Name and manifest key of the table that a metric reads as `read`, of a finished run."""
    of_instance, _, beside = read.partition(".")
    if beside and read not in tables:
        places = [(of_instance, beside)] if beside in tables.get(of_instance, {}) else []
        if not places:
            having = ", ".join(name for name in tables if beside in tables[name])
            raise RunError(
                f"{folder.path}: found no table {beside!r} of {of_instance!r}, expected an "
                f"instance that writes it: {having or 'none in this run does'}. Name one, or add "
                "one under `stages:` and run again."
            )
    elif read in tables and read != CORPUS_INSTANCE:
        # An instance's first table is its own; others, such as diagnostics, lie beside it.
        places = [(read, next(iter(tables[read])))]
    else:
        places = [(instance, read) for instance in tables if read in tables[instance]]
    if len(places) != 1:
        several = ", ".join(instance for instance, _ in places)
        there = ", ".join(name for name in tables if name != CORPUS_INSTANCE)
        raise RunError(
            f"{folder.path}: found {'several tables' if places else 'no table'} {read!r}"
            f"{f' ({several})' if places else ''}, expected the name of one of {several or there}. "
            f"Name another, as in --set kernel=[NAME]"
            + (
                ". "
                if places
                else f", or add `{in_yaml(read)}: {{}}` under `stages:` and run again."
            )
        )
    ((instance, table),) = places
    key = tables[instance][table]["manifest"]
    if key is None:
        raise RunError(
            f"{folder.path}: found that the table {read!r} is not whole yet, expected a run that "
            f"came to its end. Go on with `assay run {folder.config}`."
        )
    return table, str(key)
