"""Stages that the YAML does not name and that others need: one for every wish.

A table that is read and not written by any instance of the file is taken from the stage of that
name, with the fields that its reader asks for (`asks`), or the defaults. Readers that want the same
share one instance. Where wishes differ, the defaults keep the stage's name, or without them the
first of the readers by the alphabet; the others are called after the stage of the file that wants
them, `gradient_for_influence`, and their readers point there. So names do not depend on the order
of the file, and the resolved YAML, which writes all of it out, repeats the run.

In keys such a name stands as that of its stage (`in_keys`): the keys of the inputs say which rows
are read, so what is computed from them is shared by runs that need one instance and runs that need
two. Names that a person chose stay in keys as they are written, as they always did.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import yaml

from pipeline.config import parse_stage, plain, stage_name
from pipeline.corpus import CORPUS
from pipeline.errors import ConfigFileError
from pipeline.plan_checks import check_model
from pipeline.settings import FOR, Run
from stages.catalogue import stage_names
from stages.stage import Stage

NAMES = (str, str | None, tuple[str, ...])
"""Types of the fields in which a stage names what it reads."""


def with_added(run: Run, name: str) -> tuple[dict[str, Stage], list[str]]:
    """Stage instances, those of the file and those that they need, and the names of the latter.

    Raises:
        ConfigFileError: a stage reads what no stage writes, or needs one that asks for a model
            where there is none.
    """
    return _Adding(run, name).named()


def writers_of(read: str, stages: Mapping[str, Stage]) -> list[tuple[str, str]]:
    """Instances that write what is called `read`, each with the table that is meant."""
    instance, _, table = read.partition(".")
    if table and instance in stages:
        return [(instance, spec.name) for spec in stages[instance].writes if spec.name == table]
    if read in stages:
        # A stage's first table is its own; others, such as diagnostics, lie beside it.
        return [(read, stages[read].writes[0].name)]
    beside = [(i, s.name) for i, stage in stages.items() for s in stage.writes if s.name == read]
    # What was added once more for one reader is for no other.
    return [found for found in beside if not _is_once_more(found[0], stages)] or beside


def in_keys(stage: Stage, stages: Mapping[str, Stage]) -> dict[str, Any]:
    """Fields of a stage that name instances called after their readers, as keys have them."""
    read = {name.partition(".")[0] for name in stage.reads} & set(stages)
    again = {name: stage_name(stages[name]) for name in read if _is_once_more(name, stages)}
    return _renamed(stage, again)


def told(added: Mapping[str, Sequence[str]], stages: Mapping[str, Stage]) -> Iterator[str]:
    """Sentences about stages that are added more than once; `added` holds their readers."""
    for instance, readers in added.items():
        kind = stage_name(stages[instance])
        if instance != kind:
            yield (
                f"{instance} is added for {' and '.join(readers)}, beside {kind} for "
                f"{' and '.join(added[kind])}: it has "
                f"{_difference(plain(stages[instance]), plain(stages[kind]))}."
            )


class _Adding:
    """The stages of a run while others are added; these have names of their own until the end."""

    def __init__(self, run: Run, name: str) -> None:
        self._run, self._name = run, name
        self._stages: dict[str, Stage] = dict(run.stages)
        self._wishes: dict[str, Stage] = {}
        """Added stages as they were asked for."""
        self._readers: dict[str, list[str]] = {}
        pending = list(run.stages)
        while pending:
            pending += self._settle(pending.pop())

    def named(self) -> tuple[dict[str, Stage], list[str]]:
        """All stages under their final names, pointing to these, and the names of those added."""
        names: dict[str, str] = {}
        taken = set(self._run.stages)
        for kind in sorted({stage_name(wish) for wish in self._wishes.values()}):
            own = [instance for instance in self._wishes if self._kind(instance) == kind]
            own.sort(key=lambda instance: (instance != kind, self._root(instance)))
            for instance in own:
                final = kind if instance == own[0] else f"{kind}{FOR}{self._root(instance)}"
                while final in taken:
                    final += "_too"
                taken.add(final)
                names[instance] = final
        stages = {
            names.get(instance, instance): _pointed(stage, names)
            for instance, stage in self._stages.items()
        }
        return stages, [names[instance] for instance in self._wishes]

    def _settle(self, instance: str) -> list[str]:
        """Points an instance to what it reads; returns what had to be added for it."""
        new: list[str] = []
        seen: set[str] = set()
        while unseen := [read for read in self._stages[instance].reads if read not in seen]:
            read = unseen[0]
            stage = self._stages[instance]
            found = self._found(read, stage, instance, new)
            seen |= {read, found}
            self._stages[instance] = _pointed(stage, {read: found})
        return new

    def _found(self, read: str, stage: Stage, reader: str, new: list[str]) -> str:
        """The name of what `stage` reads as `read`; added to `new` where it was not there."""
        if read in CORPUS or writers_of(read, self._run.stages):
            return read
        kind = self._kind(read)
        alike = [instance for instance in self._wishes if self._kind(instance) == kind]
        # What was added for another reader writes this table, too, and is not the stage of its
        # name: served with it, rows would depend on the order of the file.
        if kind not in stage_names() and writers_of(read, self._stages):
            return read
        if kind not in stage_names():
            raise ConfigFileError(
                f"{self._name}: stages.{reader}: found that it reads {read!r}, which no stage "
                f"writes, expected one of {', '.join(sorted([*CORPUS, *self._run.stages]))}. "
                "Name an instance or a table that is there."
            )
        asked = stage.asks.get(read, {})
        if "model" not in asked:
            check_model(kind, reader, self._run, self._name)
        wish = parse_stage(kind, asked, self._run.model, self._name)
        same = [instance for instance in alike if self._wishes[instance] == wish]
        if read in self._wishes and read not in stage.asks:
            found = read
        elif same:
            found = same[0]
        else:
            found = kind if self._is_plain(kind, wish) else self._free(kind)
            self._stages[found] = self._wishes[found] = wish
            new.append(found)
        self._readers.setdefault(found, []).append(reader)
        return found

    def _is_plain(self, kind: str, wish: Stage) -> bool:
        try:
            return bool(wish == parse_stage(kind, {}, self._run.model, self._name))
        except ConfigFileError:
            return False

    def _free(self, kind: str) -> str:
        """A name for the time until all names are known."""
        return next(name for n in count() if (name := f"{kind}#{n}") not in self._stages)

    def _kind(self, read: str) -> str:
        return stage_name(self._wishes[read]) if read in self._wishes else read

    def _root(self, instance: str) -> str:
        """The first stage of the file that wants an instance, itself or by others."""
        readers = self._readers[instance]
        named = [reader for reader in readers if reader in self._run.stages]
        return min(named or [self._root(reader) for reader in readers])


def _is_once_more(instance: str, stages: Mapping[str, Stage]) -> bool:
    """Whether an instance has the name of a stage that is added beside another of its kind."""
    return instance.startswith(stage_name(stages[instance]) + FOR)


def _pointed(stage: Stage, names: Mapping[str, str]) -> Stage:
    changed = _renamed(stage, names)
    return dataclasses.replace(stage, **changed) if changed else stage


def _renamed(stage: Stage, names: Mapping[str, str]) -> dict[str, Any]:
    """Fields that name what is read, where it has another name now."""
    read = {name: new for name, new in names.items() if name != new and _is_read(name, stage)}
    found: dict[str, Any] = {}
    for f in dataclasses.fields(stage) if read else ():
        value = getattr(stage, f.name)
        if f.type not in NAMES:
            continue
        new = tuple(read.get(v, v) for v in value) if isinstance(value, tuple) else value
        new = read.get(value, value) if isinstance(value, str) else new
        if new != value:
            found[f.name] = new
    return found


def _is_read(name: str, stage: Stage) -> bool:
    return any(read.partition(".")[0] == name for read in stage.reads)


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What is said otherwise in `one` than in `other`, as one would write it in YAML."""

    def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: differing(value, b[key])
            if isinstance(value, Mapping) and isinstance(b[key], Mapping)
            else value
            for key, value in a.items()
            if value != b[key]
        }

    text = yaml.safe_dump(differing(one, other), default_flow_style=True, sort_keys=False)
    return " ".join(text.split()).removeprefix("{").removesuffix("}")
