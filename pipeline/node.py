"""The nodes of a plan: stage instances, the tables that they read, and their tasks."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config import stage_name
from pipeline.corpus import Corpus
from stages.capabilities import Samples
from stages.stage import Part, Stage
from storage.manifest import Manifest, table_key

CORPUS_INSTANCE = "corpus"


@dataclass(frozen=True)
class Task:
    """A part of a stage's work, and the key of the shards that its rows are written to."""

    part: Part
    key: str
    parts: tuple[str, ...] = ()
    """Keys of the shards that the task merges; none where it computes rows from tables."""
    level: int = 0
    """Height in the merge tree (`pipeline.merge_tree`), 0 for its leaves and for all other tasks;
    tasks of one level are independent, and wait for those below."""


@dataclass(frozen=True)
class Node:
    """A stage instance of a plan, the tables that it reads, and its tasks."""

    instance: str
    stage: Stage
    reads: Mapping[str, tuple[str, str]]
    """For each name in the stage's `reads`: the instance that writes it, and the table."""
    fields: Mapping[str, Any]
    """The stage's fields that change its rows, as plain values."""
    tasks: tuple[Task, ...]
    inputs: Mapping[str, str]
    """For each name in `reads`: the manifest key of the table."""
    done: frozenset[str] = frozenset()
    """Keys of the tasks that need not run: their shards are in the store."""
    pinned: Mapping[str, Any] | None = None
    """Of a stage that fits an artefact: the `key` of the artefact, and that of its `labels`."""

    @functools.cached_property
    def missing(self) -> tuple[Task, ...]:
        """The tasks that must run."""
        return tuple(task for task in self.tasks if task.key not in self.done)

    def has_made(self, manifest: Manifest) -> bool:
        """Whether a table was computed by the same stage, of the same version and fields."""
        made_by = (manifest.stage, manifest.version, dict(manifest.fields))
        return made_by == (stage_name(self.stage), self.stage.version, dict(self.fields))

    def stop_rule(self) -> Any:
        """A fresh stopping rule; None runs all rounds."""
        return self.stage.watch() if isinstance(self.stage, Samples) else None

    @property
    def waves(self) -> tuple[tuple[Task, ...], ...]:
        """The missing tasks in groups that run in turn; the tasks of a group are independent."""
        by_level: dict[int, list[Task]] = {}
        for task in self.missing:
            by_level.setdefault(task.level, []).append(task)
        return tuple(tuple(by_level[level]) for level in sorted(by_level))

    @functools.cached_property
    def whole(self) -> tuple[Task, ...]:
        """The tasks whose shards are the rows of the tables: all, or the root of a merge tree."""
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
    """Role, index and key of every shard of a table; `source` is its instance and its name."""
    instance, table = source
    if instance == CORPUS_INSTANCE:
        return [(s.role, s.index, s.key) for s in corpus.tables[table].shards]
    return planned[instance].shards()
