"""What `assay plan` says of a cluster and of a corpus of another size."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import assay, complaint, write_lines, write_run

from pipeline import estimate
from pipeline.api import plan
from pipeline.cluster_size import Assumptions, Cluster, CorpusSize
from stages.model import precision

STAGES = {
    "probe": {"embedding": "features"},
    "prediction": {"embedding": "features"},
    "similarity": {"features": "features"},
    "knn_shapley": {"features": "features"},
    "freeshap": {"kernel": ["features"], "rounds": 6},
    "kernel_regression": {"kernel": ["features"]},
}
FLOPS = 1e10
MILLION = CorpusSize(rows=1_000_000)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over 40 rows of vectors and texts, and 20 queries."""
    folder = tmp_path_factory.mktemp("forecast")
    g = np.random.default_rng(0)
    columns = {"id": "id", "label": "kind", "features": "numbers"}
    rows = [
        {"id": i, "text": "x" * 41, "kind": f"is {i % 2}", "numbers": g.normal(size=64).tolist()}
        for i in range(60)
    ]
    return write_run(
        folder,
        corpus={"path": write_lines(folder / "rows.jsonl", rows[:40]), **columns},
        queries={"path": write_lines(folder / "queries.jsonl", rows[40:]), **columns},
        shard_size=1000,
        stages=STAGES,
    )


def told(config: Path, size: CorpusSize = MILLION, **cluster: Any) -> dict[str, Any]:
    """The forecast for a million rows, by default on one core of 10^10 FLOP/s, all else free."""
    free = {
        "store_gb_s": 1e9,
        "request_ms": 1e-9,
        "driver_ms": 1e-9,
        "task_ms": 1e-9,
        "ingest_us": 1e-9,
    }
    assumed = {"core_flops": FLOPS, "efficiency": 1.0, "memory_gb": 1e6, **free}
    names = {name for name in cluster if name in Assumptions.__dataclass_fields__}
    assumed |= {name: cluster.pop(name) for name in names}
    machines = {"nodes": 1, "cores": 1, **cluster}
    return dict(plan(config, (), Cluster(**machines, assumed=Assumptions(**assumed)), size))


def by_stage(forecast: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["stage"]: row for row in forecast["stages"]}


def test_tasks_follow_from_how_the_work_divides(config: Path) -> None:
    tasks = {name: row["tasks"] for name, row in by_stage(told(config)).items()}
    merges = 125 + 16 + 2 + 1
    # A million rows are judged in another way than forty: by sums over groups of eight shards.
    assert (
        tasks.items()
        >= {
            "corpus": 2 + 1001,  # pieces of 16 MB are looked through, and then made into shards
            "probe": 1,
            "prediction": 1001,
            "similarity": 1000 + merges,
            "knn_shapley": 1,
            "freeshap": 6,
            "feature_sums": 125 + 16 + 2 + 1,
            "kernel_fit": 1,
            "kernel_regression": 1001,
        }.items()
    )


def test_one_core_takes_as_long_as_the_operations(config: Path) -> None:
    for name, row in by_stage(told(config)).items():
        if name != "corpus":
            assert row["seconds"] == pytest.approx(row["flops"] / FLOPS, rel=1e-3), name


def test_a_cluster_divides_what_can_be_divided(config: Path) -> None:
    one = by_stage(told(config))
    many = by_stage(told(config, nodes=10, cores=10))
    faster = {name: one[name]["seconds"] / many[name]["seconds"] for name in STAGES}
    # 1001 shards on 100 cores take eleven turns; six rounds use six cores.
    assert faster["prediction"] == pytest.approx(1001 / 11, rel=1e-3)
    assert faster["similarity"] == pytest.approx(100, rel=1e-3)
    assert faster["freeshap"] == pytest.approx(6, rel=1e-3)
    assert faster["probe"] == pytest.approx(1, rel=1e-3)
    limits = {name: many[name]["limit"] for name in ("prediction", "freeshap", "probe")}
    assert limits == {"prediction": "compute", "freeshap": "6 rounds", "probe": "one task"}
    assert many["knn_shapley"]["limit"] == "1 blocks of queries"
    assert many["freeshap"]["workers"] == 6
    most = by_stage(told(config, nodes=100, cores=100))["prediction"]
    assert (most["workers"], most["limit"]) == (1001, "1001 shards")


def test_memory_and_cores_per_worker_decide_how_many_work_at_once(config: Path) -> None:
    needed = by_stage(told(config))["similarity"]["memory_bytes"]
    room = {"nodes": 2, "cores": 16, "memory_gb": 3.5 * needed / 1e9}
    row = by_stage(told(config, **room))["similarity"]
    assert (row["workers"], row["limit"]) == (6, "memory")
    row = by_stage(told(config, nodes=2, cores=16, memory_gb=0.5 * needed / 1e9))["similarity"]
    assert (row["workers"], row["limit"].partition("; ")[2]) == (
        2,
        "a task needs more memory than a node has",
    )
    wide = ("ray.stages.prediction.cpus=4", "ray.stages.similarity.workers=5")
    rows = dict(plan(config, wide, Cluster(2, 16, assumed=Assumptions(memory_gb=1e6)), MILLION))
    assert by_stage(rows)["prediction"]["workers"] == 8
    assert by_stage(rows)["similarity"]["workers"] == 5


@pytest.mark.parametrize(
    ("assumed", "limit", "slower"),
    [("store_gb_s", "store", 1e-9), ("request_ms", "requests", 1e6), ("driver_ms", "driver", 1e6)],
)
def test_what_is_slowest_limits_a_stage(
    config: Path, assumed: str, limit: str, slower: float
) -> None:
    rows = [told(config, **{assumed: factor * slower}) for factor in (1, 2)]
    first, second = (by_stage(one)["prediction"] for one in rows)
    assert first["limit"] == limit
    times = second["seconds"] / first["seconds"]
    assert times == pytest.approx(0.5 if limit == "store" else 2)


def test_bytes_and_requests(config: Path) -> None:
    """Of `prediction`: vectors of 64 numbers and the probe are read, two logits a row written."""
    row = by_stage(told(config, nodes=2, cores=3))["prediction"]
    vectors = 4 * 64 * 1_000_020
    assert row["read_bytes"] == pytest.approx(vectors, rel=0.01)
    # Each of six workers reads the probe and lists two tables; two files of vectors are listed.
    assert row["requests"] == 1001 + 6 + 6 * (2 + 1) + 1001 + 1
    row = by_stage(told(config, nodes=2, cores=3))["freeshap"]
    # Both nodes map all vectors; every worker reads the labels.
    assert row["read_bytes"] == pytest.approx(2 * vectors + 6 * 6 * 1_000_020, rel=0.01)


def test_a_game_on_short_features_costs_what_these_do(config: Path) -> None:
    """Of 64 numbers, a game along 16 directions; most of it is then to judge the outputs."""
    sized = [
        dict(plan(config, (f"stages.freeshap.directions={n}",), Cluster(), CorpusSize(rows=10**6)))
        for n in ("null", 16)
    ]
    long, short = (by_stage(one)["freeshap"] for one in sized)
    assert short["flops"] < 0.8 * long["flops"]
    assert short["memory_bytes"] < long["memory_bytes"]


def test_a_stage_that_reads_a_part_of_its_tables_says_how_much(config: Path) -> None:
    """Of a million rows `kernel_fit` looks at a few shards, to choose the ridge."""
    row = by_stage(told(config))["kernel_fit"]
    assert 0 < row["read_bytes"] < 0.1 * 4 * 64 * 1_000_020
    assert row["requests"] < 200


def test_sums_and_the_longest_chain(config: Path) -> None:
    forecast = told(config, ingest_us=10.0)
    rows = by_stage(forecast)
    assert rows["corpus"]["seconds"] == pytest.approx(10.0002)
    assert forecast["seconds"] == pytest.approx(sum(row["seconds"] for row in rows.values()))
    slowest = max(
        (rows["freeshap"]["seconds"], ["corpus", "freeshap"]),
        (rows["similarity"]["seconds"], ["corpus", "similarity"]),
        (
            rows["probe"]["seconds"] + rows["prediction"]["seconds"],
            ["corpus", "probe", "prediction"],
        ),
    )
    assert forecast["chain"]["stages"] == slowest[1]
    assert forecast["chain"]["seconds"] == pytest.approx(10.0002 + slowest[0])


def test_the_size_scales_the_work(config: Path) -> None:
    one, ten = (by_stage(told(config, CorpusSize(rows=n))) for n in (10**6, 10**7))
    for name in ("prediction", "similarity"):
        assert ten[name]["flops"] == pytest.approx(10 * one[name]["flops"], rel=1e-3), name
    own = told(config, CorpusSize())
    assert (own["examples"], own["queries"], own["shards"]) == (40, 20, 2)
    assert own["tokens"] == pytest.approx(60 * 41 / 4.2, rel=0.1)
    longer = told(config, CorpusSize(rows=100, queries=50, tokens_per_row=200))
    assert (longer["examples"], longer["tokens"]) == (100, 150 * 200)
    chosen = plan(config, ("shard_size=auto",), None, CorpusSize(rows=10**8, tokens_per_row=200))
    assert 2000 < dict(chosen)["shards"] < 2010
    assert told(config, CorpusSize(rows=10**8))["examples"] == 10**8


def test_on_the_run_s_own_corpus_it_is_what_plan_says(config: Path) -> None:
    planned = by_stage(dict(plan(config)))
    forecast = by_stage(told(config, CorpusSize()))
    for name in STAGES:
        for field in ("flops", "memory_bytes", "how"):
            expected = planned[name][field]
            found = forecast[name][field]
            assert round(found) == expected if field == "flops" else found == expected, name


def test_this_machine_has_no_more_workers_than_a_stage_may_have(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(estimate, "flops_per_second", lambda: 1e5)  # So that a task's own is little

    def seconds(*settings: str) -> float:
        planned = by_stage(dict(plan(config, ("ray.engine=ray", *settings))))
        return float(planned["freeshap"]["seconds"])

    alone = seconds("ray.stages.freeshap.workers=1")
    assert alone / seconds() == pytest.approx(6)
    assert alone / seconds("ray.default.workers=2") == pytest.approx(2)
    assert alone / seconds("ray.default.workers=4") == pytest.approx(3)
    assert alone / seconds("ray.stages.freeshap.cpus=4") == pytest.approx(8, rel=1e-2)
    assert alone / seconds("ray.engine=in_process") == pytest.approx(1)


def test_models_run_on_gpus_where_there_are_some(
    tmp_path: Path, reader: dict[str, Any], write_config: Any
) -> None:
    run = write_config(tmp_path, stages={"embedding": {}, "similarity": {}})
    gpus = {"gpus": 8, "gpu_flops": 1e12, "gpu_efficiency": 0.5}
    row = by_stage(told(run, nodes=4, cores=4, **gpus))["embedding"]
    waves = math.ceil(row["tasks"] / 8)
    assert (row["workers"], row["limit"]) == (8, "GPUs")
    assert row["seconds"] == pytest.approx(row["flops"] / row["tasks"] * waves / 5e11, rel=1e-3)
    assert by_stage(told(run, nodes=4, cores=4, **gpus))["similarity"]["limit"] != "GPUs"


def test_the_command_says_what_it_assumes(config: Path) -> None:
    asked = ("plan", config, "--nodes", 64, "--cores", 32, "--rows", 10**8, "--tokens-per-row", 200)
    shown = " ".join(assay(*asked, "--assume", "core_flops=2e10").stdout.split())
    assert "100,000,000 examples, 20 queries, 20,000,004,000 tokens" in shown
    assert "on 64 nodes of 32 cores" in shown
    assert "longest chain of stages" in shown
    assert "core_flops=2e+10" in shown
    assert "memory_gb=128" in shown
    as_json = json.loads(assay(*asked, "--gpus", 8, "--json").stdout)
    assert (as_json["gpus"], as_json["nodes"]) == (8, 64)
    said = complaint("plan", config, "--assume", "core_flop=1")
    assert "core_flops, efficiency" in said
    assert "positive number" in complaint("plan", config, "--assume", "store_gb_s=-1")


def test_the_speed_is_that_of_the_numbers_that_a_stage_computes_in(
    tmp_path: Path, reader: dict[str, Any], write_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {"float32": 4e5, "bfloat16": 1e5}
    monkeypatch.setattr(estimate, "flops_per_second", lambda dtype="float32": speeds[dtype])
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    slow = {"stage": "embedding", "model": {**reader, "dtype": "bfloat16"}}
    run = write_config(tmp_path, stages={"embedding": {}, "slow": slow})
    planned = dict(plan(run))
    rows = by_stage(planned)
    assert rows["slow"]["seconds"] / rows["embedding"]["seconds"] == pytest.approx(4, rel=1e-2)
    assert planned["bfloat16_flops_per_second"] == 1e5
    (note,) = (note for note in planned["notes"] if "bfloat16" in note)
    assert "Set dtype: float32" in note
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    assert not any("bfloat16" in note for note in dict(plan(run))["notes"])


def test_what_no_processor_here_trains_in_is_refused_before_anything_is_computed(
    tmp_path: Path, write_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    run = write_config(tmp_path, stages={"gradient": {"precision": "bfloat16"}})
    said = complaint("run", run)
    assert "stages.gradient: precision: found bfloat16 on cpu" in said
    assert not list(tmp_path.rglob("diagnostics"))
