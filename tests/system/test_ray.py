"""The same run on a Ray cluster of several nodes, and what happens there when things break."""

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import two_nodes
from runs import check_grammar, write_lines, write_run

pytestmark = pytest.mark.ray


def on_ray(write_config: Any, folder: Path, wanted: Any, **ray: Any) -> Path:
    path: Path = write_config(folder, ray={"engine": "ray", **ray}, stages=wanted)
    return path


def workers(processes: Any, session: int) -> dict[int, str]:
    """Actors of ours, by pid, with what they do just now."""
    return {p: c for p, c in processes(session).items() if c.startswith("ray::Worker")}


def is_gone(processes: Any, session: int, kind: str, patience_s: float = 15) -> bool:
    """Whether no process of `kind` is left in the session, soon."""
    until = time.monotonic() + patience_s
    while any(c.startswith(kind) for c in processes(session).values()):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.smoke
def test_one_worker_on_ray_gives_the_bytes_of_this_process(
    unbroken: Any, write_config: Any, start: Any, tables_of: Any, processes: Any, tmp_path: Path
) -> None:
    ray = {"engine": "ray", "default": {"workers": 1}}
    with start("run", write_config(tmp_path, ray=ray)) as process:
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert tables_of(tmp_path / "run/store") == tables_of(unbroken.folder / "store")
    # The screen tells of the run; Ray has nothing to say there, and leaves nobody behind.
    assert not [line for line in err.splitlines() if "ray" in line.lower()], err
    until = time.monotonic() + 15
    while processes(process.pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes(process.pid) == {}


@pytest.mark.slow
def test_two_workers_on_two_nodes_give_the_bytes_of_this_process(
    unbroken: Any, write_config: Any, cli: Any, tables_of: Any, tmp_path: Path, cluster: Any
) -> None:
    ray = {"engine": "ray", "default": {"workers": 2}}
    config = write_config(tmp_path, ray=ray)
    done = cli("run", config, "--ray-address", cluster.address)
    assert done.returncode == 0, done.stderr
    assert tables_of(tmp_path / "run/store") == tables_of(unbroken.folder / "store")


@pytest.mark.slow
def test_a_tree_of_merges_on_two_workers_gives_the_bytes_of_this_process(
    write_config: Any, assay: Any, cli: Any, tables_of: Any, tmp_path: Path
) -> None:
    """24 leaves, three nodes above them, and the root."""
    short = {"projection": {"inputs": 4, "outputs": 4, "dim": 24}}
    fields = {"n_queries": 4, "shard_size": 4, "stages": {"gradient": short, "curvature": {}}}
    assay("run", write_config(tmp_path / "here", **fields))
    ray = {"engine": "ray", "default": {"workers": 2}}
    done = cli("run", write_config(tmp_path / "ray", ray=ray, **fields))
    assert done.returncode == 0, done.stderr
    assert "curvature: 28 tasks" in done.stderr
    assert tables_of(tmp_path / "ray/run/store") == tables_of(tmp_path / "here/run/store")


@pytest.mark.slow
def test_trainings_on_two_nodes_give_the_bytes_of_this_process(
    write_config: Any, assay: Any, cli: Any, tables_of: Any, tmp_path: Path, cluster: Any
) -> None:
    quick = {"stage": "retrain", "rounds": 2, "training": {"epochs": 1, "batch_size": 8}}
    stages = {
        "retrain": {"every": 32, "rounds": 4, "per_round": 2},
        "g_shapley": {"stage": "retrain", "training": {"kind": "one_pass"}, "rounds": 2},
        "blocks": {**quick, "last_blocks": 1, "every": 48},
        "whole": {**quick, "last_blocks": "all", "subsets": "random", "share": 0.25},
    }
    assay("run", write_config(tmp_path / "here", stages=stages))
    ray = {"engine": "ray", "default": {"workers": 2}}
    config = write_config(tmp_path / "ray", stages=stages, ray=ray)
    done = cli("run", config, "--ray-address", cluster.address)
    assert done.returncode == 0, done.stderr
    assert tables_of(tmp_path / "ray/run/store") == tables_of(tmp_path / "here/run/store")


@pytest.mark.slow
def test_a_killed_worker_costs_only_its_task(
    unbroken: Any,
    write_config: Any,
    start: Any,
    tables_of: Any,
    cluster: Any,
    processes: Any,
    tmp_path: Path,
) -> None:
    """Connected through RAY_ADDRESS, on two nodes; one of the two workers is killed as it works."""
    run = tmp_path / "run"
    with start(
        "run", on_ray(write_config, tmp_path, {"ntk": {}}), RAY_ADDRESS=cluster.address
    ) as process:
        busy: list[int] = []
        while not busy and process.poll() is None:
            time.sleep(0.01)
            if list((run / "store/embedding").glob("*.parquet")):
                found = workers(processes, cluster.session)
                busy = [pid for pid, command in found.items() if "run_task" in command]
        assert process.poll() is None, process.communicate()
        os.kill(busy[0], signal.SIGKILL)
        early = {f: f.stat().st_mtime_ns for f in (run / "store/embedding").glob("*.parquet")}
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    found, expected = tables_of(run / "store"), tables_of(unbroken.folder / "store")
    assert found.items() <= expected.items()
    assert {"embedding", "ntk"} <= {name.split("/")[0] for name in found}
    # What was there when the worker died was not computed again.
    assert {f: f.stat().st_mtime_ns for f in early} == early
    assert "Catalog:" in out
    assert is_gone(processes, cluster.session, "ray::Worker")


def test_a_node_that_vanishes_costs_only_its_tasks(
    unbroken: Any, write_config: Any, start: Any, tables_of: Any, tmp_path: Path
) -> None:
    """The node with two of the three workers is killed as they work."""
    run = tmp_path / "run"
    with two_nodes() as nodes:
        config = on_ray(write_config, tmp_path, {"ntk": {}})
        with start("run", config, "--ray-address", nodes.address) as process:
            while process.poll() is None:
                time.sleep(0.01)
                if list((run / "store/embedding").glob("*.parquet")):
                    break
            assert process.poll() is None, process.communicate()
            os.kill(nodes.second, signal.SIGKILL)
            _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "a worker was lost" in err
    found, expected = tables_of(run / "store"), tables_of(unbroken.folder / "store")
    assert found.items() <= expected.items()
    assert {"embedding", "ntk"} <= {name.split("/")[0] for name in found}


@pytest.mark.slow
def test_a_stage_whose_only_node_vanishes_ends_in_a_message(
    write_config: Any, start: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with two_nodes() as nodes:
        config = on_ray(write_config, tmp_path, {"ntk": {}}, default={"cpus": 2})
        with start("run", config, "--ray-address", nodes.address) as process:
            while process.poll() is None and not list((run / "store/embedding").glob("*.parquet")):
                time.sleep(0.01)
            assert process.poll() is None, process.communicate()
            os.kill(nodes.second, signal.SIGKILL)
            killed = time.monotonic()
            _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "found nodes of 1 CPUs" in err
    assert "expected one with 2 CPUs" in err
    assert time.monotonic() - killed < 60


@pytest.mark.slow
def test_a_task_whose_worker_is_killed_each_time_tells_what_to_lower(
    write_config: Any, start: Any, cluster: Any, processes: Any, tmp_path: Path
) -> None:
    config = on_ray(write_config, tmp_path, {"ntk": {}}, retries=1, default={"workers": 1})
    killed: set[int] = set()
    with start("run", config, "--ray-address", cluster.address) as process:
        while process.poll() is None:
            time.sleep(0.05)
            for pid, command in workers(processes, cluster.session).items():
                if "run_task" in command and pid not in killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
        _, err = process.communicate()
    assert (process.returncode, len(killed)) == (1, 2), err
    assert "Traceback" not in err
    message = err[err.index("assay: ") :]
    check_grammar(" ".join(message.split()))
    assert "worker was killed for memory 2 times" in message or "was lost 2 times" in message
    for fragment in ("token_budget", "ray.stages.embedding.memory_gb", "workers"):
        assert fragment in message


@pytest.mark.slow
def test_an_error_in_a_stage_is_one_message(
    cli: Any, cluster: Any, processes: Any, tmp_path: Path
) -> None:
    """That all vectors are zero is seen where they are read, in a task."""
    np.save(tmp_path / "zeros.npy", np.zeros((20, 4), np.float32))
    rows = [{"id": n, "text": f"row {n}", "label": n % 2} for n in range(20)]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    corpus = {"path": path, "id": "id", "features": str(tmp_path / "zeros.npy")}
    stages = {"kernel_regression": {"kernel": ["features"]}}
    config = write_run(tmp_path, corpus=corpus, ray={"engine": "ray"}, stages=stages)
    done = cli("run", config, "--ray-address", cluster.address)
    assert done.returncode == 1
    messages = [line for line in done.stderr.splitlines() if line.startswith("assay: ")]
    assert len(messages) == 1, done.stderr
    assert re.match(r"assay: [\w, ]+: DataError: features: found only zero", messages[0])
    assert "Traceback" not in done.stderr
    assert is_gone(processes, cluster.session, "ray::Worker")


@pytest.mark.slow
def test_resources_are_honoured_and_impossible_ones_refused(
    write_config: Any, cli: Any, start: Any, cluster: Any, processes: Any, tmp_path: Path
) -> None:
    """Nodes of one core and of two: no worker of three fits, and of two cores just one."""
    wanted = {"default": {"workers": 2}, "stages": {"ntk": {"cpus": 3}}}
    path = on_ray(write_config, tmp_path, {"ntk": {}}, **wanted)
    refused = cli("run", path, "--ray-address", cluster.address)
    assert refused.returncode == 1
    (message,) = [line for line in refused.stderr.splitlines() if line.startswith("assay: ")]
    assert "expected one with 3 CPUs" in message
    assert is_gone(processes, cluster.session, "ray::Worker")

    stored, most = tmp_path / "run/store", 0
    less = ("--set", "ray.stages.ntk.cpus=2", "--ray-address", cluster.address)
    with start("run", path, *less) as process:
        while process.poll() is None:
            most = max(most, len(workers(processes, cluster.session)))
            time.sleep(0.1)
        _, err = process.communicate()
    assert process.returncode == 0, err
    assert most == 1
    (manifest,) = (stored / "ntk").glob("*.json")
    assert json.loads(manifest.read_text())["threads"] == 2


@pytest.mark.slow
def test_stages_go_to_the_nodes_that_have_what_they_ask_for(
    unbroken: Any, write_config: Any, start: Any, tables_of: Any, processes: Any, tmp_path: Path
) -> None:
    """The node for `ntk` comes when it is asked for, and takes one worker at a time."""
    ray = {"wait_minutes": 5, "stages": {"ntk": {"resources": {"big_memory": 1}}}}
    run = tmp_path / "run"
    with two_nodes() as nodes:
        config = on_ray(write_config, tmp_path, {"ntk": {}}, **ray)
        with start("run", config, "--ray-address", nodes.address) as process:
            while process.poll() is None and not list((run / "store/probe").glob("*.parquet")):
                time.sleep(0.05)
            assert process.poll() is None, process.communicate()
            time.sleep(3)
            assert list((run / "store").glob("ntk/*.parquet")) == []
            nodes.add(num_cpus=2, resources={"big_memory": 1})
            most = 0
            while process.poll() is None:
                at_work = workers(processes, nodes.session)
                if list((run / "store").glob("ntk/*.parquet")):
                    most = max(most, len(at_work))
                time.sleep(0.05)
            _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert most == 1
    found, expected = tables_of(run / "store"), tables_of(unbroken.folder / "store")
    assert found.items() <= expected.items()
    assert {"embedding", "ntk"} <= {name.split("/")[0] for name in found}


@pytest.mark.slow
def test_a_node_with_another_pyarrow_is_refused(
    write_config: Any, start: Any, tmp_path: Path
) -> None:
    """Of the version that its metadata tells; the code is this machine's."""
    other = tmp_path / "other" / "pyarrow-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: pyarrow\nVersion: 0.0.1\n")
    with two_nodes(env_vars={"PYTHONPATH": str(other.parent)}) as nodes:
        config = on_ray(write_config, tmp_path, {"embedding": {}}, default={"cpus": 2})
        with start("run", config, "--ray-address", nodes.address) as process:
            _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    message = " ".join(err[err.index("assay: ") :].split())
    check_grammar(message)
    assert "found pyarrow 0.0.1 on the node" in message
    assert "pip install pyarrow==" in message
    assert not list((tmp_path / "run/store").glob("embedding/*.parquet"))
