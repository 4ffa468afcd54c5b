"""A stage of a plan: where its inputs come from, and the shards its tasks will write."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.corpus import Corpus
from stages.stage import Part, Samples, Stage
from storage.manifest import table_key

CORPUS_INSTANCE = "corpus"


@dataclass(frozen=True)
class Task:
    """One part of a stage's work and the shard key of its rows."""

    part: Part
    key: str
    parts: tuple[str, ...] = ()
    """Keys of the shards that the task combines; none where it computes rows from tables."""
    level: int = 0
    """How far above the leaves of a tree it stands (`pipeline.merge_tree`); tasks of a level share
    nothing, and wait for those below."""


@dataclass(frozen=True)
class Node:
    """A stage instance, where its inputs come from, and its tasks."""

    instance: str
    stage: Stage
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

    def stop_rule(self) -> Any:
        """A fresh stopping rule; None runs all rounds."""
        return self.stage.watch() if isinstance(self.stage, Samples) else None

    @property
    def waves(self) -> tuple[tuple[Task, ...], ...]:
        """The missing tasks, those that may run side by side together, in the order of waiting."""
        levels = sorted({task.level for task in self.missing})
        return tuple(tuple(t for t in self.missing if t.level == level) for level in levels)

    @property
    def whole(self) -> tuple[Task, ...]:
        """Tasks whose shards make the tables: all of them, or the root where they are a tree."""
        return self.tasks[-1:] if self.tasks and self.tasks[-1].parts else self.tasks

    def shards(self) -> list[tuple[str, int, str]]:
        """Role, index and key of every shard of the tables this instance writes."""
        return [(task.part.role, task.part.index, task.key) for task in self.whole]

    def manifest_key(self, table: str) -> str:
        """Key of the manifest of one of the tables this instance writes."""
        return table_key(table, self.shards())


def shards_of(
    source: tuple[str, str], planned: Mapping[str, Node], corpus: Corpus
) -> list[tuple[str, int, str]]:
    """Role, index and key of every shard of a table, given as the writing instance and its name."""
    instance, table = source
    if instance == CORPUS_INSTANCE:
        return [(s.role, s.index, s.key) for s in corpus.tables[table].shards]
    return planned[instance].shards()
