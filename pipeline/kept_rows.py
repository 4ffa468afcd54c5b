"""Rows that were judged before and stay as they are, where a run is told so: `old_rows: kept`.

A stage that judges rows one by one, by a fit on all of them, would judge every row anew when some
are appended, for the fit is another. With `old_rows: kept` the shards of examples whose own inputs
are as they were keep the rows that the run's last whole table gave them: only new rows and
corrected ones are judged, by the new fit. Queries always are. Where a fit has other settings than
it had, all rows are judged anew.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipeline.artefact import readable
from pipeline.corpus import Corpus
from pipeline.node import CORPUS_INSTANCE, Node, Task, shards_of
from storage.manifest import Manifest
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
        recorded: By instance and table, the state of the run's last execution (`run.json`).
    """
    table = node.stage.writes[0].name
    state = recorded.get(node.instance, {}).get(table, {})
    # One that was interrupted says which table was whole before it.
    before = readable(store, table, state.get("manifest") or state.get("before"))
    if before is None or not node.has_made(before):
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
    """The shards of examples of which everything that is read shard by shard is as it was.

    A table that is none by shard, such as a fit, may be another where it was computed alike, from
    the same rows of these shards.
    """
    unchanged = {s.index for s in corpus.tables["text"].shards if s.role == "example"}
    for read, source in node.reads.items():
        key = before.inputs.get(read)
        if key == node.inputs[read]:
            continue
        instance, table = source
        then = readable(store, table, key)
        if then is None:
            return set()
        now = {i: key for role, i, key in shards_of(source, planned, corpus) if role == "example"}
        if now or instance == CORPUS_INSTANCE:
            was = {s.index: s.key for s in then.shards if s.role == "example"}
            unchanged &= {index for index, key in now.items() if was.get(index) == key}
        elif planned[instance].has_made(then):
            unchanged &= _unchanged(planned[instance], planned, corpus, store, then)
        else:
            return set()
    return unchanged


def _of_examples(tasks: tuple[Task, ...]) -> int:
    return sum(task.part.role == "example" for task in tasks)
