"""The cost of a run, estimated before anything is computed: `assay plan`."""

import dataclasses
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.corpus import SOMETIMES, Corpus, read_corpus
from pipeline.errors import RunFolderError
from pipeline.folder import RunFolder
from pipeline.model_check import check_models
from pipeline.node import Node
from pipeline.plan import Plan, make_plan, stages_in_order
from pipeline.readers import Readers
from pipeline.reasons import reasons_to_run
from pipeline.run import artefacts_of_last_run
from pipeline.settings import Run
from stages.model.calibration import flops_per_second
from stages.stage import Work
from storage.table import Store

CHARACTERS_PER_TOKEN = 4.2
"""Of English text in the tokens of a language model."""
MODEL_EFFICIENCY = 0.5
"""Share of a bare matrix product's speed that models and solves reach; seen on MiniLM, one core."""


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
    store = Store(run.store_url)
    readers = Readers(stages_in_order(run)[0].values())
    corpus = read_corpus(run, store, is_dry=True, readers=readers)
    folder = RunFolder(Path(run.run))
    plan = make_plan(run, corpus, store, artefacts_of_last_run(run, folder))
    notes = [*plan.notes, *check_models(plan, store, is_dry=True)]
    n_bytes = sum(s.bytes for s in corpus.tables["text"].shards)
    work = Work(
        n_examples=corpus.rows("label", "example"),
        n_queries=corpus.rows("text", "query"),
        n_tokens=round(n_bytes / CHARACTERS_PER_TOKEN),
        n_classes=max(1, len(corpus.classes)),
        n_shards=sum(s.role == "example" for s in corpus.tables["text"].shards),
        dim=max(_lengths(corpus, plan), default=0),
    )
    speed = flops_per_second()
    workers = os.cpu_count() or 1 if run.ray.engine == "ray" else 1
    reasons = reasons_to_run(plan, store, _last_record(folder, store))
    rows = [
        {**_row(node, work, speed, workers), "reasons": reasons.get(node.instance, {})}
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


def _last_record(folder: RunFolder, store: Store) -> dict[str, Any]:
    """The record of the run's last execution in this store; empty where there is none."""
    with suppress(RunFolderError):
        record = folder.read_record()
        return record if folder.store().url == store.url else {}
    return {}


def _lengths(corpus: Corpus, plan: Plan) -> list[int]:
    """Lengths of the feature vectors, the corpus's and those that stages declare."""
    of_corpus = [corpus.tables[name].vector_length or 0 for name in SOMETIMES & set(corpus.tables)]
    return of_corpus + [node.stage.feature_dim or 0 for node in plan.nodes]


def _row(node: Node, work: Work, speed: float, workers: int) -> dict[str, Any]:
    """The cost of one stage, on this many workers of `speed` FLOP/s each."""
    cost = node.stage.cost(work)
    share = len(node.missing) / len(node.tasks) if node.tasks else 0.0
    at_once = max(1, min(workers, len(node.missing)))
    scaled = {
        name: round(value * share)
        for name, value in dataclasses.asdict(cost).items()
        if name not in ("memory_bytes", "note")
    }
    return {
        "stage": node.instance,
        "tasks": len(node.missing),
        "at_most": bool(node.missing and node.stop_rule()),
        "reused": len(node.tasks) - len(node.missing),
        **scaled,
        "memory_bytes": cost.memory_bytes if node.missing else 0,
        "how": cost.note,
        "seconds": cost.flops * share / (speed * MODEL_EFFICIENCY) / at_once,
    }
