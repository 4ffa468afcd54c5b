"""What a run will do: stages in order, their tasks, and the key of every shard.

The order follows from what stages read and write. Keys follow from keys (`storage.manifest`), so
the whole plan is known before anything is computed, and what is in the store already is simply not
planned again.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.added import in_keys, told, with_added, writers_of
from pipeline.artefact import choose_artefact
from pipeline.config import plain, stage_name
from pipeline.corpus import CORPUS, Corpus
from pipeline.errors import ConfigFileError
from pipeline.merge_tree import grow, not_needed
from pipeline.node import CORPUS_INSTANCE, Node, Task, shards_of
from pipeline.plan_checks import check_fit, check_reads, check_rounds
from pipeline.settings import Run
from stages.model.hub import fingerprint
from stages.model.spec import ModelSpec
from stages.stage import Merges, Part, Stage
from storage.manifest import Recipe, digest, table_key
from storage.table import Store


@dataclass(frozen=True)
class Plan:
    """A run's stages in order, over one state of the corpus."""

    run: Run
    corpus: Corpus
    nodes: tuple[Node, ...]
    added: tuple[str, ...] = ()
    """Stages that the YAML does not name and that others need."""
    notes: tuple[str, ...] = field(default=())
    """Sentences about choices that a person should hear of."""

    def readers(self, instance: str) -> list[str]:
        """The instances that read a table of this one."""
        return [n.instance for n in self.nodes if instance in dict(n.reads.values())]


def stages_in_order(run: Run, name: str = "config") -> tuple[dict[str, Stage], list[str]]:
    """Stage instances, every one after those it reads, and the names of those that were added.

    Raises:
        ConfigFileError: a table has no writer or several, a stage has the name of a corpus table,
            or stages read each other in a circle.
    """
    for instance in run.stages:
        if instance in CORPUS:
            raise ConfigFileError(
                f"{name}: stages.{instance}: found the name of a table of the corpus, expected "
                "another. Rename the stage; `stage:` says which it is."
            )
    stages, added = with_added(run, name)
    ordered: dict[str, Stage] = {}
    while len(ordered) < len(stages):
        ready = [
            instance
            for instance, stage in stages.items()
            if instance not in ordered
            and all(
                read in CORPUS or _writer(read, instance, stages, name)[0] in ordered
                for read in stage.reads
            )
        ]
        if not ready:
            circle = ", ".join(i for i in stages if i not in ordered)
            raise ConfigFileError(
                f"{name}: stages: found that {circle} wait for each other, expected an order. "
                "Remove one of the readings."
            )
        ordered.update((instance, stages[instance]) for instance in ready)
    return ordered, added


def make_plan(
    run: Run, corpus: Corpus, store: Store, before: Mapping[str, str] | None = None
) -> Plan:
    """The plan of `run` over `corpus`, with what lies in `store` marked as done.

    `before` names the artefacts that the run used the last time, by instance; they are used again
    where they still fit the corpus.

    Raises:
        ConfigFileError: the stages do not fit together.
        RunError: a pinned artefact is not in the store.
    """
    stages, added = stages_in_order(run)
    fingerprints: dict[ModelSpec, str] = {}
    planned: dict[str, Node] = {}
    notes: list[str] = []
    for instance, stage in stages.items():
        check_fit(instance, stage, corpus)
        reads = sources(instance, stages)
        check_reads(
            instance, stage, {read: stages.get(source[0]) for read, source in reads.items()}
        )
        check_rounds(instance, reads, planned)
        fields = row_fields(stage, fingerprints, stages)
        node = Node(instance, stage, reads, fields, (), _input_keys(reads, planned, corpus))
        node = dataclasses.replace(node, tasks=_tasks(node, planned, corpus))
        if stage.is_kept:
            last = (before or {}).get(instance)
            node, note = choose_artefact(node, run, planned, corpus, store, last)
            notes += [note] if note else []
        present = [store.shard_keys(spec.name) for spec in stage.writes]
        done = frozenset(t.key for t in node.tasks if all(t.key in keys for keys in present))
        if isinstance(stage, Merges):
            done = not_needed(node.tasks, set(done))
        planned[instance] = dataclasses.replace(node, done=done)
    plan = Plan(run, corpus, tuple(planned.values()), tuple(added))
    several = told({instance: plan.readers(instance) for instance in added}, stages)
    return dataclasses.replace(plan, notes=(*several, *notes))


def sources(instance: str, stages: Mapping[str, Stage]) -> dict[str, tuple[str, str]]:
    """For each name that an instance reads: the instance and the table that it stands for."""
    return {
        read: (CORPUS_INSTANCE, read) if read in CORPUS else _writer(read, instance, stages, "")
        for read in stages[instance].reads
    }


def row_fields(
    stage: Stage, fingerprints: dict[ModelSpec, str], stages: Mapping[str, Stage]
) -> dict[str, Any]:
    """The fields of a stage that change its rows, as plain values; models as fingerprints."""
    named = in_keys(stage, stages)
    found = {}
    for f in dataclasses.fields(stage):
        value = named.get(f.name, getattr(stage, f.name))
        if f.name in stage.outside_key:
            continue
        if isinstance(value, ModelSpec):
            if value not in fingerprints:
                fingerprints[value] = fingerprint(value)
            spec = dataclasses.asdict(value)
            hidden = {name.removeprefix(f"{f.name}.") for name in stage.outside_key}
            spec = {
                k: v for k, v in spec.items() if k not in {"path", "revision", "adapter", *hidden}
            }
            value = {**spec, "fingerprint": fingerprints[value]}
        found[f.name] = plain(value)
    return found


def _writer(read: str, reader: str, stages: Mapping[str, Stage], name: str) -> tuple[str, str]:
    found = writers_of(read, stages)
    if len(found) != 1:
        names = ", ".join(instance for instance, _ in found)
        raise ConfigFileError(
            f"{name}: stages.{reader}: found {len(found)} writers of {read!r} ({names}), expected "
            "one. Name the instance that is meant."
        )
    return found[0]


def _input_keys(
    reads: Mapping[str, tuple[str, str]], planned: Mapping[str, Node], corpus: Corpus
) -> dict[str, str]:
    return {
        read: table_key(source[1], shards_of(source, planned, corpus))
        for read, source in reads.items()
    }


def _tasks(node: Node, planned: Mapping[str, Node], corpus: Corpus) -> tuple[Task, ...]:
    stage = node.stage
    recipe = Recipe(stage_name(stage), stage.version, node.fields, stage.writes)
    whole = [node.inputs[read] for read in node.reads]
    if stage.split == "whole":
        return (Task(Part("", 0), recipe.key(whole)),)
    if stage.split == "round":
        return tuple(Task(Part("", r), recipe.key(whole, r)) for r in range(stage.rounds))
    cuts = {read: shards_of(source, planned, corpus) for read, source in node.reads.items()}
    place = {read: {(role, i): key for role, i, key in cut} for read, cut in cuts.items()}
    beside = ("example",) if stage.split == "query" else stage.opens
    tasks = []
    for shard in corpus.tables["text"].shards:
        if stage.split == "query" and shard.role != "query":
            continue
        if isinstance(stage, Merges) and shard.role != "example":
            continue
        keys = []
        for read in node.reads:
            own = place[read].get((shard.role, shard.index))
            if own is not None and beside:
                own = digest([own, [list(cut) for cut in cuts[read] if cut[0] in beside]])
            keys.append(own or node.inputs[read])
        part = Part(shard.role, shard.index)
        tasks.append(Task(part, recipe.key(keys)))
    return grow(tasks, recipe) if isinstance(stage, Merges) else tuple(tasks)
