"""One task of a stage: read the tables that its part needs, compute rows, write shards.

All bytes that a task reads are compared with the hashes in the manifests of its inputs: a task
computes with what was written, or fails and names the file.

The same code runs in the driver and in Ray workers. A task is given names and keys and returns
records of shards; rows and tensors go through Parquet and memory maps, never through the scheduler.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.model_files import changed_model
from pipeline.node_versions import installed
from pipeline.shard_facts import ShardFacts, of_task, together
from stages.capabilities import Merges
from stages.model.devices import use_gpu
from stages.model.threads import set_threads
from stages.stage import ModelError, Part, Role, Split, Stage, Steps, Tell, Vectors
from storage.feature_map import open_map
from storage.manifest import Manifest, ShardRecord
from storage.schema import TableSpec
from storage.table import Store


@dataclass(frozen=True)
class Job:
    """A stage instance, with the store, inputs and threads that its tasks share."""

    instance: str
    stage: Stage
    store_url: str
    inputs: Mapping[str, tuple[str, str]]
    """For each name in the stage's `reads`: the table and its manifest key."""
    threads: int
    gpus: float | None = None
    """GPUs of one worker; None leaves the choice of a device to what is there."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Of the stage's fields that name models, the fingerprints in its tasks' keys."""
    has_chats: bool = False
    """Whether the corpus holds conversations, whose templates are in these fingerprints."""


@dataclass(frozen=True)
class Call:
    """A call of a function that is no stage's: with what all calls share, and one of some items."""

    name: str
    """What the calls are for, in errors."""
    key: str
    function: Callable[[Any, Any], Any]
    item: Any


Heard = Callable[[str, int, int], None]
"""Hears the key of a task at work, its steps that are done, and how many there are."""


class StoredInputs:
    """`stages.stage.Inputs` over the tables of a store."""

    def __init__(self, inputs: Mapping[str, tuple[str, str]], split: Split, store: Store):
        """Opens no table yet.

        Args:
            inputs: For each name that the stage reads: the table and its manifest key.
            split: How the stage's work divides, which decides what rows a part reads.
            store: Holds the tables.
        """
        self.part = Part("", 0)
        self.opened: Any = None
        self.facts = ShardFacts()
        self.stepped: Steps = lambda done, total: None
        self._keys, self._split, self._store = inputs, split, store
        self._manifests: dict[str, Manifest] = {}
        self._part_shards: dict[tuple[str, str], pa.Table] = {}
        """Shards of the part at work that were read, by table and key."""
        self._part_read = self.part

    def table(self, name: str, role: Role | None = None) -> pa.Table:
        """Rows of `name` that the part reads; see `stages.stage.Inputs`."""
        manifest = self._manifest(name)
        if self._split == "shard":
            of_part = self._of_part(manifest)
            if len(of_part) > 1:
                raise ValueError(f"{name}: found a part of {len(of_part)} shards, expected one")
            if of_part:
                return self._part_shard(manifest.table, of_part[0])
        if self._split == "query" and role == "query":
            block = manifest.by_part.get(("query", self.part.index))
            if block is not None:
                return self._part_shard(manifest.table, block)
        return self._store.read_table(manifest, role)

    def by_shard(self, name: str, role: Role, most: int | None = None) -> Iterator[pa.Table]:
        """Rows of `name` of one role, shard by shard; see `stages.stage.Inputs`."""
        # Imported here: with it comes torch, which commands that run no task are spared.
        from stages.reading.vectors import evenly

        manifest = self._manifest(name)
        shards = self._of_part(manifest) if self._split == "shard" else []
        shards = shards or [s for s in manifest.shards if s.role in ("", role)]
        for at in evenly(len(shards), most or len(shards)):
            shard = shards[at]
            rows = self._store.read_shard(manifest.table, shard.key, listed=shard)
            is_mixed = shard.role == "" and "role" in rows.column_names
            yield rows.filter(pc.equal(rows["role"], role)) if is_mixed else rows

    def vectors(self, name: str, role: Role) -> Vectors:
        """All vectors of `name` for one role, memory-mapped; see `stages.stage.Inputs`."""
        return Vectors(*open_map(self._store, self._manifest(name), role))

    def begin(self, part: Part) -> None:
        """Turns to another part, which has no facts yet."""
        self.part, self.facts = part, ShardFacts()

    @property
    def tell(self) -> Tell:
        """Keeps what the stage has to say of the part."""
        return self.facts.tell

    def details(self, name: str) -> Mapping[str, Any]:
        """Facts that the writer of `name` recorded; see `stages.stage.Inputs`."""
        return self._manifest(name).details

    def _of_part(self, manifest: Manifest) -> list[ShardRecord]:
        """The shards of a table that the part at work spans."""
        first, role = self.part.index, self.part.role
        spanned = range(first, first + self.part.n_shards) if role else ()
        of_part = (manifest.by_part.get((role, index)) for index in spanned)
        return [shard for shard in of_part if shard is not None]

    def _part_shard(self, table: str, shard: ShardRecord) -> pa.Table:
        """A shard of the part at work, read once: `compute` and `details` may both ask for it."""
        if self._part_read != self.part:
            self._part_shards, self._part_read = {}, self.part
        # Tables that one task wrote have shards of one key.
        key = (table, shard.key)
        if key not in self._part_shards:
            self._part_shards[key] = self._store.read_shard(table, shard.key, listed=shard)
        return self._part_shards[key]

    def _manifest(self, name: str) -> Manifest:
        """The manifest of the table that the stage reads as `name`, read once."""
        if name not in self._manifests:
            table, key = self._keys[name]
            self._manifests[name] = self._store.read_manifest(table, key)
        return self._manifests[name]


class Worker:
    """Runs tasks one by one; keeps what the stage of the last job opened, such as a model."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._inputs: StoredInputs | None = None
        self._store: Store | None = None
        self._store_url: str | None = None
        self._steps = ("", 0, 0)

    def versions(self) -> tuple[str, dict[str, str]]:
        """The host's name, and the versions of Python and of the packages that decide bytes."""
        return platform.node(), installed()

    def steps(self) -> tuple[str, int, int]:
        """The key of the task that told last how far it is, its steps done, and all of them."""
        return self._steps

    def run_task(
        self, job: Job, part: Part, key: str, heard: Heard | None = None
    ) -> list[ShardRecord]:
        """The records of the shards with the part's rows, one a table; computes and writes them.

        `heard` is told how far the task is, where its stage says so; `steps` says it in any case.
        """
        if self._job != job or self._inputs is None or self._store is None:
            set_threads(job.threads)
            use_gpu(job.gpus != 0)
            self._store = self._store_at(job.store_url)
            self._inputs = StoredInputs(job.inputs, job.stage.split, self._store)
            self._inputs.opened = job.stage.open(self._inputs)
            _check_models(job)
            self._job = job
        inputs, store = self._inputs, self._store
        inputs.begin(part)

        def stepped(done: int, total: int) -> None:
            self._steps = (key, done, total)
            if heard is not None:
                heard(*self._steps)

        inputs.stepped = stepped
        # Before the rows: what these have to say of themselves goes through `tell`.
        details = job.stage.details(inputs)
        tables = gathered(job.stage.writes, job.stage.compute(inputs))
        facts = of_task({**details, **inputs.facts.details()}, key)
        return [
            store.write_shard(spec, key, part.role, part.index, tables[spec.name], facts)
            for spec in job.stage.writes
        ]

    def merge_task(self, job: Job, part: Part, key: str, parts: Sequence[str]) -> list[ShardRecord]:
        """The records of the shards that merge those with the keys `parts`, one a table.

        The stage opens nothing for it: the model that computed the parts is not loaded.
        """
        set_threads(job.threads)
        store = self._store = self._store_at(job.store_url)
        rows: dict[str, list[pa.Table]] = {}
        facts: dict[str, dict[str, Any]] = {}
        for spec in job.stage.writes:
            shards = [store.read_whole_shard(spec.name, child) for child in parts]
            rows[spec.name] = [table for table, _ in shards]
            facts[spec.name] = together(details for _, details in shards)
        if not isinstance(job.stage, Merges):
            raise TypeError(
                f"{job.instance}: found shards to combine, expected a stage that merges"
            )
        tables = gathered(job.stage.writes, job.stage.merge(rows))
        return [
            store.write_shard(spec, key, part.role, part.index, tables[spec.name], facts[spec.name])
            for spec in job.stage.writes
        ]

    def call(self, shared: Any, call: Call) -> Any:
        """The result of a call."""
        set_threads(1)
        return call.function(shared, call.item)

    def _store_at(self, url: str) -> Store:
        """The store at `url`, with what it knows of the files that the last job read.

        Its listing is taken anew: what the run has written since is in it.
        """
        if self._store is None or self._store_url != url:
            self._store, self._store_url = Store(url), url
        self._store.refresh()
        return self._store


def _check_models(job: Job) -> None:
    """Raises where the files that a model was loaded from are not those that the keys follow from.

    Raises:
        ModelError: they are not.
    """
    path = changed_model(job.stage, job.models, job.has_chats)
    if path is not None:
        raise ModelError(
            f"{path}: found files of the model that have changed since the run was planned, "
            f"expected the same ones on {platform.node()} until it ends. Give the same command "
            "again once nobody writes to them; on a cluster, copy the same model to every node."
        )


def gathered(
    specs: Sequence[TableSpec], batches: Iterable[tuple[str, pa.RecordBatch]]
) -> dict[str, pa.Table]:
    """The rows that a stage yields, by table; an empty table where it yields none."""
    by_table: dict[str, list[pa.RecordBatch]] = {spec.name: [] for spec in specs}
    for table, batch in batches:
        by_table[table].append(batch)
    return {
        spec.name: pa.Table.from_batches(by_table[spec.name])
        if by_table[spec.name]
        else spec.schema.empty_table()
        for spec in specs
    }
