"""Engines that run tasks, in this process or on Ray; the only file that imports ray.

Both engines take the same tasks and yield the same records; they differ in where the work happens.
On Ray, every actor keeps what the stage opens (a model, a kernel) and has at most two tasks
waiting, so that the scheduler never holds more than the names of a few. A task whose worker or node
is lost is tried again by another (`pipeline.workers`); one that raises is not, for it would raise
again.
"""

import logging
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import TaskError
from pipeline.failures import failed, line_of, lost, name_of
from pipeline.node import Task
from pipeline.node_versions import check_versions
from pipeline.ray_address import check_answers
from pipeline.settings import RaySettings, Resources
from pipeline.stopping import handle_again
from pipeline.task import Call, Heard, Job, Worker
from pipeline.workers import LOOK_S, Crew, with_gpus
from stages.corpus.pieces import in_turn
from storage.manifest import ShardRecord

LOG = logging.getLogger(__name__)
ROOMS = ("pipeline", "stages", "storage")
OBJECT_STORE_BYTES = 100 << 20
"""Of a Ray that is started here: only the names of tasks go through it, and by default it would
reserve a third of the memory."""
START_S = 60.0
"""How long Ray may take to start, or to connect to a cluster that answers."""


class Engine(Protocol):
    """Runs tasks of a stage, somewhere."""

    def run_tasks(
        self, job: Job, tasks: Sequence[Task], resources: Resources, heard: Heard | None = None
    ) -> Iterator[tuple[Task, list[ShardRecord]]]:
        """Runs the tasks; yields each with the records of its shards, in the order of finishing.

        `heard` is told how far a task is whose stage says so, on Ray every few seconds.

        Raises:
            TaskError: a task raised, or its worker was lost too often.
        """

    def call_each(
        self,
        name: str,
        function: Callable[[Any, Any], Any],
        shared: Any,
        items: Sequence[Any],
        resources: Resources,
    ) -> Iterator[tuple[int, Any]]:
        """Calls a function with `shared` and each item; yields places and results as they finish.

        Raises:
            stages.stage.StageError: as the function raises it; likewise a StorageError.
            TaskError: the function raised another error, or its worker was lost too often.
        """

    def close(self) -> None:
        """Ends the workers and frees what they keep."""


class InProcess:
    """Runs every task in this process, one after the other."""

    def __init__(self) -> None:
        self._worker = Worker()

    def run_tasks(
        self, job: Job, tasks: Sequence[Task], resources: Resources, heard: Heard | None = None
    ) -> Iterator[tuple[Task, list[ShardRecord]]]:
        """See `Engine.run_tasks`."""
        for task in tasks:
            try:
                if task.parts:
                    records = self._worker.merge_task(job, task.part, task.key, task.parts)
                else:
                    records = self._worker.run_task(job, task.part, task.key, heard)
                yield task, records
            except Exception as error:
                raise failed(job, task, error) from error

    def call_each(
        self,
        name: str,
        function: Callable[[Any, Any], Any],
        shared: Any,
        items: Sequence[Any],
        resources: Resources,
    ) -> Iterator[tuple[int, Any]]:
        """See `Engine.call_each`."""
        yield from in_turn(function, shared, items)

    def close(self) -> None:
        """See `Engine.close`."""
        self._worker = Worker()


class OnRay:
    """Runs tasks in Ray actors, on this machine or on a cluster."""

    def __init__(self, settings: RaySettings):
        """Connects to the cluster that `settings` or RAY_ADDRESS names, or starts a local one.

        Raises:
            TaskError: the cluster cannot be reached, or Ray cannot be started.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        address = settings.address or os.environ.get("RAY_ADDRESS")
        if address is not None:
            check_answers(address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray  # a second of import that `assay sql` should not pay
        self._ray: Any = ray
        self._settings = settings
        self._crew: Crew | None = None
        self._is_closed, self._is_local = threading.Event(), address is None
        self._told_here = False
        # A cluster's nodes get this code, and only it: the rooms, not the folder they lie in, which
        # in a checkout holds data and runs, and after a plain `pip install` every other package.
        rooms = [str(Path(__file__).resolve().parents[1] / room) for room in ROOMS]
        arguments: dict[str, Any] = (
            # Without an address Ray would join another one that runs on this machine.
            {
                "address": "local",
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
            }
            if address is None
            else {
                "address": address,
                "runtime_env": {"py_modules": rooms, "excludes": ["__pycache__"]},
            }
        )
        try:
            self._connect(arguments)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            if address is None:
                raise TaskError(
                    f"ray: found that Ray does not start on this machine ({error}), expected it to "
                    "run the tasks. See whether its folder (RAY_TMPDIR, /tmp by default) has room, "
                    "or set ray.engine=in_process."
                ) from error
            raise TaskError(
                f"ray: found no cluster at {address} ({error}), expected one to connect to. Check "
                "the address, or leave it out to start Ray on this machine."
            ) from error

    def _connect(self, arguments: Mapping[str, Any]) -> None:
        """Calls `ray.init`; a signal meanwhile is raised once there is something to shut down.

        In a thread, because Ray handles SIGTERM of the main thread in its own way, and because an
        interrupted start leaves processes behind. The thread stays: on Linux what it started ends
        with it, not with the process.
        """
        logging.getLogger("ray").setLevel(logging.ERROR)
        failures: list[BaseException] = []
        is_tried = threading.Event()

        def connect() -> None:
            try:
                self._ray.init(
                    configure_logging=True,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    **arguments,
                )
            except BaseException as error:
                failures.append(error)
            is_tried.set()
            self._is_closed.wait()

        threading.Thread(target=connect, daemon=True).start()
        until = time.monotonic() + START_S
        try:
            while not is_tried.wait(0.05):
                handle_again()
                if time.monotonic() > until:
                    raise TimeoutError(f"no answer within {START_S:g} s")
            handle_again()
        except BaseException:
            is_tried.wait(START_S / 4)
            self.close()
            raise
        if failures:
            self.close()
            raise failures[0]

    def run_tasks(
        self, job: Job, tasks: Sequence[Task], resources: Resources, heard: Heard | None = None
    ) -> Iterator[tuple[Task, list[ShardRecord]]]:
        """See `Engine.run_tasks`."""
        resources = with_gpus(resources, job.stage, self._n_gpus())
        yield from self._run(replace(job, gpus=resources.gpus), tasks, resources, heard)

    def call_each(
        self,
        name: str,
        function: Callable[[Any, Any], Any],
        shared: Any,
        items: Sequence[Any],
        resources: Resources,
    ) -> Iterator[tuple[int, Any]]:
        """See `Engine.call_each`; what no other node of a cluster can do is done here."""
        calls = [Call(name, str(at), function, item) for at, item in enumerate(items)]
        for call, result in self._run(shared, calls, resources):
            yield int(call.key), result

    def _run(
        self,
        job: Any,
        tasks: Sequence[Task | Call],
        resources: Resources,
        heard: Heard | None = None,
    ) -> Iterator[tuple[Any, Any]]:
        """Runs tasks of a job, or calls that share it; yields each with its result."""
        ray = self._ray
        job_ref = ray.put(job)
        crew = self._crew_for(resources)
        waiting = list(reversed(tasks))
        losses: Counter[str] = Counter()
        left = len(tasks)
        try:
            while left:
                crew.hire(left)
                while waiting and crew.give(waiting[-1], job_ref, len(waiting)):
                    waiting.pop()
                running = crew.running()
                if not running:
                    time.sleep(LOOK_S / 10)
                    continue
                ready, _ = ray.wait(running, num_returns=1, timeout=LOOK_S)
                if heard is not None and not ready:
                    for steps in crew.steps():
                        heard(*steps)
                for ref in ready:
                    if ref in crew.recruits:
                        self._answer(crew, ref)
                        continue
                    actor = crew.holder(ref)
                    task = crew.busy[actor][ref]
                    try:
                        result = ray.get(ref)
                    except ray.exceptions.RayError as error:
                        if not self._is_lost(error):
                            cause = getattr(error, "cause", None) or error
                            if self._is_local or not isinstance(task, Call):
                                raise failed(job, task, cause) from error
                            del crew.busy[actor][ref]
                            left -= 1
                            yield task, self._call_here(job, task, cause)
                            continue
                        # Only the oldest was at work: those behind it are not to blame.
                        oldest = next(iter(crew.busy[actor].values()))
                        losses[oldest.key] += 1
                        LOG.warning("%s: a worker was lost: %s", name_of(job, task), line_of(error))
                        waiting += reversed(crew.lose(actor))
                        if losses[oldest.key] > self._settings.retries:
                            raise lost(job, oldest, losses[oldest.key], error) from error
                        continue
                    del crew.busy[actor][ref]
                    left -= 1
                    yield task, result
        finally:
            crew.rest()

    def close(self) -> None:
        """See `Engine.close`."""
        self._ray.shutdown()
        handle_again()
        self._is_closed.set()

    def _n_gpus(self) -> float:
        """GPUs of the cluster; 0 where torch, the same on every node, is built without them."""
        from stages.model.devices import is_built_for_gpus

        return float(self._ray.cluster_resources().get("GPU", 0)) if is_built_for_gpus() else 0.0

    def _call_here(self, shared: Any, call: Call, error: BaseException) -> Any:
        """The result of a call that failed on another node, which may not see a file of this one.

        Raises:
            Exception: it fails here, too.
        """
        try:
            result = call.function(shared, call.item)
        except Exception as again:
            raise failed(shared, call, again) from again
        if not self._told_here:
            LOG.warning("%s: a worker cannot do it, so it is done here: %s", call.name, error)
            self._told_here = True
        return result

    def _answer(self, crew: Crew, ref: Any) -> None:
        """Lets a recruit work that could start; raises where no recruit will.

        Raises:
            TaskError: a node lacks what workers need, or has other versions of it.
        """
        exceptions = self._ray.exceptions
        try:
            node, versions = self._ray.get(ref)
        except exceptions.RayActorError as error:
            if error.actor_init_failed:
                raise TaskError(
                    f"ray: found that a worker cannot start ({line_of(error)}), expected the "
                    f"package of this command, {Path(__file__).parent}, and what it needs on every "
                    "node. Install the same version there; on this machine, leave the folder of "
                    "another checkout, or set PYTHONPATH to the one that is meant."
                ) from error
            crew.refuse(ref, line_of(error))
        except exceptions.RayError as error:
            if not self._is_lost(error):
                raise TaskError(
                    f"ray: found that a worker cannot start ({line_of(error)}), expected nodes "
                    "that take this package's code. See Ray's own log on the node."
                ) from error
            crew.refuse(ref, line_of(error))
        else:
            if not self._is_local:
                check_versions(versions, node)
            crew.welcome(ref)

    def _is_lost(self, error: BaseException) -> bool:
        """Whether the worker, its node or an object is gone: not an error of the task's own."""
        kinds = self._ray.exceptions
        lost = (
            kinds.RayActorError,
            kinds.WorkerCrashedError,
            kinds.OutOfMemoryError,
            kinds.NodeDiedError,
            kinds.LocalRayletDiedError,
            kinds.ObjectLostError,
        )
        return isinstance(error, lost) or isinstance(getattr(error, "cause", None), lost)

    def _crew_for(self, resources: Resources) -> Crew:
        """Actors with these resources; the last stage's if theirs are equal."""
        if self._crew is None or self._crew.resources != resources:
            if self._crew is not None:
                self._crew.dismiss()
            wait_s = 60 * self._settings.wait_minutes
            self._crew = Crew(self._ray, resources, self._is_local, wait_s)
        return self._crew


def open_engine(settings: RaySettings) -> Engine:
    """The engine that `settings` name: `in_process` or `ray`."""
    return InProcess() if settings.engine == "in_process" else OnRay(settings)
