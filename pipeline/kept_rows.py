"""Rows that were judged before and stay as they are, where a run is told so: `old_rows: kept`.

A stage that judges rows one by one, by a fit on all of them, would judge every row anew when some
are appended, for the fit is another. With `old_rows: kept` the shards of examples whose own inputs
are as they were keep the rows that the run's last execution gave them: only new rows and corrected
ones are judged, by the new fit. Queries always are.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipeline.config import stage_name
from pipeline.corpus import Corpus
from pipeline.node import Node, Task, shards_of
from storage.manifest import Manifest
from storage.schema import FileError
from storage.table import Store


def keep_judged(
    node: Node,
    planned: Mapping[str, Node],
    corpus: Corpus,
    store: Store,
    recorded: Mapping[str, Any],
) -> tuple[Node, str | None]:
    """The node with the shards that it keeps, and a sentence where it keeps some.

    Args:
        node: A stage that judges rows (`Stage.judges_rows`).
        planned: The nodes that come before, by instance.
        corpus: The corpus as it stands.
        store: Holds the shards that were computed before.
        recorded: By instance and table, the shards of the run's last execution (`run.json`).
    """
    before = _manifest(store, node.stage.writes[0].name, recorded.get(node.instance, {}))
    recipe = (stage_name(node.stage), node.stage.version, dict(node.fields))
    if before is None or (before.stage, before.version, dict(before.fields)) != recipe:
        return node, None
    unchanged = _unchanged(node, planned, corpus, store, before)
    present = set.intersection(*(store.shard_keys(spec.name) for spec in node.stage.writes))
    kept = {
        s.index: s.key
        for s in before.shards
        if s.role == "example" and s.index in unchanged and s.key in present
    }
    tasks = tuple(
        dataclasses.replace(task, key=kept[task.part.index])
        if task.part.role == "example" and task.part.index in kept
        else task
        for task in node.tasks
    )
    n_kept = sum(new.key != old.key for new, old in zip(tasks, node.tasks, strict=True))
    if not n_kept:
        return node, None
    return dataclasses.replace(node, tasks=tasks), (
        f"{node.instance} keeps the rows of {n_kept} of {_of_examples(node.tasks)} shards that "
        "were judged before, by the fit of then. Set old_rows: again to judge all of them anew."
    )


def _unchanged(
    node: Node,
    planned: Mapping[str, Node],
    corpus: Corpus,
    store: Store,
    before: Manifest,
) -> set[int]:
    """The shards of examples of which everything that is read shard by shard is as it was."""
    unchanged = {task.part.index for task in node.tasks if task.part.role == "example"}
    for read, source in node.reads.items():
        now = {i: key for role, i, key in shards_of(source, planned, corpus) if role == "example"}
        if not now:
            continue
        then = _manifest(store, source[1], {source[1]: {"manifest": before.inputs.get(read)}})
        was = {s.index: s.key for s in then.shards if s.role == "example"} if then else {}
        unchanged &= {index for index, key in now.items() if was.get(index) == key}
    return unchanged


def _manifest(store: Store, table: str, tables: Mapping[str, Any]) -> Manifest | None:
    """The manifest of a table that a record lists; None where it cannot be read."""
    key = tables.get(table, {}).get("manifest")
    try:
        return store.read_manifest(table, key) if key else None
    except FileError:
        return None


def _of_examples(tasks: tuple[Task, ...]) -> int:
    return sum(task.part.role == "example" for task in tasks)
