"""The cost of a run, estimated before anything is computed: `assay plan`."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from pipeline.cluster_size import Cluster, CorpusSize
from pipeline.corpus import Corpus, read_corpus
from pipeline.folder import RunFolder
from pipeline.forecast import forecast
from pipeline.model_check import check_models
from pipeline.node import Node
from pipeline.plan import Plan, make_plan, stages_in_order
from pipeline.readers import Readers
from pipeline.reasons import reasons_to_run
from pipeline.run import artefacts_of_last_run
from pipeline.run_record import last_record
from pipeline.settings import Run
from pipeline.sizes import size_of
from pipeline.work_size import of_stage, vector_lengths, work_of
from stages.model.calibration import flops_per_second
from stages.stage import Size, Work
from storage.table import Store

MODEL_EFFICIENCY = 0.5
"""Share of a bare matrix product's speed that models and solves reach; seen on MiniLM, one core."""
TASK_S = 0.02
"""What a task takes beside arithmetic: to read, check, sort and write its rows; seen on one core.
"""


def estimate(run: Run) -> dict[str, Any]:
    """The cost of a run as plain values, per stage and in all.

    Tasks to do and reused, forward and backward rows, FLOPs, bytes to write, memory, seconds; of
    each stage, too, `reasons`, how many tasks must run for each reason (`pipeline.reasons`), and
    `how`, a choice that follows from the size of the corpus, with its reason.

    Reads the corpus, checks models that were not checked before, and asks the machine for its speed
    with a matrix product of a fraction of a second; writes nothing but notes of models that passed,
    into a store that is there. Costs are those of the tasks that are not computed yet. Where a
    stopping rule may end the rounds of a stage earlier, `at_most` is true and costs are upper
    bounds.

    Raises:
        pipeline.errors.RunError: the run cannot be planned.
    """
    store, folder = Store(run.store_url), RunFolder(Path(run.run))
    corpus = _read(run, store)
    plan, notes = _planned(run, corpus, store, folder)
    work = work_of(corpus, store)
    lengths = vector_lengths(plan, work)
    speed = flops_per_second()
    workers = os.cpu_count() or 1 if run.ray.engine == "ray" else 1
    reasons = reasons_to_run(plan, store, last_record(folder, store))
    rows = [
        {
            **_row(node, of_stage(work, node, lengths), speed, workers),
            "reasons": reasons.get(node.instance, {}),
        }
        for node in plan.nodes
    ]
    return {
        "examples": work.n_examples,
        "queries": work.n_queries,
        "rejected": corpus.tables["rejected"].rows,
        "shards": len(corpus.tables["text"].shards),
        "stages": rows,
        "added": {
            node.instance: plan.readers(node.instance)
            for node in plan.nodes
            if node.instance in plan.added
        },
        "notes": notes,
        "workers": workers,
        "flops_per_second": speed,
        "written_bytes": sum(row["written_bytes"] for row in rows),
        "memory_bytes": max((row["memory_bytes"] for row in rows), default=0),
        "seconds": sum(row["seconds"] for row in rows),
    }


def estimate_on(run: Run, cluster: Cluster, size: CorpusSize) -> dict[str, Any]:
    """The cost of all of a run on a cluster, over a corpus of another size, as plain values.

    See `pipeline.forecast`; what is read, checked and written is as in `estimate`.

    Raises:
        pipeline.errors.RunError: the run cannot be planned.
    """
    store, folder = Store(run.store_url), RunFolder(Path(run.run))
    corpus = _read(run, store)
    work = size.of(work_of(corpus, store), run.shard_size)
    chosen_for = dataclasses.replace(
        size_of(corpus, store),
        n_examples=work.n_examples,
        first_examples=work.n_examples,
        n_queries=work.n_queries,
    )
    plan, notes = _planned(run, corpus, store, folder, chosen_for)
    speed = cluster.assumed.core_flops or flops_per_second()
    return {**forecast(plan, work, vector_lengths(plan, work), cluster, speed), "notes": notes}


def _read(run: Run, store: Store) -> Corpus:
    """The corpus of a run, of which nothing is written."""
    readers = Readers(stages_in_order(run)[0].values())
    return read_corpus(run, store, is_dry=True, readers=readers)


def _planned(
    run: Run, corpus: Corpus, store: Store, folder: RunFolder, size: Size | None = None
) -> tuple[Plan, list[str]]:
    """The plan of a run, as for a corpus of another size where one is given, and its notes."""
    last_artefacts = artefacts_of_last_run(run, folder)
    recorded = last_record(folder, store).get("tables", {})
    plan = make_plan(run, corpus, store, last_artefacts, size=size, recorded=recorded)
    return plan, [*plan.notes, *check_models(plan, store, is_dry=True)]


def _row(node: Node, work: Work, speed: float, workers: int) -> dict[str, Any]:
    """The cost of one stage, on this many workers of `speed` FLOP/s each."""
    cost = node.stage.cost(work)
    share = len(node.missing) / len(node.tasks) if node.tasks else 0.0
    n_tasks = len(node.missing)
    at_once = max(1, min(workers, n_tasks))
    scaled = {
        name: round(value * share)
        for name, value in dataclasses.asdict(cost).items()
        if name not in ("memory_bytes", "vector_length", "read_bytes", "note")
    }
    return {
        "stage": node.instance,
        "tasks": n_tasks,
        "at_most": bool(node.missing and node.stop_rule()),
        "reused": len(node.tasks) - n_tasks,
        **scaled,
        "memory_bytes": cost.memory_bytes if node.missing else 0,
        "how": cost.note,
        "seconds": (cost.flops * share / (speed * MODEL_EFFICIENCY) + TASK_S * n_tasks) / at_once,
    }
