"""The same configuration gives the same bytes, wherever and however often it is computed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline import open_run
from pipeline.config import read_config
from pipeline.corpus import read_corpus
from pipeline.folder import RunFolder
from pipeline.plan import make_plan
from storage.table import Store

FEATURES = ("embedding", "gradient", "ntk")


@pytest.fixture(scope="module")
def one_shard(tmp_path_factory: Any, write_config: Any, assay: Any) -> Path:
    folder = tmp_path_factory.mktemp("one-shard")
    assay("run", write_config(folder, shard_size=1000))
    return folder / "run"


def rows_by_id(run: Path, table: str) -> dict[tuple[str, int], np.ndarray]:
    folder = RunFolder(run)
    store = folder.store()
    (entry,) = [e for e in folder.entries(store) if e.manifest.table == table]
    rows = store.read_table(entry.manifest).to_pydict()
    return {
        (role, row_id): np.array(vector)
        for role, row_id, vector in zip(rows["role"], rows["id"], rows["vector"], strict=True)
    }


def values(run: Path) -> dict[tuple[str, int], tuple[float, float]]:
    rows = open_run(run).sql("SELECT utility, example_id, value, stderr FROM shapley").fetchall()
    return {(utility, example): (value, stderr) for utility, example, value, stderr in rows}


def test_features_hardly_depend_on_the_shards(unbroken: Any, one_shard: Path) -> None:
    for table in FEATURES:
        many, one = rows_by_id(unbroken.folder, table), rows_by_id(one_shard, table)
        assert many.keys() == one.keys()
        for key, vector in many.items():
            away = np.linalg.norm(vector - one[key]) / np.linalg.norm(vector)
            # Numbers in float16 may round to either side, one in some thousands of them.
            assert away < (1e-4 if table == "ntk" else 1e-5), (table, key, away)


def test_values_do_not_depend_on_the_shards_of_their_features(
    unbroken: Any, one_shard: Path, assay: Any, write_config: Any, tmp_path: Path
) -> None:
    """The very feature rows of the many-shard run, laid where one shard is expected."""
    stages = {"freeshap": {"rounds": 6, "units_per_round": 1}}
    path = write_config(tmp_path, shard_size=1000, stages=stages)
    run = read_config(path)
    store = Store(run.store_url)
    plan = make_plan(run, read_corpus(run, store), store)
    (ntk,) = [node for node in plan.nodes if node.instance == "ntk"]
    specs = {spec.name: spec for spec in ntk.stage.writes}
    given = RunFolder(unbroken.folder)
    for entry in given.entries(given.store()):
        if entry.instance != "ntk":
            continue
        spec, details = specs[entry.manifest.table], entry.manifest.details
        for task in ntk.tasks:
            rows = given.store().read_table(entry.manifest, task.part.role)
            store.write_shard(spec, task.key, task.part.role, task.part.index, rows, details)
    assert [task.part.index for task in ntk.tasks] == [0, 0]
    result = assay("run", path)
    assert "ntk: " not in result.stderr
    expected, found = values(unbroken.folder), values(tmp_path / "run")
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(
        [found[key] for key in expected], list(expected.values()), rtol=0, atol=1e-9
    )
    assert max(abs(value) for value, _ in found.values()) > 1e-3


def test_a_rerun_of_a_finished_run_changes_no_file(
    unbroken: Any, assay: Any, tables_of: Any, tmp_path: Path
) -> None:
    def files() -> dict[Path, tuple[int, int]]:
        found = [f for f in unbroken.folder.rglob("*") if f.is_file() and f.name != "run.lock"]
        return {f: (f.stat().st_mtime_ns, f.stat().st_ino) for f in found}

    rows = open_run(unbroken.folder).sql('FROM runs ORDER BY instance, "table"').fetchall()
    record, before = (unbroken.folder / "run.json").read_text(), files()
    result = assay("run", unbroken.config)
    assert "0 tasks to do" in " ".join(result.stderr.split())
    after = files()
    assert after.keys() == before.keys()
    changed = {f.name for f in after if after[f] != before[f]}
    # Who works on the run is noted; the rest is as it was, to the inode.
    assert changed <= {"run.lock"}
    assert (unbroken.folder / "run.json").read_text() == record
    assert open_run(unbroken.folder).sql('FROM runs ORDER BY instance, "table"').fetchall() == rows


def test_the_resolved_config_repeats_the_run(
    unbroken: Any, assay: Any, tables_of: Any, tmp_path: Path
) -> None:
    resolved = unbroken.folder / "config.yaml"
    assay("run", resolved, "--set", f"run={tmp_path / 'again'}")
    assert tables_of(tmp_path / "again/store") == tables_of(unbroken.folder / "store")
    first, second = (
        yaml.safe_load((p / "config.yaml").read_text())
        for p in (unbroken.folder, tmp_path / "again")
    )
    assert {**first, "run": ""} == {**second, "run": ""}


def test_an_open_run_is_not_shown_to_whoever_opens_it_next(
    unbroken: Any, assay: Any, tmp_path: Path
) -> None:
    shutil.copytree(unbroken.folder, tmp_path / "run")
    assay("status", tmp_path / "run")
    before = open_run(tmp_path / "run")
    count = "SELECT max(n_samples) FROM shapley"
    assert before.sql(count).fetchall() == [(6,)]
    config = tmp_path / "run/config.yaml"
    assay("run", config, "--set", f"run={tmp_path / 'run'}", "--set", "stages.freeshap.rounds=7")
    assert open_run(tmp_path / "run").sql(count).fetchall() == [(7,)]
    assert before.sql(count).fetchall() == [(6,)]


def test_a_moved_run_is_found_by_its_status(unbroken: Any, assay: Any, tmp_path: Path) -> None:
    """With its default store the tables move along, and the views must name their new place."""
    shutil.copytree(unbroken.folder, tmp_path / "first")
    shutil.move(tmp_path / "first", tmp_path / "second")
    status = json.loads(assay("status", tmp_path / "second", "--json").stdout)
    assert status["is_catalog_rebuilt"]
    assert status["is_whole"]
    assert status["store"] == str(tmp_path / "second/store")
    files = "SELECT DISTINCT assay_file FROM tables.text"
    named = json.loads(assay("sql", tmp_path / "second", files, "--json").stdout)
    assert named
    assert all(row["assay_file"].startswith(str(tmp_path / "second")) for row in named)
    assert not json.loads(assay("status", tmp_path / "second", "--json").stdout)[
        "is_catalog_rebuilt"
    ]
