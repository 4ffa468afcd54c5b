"""The cost of a run, estimated before anything is computed: `assay plan`."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.cluster_size import Cluster, CorpusSize
from pipeline.corpus import Corpus, read_corpus
from pipeline.folder import RunFolder
from pipeline.forecast import forecast
from pipeline.model_check import check_models
from pipeline.node import Node
from pipeline.number_types import in_bfloat16
from pipeline.plan import Plan, make_plan, stages_in_order
from pipeline.progress import seconds_text
from pipeline.readers import Readers
from pipeline.reasons import reasons_to_run
from pipeline.run import artefacts_of_last_run
from pipeline.run_record import last_record
from pipeline.settings import Run
from pipeline.sizes import size_of
from pipeline.work_size import TableSizes, of_stage, table_sizes, work_of
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
    sizes = table_sizes(plan, work)
    speeds = _speeds(plan)
    cores = os.cpu_count() or 1
    reasons = reasons_to_run(plan, store, last_record(folder, store))
    rows = [
        {
            **_row(node, of_stage(work, node, sizes), speeds, _workers(run, node, cores)),
            **_of_all_rows(node, work, sizes, speeds, _workers(run, node, cores)),
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
        "workers": cores if run.ray.engine == "ray" else 1,
        "flops_per_second": speeds[False],
        "bfloat16_flops_per_second": speeds.get(True),
        "written_bytes": sum(row["written_bytes"] for row in rows),
        "memory_bytes": max((row["memory_bytes"] for row in rows), default=0),
        "seconds": sum(row["seconds"] for row in rows),
    }


def _speeds(plan: Plan) -> dict[bool, float]:
    """FLOP/s of a core, measured now; under True those in bfloat16, where a stage needs them."""
    is_used = any(node.missing and in_bfloat16(node.stage) for node in plan.nodes)
    in_it = {True: flops_per_second("bfloat16")} if is_used else {}
    return {False: flops_per_second(), **in_it}


class _Workers(NamedTuple):
    """The workers of a stage on this machine."""

    most: int
    cores: int
    """Of each that have work at once."""


def _workers(run: Run, node: Node, cores: int) -> _Workers:
    """The workers that a machine of so many cores has room for, as `ray` says of the stage."""
    own = run.resources(node.instance)
    if run.ray.engine != "ray":
        return _Workers(1, min(own.cpus, cores))
    most = max(1, cores // max(1, own.cpus))
    return _Workers(min(most, own.workers or most), min(own.cpus, cores))


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
    return {**forecast(plan, work, table_sizes(plan, work), cluster, speed), "notes": notes}


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


def _of_all_rows(
    node: Node, work: Work, sizes: TableSizes, speeds: Mapping[bool, float], workers: _Workers
) -> dict[str, Any]:
    """What a stage over chosen rows would take over all of them; empty for others."""
    own = of_stage(work, node, sizes)
    if own.n_examples == work.n_examples:
        return {}
    all_rows = dataclasses.replace(work, dim=own.dim)
    seconds = _row(node, all_rows, speeds, workers)["seconds"]
    share = own.n_examples / work.n_examples
    note = f"{share:.0%} of the examples; all would take {seconds_text(seconds)}"
    cost = node.stage.cost(own)
    return {"seconds_of_all_rows": seconds, "how": f"{cost.note}; {note}" if cost.note else note}


def _row(node: Node, work: Work, speeds: Mapping[bool, float], workers: _Workers) -> dict[str, Any]:
    """The cost of one stage, on these workers of so many FLOP/s a core (`_speeds`)."""
    cost = node.stage.cost(work)
    share = len(node.missing) / len(node.tasks) if node.tasks else 0.0
    n_tasks = len(node.missing)
    at_once = max(1, min(workers.most, n_tasks))
    speed = speeds.get(in_bfloat16(node.stage), speeds[False])
    of_worker = speed * MODEL_EFFICIENCY * workers.cores
    # The last turn takes as long as the others, with however few tasks.
    turns = -(-n_tasks // at_once)
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
        "seconds": (cost.flops / max(1, len(node.tasks)) / of_worker + TASK_S) * turns,
    }
