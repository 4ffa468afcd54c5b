"""Execute a run: the tasks of its stages in order, then the manifests and the catalog."""

import dataclasses
import logging
import time
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.corpus import read_corpus
from pipeline.engine import Engine, open_engine
from pipeline.errors import RunError, RunFolderError
from pipeline.folder import RunFolder
from pipeline.ingest_calls import IngestCalls
from pipeline.lock import hold
from pipeline.model_check import check_models
from pipeline.model_files import fingerprints_in
from pipeline.node import CORPUS_INSTANCE, Node, Task
from pipeline.plan import Plan, make_plan, stages_in_order
from pipeline.progress import Progress
from pipeline.readers import Readers
from pipeline.rounds import until_enough
from pipeline.run_record import RunRecord, last_record
from pipeline.settings import Run
from pipeline.store_users import announced
from pipeline.task import Job
from pipeline.unchanged import basis_of, kept_of
from pipeline.verify import Look, damage_behind, drop_damaged_maps, repair, told
from storage.manifest import ShardRecord
from storage.table import Store

LOG = logging.getLogger(__name__)


def execute_run(
    run: Run,
    progress: Progress | None = None,
    engine: Callable[[], Engine] | None = None,
    waits: bool = False,
    asked: str | None = None,
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
        waits: Whether to wait where another driver works in the run's folder.
        asked: Stands for the configuration as it was given (`pipeline.unchanged.asked`). With it,
            the run's record holds what is needed to find that the next time nothing is to do.

    Raises:
        RunError: the run cannot be planned, a task failed, or another driver is at work.
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
    with hold(folder.path, waits, progress.say):
        _execute(run, folder, progress, engine, asked)
    return folder


def _execute(
    run: Run,
    folder: RunFolder,
    progress: Progress,
    engine: Callable[[], Engine] | None,
    asked: str | None,
) -> None:
    """Computes and records what the run lacks, in a store that knows of it; see `execute_run`."""
    store = Store(run.store_url)
    with announced(store, folder.path, is_own=run.store is None):
        _until_whole(run, folder, store, progress, engine, asked)


def _until_whole(
    run: Run,
    folder: RunFolder,
    store: Store,
    progress: Progress,
    engine: Callable[[], Engine] | None,
    asked: str | None,
) -> None:
    """Executes the run, again where files are damaged; see `execute_run`."""
    seen: set[tuple[str, str]] = set()
    while True:
        attempt = _Attempt(run, folder, store, progress, engine, asked)
        try:
            attempt.execute(seen)
            return
        except Exception as error:
            damages = damage_behind(error, attempt.plan, store)
            # What is damaged again, straight after it was written, is for a person to look at.
            if not damages or {(d.table, d.name) for d in damages} <= seen:
                raise
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
        asked: str | None,
    ):
        self.plan: Plan | None = None
        self._run, self._folder, self._store = run, folder, store
        self._progress, self._engine = progress, engine
        self._asked = asked
        self._finished: list[Node] = []
        self._stops: list[tuple[str, str]] = []
        self._opened: Engine | None = None

    def execute(self, seen: Container[tuple[str, str]]) -> None:
        """Computes what the store lacks; `seen` are files that were damaged, and are missing now.

        Raises:
            Exception: whatever ends a run; that of a damaged file names the file.
        """
        try:
            self._execute(seen)
        finally:
            if self._opened is not None:
                self._opened.close()

    def _execute(self, seen: Container[tuple[str, str]]) -> None:
        run, folder, store, progress = self._run, self._folder, self._store, self._progress
        last_artefacts = artefacts_of_last_run(run, folder)
        progress.say("Reading the corpus ...")
        look = Look(store, seen)
        stages = list(stages_in_order(run)[0].values())
        basis = basis_of(self._asked, run, stages, store) if self._asked is not None else None
        readers = Readers(stages)
        calls = IngestCalls(self._engine_of_run, run.ray.default, progress)
        corpus = read_corpus(run, store, readers=readers, look=look.at_corpus, each=calls)
        plan = self.plan = make_plan(
            run,
            corpus,
            store,
            last_artefacts,
            is_dry=False,
            recorded=last_record(folder, store).get("tables", {}),
        )
        look.at_plan(plan)
        look.at_values(folder)
        for sentence in drop_damaged_maps(plan, store):
            progress.say(sentence)
        progress.planned(plan)
        for note in check_models(plan, store):
            progress.say(note)
        LOG.info("%s over %s, stages %s", folder.path, store.url, [n.instance for n in plan.nodes])
        record = RunRecord(plan, folder, store)
        for node in plan.nodes:
            self._compute(node, plan, record)
        done = dataclasses.replace(plan, nodes=tuple(self._finished))
        record.close(basis and kept_of(done, basis, self._stops))

    def _compute(self, node: Node, plan: Plan, record: RunRecord) -> None:
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
                self._stops.append((f"{node.instance}: {stop_notices[0]}", "yellow"))
        seconds = time.monotonic() - start
        notices = stop_notices + record.finish(node, {**stored, **tasks.computed}, seconds)
        self._finished.append(dataclasses.replace(node, done=frozenset(t.key for t in node.tasks)))
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
            yield from self._engine().run_tasks(self._job, wave, self._resources, self._heard)

    def _heard(self, key: str, done: int, total: int) -> None:
        self._progress.within(self._node, key, done, total)

    def keep(self, task: Task, records: list[ShardRecord]) -> None:
        """Keeps the records of a finished task, and reports it to the progress."""
        self.computed[task.key] = records
        self._progress.advanced(self._node, records)


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
    return Job(
        node.instance,
        node.stage,
        run.store_url,
        inputs,
        run.resources(node.instance).cpus,
        models=fingerprints_in(node.fields),
        has_chats=plan.corpus.has_chats,
    )
