"""Curvature over many small shards: the flat sum, the same bytes anywhere, reuse when rows come."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import open_run
from stages.gradients.blocks import read_curvature
from storage.table import Store

N_EXAMPLES, SHARD = 96, 4
# 24 leaves, three nodes above them, the root.
N_TASKS = 28
STAGES = {"gradient": {"projection": {"inputs": 4, "outputs": 4, "dim": 24}}, "curvature": {}}


@pytest.fixture(scope="module")
def config(write_config: Any) -> Any:
    def write(folder: Path, n: int = N_EXAMPLES, **changes: Any) -> Path:
        path: Path = write_config(folder, shard_size=SHARD, stages=STAGES, **changes)
        text = path.read_text().replace("train[:96]", f"train[:{n}]")
        path.write_text(text.replace("train[:40]", "train[:4]"))
        return path

    return write


@pytest.fixture(scope="module")
def finished(tmp_path_factory: Any, config: Any, assay: Any) -> Path:
    """A run in this process, never interrupted; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("curvature")
    assay("run", config(folder))
    return folder / "run"


def manifest_of(run: Path, table: str) -> Any:
    folder = open_run(run).folder
    (entry,) = (e for e in folder.entries(folder.store()) if e.manifest.table == table)
    return entry.manifest


def matrices(run: Path) -> dict[str, torch.Tensor]:
    store = open_run(run).folder.store()
    return read_curvature(store.read_table(manifest_of(run, "curvature")))


def test_the_root_is_the_mean_outer_product_of_all_gradients(finished: Path) -> None:
    store = Store(str(finished / "store"))
    gradient = manifest_of(finished, "gradient")
    rows = store.read_table(gradient, "example")
    g = np.array(rows["vector"].to_pylist(), dtype=np.float64)
    assert len(g) == N_EXAMPLES
    found = matrices(finished)
    blocks = gradient.details.get("blocks") or [{"name": "all", "start": 0, "size": g.shape[1]}]
    assert set(found) == {block["name"] for block in blocks}
    for block in blocks:
        part = g[:, block["start"] : block["start"] + block["size"]]
        expected = part.T @ part / N_EXAMPLES
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found[block["name"]], expected, rtol=0, atol=1e-12 * scale)
        assert scale > 0


def test_the_table_is_the_root_and_the_rest_lies_beside_it(finished: Path, assay: Any) -> None:
    (root,) = manifest_of(finished, "curvature").shards
    files = list((finished / "store/curvature").glob("*.parquet"))
    assert len(files) == N_TASKS
    assert finished / f"store/curvature/{root.key}.parquet" in files
    rows = "SELECT count(*), min(n_examples), max(n_examples) FROM tables.curvature"
    (counted,) = open_run(finished).sql(rows).fetchall()
    assert counted == (root.rows, N_EXAMPLES, N_EXAMPLES)
    status = json.loads(assay("status", finished, "--json").stdout)
    (table,) = (t for t in status["tables"] if t["table"] == "curvature")
    assert (table["shards"], table["done"], table["is_whole"]) == (N_TASKS, N_TASKS, True)


def test_the_plan_counts_the_tree(finished: Path, config: Any, assay: Any, tmp_path: Path) -> None:
    def planned(path: Path, *options: str) -> tuple[int, int]:
        result = assay("plan", path, "--json", *options)
        (row,) = (s for s in json.loads(result.stdout)["stages"] if s["stage"] == "curvature")
        return row["tasks"], row["reused"]

    assert planned(config(tmp_path)) == (N_TASKS, 0)
    assert planned(finished / "config.yaml") == (0, N_TASKS)


def test_named_alone_it_has_a_matrix_for_each_layer(
    write_config: Any, assay: Any, tmp_path: Path
) -> None:
    config = write_config(tmp_path, shard_size=SHARD, stages={"curvature": {}}, queries=None)
    config.write_text(config.read_text().replace("train[:96]", "train[:8]"))
    assay("run", config)
    found = matrices(tmp_path / "run")
    # Six linear layers in each of two blocks, and the probe.
    assert len(found) == len(manifest_of(tmp_path / "run", "gradient").details["blocks"]) == 13
    sizes = {name: len(matrix) for name, matrix in found.items()}
    assert set(sizes.values()) == {256, 32}
    assert sizes["head"] == 32
    assert all(torch.linalg.eigvalsh(matrix)[-1] > 0 for matrix in found.values())


def test_appended_rows_compute_their_way_to_the_root(
    finished: Path, config: Any, assay: Any, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    store = tmp_path / "run/store/curvature"
    before = {p: p.read_bytes() for p in store.glob("*.parquet")}
    result = assay("run", config(tmp_path, N_EXAMPLES + 2 * SHARD))
    # Two leaves, the node over them, the root.
    assert "curvature: 4 of 31 tasks" in result.stderr
    assert {p: p.read_bytes() for p in before} == before
    assert len(list(store.glob("*.parquet"))) == N_TASKS + 4
    rows = "SELECT DISTINCT n_examples FROM tables.curvature"
    assert open_run(tmp_path / "run").sql(rows).fetchall() == [(N_EXAMPLES + 2 * SHARD,)]


def test_a_run_without_its_upper_nodes_goes_on_from_the_lower_ones(
    finished: Path, config: Any, assay: Any, tables_of: Any, tmp_path: Path
) -> None:
    """As after a kill just before the last task."""
    shutil.copytree(finished / "store", tmp_path / "run/store")
    expected = tables_of(finished / "store")
    folder = tmp_path / "run/store/curvature"
    (root,) = manifest_of(finished, "curvature").shards
    for path in [*folder.glob("*.json"), folder / f"{root.key}.parquet"]:
        path.unlink()
    result = assay("run", config(tmp_path))
    assert "curvature: 1 of 28 tasks" in result.stderr
    assert tables_of(tmp_path / "run/store") == expected
