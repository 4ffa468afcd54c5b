"""The plan of a run: stages in order, their tasks, and the key of every shard.

The order follows from the tables that stages read and write. Keys follow from keys
(`storage.manifest`), so the whole plan is known before anything is computed, and tasks whose shards
are in the store already, with the sizes that their manifest lists, are marked as done.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.added import addition_notes, names_in_keys, with_added, writers_of
from pipeline.artefact import choose_artefact
from pipeline.config import plain, stage_name
from pipeline.corpus import CORPUS, Corpus
from pipeline.errors import ConfigFileError
from pipeline.kept_rows import keep_judged
from pipeline.max_length import length_notes, with_max_lengths
from pipeline.merge_tree import grow, not_needed
from pipeline.node import CORPUS_INSTANCE, Node, Task, shards_of
from pipeline.number_types import bfloat16_notes
from pipeline.plan_checks import (
    check_fit,
    check_reads,
    check_rounds,
    check_tables,
    with_class_order,
)
from pipeline.settings import Run
from pipeline.sizes import choice_notes, size_of
from stages.capabilities import Merges
from stages.model.hub import content_digest, fingerprint
from stages.model.spec import ModelSpec
from stages.stage import Part, Size, Stage
from storage.damage import Claim, Examination
from storage.manifest import Recipe, canonical, digest_with, table_key
from storage.table import Store

YOUNG: Mapping[str, Any] = {
    "class_order": None,
    "dtype": "float32",
    "attn_implementation": None,
    "trust_remote_code": False,
}
"""Fields of a model that are younger than some stores: keys leave these usual values out."""


@dataclass(frozen=True)
class Plan:
    """A run's stages in order, each with its tasks, over one state of the corpus."""

    run: Run
    corpus: Corpus
    nodes: tuple[Node, ...]
    added: tuple[str, ...] = ()
    """Stage instances that the YAML does not name, added because others read their tables."""
    notes: tuple[str, ...] = field(default=())
    """Sentences for the user about choices that the plan made."""

    def readers(self, instance: str) -> list[str]:
        """The instances that read a table of `instance`."""
        return [n.instance for n in self.nodes if instance in dict(n.reads.values())]


def stages_in_order(
    run: Run, name: str = "config", size: Size | None = None
) -> tuple[dict[str, Stage], list[str]]:
    """The stages by instance, each after those that it reads, and the names of added instances.

    `name` is what errors call the configuration; with the `size` of the corpus, stages choose by it
    what their fields leave open.

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
    stages, added = with_added(run, name, size)
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
                "Remove one of the fields that name another of them."
            )
        ordered.update((instance, stages[instance]) for instance in ready)
    return ordered, added


def make_plan(
    run: Run,
    corpus: Corpus,
    store: Store,
    last_artefacts: Mapping[str, str] | None = None,
    is_dry: bool = True,
    size: Size | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan of `run` over `corpus`; tasks whose shards lie in `store` are marked as done.

    Unless `is_dry`, the store keeps the size by which stages choose (`pipeline.sizes`). With
    another `size` they choose as for a corpus of that.

    `last_artefacts` holds, by instance, the keys of the artefacts that the run used the last time;
    they are used again where they still fit the corpus. `recorded` holds, by instance and table,
    the shards of that time, of which `old_rows: kept` keeps some.

    Raises:
        ConfigFileError: the stages do not fit together.
        RunError: a pinned artefact is not in the store.
    """
    size = size or size_of(corpus, store, is_dry)
    run, chosen = with_max_lengths(run, corpus, store, is_dry)
    stages, added = stages_in_order(run, size=size)
    stages, notes = with_class_order(stages, corpus)
    notes = [*chosen, *notes]
    if size.first_examples < size.n_examples:
        as_new = dataclasses.replace(size, first_examples=size.n_examples)
        notes += choice_notes(
            stages, with_class_order(stages_in_order(run, size=as_new)[0], corpus)[0]
        )
    fingerprints: dict[ModelSpec, str] = {}
    planned: dict[str, Node] = {}
    # First what a person has named: of what it would add they know nothing.
    for instance in sorted(stages, key=added.__contains__):
        root = _root(instance, stages, added) if instance in added else None
        check_fit(instance, stages[instance], corpus, root)
    for instance, stage in stages.items():
        reads = sources(instance, stages)
        check_tables(instance, stage, reads, stages)
        check_reads(
            instance, stage, {read: stages.get(source[0]) for read, source in reads.items()}
        )
        check_rounds(instance, reads, planned)
        fields = row_fields(stage, fingerprints, stages, corpus.has_chats)
        node = Node(instance, stage, reads, fields, (), _input_keys(reads, planned, corpus))
        node = dataclasses.replace(node, tasks=tasks_of(node, planned, corpus))
        if stage.is_kept:
            last = (last_artefacts or {}).get(instance)
            node, note = choose_artefact(node, run, planned, corpus, store, last)
            notes += [note] if note else []
        if run.old_rows == "kept" and stage.judges_rows and not _is_read_beside(instance, stages):
            node, note = keep_judged(node, planned, corpus, store, recorded or {})
            notes += [note] if note else []
        present = [_whole_shards(node, spec.name, store) for spec in stage.writes]
        done = frozenset(t.key for t in node.tasks if all(t.key in keys for keys in present))
        if isinstance(stage, Merges):
            done = not_needed(node.tasks, set(done))
        planned[instance] = dataclasses.replace(node, done=done)
    plan = Plan(run, corpus, tuple(planned.values()), tuple(added))
    added_notes = addition_notes({instance: plan.readers(instance) for instance in added}, stages)
    notes += [*length_notes(plan.nodes, corpus), *_code_notes(fingerprints)]
    notes += bfloat16_notes(run, plan.nodes)
    return dataclasses.replace(plan, notes=(*corpus.notices, *added_notes, *notes))


def _code_notes(models: Iterable[ModelSpec]) -> list[str]:
    """A sentence for each model whose own Python code may run."""
    paths = sorted({model.path for model in models if model.trust_remote_code})
    return [f"{path}: its Python code runs with your rights (trust_remote_code)" for path in paths]


def _is_read_beside(instance: str, stages: Mapping[str, Stage]) -> bool:
    """Whether a stage reads another table of an instance than its first, such as a fit's weights.

    These make sense together alone, and not beside those of an older fit.
    """
    beside = {(instance, spec.name) for spec in stages[instance].writes[1:]}
    return any(beside & set(sources(other, stages).values()) for other in stages)


def _whole_shards(node: Node, table: str, store: Store) -> set[str]:
    """Keys of the shards of a table that lie in the store, by their sizes whole."""
    claim = Claim(table, node.manifest_key(table), tuple(task.key for task in node.tasks))
    damaged = {damage.name for damage in Examination(store, 0).of(claim)}
    return {key for key in store.shard_keys(table) if f"{key}.parquet" not in damaged}


def sources(instance: str, stages: Mapping[str, Stage]) -> dict[str, tuple[str, str]]:
    """For each name that an instance reads: the instance that writes it, and the table."""
    return {
        read: (CORPUS_INSTANCE, read) if read in CORPUS else _writer(read, instance, stages, "")
        for read in stages[instance].reads
    }


def row_fields(
    stage: Stage,
    fingerprints: dict[ModelSpec, str],
    stages: Mapping[str, Stage],
    has_chats: bool = False,
) -> dict[str, Any]:
    """The fields of a stage that change its rows, as plain values, with models as fingerprints.

    `fingerprints` keeps those of models that were read before; `has_chats` says whether the corpus
    holds conversations, whose tokens chat templates decide.
    """
    in_keys = names_in_keys(stage, stages)
    fields = {}
    for f in dataclasses.fields(stage):
        value = in_keys.get(f.name, getattr(stage, f.name))
        if f.name in stage.outside_key:
            continue
        if isinstance(value, ModelSpec):
            if value not in fingerprints:
                fingerprints[value] = fingerprint(value, has_chats)
            spec = dataclasses.asdict(value)
            hidden = {name.removeprefix(f"{f.name}.") for name in stage.outside_key}
            spec = {
                k: v for k, v in spec.items() if k not in {"path", "revision", "adapter", *hidden}
            }
            for name, usual in YOUNG.items():
                if name in spec and spec[name] == usual:
                    del spec[name]
            value = {**spec, "fingerprint": fingerprints[value]}
        fields[f.name] = plain(value)
    fields |= {path.name: content_digest(path).hex()[:16] for path in stage.key_files}
    return fields


def _root(instance: str, stages: Mapping[str, Stage], added: Iterable[str]) -> str:
    """A stage of the YAML that an added instance is for."""
    while instance in added:
        instance = next(i for i in stages if instance in dict(sources(i, stages).values()))
    return instance


def _writer(read: str, reader: str, stages: Mapping[str, Stage], name: str) -> tuple[str, str]:
    """The instance and table that `reader` reads as `read`; raises unless there is just one."""
    writers = writers_of(read, stages)
    if len(writers) != 1:
        names = ", ".join(instance for instance, _ in writers)
        raise ConfigFileError(
            f"{name}: stages.{reader}: found {len(writers)} writers of {read!r} ({names}), "
            "expected one. Name the instance that is meant."
        )
    return writers[0]


def _input_keys(
    reads: Mapping[str, tuple[str, str]], planned: Mapping[str, Node], corpus: Corpus
) -> dict[str, str]:
    """For each name that a stage reads: the manifest key of its table."""
    return {
        read: table_key(source[1], shards_of(source, planned, corpus))
        for read, source in reads.items()
    }


def tasks_of(node: Node, planned: Mapping[str, Node], corpus: Corpus) -> tuple[Task, ...]:
    """The tasks of a node: one for the whole, for each round, or for each shard that it works on.

    A task's key follows from the keys of the shards or whole tables that it reads.
    """
    stage = node.stage
    recipe = Recipe(stage_name(stage), stage.version, node.fields, stage.writes)
    table_keys = [node.inputs[read] for read in node.reads]
    if stage.split == "whole":
        return (Task(Part("", 0), recipe.key(table_keys)),)
    if stage.split == "round":
        return tuple(Task(Part("", r), recipe.key(table_keys, r)) for r in range(stage.n_rounds))
    shards_per_part = stage.shards_per_part if isinstance(stage, Merges) else 1
    shards = {read: shards_of(source, planned, corpus) for read, source in node.reads.items()}
    by_part = {read: {(role, i): key for role, i, key in cut} for read, cut in shards.items()}
    # Of these roles every task reads all rows, beside its own shard.
    read_whole = ("example",) if stage.split == "query" else stage.opens
    wholes = {
        read: canonical([cut for cut in shards[read] if cut[0] in read_whole])
        for read in (node.reads if read_whole else ())
    }
    parts: dict[Part, list[str]] = {}
    for shard in corpus.tables["text"].shards:
        if stage.split == "query" and shard.role != "query":
            continue
        if isinstance(stage, Merges) and shard.role != "example":
            continue
        if stage.split == "shard" and shard.role not in stage.roles:
            continue
        first = shard.index - shard.index % shards_per_part
        keys = parts.setdefault(Part(shard.role, first, shards_per_part), [])
        for read in node.reads:
            key = by_part[read].get((shard.role, shard.index))
            if key is not None and read_whole:
                key = digest_with(key, wholes[read])
            keys.append(key or node.inputs[read])
    tasks = [Task(part, recipe.key(keys)) for part, keys in parts.items()]
    return grow(tasks, recipe) if isinstance(stage, Merges) else tuple(tasks)
