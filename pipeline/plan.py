"""What a run will do: stages in order, their tasks, and the key of every shard.

The order follows from what stages read and write. Keys follow from keys (`storage.manifest`), so
the whole plan is known before anything is computed, and what is in the store already is simply not
planned again.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import ConfigFileError, Run, RunError, parse_stage, stage_name, stage_names
from pipeline.corpus import CORPUS, Corpus
from stages.model import ModelSpec, fingerprint
from stages.stage import Part, Stage
from storage.manifest import Manifest, digest, shard_key, table_key
from storage.schema import TableSpec
from storage.table import Store

CORPUS_INSTANCE = "corpus"


@dataclass(frozen=True)
class Task:
    """One part of a stage's work and the shard key of its rows."""

    part: Part
    key: str


@dataclass(frozen=True)
class Node:
    """A stage instance, where its inputs come from, and its tasks."""

    instance: str
    stage: Any
    reads: Mapping[str, tuple[str, str]]
    """For each name in the stage's `reads`: the instance and the table it stands for."""
    fields: Mapping[str, Any]
    """The fields that change rows."""
    tasks: tuple[Task, ...]
    inputs: Mapping[str, str]
    """For each name in `reads`: the manifest key of the table."""
    done: frozenset[str] = frozenset()
    """Keys of tasks whose shards are in the store already."""
    pinned: Mapping[str, Any] | None = None
    """For an artefact that is kept: its key and the key of the labels it was fitted on."""

    @property
    def missing(self) -> tuple[Task, ...]:
        """Tasks that must be computed."""
        return tuple(task for task in self.tasks if task.key not in self.done)

    def manifest_key(self, table: str) -> str:
        """Key of the manifest of one of the tables this instance writes."""
        return table_key(table, [(t.part.role, t.part.index, t.key) for t in self.tasks])


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


def stages_in_order(run: Run, name: str = "config") -> tuple[dict[str, Any], list[str]]:
    """Stage instances, every one after those it reads, and the names of those that were added.

    A table that is read and not written by any instance is taken from the stage of that name with
    its default fields.

    Raises:
        ConfigFileError: a table has no writer or several, or stages read each other in a circle.
    """
    stages = dict(run.stages)
    added = []
    pending = list(stages)
    while pending:
        instance = pending.pop()
        for read in stages[instance].reads:
            if read in CORPUS or _writers(read, stages):
                continue
            if read not in stage_names():
                raise ConfigFileError(
                    f"{name}: stages.{instance}: found that it reads {read!r}, which no stage "
                    f"writes, expected one of {', '.join(sorted([*CORPUS, *stages]))}. "
                    "Name an instance or a table that is there."
                )
            stages[read] = parse_stage(read, {}, run.model, name)
            added.append(read)
            pending.append(read)
    ordered: dict[str, Any] = {}
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
        reads = {
            read: (CORPUS_INSTANCE, read) if read in CORPUS else _writer(read, instance, stages, "")
            for read in stage.reads
        }
        fields = row_fields(stage, fingerprints)
        node = Node(instance, stage, reads, fields, (), _input_keys(reads, planned, corpus))
        node = dataclasses.replace(node, tasks=_tasks(node, planned, corpus))
        if getattr(stage, "is_kept", False):
            last = (before or {}).get(instance)
            node, note = _keep(node, run, planned, corpus, store, last)
            notes += [note] if note else []
        present = [store.shard_keys(spec.name) for spec in stage.writes]
        done = frozenset(t.key for t in node.tasks if all(t.key in keys for keys in present))
        planned[instance] = dataclasses.replace(node, done=done)
    return Plan(run, corpus, tuple(planned.values()), tuple(added), tuple(notes))


def row_fields(stage: Any, fingerprints: dict[ModelSpec, str]) -> dict[str, Any]:
    """The fields of a stage that change its rows, as plain values; models as fingerprints."""
    outside: frozenset[str] = getattr(stage, "outside_key", frozenset())
    plain = {}
    for f in dataclasses.fields(stage):
        value = getattr(stage, f.name)
        if f.name in outside:
            continue
        if isinstance(value, ModelSpec):
            if value not in fingerprints:
                fingerprints[value] = fingerprint(value)
            spec = dataclasses.asdict(value)
            hidden = {name.removeprefix(f"{f.name}.") for name in outside}
            spec = {k: v for k, v in spec.items() if k not in {"path", "revision", *hidden}}
            value = {**spec, "fingerprint": fingerprints[value]}
        plain[f.name] = _json(value)
    return plain


def _json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _json(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_json(v) for v in value]
    return value


def _writers(read: str, stages: Mapping[str, Any]) -> list[tuple[str, str]]:
    if read in stages:
        return [(read, spec.name) for spec in stages[read].writes]
    return [(i, s.name) for i, stage in stages.items() for s in stage.writes if s.name == read]


def _writer(read: str, reader: str, stages: Mapping[str, Any], name: str) -> tuple[str, str]:
    found = _writers(read, stages)
    if len(found) != 1:
        names = ", ".join(instance for instance, _ in found)
        raise ConfigFileError(
            f"{name}: stages.{reader}: found {len(found)} writers of {read!r} ({names}), expected "
            "one. Name the instance that is meant."
        )
    return found[0]


def _shards(
    source: tuple[str, str], planned: Mapping[str, Node], corpus: Corpus
) -> list[tuple[str, int, str]]:
    instance, table = source
    if instance == CORPUS_INSTANCE:
        return [(s.role, s.index, s.key) for s in corpus.tables[table].shards]
    return [(t.part.role, t.part.index, t.key) for t in planned[instance].tasks]


def _input_keys(
    reads: Mapping[str, tuple[str, str]], planned: Mapping[str, Node], corpus: Corpus
) -> dict[str, str]:
    return {
        read: table_key(source[1], _shards(source, planned, corpus))
        for read, source in reads.items()
    }


def _tasks(node: Node, planned: Mapping[str, Node], corpus: Corpus) -> tuple[Task, ...]:
    stage: Stage = node.stage
    name, version = stage_name(stage), stage.version
    whole = [node.inputs[read] for read in node.reads]
    if stage.split == "whole":
        return (Task(Part("", 0), shard_key(name, version, node.fields, whole, 0)),)
    if stage.split == "round":
        rounds = int(getattr(stage, "rounds", 1))
        return tuple(
            Task(Part("", r), shard_key(name, version, node.fields, whole, r))
            for r in range(rounds)
        )
    cuts = {read: _shards(source, planned, corpus) for read, source in node.reads.items()}
    tasks = []
    for shard in corpus.tables["text"].shards:
        if stage.split == "query" and shard.role != "query":
            continue
        keys = []
        for read in node.reads:
            own = [k for role, index, k in cuts[read] if (role, index) == (shard.role, shard.index)]
            if own and stage.split == "query":
                examples = [list(cut) for cut in cuts[read] if cut[0] == "example"]
                own = [digest([own, examples])]
            keys.append(own[0] if own else node.inputs[read])
        part = Part(shard.role, shard.index)
        tasks.append(Task(part, shard_key(name, version, node.fields, keys, 0)))
    return tuple(tasks)


def _keep(
    node: Node,
    run: Run,
    planned: Mapping[str, Node],
    corpus: Corpus,
    store: Store,
    last: str | None,
) -> tuple[Node, str | None]:
    """The node with the artefact it should use: pinned, found in the store, or to be fitted.

    An artefact is kept when one of the same stage and fields was fitted on shards that are still
    part of this corpus: correcting labels or appending rows then recomputes no feature.
    """
    labels = corpus.tables["label"].key
    wish = run.artefacts.get(node.instance)
    fresh = dataclasses.replace(
        node, pinned={"key": node.tasks[0].key, "labels": node.inputs.get("label", labels)}
    )
    table = node.stage.writes[0].name
    if wish == "refit":
        return fresh, None
    if isinstance(wish, Mapping) and {"key", "labels"} <= set(wish):
        key = str(wish["key"])
        if key == fresh.tasks[0].key:
            return fresh, None
        labels = str(wish["labels"])
        if key not in store.shard_keys(table):
            raise RunError(
                f"artefacts.{node.instance}: found no artefact {key} in {store.url}, expected the "
                f"one this run was pinned to (fitted on labels {labels}). Use the store that holds "
                f"it, or set artefacts.{node.instance}=refit ({node.instance}: refit) to fit a new "
                "one."
            )
        if not _ask_the_same(labels, corpus, store):
            raise RunError(
                f"artefacts.{node.instance}: found {key}, which was fitted on other classes or "
                f"another label column, expected one for {', '.join(corpus.classes)}. Set "
                f"artefacts.{node.instance}=refit to fit a new one."
            )
        return _pinned(node, key, labels), _kept_note(node.instance, key)
    if wish is not None:
        raise ConfigFileError(
            f"artefacts.{node.instance}: found {wish!r}, expected `refit` or a mapping with key "
            "and labels. Remove the entry to keep the artefact that is there."
        )
    found = _fitted_before(node, planned, corpus, store, last)
    if found is None or found[0] == fresh.tasks[0].key:
        return fresh, None
    key, fitted_on = found
    if key != last and fresh.tasks[0].key in store.shard_keys(table):
        return fresh, None
    return _pinned(node, key, fitted_on), _kept_note(node.instance, key)


def _kept_note(instance: str, key: str) -> str:
    return (
        f"{instance} {key} is kept: it was fitted on an earlier state of this corpus and its "
        f"labels. Set artefacts.{instance}=refit to fit it anew."
    )


def _pinned(node: Node, key: str, labels: str) -> Node:
    task = Task(node.tasks[0].part, key)
    return dataclasses.replace(node, tasks=(task,), pinned={"key": key, "labels": labels})


def _fitted_before(
    node: Node, planned: Mapping[str, Node], corpus: Corpus, store: Store, last: str | None
) -> tuple[str, str] | None:
    """Key and labels of the artefact of this kind whose labels have most shards in common.

    `last` goes before all others, then the newest. The features that the artefact was fitted on
    must be those of this corpus, by half or more.
    """
    name, table = stage_name(node.stage), node.stage.writes[0].name
    shard_sets = {
        read: {key for _, _, key in _shards(source, planned, corpus)}
        for read, source in node.reads.items()
        if read != "label"
    }
    labels = {shard.key for shard in corpus.tables["label"].shards}
    best: tuple[int, str, str] | None = None
    for manifest_key in reversed(store.manifest_keys(table)):
        manifest = store.read_manifest(table, manifest_key)
        if (manifest.stage, manifest.version) != (name, node.stage.version):
            continue
        if dict(manifest.fields) != dict(node.fields):
            continue
        fitted_on = manifest.inputs.get("label", "")
        if not _ask_the_same(fitted_on, corpus, store):
            continue
        if all(
            _overlap(manifest, read, keys, node.reads[read][1], store) >= 0.5
            for read, keys in shard_sets.items()
        ):
            key = manifest.shards[0].key
            if key == last:
                return key, fitted_on
            before = store.read_manifest("label", fitted_on).shards
            common = len(labels & {shard.key for shard in before})
            if best is None or common > best[0]:
                best = common, key, fitted_on
    return best[1:] if best is not None else None


def _ask_the_same(fitted_on: str, corpus: Corpus, store: Store) -> bool:
    """Whether the labels an artefact was fitted on answer the same question as the corpus's.

    A corrected label does; another column, other classes or labels flipped on purpose do not.
    """
    if not store.has_manifest("label", fitted_on):
        return False
    before, now = store.read_manifest("label", fitted_on).details, corpus.tables["label"].details
    return all(before.get(name) == now.get(name) for name in ("classes", "column", "flip_labels"))


def _overlap(manifest: Manifest, read: str, keys: set[str], table: str, store: Store) -> float:
    """Share of the rows the artefact was fitted on that are still part of this corpus."""
    key = manifest.inputs.get(read)
    if key is None or not store.has_manifest(table, key):
        return 0.0
    shards = [s for s in store.read_manifest(table, key).shards if s.role != "query"]
    rows = sum(s.rows for s in shards)
    return sum(s.rows for s in shards if s.key in keys) / rows if rows else 0.0


def specs(stages: Sequence[Any]) -> dict[str, TableSpec]:
    """Table declarations of all `stages`, by table name."""
    return {spec.name: spec for stage in stages for spec in stage.writes}
