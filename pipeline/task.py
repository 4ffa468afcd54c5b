"""One task: read what a part needs, compute its rows, write its shards.

The same code runs in the driver and in Ray workers. A task is told names and keys and returns
records; rows and tensors go through Parquet and memory maps, never through the scheduler.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.shard_facts import of_task, together
from stages.model.threads import set_threads
from stages.stage import Part, Role, Vectors
from storage.feature_map import open_map
from storage.manifest import Manifest, ShardRecord
from storage.schema import TableSpec
from storage.table import Store


@dataclass(frozen=True)
class Job:
    """A stage instance with everything its tasks share."""

    instance: str
    stage: Any
    store_url: str
    inputs: Mapping[str, tuple[str, str]]
    """For each name in the stage's `reads`: the table and its manifest key."""
    threads: int


class StoredInputs:
    """`stages.stage.Inputs` over the tables of a store."""

    def __init__(self, job: Job, store: Store):
        self.part = Part("", 0)
        self.opened: Any = None
        self._job, self._store = job, store
        self._manifests: dict[str, Manifest] = {}
        self._own: dict[tuple[str, str], pa.Table] = {}
        self._own_part = self.part

    def table(self, name: str, role: Role | None = None) -> pa.Table:
        """Rows of `name` that the part reads; see `stages.stage.Inputs`."""
        manifest = self._manifest(name)
        if self._job.stage.split == "shard":
            own = [
                s for s in manifest.shards if (s.role, s.index) == (self.part.role, self.part.index)
            ]
            if own:
                return self._own_shard(manifest.table, own[0].key)
        if self._job.stage.split == "query" and role == "query":
            own = [s for s in manifest.shards if (s.role, s.index) == ("query", self.part.index)]
            if own:
                return self._own_shard(manifest.table, own[0].key)
        return self._store.read_table(manifest, role)

    def vectors(self, name: str, role: Role) -> Vectors:
        """All vectors of `name` for one role, memory-mapped; see `stages.stage.Inputs`."""
        return Vectors(*open_map(self._store, self._manifest(name), role))

    def details(self, name: str) -> Mapping[str, Any]:
        """Facts that the writer of `name` recorded; see `stages.stage.Inputs`."""
        return self._manifest(name).details

    def _own_shard(self, table: str, key: str) -> pa.Table:
        """A shard of the part at work, read once: `compute` and `details` may both ask for it."""
        if self._own_part != self.part:
            self._own, self._own_part = {}, self.part
        # Tables that one task wrote have shards of one key.
        if (table, key) not in self._own:
            self._own[table, key] = self._store.read_shard(table, key)
        return self._own[table, key]

    def _manifest(self, name: str) -> Manifest:
        if name not in self._manifests:
            table, key = self._job.inputs[name]
            self._manifests[name] = self._store.read_manifest(table, key)
        return self._manifests[name]


class Worker:
    """Runs tasks, and keeps what the current job's stage has opened."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._inputs: StoredInputs | None = None
        self._store: Store | None = None

    def run_task(self, job: Job, part: Part, key: str) -> list[ShardRecord]:
        """Records of the shards that this part's rows now lie in, one per table written."""
        if self._job != job or self._inputs is None or self._store is None:
            set_threads(job.threads)
            self._store = Store(job.store_url)
            self._inputs = StoredInputs(job, self._store)
            opener = getattr(job.stage, "open", None)
            if opener is not None:
                self._inputs.opened = opener(self._inputs)
            self._job = job
        inputs, store = self._inputs, self._store
        inputs.part = part
        tables = gathered(job.stage.writes, job.stage.compute(inputs))
        details = getattr(job.stage, "details", None)
        facts = of_task(details(inputs), key) if details is not None else {}
        return [
            store.write_shard(spec, key, part.role, part.index, tables[spec.name], facts)
            for spec in job.stage.writes
        ]

    def merge_task(self, job: Job, part: Part, key: str, parts: Sequence[str]) -> list[ShardRecord]:
        """Records of the shards that hold what the stage makes of the shards `parts`.

        Nothing is opened: a model that the parts were computed with is not loaded to combine them.
        """
        set_threads(job.threads)
        store = Store(job.store_url)
        rows: dict[str, list[pa.Table]] = {}
        facts: dict[str, dict[str, Any]] = {}
        for spec in job.stage.writes:
            read = [store.read_whole_shard(spec.name, child) for child in parts]
            rows[spec.name] = [table for table, _ in read]
            facts[spec.name] = together(details for _, details in read)
        tables = gathered(job.stage.writes, job.stage.merge(rows))
        return [
            store.write_shard(spec, key, part.role, part.index, tables[spec.name], facts[spec.name])
            for spec in job.stage.writes
        ]


def gathered(
    specs: Sequence[TableSpec], batches: Iterable[tuple[str, pa.RecordBatch]]
) -> dict[str, pa.Table]:
    """The rows of each table, without rows where a stage yields none."""
    found: dict[str, list[pa.RecordBatch]] = {spec.name: [] for spec in specs}
    for table, batch in batches:
        found[table].append(batch)
    return {
        spec.name: pa.Table.from_batches(found[spec.name])
        if found[spec.name]
        else spec.schema.empty_table()
        for spec in specs
    }
