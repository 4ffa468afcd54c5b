"""Engines that run tasks, in this process or on Ray; the only file that imports ray.

Both engines take the same tasks and yield the same records; they differ in where the work happens.
On Ray, every actor of a pool keeps what the stage opens (a model, a kernel) and has at most two
tasks waiting, so that the scheduler never holds more than the names of a few. A task whose worker
is lost is tried again; a task that raises is not, for it would raise again.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import TaskError
from pipeline.node import Task
from pipeline.settings import RaySettings, Resources
from pipeline.task import Job, Worker
from storage.manifest import ShardRecord

QUEUED_PER_WORKER = 2
ROOMS = ("pipeline", "stages", "storage")
OBJECT_STORE_BYTES = 100 << 20
"""Of a Ray that is started here: only the names of tasks go through it, and by default it would
reserve a third of the memory."""


class Engine(Protocol):
    """Runs tasks of a stage, somewhere."""

    def run_tasks(
        self, job: Job, tasks: Sequence[Task], resources: Resources
    ) -> Iterator[tuple[Task, list[ShardRecord]]]:
        """Runs the tasks; yields each with the records of its shards, in the order of finishing.

        Raises:
            TaskError: a task raised, or its worker was lost too often.
        """

    def close(self) -> None:
        """Ends the workers and frees what they keep."""


class InProcess:
    """Runs every task in this process, one after the other."""

    def __init__(self) -> None:
        self._worker = Worker()

    def run_tasks(
        self, job: Job, tasks: Sequence[Task], resources: Resources
    ) -> Iterator[tuple[Task, list[ShardRecord]]]:
        """See `Engine.run_tasks`."""
        for task in tasks:
            try:
                if task.parts:
                    records = self._worker.merge_task(job, task.part, task.key, task.parts)
                else:
                    records = self._worker.run_task(job, task.part, task.key)
                yield task, records
            except Exception as error:
                raise _failed(job, task, error) from error

    def close(self) -> None:
        """See `Engine.close`."""
        self._worker = Worker()


class OnRay:
    """Runs tasks in Ray actors, on this machine or on a cluster."""

    def __init__(self, settings: RaySettings):
        """Connects to the cluster that `settings` or RAY_ADDRESS names, or starts a local one.

        Raises:
            TaskError: the cluster cannot be reached.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray  # a second of import that `assay sql` should not pay
        self._ray: Any = ray
        self._settings = settings
        address = settings.address or os.environ.get("RAY_ADDRESS")
        # A cluster's nodes get this code, and only it: the rooms, not the folder they lie in, which
        # in a checkout holds data and runs, and after a plain `pip install` every other package.
        rooms = [str(Path(__file__).resolve().parents[1] / room) for room in ROOMS]
        arguments: dict[str, Any] = (
            {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
            if address is None
            else {"runtime_env": {"py_modules": rooms, "excludes": ["__pycache__"]}}
        )
        try:
            ray.init(
                address=address,
                configure_logging=True,
                logging_level=logging.ERROR,
                log_to_driver=False,
                **arguments,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise TaskError(
                f"ray: found no cluster at {address or 'this machine'} ({error}), expected one to "
                "connect to. Check the address, or leave it out to start Ray on this machine."
            ) from error
        self._pool: list[Any] = []
        self._pool_is_for: Resources | None = None

    def run_tasks(
        self, job: Job, tasks: Sequence[Task], resources: Resources
    ) -> Iterator[tuple[Task, list[ShardRecord]]]:
        """See `Engine.run_tasks`."""
        ray = self._ray
        job_ref = ray.put(job)
        pool = self._workers(resources, len(tasks))
        waiting = list(reversed(tasks))
        running: dict[Any, tuple[Task, Any]] = {}

        def launch(worker: Any) -> None:
            if waiting:
                task = waiting.pop()
                if task.parts:
                    ref = worker.merge_task.remote(job_ref, task.part, task.key, task.parts)
                else:
                    ref = worker.run_task.remote(job_ref, task.part, task.key)
                running[ref] = (task, worker)

        try:
            for _ in range(QUEUED_PER_WORKER):
                for worker in pool:
                    launch(worker)
            while running:
                (ready,), _ = ray.wait(list(running), num_returns=1)
                task, worker = running.pop(ready)
                try:
                    records = ray.get(ready)
                except ray.exceptions.RayTaskError as error:
                    raise _failed(job, task, error.cause or error) from error
                except ray.exceptions.RayError as error:
                    raise _failed(job, task, error) from error
                launch(worker)
                yield task, records
        finally:
            for ref in running:
                ray.cancel(ref)

    def close(self) -> None:
        """See `Engine.close`."""
        self._ray.shutdown()

    def _workers(self, resources: Resources, n_tasks: int) -> list[Any]:
        """Actors with these resources, at most `n_tasks`; the last stage's if theirs are equal."""
        ray = self._ray
        if self._pool_is_for != resources:
            for worker in self._pool:
                ray.kill(worker)
            self._pool, self._pool_is_for = [], resources
        demand: dict[str, float] = {"CPU": resources.cpus, "GPU": resources.gpus}
        if resources.memory_gb:
            demand["memory"] = resources.memory_gb * 1e9
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        n_fitting = sum(_fitting(node, demand, n_tasks) for node in nodes)
        if n_fitting < 1:
            raise TaskError(
                f"ray: found nodes of {'; '.join(_amounts(node) for node in nodes)}, expected one "
                f"with {_amounts(demand)} for a worker of this stage. Lower the stage's cpus, gpus "
                "or memory_gb under `ray:`, or add a node."
            )
        n_workers = min(n_tasks, n_fitting, resources.workers or n_fitting)
        actor = ray.remote(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            memory=demand.get("memory"),
            max_restarts=-1,
            max_task_retries=self._settings.retries,
        )(Worker)
        while len(self._pool) < n_workers:
            self._pool.append(actor.remote())
        return self._pool[:n_workers]


def open_engine(settings: RaySettings) -> Engine:
    """The engine that `settings` name: `in_process` or `ray`."""
    return InProcess() if settings.engine == "in_process" else OnRay(settings)


def _fitting(node: Mapping[str, float], demand: Mapping[str, float], most: int) -> int:
    """How many workers with this demand fit on an empty node, at most `most`."""
    return min([most, *(int(node.get(name, 0) // n) for name, n in demand.items() if n)])


def _amounts(resources: Mapping[str, float]) -> str:
    """Resources in words: `4 CPUs, 1 GPUs, 16.0 GB`."""
    amounts = [f"{resources.get('CPU', 0):g} CPUs", f"{resources.get('GPU', 0):g} GPUs"]
    if "memory" in resources:
        amounts.append(f"{resources['memory'] / 1e9:.1f} GB")
    return ", ".join(amounts)


def _failed(job: Job, task: Task, error: BaseException) -> TaskError:
    """The error of a failed task, which names its stage and part."""
    part = task.part
    place = {
        "shard": f"{part.role} shard {part.index}",
        "query": f"query block {part.index}",
        "round": f"round {part.index}",
        "whole": "whole table",
    }[job.stage.split]
    if task.parts:
        place = f"merge {part.index} of level {task.level}"
    return TaskError(f"{job.instance}, {place}: {type(error).__name__}: {error}")
