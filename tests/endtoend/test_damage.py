"""Damaged files of a finished run: told, never computed with, and computed again by `assay run`."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import assay, check_grammar, complaint, tables_of, write_lines, write_run

from pipeline.api import open_run
from storage.schema import FileError

SELECTS = {
    "examples": "FROM examples ORDER BY example_id",
    "label_issues": "FROM label_issues ORDER BY ALL",
    "shapley": "FROM shapley ORDER BY ALL",
    "attributions": "FROM attributions ORDER BY ALL",
    "features": "FROM features ORDER BY ALL",
}


def write_source(folder: Path, name: str, n: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 3, n)
    vectors = rng.normal(size=(n, 4)).astype(np.float32)
    vectors[np.arange(n), kinds] += 2
    np.save(folder / f"{name}.npy", vectors)
    rows = [{"text": f"{name} {i}", "kind": "abc"[kind]} for i, kind in enumerate(kinds)]
    path = write_lines(folder / f"{name}.jsonl", rows)
    features = str(folder / f"{name}.npy")
    return {"path": path, "text": "text", "label": "kind", "features": features}


def write(folder: Path, **changes: Any) -> Path:
    """A run over 60 examples and 20 queries with vectors, in shards of 20 rows."""
    folder.mkdir(parents=True, exist_ok=True)
    kernel = {"kernel": ["features"]}
    raw = {
        "shard_size": 20,
        "corpus": write_source(folder, "train", 60, 1),
        "queries": write_source(folder, "test", 20, 2),
        "stages": {
            "kernel_regression": kernel,
            "label_issues": {},
            "freeshap": {**kernel, "rounds": 3, "units_per_round": 2},
            "similarity": {"features": "features"},
        },
    }
    return write_run(folder, **{**raw, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with its inputs; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("whole")
    assay("run", write(folder))
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run's folder, to be damaged, with maps of its own."""
    monkeypatch.setenv("ASSAY_MAPS", str(tmp_path / "maps"))
    shutil.copytree(whole / "run", tmp_path / "run")
    return tmp_path


def again(whole: Path, folder: Path) -> str:
    """What the run's command says when it is given again for the copy, on one line."""
    said = assay("run", whole / "given.yaml", "--set", f"run={folder / 'run'}").stderr
    return " ".join(said.split())


def flip(path: Path, seed: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[random.Random(seed).randrange(len(data))] ^= 1 << seed % 8
    path.write_bytes(data)


def swap(path: Path) -> None:
    """The file and one beside it change places."""
    other = next(p for p in sorted(path.parent.iterdir()) if p.suffix == path.suffix and p != path)
    first, second = path.read_bytes(), other.read_bytes()
    path.write_bytes(second)
    other.write_bytes(first)


HARMS: dict[str, Callable[[Path], Any]] = {
    "flipped": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "junk": lambda path: path.write_bytes(b"junk" * 100),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("kind", ["*/*.parquet", "[!.]*/*.json"])
def test_the_same_command_computes_damaged_files_again(
    whole: Path, folder: Path, harm: str, kind: str
) -> None:
    """One file of each table at once; all come back with the bytes that they had."""
    store = folder / "run/store"
    files = {path.parent.name: path for path in sorted(store.glob(kind))}
    if kind.endswith("parquet"):
        # Of a table that is merged, the shards below the root are not needed again.
        listed = open_run(folder / "run").sql('SELECT "table", key FROM provenance.file')
        files = {t: store / t / f"{key}.parquet" for t, key in listed.fetchall()}
    for path in files.values():
        HARMS[harm](path)
    said = again(whole, folder)
    if harm != "gone":
        assert said.count("damaged file") >= 1
        for table in files:
            assert f"{table}/{files[table].name}:" in said
    assert tables_of(store) == tables_of(whole / "run/store")
    assert assay("verify", folder / "run").exit_code == 0


def test_shards_of_labels_that_change_places_flag_nothing(whole: Path, folder: Path) -> None:
    shards = sorted((folder / "run/store/label").glob("*.parquet"))
    swap(shards[0])
    said = complaint("flag", folder / "run")
    assert "label/" in said
    assert "found a file" in said
    assert "damaged" in again(whole, folder)
    assert assay("flag", folder / "run").stdout == assay("flag", whole / "run").stdout


@pytest.mark.parametrize("view", SELECTS)
@pytest.mark.parametrize("seed", range(3))
def test_rows_are_never_served_from_flipped_bits(folder: Path, view: str, seed: int) -> None:
    tables = {"examples": "text", "shapley": "shapley_value", "attributions": "attribution"}
    right = open_run(folder / "run").sql(SELECTS[view]).fetchall()
    shards = sorted((folder / "run/store" / tables.get(view, view)).glob("*.parquet"))
    listed = open_run(folder / "run").sql("SELECT key FROM provenance.file").fetchall()
    path = next(p for p in shards[seed:] + shards if (p.stem,) in listed)
    assert right
    flip(path, seed)
    # A table may be named itself, and SQL does not mind the case.
    for statement in (SELECTS[view], f"FROM TABLES.{path.parent.name}", SELECTS[view].upper()):
        with pytest.raises(FileError, match=path.name):
            open_run(folder / "run").sql(statement)


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_catalog_is_told_and_built_anew(whole: Path, folder: Path, seed: int) -> None:
    def answers(run: Path) -> list[Any]:
        opened = open_run(run)
        return [opened.sql(select).fetchall() for select in SELECTS.values()]

    flip(folder / "run/catalog.duckdb", seed)
    try:
        found = answers(folder / "run")
    except FileError as error:
        check_grammar(str(error))
        assay("status", folder / "run")
        found = answers(folder / "run")
    assert found == answers(whole / "run")


def test_values_that_are_gone_are_summed_again_by_status(whole: Path, folder: Path) -> None:
    shapley = SELECTS["shapley"]
    (path,) = (folder / "run/store/shapley_value").glob("*.parquet")
    again(whole, folder)  # the copy's catalog names the copy's files
    path.unlink()
    with pytest.raises(FileError, match=path.name):
        open_run(folder / "run").sql(shapley)
    assert json.loads(assay("status", folder / "run", "--json").stdout)["is_catalog_rebuilt"]
    assert tables_of(folder / "run/store") == tables_of(whole / "run/store")
    shapley = "SELECT * EXCLUDE (run_id) FROM shapley ORDER BY ALL"
    rows = [open_run(run / "run").sql(shapley).fetchall() for run in (whole, folder)]
    assert rows[0] == rows[1] != []


@pytest.mark.parametrize("looked_at_bytes", [0, 1 << 28])
def test_a_task_computes_nothing_from_a_damaged_table(
    whole: Path, folder: Path, looked_at_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flip that no look at sizes finds: the stage that reads it stops, and all is mended."""
    monkeypatch.setattr("pipeline.verify.LOOKED_AT_BYTES", looked_at_bytes)
    for path in sorted((folder / "run/store").glob("kernel_dual/*")):
        path.unlink()
    flip(next((folder / "run/store/features").glob("*.parquet")))
    assert "features/" in again(whole, folder)
    assert tables_of(folder / "run/store") == tables_of(whole / "run/store")


def test_verify_tells_and_repairs_just_what_is_damaged(whole: Path, folder: Path) -> None:
    run = folder / "run"
    said = assay("verify", run).stdout
    assert "are as they were written" in said
    damaged = next((run / "store/label").glob("*.parquet"))
    manifest = next((run / "store/prediction").glob("*.json"))
    flip(damaged)
    flip(manifest)
    before = set((run / "store").rglob("*"))
    found = json.loads(assay("verify", run, "--json", code=1).stdout)
    assert {row["file"] for row in found["damaged"]} == {
        f"label/{damaged.name}",
        f"prediction/{manifest.name}",
    }
    assert set((run / "store").rglob("*")) == before
    said = assay("verify", run, "--repair").stdout
    assert "damaged or gone: 2 removed. " in said
    assert "computes what is missing again" in said
    assert before - set((run / "store").rglob("*")) == {damaged, manifest}
    # What is gone is not removed, and nothing says that it was.
    for said in (assay("verify", run, code=1).stdout, assay("verify", run, "--repair").stdout):
        assert "2 of" in said
        assert "gone. `" in said
        assert "remove" not in said
    again(whole, folder)
    assert tables_of(run / "store") == tables_of(whole / "run/store")


def test_verify_compares_keys_with_what_they_follow_from(folder: Path) -> None:
    """A manifest that is sealed and wrong: its recipe has other fields than its shards' keys."""
    from storage.table import Store

    store = Store(str(folder / "run/store"))
    (manifest,) = store.earlier_manifests("kernel_dual")
    fields = {**manifest.fields, "ridge": 123.0}
    import dataclasses

    store.write_manifest(dataclasses.replace(manifest, fields=fields), replaces=True)
    (other,) = store.earlier_manifests("prediction")
    store.write_manifest(dataclasses.replace(other, fields=fields), replaces=True)
    found = json.loads(assay("verify", folder / "run", "--json", code=1).stdout)["damaged"]
    assert {row["found"] for row in found} == {"a key that does not follow from its inputs"}


def test_files_of_the_folder_are_verified_and_mended(whole: Path, folder: Path) -> None:
    run = folder / "run"
    again(whole, folder)
    flip(run / "catalog.duckdb")
    (run / "config.yaml").write_text("run: [")
    found = json.loads(assay("verify", run, "--json", code=1).stdout)["damaged"]
    assert {Path(row["file"]).name for row in found} == {"catalog.duckdb", "config.yaml"}
    assert "gone: 1 removed, 1 written again. `" in assay("verify", run, "--repair").stdout
    found = json.loads(assay("verify", run, "--json", code=1).stdout)["damaged"]
    assert [(Path(row["file"]).name, row["found"], row["done"]) for row in found] == [
        ("catalog.duckdb", "gone", None)
    ]
    assay("run", run / "config.yaml")
    assert assay("verify", run).exit_code == 0
    flip(run / "run.json")
    assert "Run `assay run" in complaint("verify", run)
    again(whole, folder)
    assert assay("verify", run).exit_code == 0


@pytest.mark.slow
def test_a_damaged_text_manifest_of_another_run_blocks_no_corpus(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    assay("run", write(tmp_path / "first", store=store))
    for name in ("text", "label", "prediction"):
        (tmp_path / "store" / name / "0123456789abcdef.json").write_bytes(b"")
    config = write(tmp_path / "second", store=store)
    write_source(tmp_path / "second", "train", 50, 1)
    assay("run", config)


@pytest.mark.slow
def test_appended_rows_keep_their_cut_when_shards_of_text_are_damaged(tmp_path: Path) -> None:
    """The ids of the earlier cut come from a table that is whole: all keys stay."""
    config = write(tmp_path)
    write_source(tmp_path, "train", 30, 1)
    assay("run", config)
    write_source(tmp_path, "train", 60, 1)
    assay("run", config)
    store = tmp_path / "run/store"
    before = tables_of(store)
    text = json.loads((tmp_path / "run/run.json").read_text())["tables"]["corpus"]["text"]
    for name in (f"{text['manifest']}.json", *(f"{key}.parquet" for key in text["shards"])):
        (store / "text" / name).write_bytes(b"")
    assay("run", config)
    changed = {name for name, data in tables_of(store).items() if before.get(name) != data}
    assert changed == set()
