"""Damage heals by what the messages say: the same command again, or deleting what they name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import assay, complaint, tables_of

STAGES = {"embedding": {}, "probe": {}}


@pytest.fixture(scope="module")
def finished(write_config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds a small finished run and its YAML; to be copied."""
    folder = tmp_path_factory.mktemp("advice")
    assay("run", write_config(folder, n_examples=48, n_queries=8, stages=STAGES))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "here")
    return tmp_path / "here" / "run"


def again(run: Path) -> tuple[object, ...]:
    return "run", run.parent / "given.yaml", "--set", f"run={run}"


def test_vectors_of_two_lengths(run: Path) -> None:
    before = tables_of(run / "store")
    shard = sorted((run / "store/embedding").glob("*.parquet"))[0]
    rows = pq.read_table(shard)
    short = pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 2 * len(rows), pa.float32()), 2)
    pq.write_table(rows.set_column(rows.schema.names.index("vector"), "vector", short), shard)
    (manifest,) = (run / "store/embedding").glob("*.json")
    manifest.unlink()
    assay(*again(run))
    assert tables_of(run / "store") == before


@pytest.mark.parametrize("text", ["{", '{"tables": {}}'])
def test_a_broken_record(run: Path, text: str) -> None:
    before = tables_of(run / "store")
    (run / "run.json").write_text(text)
    assert "run.json" in complaint("status", run)
    (run / "run.json").unlink()
    assay(*again(run))
    assert json.loads(assay("status", run, "--json").stdout)["is_whole"]
    assert tables_of(run / "store") == before


def test_an_empty_file_among_the_inputs(write_config: Any, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/one.jsonl").write_text(
        "".join(json.dumps({"text": f"text {n}", "label": n % 2}) + "\n" for n in range(12))
    )
    empty = tmp_path / "rows/two.jsonl"
    empty.write_text("")
    corpus = {"path": str(tmp_path / "rows/*.jsonl")}
    config = write_config(tmp_path, corpus=corpus, queries=None, stages={"embedding": {}})
    assert f"{empty}: found an empty file" in complaint("run", config)
    empty.unlink()
    assay("run", config)


def test_a_shard_that_duckdb_cannot_read(run: Path) -> None:
    before = tables_of(run / "store")
    shard = sorted((run / "store/label").glob("*.parquet"))[0]
    shard.write_bytes(b"no Parquet")
    (run / "catalog.duckdb").unlink()
    said = complaint("status", run)
    assert "label" in said
    shard.unlink()
    for manifest in (run / "store/label").glob("*.json"):
        manifest.unlink()
    assay(*again(run))
    assert tables_of(run / "store") == before
