"""Execute a run: the tasks of its stages in order, then the manifests and the catalog."""

import dataclasses
import datetime
import importlib.metadata
import logging
import time
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.config import dump_config, stage_name
from pipeline.corpus import read_corpus
from pipeline.engine import Engine, open_engine
from pipeline.errors import RunError, RunFolderError
from pipeline.folder import RunFolder, replace_file
from pipeline.node import CORPUS_INSTANCE, Node, Task
from pipeline.plan import Plan, make_plan
from pipeline.progress import Progress
from pipeline.rounds import Outcome, until_enough
from pipeline.settings import Run
from pipeline.shard_facts import sentences, together
from pipeline.task import Job
from pipeline.verify import damage_behind, damage_of_plan, drop_damaged_maps, repair, told
from storage.damage import Damage
from storage.manifest import Manifest, ShardRecord, digest
from storage.table import Store

LOG = logging.getLogger(__name__)
PACKAGES = ("assay", "torch", "transformers", "datasets", "pyarrow", "duckdb", "ray", "numpy")


def execute_run(
    run: Run,
    progress: Progress | None = None,
    engine: Callable[[], Engine] | None = None,
) -> RunFolder:
    """The folder of the run, whose tables are now in its store and in its catalog.

    Computes the shards that the store lacks. A kill at any moment loses at most the tasks that are
    being computed: the same call goes on from there. A file of the store that is proven damaged is
    told of, removed and computed again.

    Args:
        run: The configured run.
        progress: Hears the plan, and every stage and task that is finished.
        engine: Makes the engine, if a task must be computed; by default the one that the run
            configures.

    Raises:
        RunError: the run cannot be planned or a task failed.
        stages.stage.StageError: the corpus or the model cannot be used.
    """
    progress = progress or Progress()
    folder = RunFolder(Path(run.run))
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"{folder.path}: found that the folder cannot be made ({error.strerror}), expected a "
            "place for the run's files. Correct `run:`."
        ) from error
    store = Store(run.store_url)
    seen: set[tuple[str, str]] = set()
    while True:
        attempt = _Attempt(run, folder, store, progress, engine)
        try:
            damages = attempt.execute(seen)
        except Exception as error:
            damages = damage_behind(error, attempt.plan, store)
            # What is damaged again, straight after it was written, is for a person to look at.
            if not damages or {(d.table, d.name) for d in damages} <= seen:
                raise
        if not damages:
            return folder
        progress.say(told(damages))
        seen |= {(d.table, d.name) for d in damages}
        repair(damages, store)


class _Attempt:
    """One execution of a run, up to its end or to a damaged file."""

    def __init__(
        self,
        run: Run,
        folder: RunFolder,
        store: Store,
        progress: Progress,
        engine: Callable[[], Engine] | None,
    ):
        self.plan: Plan | None = None
        self._run, self._folder, self._store = run, folder, store
        self._progress, self._engine = progress, engine
        self._opened: Engine | None = None

    def execute(self, seen: Container[tuple[str, str]]) -> list[Damage]:
        """What a first look finds damaged, before anything is computed; nothing after a whole run.

        `seen` are files that were found damaged, and are missing now.

        Raises:
            Exception: whatever ends a run; that of a damaged file that is read names the file.
        """
        run, folder, store, progress = self._run, self._folder, self._store, self._progress
        last_artefacts = artefacts_of_last_run(run, folder)
        progress.say("Reading the corpus ...")
        plan = self.plan = make_plan(run, read_corpus(run, store), store, last_artefacts)
        damages = damage_of_plan(plan, store)
        if new := [d for d in damages if (d.table, d.name) not in seen]:
            return new
        for sentence in drop_damaged_maps(plan, store):
            progress.say(sentence)
        progress.planned(plan)
        LOG.info("%s over %s, stages %s", folder.path, store.url, [n.instance for n in plan.nodes])
        record = _RunRecord(plan, folder, store)
        try:
            for node in plan.nodes:
                self._compute(node, plan, record)
            record.close()
        finally:
            if self._opened is not None:
                self._opened.close()
        return []

    def _compute(self, node: Node, plan: Plan, record: "_RunRecord") -> None:
        """Runs the missing tasks of one stage, and writes its manifests."""
        progress = self._progress
        progress.started(node)
        start = time.monotonic()
        job = _job(node, plan, self._run, self._store)
        tasks = _StageTasks(node, job, self._engine_of_run, self._run, progress)
        rule = node.stop_rule()
        stop_notices = []
        if rule is None:
            stored = record.stored(node)
            for task, shards in tasks.run():
                tasks.keep(task, shards)
        else:
            last = record.outcome(node)
            outcome = until_enough(node, rule, last, self._store, tasks.run, tasks.keep)
            node = outcome.of(node)
            record.keep_outcome(node, outcome)
            stored = record.stored(node, tasks.computed)
            if outcome.reason is not None:
                stop_notices.append(f"stopped after {outcome.n_rounds} rounds: {outcome.reason}")
        seconds = time.monotonic() - start
        notices = stop_notices + record.finish(node, {**stored, **tasks.computed}, seconds)
        progress.finished(node, seconds, notices)
        LOG.info(
            "%s: %d of %d tasks computed in %.1f s",
            node.instance,
            len(node.missing),
            len(node.tasks),
            seconds,
        )
        for notice in notices:
            LOG.info("%s: %s", node.instance, notice)

    def _engine_of_run(self) -> Engine:
        """The engine, opened when a task must be computed."""
        if self._opened is None:
            self._opened = (self._engine or (lambda: open_engine(self._run.ray)))()
        return self._opened


class _StageTasks:
    """The missing tasks of one stage, and the records of the shards that they wrote.

    `computed` holds these records by the key of their task, one for each table of the stage.
    """

    def __init__(
        self, node: Node, job: Job, engine: Callable[[], Engine], run: Run, progress: Progress
    ):
        self.computed: dict[str, list[ShardRecord]] = {}
        self._node, self._job, self._engine, self._progress = node, job, engine, progress
        self._resources = run.resources(node.instance)

    def run(self) -> Iterator[tuple[Task, list[ShardRecord]]]:
        """Runs the missing tasks; yields each with its records, in the order of finishing."""
        for wave in self._node.waves:
            yield from self._engine().run_tasks(self._job, wave, self._resources)

    def keep(self, task: Task, records: list[ShardRecord]) -> None:
        """Keeps the records of a finished task, and reports it to the progress."""
        self.computed[task.key] = records
        self._progress.advanced(self._node, records)


class _RunRecord:
    """The record of a run (`run.json`), and the manifests and catalog that follow it.

    Written anew when a stage is whole, which it is when all of its shards are in the store.
    """

    def __init__(self, plan: Plan, folder: RunFolder, store: Store):
        self.plan, self.folder, self.store = plan, folder, store
        run = plan.run
        resolved = dataclasses.replace(
            run, stages={node.instance: node.stage for node in plan.nodes}, artefacts=_pins(plan)
        )
        text = dump_config(resolved)
        replace_file(folder.config, text)
        roles = {"example": run.corpus, "query": run.queries}
        self.record: dict[str, Any] = {
            "run_id": f"{folder.path.name}-{digest(text)[:6]}",
            "path": str(folder.path),
            "config": text,
            "store": run.store,
            "splits": {r: s.split or "train" for r, s in roles.items() if s is not None},
            "tables": {
                CORPUS_INSTANCE: {
                    table: {"manifest": m.key, "shards": [s.key for s in m.shards]}
                    for table, m in plan.corpus.tables.items()
                }
            },
        }
        for node in plan.nodes:
            self.record["tables"][node.instance] = {
                spec.name: {
                    "manifest": self._manifest_if_whole(node, spec.name),
                    "shards": [t.key for t in node.tasks],
                }
                for spec in node.stage.writes
            }
        # Readers of a run that was whole keep its catalog until the new run is whole, too, over
        # any number of kills in between.
        self._keeps_catalog = folder.catalog.exists() and _was_whole(folder)
        last = _last_record(folder)
        self.record["rounds"] = dict(last.get("rounds", {}))
        self.record["catalog"] = dict(last.get("catalog", {}))
        self.record["keeps_catalog"] = self._keeps_catalog and not _is_whole(self.record)
        self._save()

    def stored(self, node: Node, computed: Container[str] = ()) -> dict[str, list[ShardRecord]]:
        """Records of the stage's shards that an interrupted execution wrote, read from their files.

        By the key of their task, one for each table; none where the manifests are there already,
        and of the tasks `computed`. Read before the stage computes: what is damaged is then
        computed again with the rest.

        Raises:
            storage.schema.FileError: a shard is gone or damaged.
        """
        specs = node.stage.writes
        if all(self.store.has_manifest(s.name, node.manifest_key(s.name)) for s in specs):
            return {}
        done = [t for t in node.whole if t.key in node.done and t.key not in computed]
        return {
            t.key: [self.store.record_of(s, t.key, t.part.role, t.part.index) for s in specs]
            for t in done
        }

    def finish(
        self, node: Node, records: Mapping[str, list[ShardRecord]], seconds: float
    ) -> list[str]:
        """Writes the manifests of a stage whose shards are all in the store.

        `records` holds, by task, those of its shards that no manifest lists yet. Returns the
        notices of all of the stage's tasks, also of those that an interrupted execution ran; none
        where the manifests were in the store already.
        """
        notices: list[str] = []
        for position, spec in enumerate(node.stage.writes):
            key = node.manifest_key(spec.name)
            listed = self._listed(spec.name, key)
            new = {k: of_task[position] for k, of_task in records.items()}
            # A shard that was damaged has been computed again: with the same bytes, as a rule.
            is_listed = all(
                task.key in listed
                and (task.key not in new or _bytes_of(new[task.key]) == _bytes_of(listed[task.key]))
                for task in node.whole
            )
            if not is_listed:
                shards = [
                    new.get(task.key)
                    or self.store.record_of(spec, task.key, task.part.role, task.part.index)
                    for task in node.whole
                ]
                manifest = self._manifest(node, spec.name, shards, seconds)
                self.store.write_manifest(manifest, replaces=True)
                notices = notices or sentences(manifest.details)
            self.record["tables"][node.instance][spec.name]["manifest"] = key
        self._save()
        return notices

    def _listed(self, table: str, key: str) -> dict[str, ShardRecord]:
        """What the manifest of a table lists, by shard; nothing where it is not there."""
        if not self.store.has_manifest(table, key):
            return {}
        return {shard.key: shard for shard in self.store.read_manifest(table, key).shards}

    def outcome(self, node: Node) -> Outcome:
        """The outcome that the last execution recorded for the rounds of a stage."""
        return Outcome.before(node, self.record["rounds"].get(node.instance, {}))

    def keep_outcome(self, node: Node, outcome: Outcome) -> None:
        """Records which rounds of a stage count; `node` has the tasks of these alone."""
        self.record["rounds"][node.instance] = dataclasses.asdict(outcome)
        for table in self.record["tables"][node.instance].values():
            table["shards"] = [task.key for task in node.tasks]

    def close(self) -> None:
        """Puts the catalog of the whole run in its place."""
        self.record["keeps_catalog"] = False
        self.folder.rebuild_catalog(self.store, self.record)

    def _manifest_if_whole(self, node: Node, table: str) -> str | None:
        """The manifest's key, where the table has all of its shards and a manifest."""
        key = node.manifest_key(table)
        return key if not node.missing and self.store.has_manifest(table, key) else None

    def _save(self) -> None:
        """Writes `run.json`, and the catalog where no older one is to be kept."""
        self.folder.write_record(self.record)
        if not self._keeps_catalog:
            self.folder.rebuild_catalog(self.store, self.record)

    def _manifest(
        self, node: Node, table: str, shards: list[ShardRecord], seconds: float
    ) -> Manifest:
        """The manifest of one table of a stage, with the facts of its shards added up."""
        model = node.stage.model_ref
        inputs = dict(node.inputs)
        if node.pinned is not None and "label" in inputs:
            inputs["label"] = str(node.pinned["labels"])
        return Manifest(
            table=table,
            stage=stage_name(node.stage),
            version=node.stage.version,
            fields=node.fields,
            inputs=inputs,
            shards=tuple(dataclasses.replace(s, details={}) for s in shards),
            details=together(s.details for s in shards),
            model=model.path if model is not None else None,
            revision=node.fields.get("model", {}).get("fingerprint") if model else None,
            seed=node.stage.seed,
            threads=self.plan.run.resources(node.instance).cpus,
            packages={name: _version(name) for name in PACKAGES},
            seconds=seconds,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )


def _last_record(folder: RunFolder) -> dict[str, Any]:
    """The record of the folder's last execution; empty where there is none, or it is damaged."""
    try:
        return folder.read_record()
    except RunFolderError as error:
        if folder.record.exists():
            LOG.warning("written anew: %s", error)
        return {}


def _bytes_of(shard: ShardRecord) -> tuple[int, str]:
    """Size and hash of a shard's file."""
    return shard.bytes, shard.sha256


def _was_whole(folder: RunFolder) -> bool:
    """Whether the folder's catalog shows an execution that ended."""
    try:
        record = folder.read_record()
    except RunFolderError:
        return False
    return bool(record.get("keeps_catalog")) or _is_whole(record)


def _is_whole(record: Mapping[str, Any]) -> bool:
    """Whether every table in the record of a run has a manifest."""
    return all(
        state["manifest"] for tables in record["tables"].values() for state in tables.values()
    )


def artefacts_of_last_run(run: Run, folder: RunFolder) -> dict[str, str]:
    """Keys of the artefacts that the folder's last execution used, by stage instance.

    None where that execution had another store.
    """
    try:
        last = folder.read_run()
    except RunError as error:
        if folder.config.exists():
            LOG.warning("%s", error)
        return {}
    if Store(run.store_url).url != Store(last.store_url).url:
        return {}
    pins = {i: pin for i, pin in last.artefacts.items() if isinstance(pin, Mapping)}
    return {instance: str(pin.get("key")) for instance, pin in pins.items()}


def _pins(plan: Plan) -> dict[str, Any]:
    """The artefacts of the plan, by stage instance, each with its key and its labels' key."""
    return {node.instance: dict(node.pinned) for node in plan.nodes if node.pinned is not None}


def _job(node: Node, plan: Plan, run: Run, store: Store) -> Job:
    """The node's stage with the tables that its tasks read, by their manifest keys.

    An artefact that is kept and has to be computed again reads what it was fitted on.
    """
    tables: Mapping[str, Any] = plan.corpus.tables
    nodes = {n.instance: n for n in plan.nodes}
    inputs = {}
    for read, (instance, table) in node.reads.items():
        if instance == CORPUS_INSTANCE:
            inputs[read] = (table, tables[table].key)
        else:
            inputs[read] = (table, nodes[instance].manifest_key(table))
    written = node.stage.writes[0].name
    if node.pinned is not None and store.has_manifest(written, node.manifest_key(written)):
        fitted_on = store.read_manifest(written, node.manifest_key(written)).inputs
        inputs = {read: (table, fitted_on.get(read, key)) for read, (table, key) in inputs.items()}
    return Job(node.instance, node.stage, run.store_url, inputs, run.resources(node.instance).cpus)


def _version(package: str) -> str:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
