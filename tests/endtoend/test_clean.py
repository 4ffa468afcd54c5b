"""`assay clean` shows and removes what nothing needs, and nothing that a run may need."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from runs import assay, complaint, tables_of

from pipeline import api
from pipeline.clean import clean
from pipeline.lock import hold
from pipeline.progress import Progress
from stages.stage import DataError
from storage.feature_map import map_place
from storage.table import Store

STAGES = {"embedding": {}, "probe": {}, "prediction": {}}


@pytest.fixture(scope="module")
def finished(write_config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds a small finished run and its YAML; to be copied."""
    folder = tmp_path_factory.mktemp("clean")
    assay("run", write_config(folder, n_examples=48, n_queries=8, stages=STAGES))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, and an empty folder of maps."""
    monkeypatch.setenv("ASSAY_MAPS", str(tmp_path / "maps"))
    shutil.copytree(finished, tmp_path / "here")
    return tmp_path / "here" / "run"


def again(run: Path, *settings: str) -> str:
    """Runs the copy; what it says."""
    given = [part for setting in (f"run={run}", *settings) for part in ("--set", setting)]
    return " ".join(assay("run", run.parent / "given.yaml", *given).stderr.split())


def cleaned(*arguments: object) -> dict[str, list[str]]:
    """Names of the leftovers, by kind."""
    found = json.loads(assay("clean", *arguments, "--json").stdout)
    kinds: dict[str, list[str]] = {}
    for item in found["items"]:
        assert item["bytes"] >= 0
        kinds.setdefault(item["kind"], []).append(Path(item["path"]).name)
    return kinds


def files(store: Path) -> set[str]:
    """Names of the shards and manifests of a store, without notes."""
    tables = [table for table in store.iterdir() if table.name[0] != "." and table.name != "ingest"]
    return {file.name for table in tables for file in table.iterdir()}


def test_a_finished_run_has_no_leftovers(run: Path) -> None:
    before = tables_of(run / "store")
    assert cleaned(run, "--remove") == {}
    assert tables_of(run / "store") == before
    assert "0 tasks to do" in again(run)


def test_files_of_kills_and_maps_are_shown_and_then_removed(run: Path, tmp_path: Path) -> None:
    left = [
        run / ".run.json.0a.tmp",
        run / ".catalog.duckdb.0a.tmp.wal",
        run / "store/embedding/.0123.parquet.0a.tmp",
    ]
    for path in left:
        path.write_bytes(b"half")
    (table,) = (run / "store/embedding").glob("*.json")
    manifest = Store(str(run / "store")).read_manifest("embedding", table.stem)
    own, of_another = map_place(manifest, "example").name, "0123456789abcdef"
    for name in (own, of_another, ".0123456789abcdef.0a.tmp"):
        (tmp_path / "maps" / name).mkdir(parents=True)
        (tmp_path / "maps" / name / "ids.npy").write_bytes(b"some bytes")
        os.utime(tmp_path / "maps" / name, (0, 0))
    before = tables_of(run / "store")
    wanted = {
        "temporary": sorted(path.name for path in left),
        "map": [".0123456789abcdef.0a.tmp", own],
    }
    assert {k: sorted(v) for k, v in cleaned(run).items()} == wanted
    assert all(path.exists() for path in left)
    shown = assay("clean", run).stdout
    assert "5 leftovers, 32 bytes" in shown
    assert "Nothing was removed" in shown
    assert {k: sorted(v) for k, v in cleaned(run, "--remove").items()} == wanted
    assert not any(path.exists() for path in left)
    assert [path.name for path in (tmp_path / "maps").iterdir()] == [of_another]
    assert tables_of(run / "store") == before


def test_tables_of_an_earlier_configuration_are_orphans(run: Path) -> None:
    first = files(run / "store")
    again(run, "model.max_length=16")
    second = files(run / "store") - first
    assert second
    again(run)
    assert set(cleaned(run)["orphan"]) == second
    cleaned(run, "--remove")
    assert files(run / "store") == first
    assert "0 tasks to do" in again(run)


def test_runs_that_share_a_store_keep_their_tables(run: Path, tmp_path: Path) -> None:
    """One lies in the store's own folder, one is elsewhere and known by its note."""
    other = tmp_path / "elsewhere"
    first = files(run / "store")
    again(run, f"run={other}", f"store={run}/store", "model.max_length=16")
    of_other = files(run / "store") - first
    assert of_other
    for place in (run, run / "store", other):
        assert "orphan" not in cleaned(place, "--remove")
    shutil.rmtree(other)
    assert cleaned(run, "--remove") == {}
    forgotten = cleaned(run, "--forget", other, "--remove")["orphan"]
    assert of_other <= set(forgotten)
    assert files(run / "store") == first
    assert cleaned(run) == {}


def test_a_store_that_knows_no_run_is_told_its_runs(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(run / "store", bare)
    assert "Name its runs with --run" in assay("clean", bare, "--remove").stdout
    assert tables_of(bare) == tables_of(run / "store")
    assert cleaned(bare, "--run", run, "--remove") == {}


def test_what_was_read_of_a_source_that_no_run_uses_is_left_over(run: Path, tmp_path: Path) -> None:
    """Though its file is there; not where a run cannot be asked what it reads."""
    notes = run / "store/.sources"
    of_before = {path.name for path in notes.iterdir()}
    lines = [json.dumps({"text": f"a film {n}", "label": "ab"[n % 2]}) for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    corpus = {"path": str(tmp_path / "rows.jsonl"), "text": "text", "label": "label"}
    again(run, f"corpus={json.dumps(corpus)}", "queries=null")
    of_now = {path.name for path in notes.iterdir()} - of_before
    assert (len(of_before), len(of_now)) == (2, 1)
    elsewhere = run.parent / "elsewhere"
    again(elsewhere, f"store={run}/store")
    assert not of_before & set(cleaned(run).get("orphan", ()))
    config = (elsewhere / "run.json").read_text()
    (elsewhere / "run.json").write_text("{")
    (elsewhere / "config.yaml").write_text("{")
    assert not of_before & set(cleaned(run).get("orphan", ()))
    (elsewhere / "run.json").write_text(config)
    orphans = set(cleaned(run, "--forget", elsewhere, "--remove")["orphan"])
    assert of_before <= orphans
    assert {path.name for path in notes.iterdir()} == of_now
    assert cleaned(run, "--forget", elsewhere) == {}


def test_beside_a_driver_what_is_younger_than_it_stays(run: Path) -> None:
    old, young = run / ".old.0a.tmp", run / ".young.0a.tmp"
    old.write_text("")
    os.utime(old, (0, 0))
    with hold(run):
        time.sleep(0.01)
        young.write_text("")
        os.utime(young, (time.time() + 2, time.time() + 2))
        assert cleaned(run, "--remove") == {"temporary": [old.name]}
        said = assay("clean", run).stdout
    assert f"is being worked on by process {os.getpid()} on " in said
    assert young.exists()


def test_a_run_that_was_moved_keeps_its_tables_when_its_old_place_is_forgotten(
    run: Path, tmp_path: Path
) -> None:
    other, there = tmp_path / "elsewhere", tmp_path / "there"
    again(run, f"run={other}", f"store={run}/store", "model.max_length=16")
    shutil.move(other, there)
    assay("status", there)
    before = files(run / "store")
    (note,) = cleaned(run, "--forget", other, "--remove")["orphan"]
    assert files(run / "store") == before
    assert note not in before
    assert cleaned(run) == {}


class Cleaning(Progress):
    """Cleans a store at the plan of a run, where its corpus lies there and no record does yet."""

    def __init__(self, store: Path) -> None:
        self._store = store

    def planned(self, plan: Any) -> None:
        time.sleep(0.01)
        clean(str(self._store), removes=True)


def test_files_of_a_run_that_has_no_record_yet_stay(run: Path, tmp_path: Path) -> None:
    """Whether others use the store, whose tables alone are known, or the run lies around it."""
    shared, other = run / "store", tmp_path / "elsewhere"
    changes = {"run": str(other), "store": str(shared), "shard_size": 10}
    done = api.run(run.parent / "given.yaml", changes, Cleaning(shared))
    assert api.verify(other)["damaged"] == []
    own = tmp_path / "own"
    (own / "store" / "text").mkdir(parents=True)
    (own / "store" / "text" / "0123456789abcdef.json").write_text("{}")
    leftover = own / "store" / "text" / ".young.0a.tmp"
    with hold(own):
        leftover.write_text("")
        time.sleep(0.01)
        clean(str(own / "store"), removes=True)
    assert leftover.exists()
    lost = {**changes, "run": str(tmp_path / "lost"), "corpus.text": "nope"}
    with pytest.raises(DataError, match="nope"):
        api.run(run.parent / "given.yaml", lost)
    known = {json.loads(note.read_text())["path"] for note in (shared / ".runs").iterdir()}
    assert known == {str(done.folder.path)}


def test_a_place_that_is_no_run_and_no_store_is_refused(tmp_path: Path) -> None:
    assert "found neither a run.json nor tables" in complaint("clean", tmp_path)


def test_nothing_is_left_of_another_corpus(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside tables: what was chosen by its size, and a reading that was killed half way."""
    monkeypatch.setattr("pipeline.sizes.SMALL", 10)
    rows = tmp_path / "rows.jsonl"
    corpus = {"path": str(rows), "text": "text", "label": "label"}
    settings = (f"corpus={json.dumps(corpus)}", "queries=null")

    def write(word: str) -> None:
        lines = [{"text": f"{word} film {n}", "label": "ab"[n % 2]} for n in range(24)]
        rows.write_text("\n".join(map(json.dumps, lines)))

    write("good")
    again(run, *settings)
    write("bad")
    write_manifest = Store.write_manifest

    def killed(store: Store, manifest: Any, *rest: Any, **options: Any) -> str:
        if manifest.table == "label":
            raise SystemExit(137)
        return write_manifest(store, manifest, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_manifest", killed)
        assay(
            "run",
            run.parent / "given.yaml",
            *(x for s in settings for x in ("--set", s)),
            "--set",
            f"run={run}",
            code=137,
        )
    write("dull")
    again(run, *settings)
    found = cleaned(run)
    assert len(found["orphan"]) > 20
    sizes = {path.name for path in (run / "store/.sizes").iterdir()}
    assert len(sizes & set(found["orphan"])) == 1
    assay("clean", run, "--remove")
    assert cleaned(run) == {}
    fresh = run.parent / "fresh"
    again(fresh, *settings, f"store={fresh}/store")
    # Of the model's check there are notes for any run.
    own = {p.relative_to(run / "store") for p in (run / "store").rglob("*.*")}
    new = {p.relative_to(fresh / "store") for p in (fresh / "store").rglob("*.*")}
    shared = {path for path in own - new if path.parts[0] in (".checks", ".runs")}
    assert own - shared == new - {path for path in new if path.parts[0] == ".runs"}
    # Where a source is gone, what was read of it is nobody's.
    rows.unlink()
    (note,) = cleaned(run)["orphan"]
    assert (run / "store/.sources" / note).is_file()
