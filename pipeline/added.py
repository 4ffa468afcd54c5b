"""Stage instances that are added to a run because others read their tables.

A table that no instance of the YAML writes comes from an added instance of the stage with the
table's name. Its fields are those that its reader requests (`Stage.asks`), or the defaults. Readers
that request equal fields share one instance. Where requests differ, the instance with the defaults
has the stage's name, or else the one whose reader is the first in the alphabet; the others are
named after the stage of the YAML that needs them, such as `gradient_for_influence`, and the fields
of their readers name them so. Names hence do not depend on the order of the YAML, and the resolved
YAML, which writes all instances out, repeats the run.

In keys the name `gradient_for_influence` stands as `gradient` (`names_in_keys`): the keys of the
inputs say which rows are read, so runs with one such instance and runs with two share what is
computed from equal rows. Names that a person chose stand in keys as they are written.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import yaml

from pipeline.config import parse_stage, plain, stage_name
from pipeline.corpus import CORPUS
from pipeline.errors import ConfigFileError
from pipeline.plan_checks import check_model, check_task
from pipeline.settings import FOR, Run
from stages.catalogue import stage_names
from stages.stage import Size, Stage
from storage.names import near

NAMES = (str, str | None, tuple[str, ...])
"""Types of the fields in which a stage names the tables or instances that it reads."""


def with_added(run: Run, name: str, size: Size | None = None) -> tuple[dict[str, Stage], list[str]]:
    """The stages by instance, those of the YAML and added ones, and the names of the added ones.

    `name` is what errors call the YAML; with the `size` of the corpus, stages choose by it what
    their fields leave open.

    Raises:
        ConfigFileError: a stage reads a table that no stage writes, or an added stage needs a model
            and the run has none.
    """
    return _AddedStages(run, name, size).named()


def writers_of(read: str, stages: Mapping[str, Stage]) -> list[tuple[str, str]]:
    """The instances that write what a stage reads as `read`, each with the table it stands for."""
    instance, _, table = read.partition(".")
    if table and instance in stages:
        return [(instance, spec.name) for spec in stages[instance].writes if spec.name == table]
    if read in stages:
        # A stage's first table is its own; others, such as diagnostics, lie beside it.
        return [(read, stages[read].writes[0].name)]
    beside = [(i, s.name) for i, stage in stages.items() for s in stage.writes if s.name == read]
    # An instance that is named after its reader is for no other.
    return [writer for writer in beside if not _is_named_after_reader(writer[0], stages)] or beside


def names_in_keys(stage: Stage, stages: Mapping[str, Stage]) -> dict[str, Any]:
    """The fields of a stage that name instances called after their readers, as keys hold them."""
    instances = {name.partition(".")[0] for name in stage.reads} & set(stages)
    names = {i: stage_name(stages[i]) for i in instances if _is_named_after_reader(i, stages)}
    return _renamed(stage, names)


def addition_notes(
    added: Mapping[str, Sequence[str]], stages: Mapping[str, Stage]
) -> Iterator[str]:
    """Sentences about stages that are added more than once; `added` holds readers by instance."""
    for instance, readers in added.items():
        kind = stage_name(stages[instance])
        if instance != kind:
            yield (
                f"{instance} is added for {' and '.join(readers)}, beside {kind} for "
                f"{' and '.join(added[kind])}: it has "
                f"{_difference(plain(stages[instance]), plain(stages[kind]))}."
            )


class _AddedStages:
    """The stages of a run while others are added; these have temporary names until `named`."""

    def __init__(self, run: Run, name: str, size: Size | None) -> None:
        self._run, self._name, self._size = run, name, size
        self._stages: dict[str, Stage] = dict(run.stages)
        self._requested: dict[str, Stage] = {}
        """Added stages, with the fields that their readers requested, by temporary name."""
        self._readers: dict[str, list[str]] = {}
        for instance, stage in run.stages.items():
            # First what a person has named: of what it would add they know nothing.
            check_task(instance, stage, run.corpus.task)
        pending = list(run.stages)
        while pending:
            pending += self._settle(pending.pop())

    def named(self) -> tuple[dict[str, Stage], list[str]]:
        """All stages under their final names, pointing to these, and the names of those added."""
        names: dict[str, str] = {}
        taken = set(self._run.stages)
        for kind in sorted({stage_name(stage) for stage in self._requested.values()}):
            of_kind = [instance for instance in self._requested if self._kind(instance) == kind]
            of_kind.sort(key=lambda instance: (instance != kind, self._root(instance)))
            for instance in of_kind:
                final = kind if instance == of_kind[0] else f"{kind}{FOR}{self._root(instance)}"
                while final in taken:
                    final += "_too"
                taken.add(final)
                names[instance] = final
        stages = {
            names.get(instance, instance): _with_names(stage, names)
            for instance, stage in self._stages.items()
        }
        return stages, [names[instance] for instance in self._requested]

    def _settle(self, instance: str) -> list[str]:
        """Makes an instance name the instances that it reads; returns those added for it."""
        self._stages[instance] = self._sized(self._stages[instance])
        new: list[str] = []
        seen: set[str] = set()
        while unseen := [read for read in self._stages[instance].reads if read not in seen]:
            read = unseen[0]
            stage = self._stages[instance]
            writer = self._writer(read, stage, instance, new)
            seen |= {read, writer}
            self._stages[instance] = _with_names(stage, {read: writer})
        return new

    def _sized(self, stage: Stage) -> Stage:
        """The stage with what it chooses by the size of the corpus, where that is known."""
        if self._size is None:
            return stage
        known = [
            (name, self._stages[name].feature_dim) for name in stage.reads if name in self._stages
        ]
        lengths = {name: dim for name, dim in known if dim is not None}
        return stage.sized(
            dataclasses.replace(self._size, lengths={**self._size.lengths, **lengths})
        )

    def _writer(self, read: str, stage: Stage, reader: str, new: list[str]) -> str:
        """The name of the table or instance that `stage`, the instance `reader`, reads as `read`.

        An instance that has to be added is appended to `new`.
        """
        if read in CORPUS or writers_of(read, self._run.stages):
            return read
        fields = dict(stage.asks.get(read, {}))
        kind = self._kind(read)
        of_kind = [instance for instance in self._requested if self._kind(instance) == kind]
        # What was added for another reader writes this table, too, and is not the stage of its
        # name: served with it, rows would depend on the order of the file.
        if kind not in stage_names() and writers_of(read, self._stages):
            return read
        if kind not in stage_names():
            known = sorted([*CORPUS, *self._run.stages])
            raise ConfigFileError(
                f"{self._name}: stages.{reader}: found that it reads {read!r}, which no stage "
                f"writes{near(read, known)}, expected one of {', '.join(known)}. "
                "Name an instance or a table that is there."
            )
        if "model" not in fields:
            check_model(kind, self._kind(reader), self._root(reader), self._run, self._name)
        requested = parse_stage(kind, fields, self._run.model, self._name)
        equal = [instance for instance in of_kind if self._requested[instance] == requested]
        if read in self._requested and read not in stage.asks:
            writer = read
        elif equal:
            writer = equal[0]
        else:
            has_defaults = self._has_defaults(kind, requested)
            writer = kind if has_defaults else self._temporary_name(kind)
            self._stages[writer] = self._requested[writer] = requested
            new.append(writer)
        self._readers.setdefault(writer, []).append(reader)
        return writer

    def _has_defaults(self, kind: str, requested: Stage) -> bool:
        try:
            return bool(requested == parse_stage(kind, {}, self._run.model, self._name))
        except ConfigFileError:
            return False

    def _temporary_name(self, kind: str) -> str:
        """An unused name for an added instance, until all instances are known."""
        return next(name for n in count() if (name := f"{kind}#{n}") not in self._stages)

    def _kind(self, read: str) -> str:
        """The stage that would write `read`: that of an added instance, or `read` itself."""
        return stage_name(self._requested[read]) if read in self._requested else read

    def _root(self, instance: str) -> str:
        """The first stage of the YAML, by the alphabet, that reads an instance or its readers."""
        readers = self._readers.get(instance, [])
        if instance in self._run.stages:
            return instance
        in_yaml = [reader for reader in readers if reader in self._run.stages]
        return min(in_yaml or [self._root(reader) for reader in readers])


def _is_named_after_reader(instance: str, stages: Mapping[str, Stage]) -> bool:
    """Whether an added instance is named after its reader: `gradient_for_influence`."""
    return instance.startswith(stage_name(stages[instance]) + FOR)


def _with_names(stage: Stage, names: Mapping[str, str]) -> Stage:
    """The stage whose fields name instances by their new names; `names` maps old ones to new."""
    changed = _renamed(stage, names)
    return dataclasses.replace(stage, **changed) if changed else stage


def _renamed(stage: Stage, names: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a stage that change when the instances that it reads get new names."""
    read = {name: new for name, new in names.items() if name != new and _is_read(name, stage)}
    changed: dict[str, Any] = {}
    for f in dataclasses.fields(stage) if read else ():
        value = getattr(stage, f.name)
        if f.type not in NAMES:
            continue
        new = tuple(read.get(v, v) for v in value) if isinstance(value, tuple) else value
        new = read.get(value, value) if isinstance(value, str) else new
        if new != value:
            changed[f.name] = new
    return changed


def _is_read(name: str, stage: Stage) -> bool:
    """Whether the stage reads a table of the instance `name`."""
    return any(read.partition(".")[0] == name for read in stage.reads)


def _difference(fields: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The values in `fields` that differ from those in `other`, as one line of YAML."""

    def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: differing(value, b[key])
            if isinstance(value, Mapping) and isinstance(b[key], Mapping)
            else value
            for key, value in a.items()
            if value != b[key]
        }

    text = yaml.safe_dump(differing(fields, other), default_flow_style=True, sort_keys=False)
    return " ".join(text.split()).removeprefix("{").removesuffix("}")
