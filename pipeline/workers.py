"""The workers of a stage on Ray: actors on the nodes that are there, replaced where they are lost.

Ray could restart actors and repeat their tasks itself, and does so only once its head has found out
that a node is gone, on any node that it believes in; a driver that waits for that waits for minutes
or for ever. Here an actor is never restarted: whatever loses it (a node, a kill, memory) costs the
tasks it had, which go to others, and another actor takes its place. Tasks are given only to actors
that have answered, so one that finds no node holds nothing up.
"""

import contextlib
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.errors import TaskError
from pipeline.node import Task
from pipeline.settings import Resources
from pipeline.task import Call, Worker
from stages.stage import Stage, Work

LOG = logging.getLogger(__name__)
QUEUED_PER_WORKER = 2
LOOK_S = 2.0
"""Between two looks at the nodes while workers are missing."""
TELLING = "telling"
"""A thread of every actor of its own, which can say how far the task is that the other works on."""
AHEAD = 64
"""Actors beyond those at work that are asked for where an autoscaler may start nodes for them."""
KIND = "accelerator_type:"
"""Before the name of a kind of accelerator, in Ray's name of the resource that marks its nodes."""
A_LITTLE = Work(n_examples=2, n_queries=2, n_tokens=8, n_classes=2, dim=8)
"""Of which a stage is asked for its cost, only to learn whether it runs a model."""
PATIENCE_S = 120.0
"""How long no worker at all may come to life while the cluster says that it has room for one."""


@dataclass
class Crew:
    """The actors of one kind: those that work, and those that have not answered yet."""

    ray: Any
    resources: Resources
    is_alone: bool = False
    """Whether nobody else can have taken the nodes: then waiting for long is in vain."""
    wait_s: float = 0.0
    """How long to wait for a node with the resources, where there is none. Above 0 more actors are
    asked for than nodes have room for, which is what an autoscaler starts nodes for."""
    busy: dict[Any, dict[Any, Task | Call]] = field(default_factory=dict)
    """Of every actor that has answered, the tasks that it was given and has not finished, by ref,
    the oldest first."""
    recruits: dict[Any, Any] = field(default_factory=dict)
    """Actors that have not answered yet, by the ref of their answer."""
    _asked: dict[Any, Any] = field(default_factory=dict)
    """Refs of what actors at work will answer on how far their task is."""
    _refusal: str = "no answer"
    """Why the last recruit that was lost did not start."""
    _told: float = float("-inf")
    _looked: float = float("-inf")
    _since: float = float("inf")
    """Since when there has been no actor that has answered."""

    def hire(self, n_tasks: int) -> None:
        """Asks for as many actors as the tasks, the settings and the nodes allow; looks at times.

        Recruits that no task is left for are given up.

        Raises:
            TaskError: there is no actor, and no node for one, or none came to life for long.
        """
        present = len(self.busy) + len(self.recruits)
        wanted = min(n_tasks, self.resources.workers or n_tasks)
        for ref in list(self.recruits)[: max(0, present - wanted)] if self.wait_s else ():
            self.lose(self.recruits[ref])
        present = len(self.busy) + len(self.recruits)
        now = time.monotonic()
        if (present >= wanted and self.busy) or now - self._looked < LOOK_S:
            return
        self._looked = now
        self._since = float("inf") if self.busy else min(self._since, now)
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        demand = self._demand()
        fitting = sum(_fitting(node, demand, wanted) for node in nodes)
        waited = max(0.0, now - self._since) if not self.busy else 0.0
        if not self.busy and fitting < 1 and waited >= self.wait_s:
            after = f" after {self.wait_s / 60:g} minutes" if self.wait_s else ""
            raise TaskError(
                f"ray: found nodes of {'; '.join(map(_amounts, nodes)) or 'nothing'}{after}, "
                f"expected one with {_amounts(demand)} for a worker of this stage. Lower what the "
                "stage asks for under `ray:`, or add a node; where an autoscaler starts nodes, "
                "give it time by ray.wait_minutes."
            )
        if waited > PATIENCE_S and (self.is_alone or not self.recruits):
            raise TaskError(
                f"ray: found no worker that started within {PATIENCE_S:g} s (the last one: "
                f"{self._refusal}), expected one on nodes of {'; '.join(map(_amounts, nodes))}. "
                "See whether they are well and have memory (`ray status`), and run again: what is "
                "finished stays."
            )
        if waited > PATIENCE_S / 4 and now - self._told > PATIENCE_S / 2:
            LOG.warning("no worker could start yet: the nodes are taken, or without memory")
            self._told = now
        actor = self.ray.remote(
            num_cpus=self.resources.cpus,
            num_gpus=self.resources.gpus or 0,
            memory=demand.get("memory"),
            resources=dict(self.resources.resources) or None,
            accelerator_type=self.resources.accelerator,
            concurrency_groups={TELLING: 1},
            max_restarts=0,
            max_task_retries=0,
        )(Worker)
        room = max(fitting, len(self.busy) + AHEAD) if self.wait_s else fitting
        for _ in range(min(wanted, room) - present):
            recruit = actor.remote()
            self.recruits[recruit.versions.remote()] = recruit

    def give(self, task: Task | Call, job: Any, n_waiting: int) -> bool:
        """Whether the task was given to the actor with the fewest, if one has less than two.

        While others are about to start, no actor gets a second one that they could take.
        """
        most = QUEUED_PER_WORKER if n_waiting > len(self.recruits) else 1
        actor = min(self.busy, key=lambda one: len(self.busy[one]), default=None)
        if actor is None or len(self.busy[actor]) >= most:
            return False
        if isinstance(task, Call):
            ref = actor.call.remote(job, task)
        elif task.parts:
            ref = actor.merge_task.remote(job, task.part, task.key, task.parts)
        else:
            ref = actor.run_task.remote(job, task.part, task.key)
        self.busy[actor][ref] = task
        return True

    def running(self) -> list[Any]:
        """Refs of the tasks that were given, and of the answers that recruits owe."""
        return [*(ref for tasks in self.busy.values() for ref in tasks), *self.recruits]

    def holder(self, ref: Any) -> Any:
        """The actor that was given the task of `ref`."""
        return next(actor for actor, tasks in self.busy.items() if ref in tasks)

    def steps(self) -> list[tuple[str, int, int]]:
        """Of actors at work, how far a task is (`Worker.steps`), as they answered the last call."""
        self._asked = {actor: ref for actor, ref in self._asked.items() if self.busy.get(actor)}
        refs = list(self._asked.values())
        answered, _ = self.ray.wait(refs, num_returns=len(refs), timeout=0) if refs else ([], [])
        for actor in [actor for actor, tasks in self.busy.items() if tasks]:
            if self._asked.get(actor) in [None, *answered]:
                self._asked[actor] = actor.steps.options(concurrency_group=TELLING).remote()
        steps = []
        for ref in answered:
            # The loss of an actor is told by its task.
            with contextlib.suppress(self.ray.exceptions.RayError):
                steps.append(self.ray.get(ref))
        return [one for one in steps if one[2]]

    def welcome(self, ref: Any) -> None:
        """Lets a recruit work that has answered with `ref`."""
        self.busy[self.recruits.pop(ref)] = {}

    def refuse(self, ref: Any, reason: str) -> None:
        """Gives up a recruit that did not start."""
        LOG.warning("a worker did not start: %s", reason)
        self._refusal = reason
        self.lose(self.recruits[ref])

    def lose(self, actor: Any) -> list[Task | Call]:
        """Gives up an actor; returns the tasks it had, the oldest first."""
        tasks = list(self.busy.pop(actor, {}).values())
        self.recruits = {ref: one for ref, one in self.recruits.items() if one is not actor}
        self.ray.kill(actor)
        return tasks

    def rest(self) -> None:
        """Takes all tasks back, and looks at the nodes at once when there are new ones."""
        for tasks in self.busy.values():
            for ref in tasks:
                self.ray.cancel(ref)
            tasks.clear()
        self._looked = float("-inf")

    def dismiss(self) -> None:
        """Ends all actors."""
        for actor in [*self.busy, *self.recruits.values()]:
            self.ray.kill(actor)
        self.busy, self.recruits = {}, {}

    def _demand(self) -> dict[str, float]:
        demand: dict[str, float] = {
            "CPU": self.resources.cpus,
            "GPU": self.resources.gpus or 0,
        }
        if self.resources.memory_gb:
            demand["memory"] = self.resources.memory_gb * 1e9
        if self.resources.accelerator:
            # The share of a node's one mark that Ray's own option asks for.
            demand[f"{KIND}{self.resources.accelerator}"] = 0.001
        return demand | dict(self.resources.resources)


def with_gpus(resources: Resources, stage: Stage, n_gpus: float) -> Resources:
    """The resources with a number of GPUs, on a cluster of `n_gpus`.

    Where they name none: one if the stage runs a model, and the cluster has any or a kind is named,
    else none.
    """
    if resources.gpus is not None:
        return resources
    has_gpus = n_gpus > 0 or resources.accelerator is not None
    return replace(resources, gpus=1.0 if has_gpus and _runs_model(stage) else 0.0)


def _runs_model(stage: Stage) -> bool:
    """Whether the tasks of the stage run its model, by its own estimate."""
    return stage.model_ref is not None and stage.cost(A_LITTLE).forward_rows > 0


def _fitting(node: Mapping[str, float], demand: Mapping[str, float], most: int) -> int:
    """How many workers with this demand fit on an empty node, at most `most`."""
    # 0.3 of 0.1 each are three, whatever the last bit says.
    shares = [node.get(name, 0) / n + 1e-6 for name, n in demand.items() if n]
    return min([most, *map(math.floor, shares)])


def _amounts(resources: Mapping[str, float]) -> str:
    """Resources in words: `4 CPUs, 1 GPUs, 16.0 GB, 1 big_memory, A100`."""
    amounts = [f"{resources.get('CPU', 0):g} CPUs", f"{resources.get('GPU', 0):g} GPUs"]
    if "memory" in resources:
        amounts.append(f"{resources['memory'] / 1e9:.1f} GB")
    own = set(resources) - {"CPU", "GPU", "memory", "object_store_memory"}
    for name in sorted(name for name in own if not name.startswith("node:")):
        is_kind = name.startswith(KIND)
        amounts.append(name.removeprefix(KIND) if is_kind else f"{resources[name]:g} {name}")
    return ", ".join(amounts)
