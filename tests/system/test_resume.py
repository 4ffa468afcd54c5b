"""A run that is killed at any moment goes on, ends as an unbroken one does, and hides nothing."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.status import run_status

PATIENCE_S = 5.0
# Opens the run again and again from the moment it has a catalog; says how often, how long at most,
# what failed, and which of the views it was told to expect were ever missing.
READER = """
import json, sys, threading, time
from pathlib import Path
import duckdb
import pipeline.config  # a reading is timed without the imports of the first one
from pipeline import open_run

def plainly(catalog):
    # DuckDB opens a file for its header and again for the rest; a new one may come in between.
    while True:
        before = catalog.stat().st_ino
        try:
            return duckdb.connect(str(catalog), read_only=True)
        except duckdb.IOException:
            if catalog.stat().st_ino == before:
                raise

folder, expected = Path(sys.argv[1]), sys.argv[2].split(",")
stop, opened, slowest, faults = threading.Event(), 0, 0.0, []
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
print("ready", flush=True)
while not stop.is_set():
    if not (folder / "catalog.duckdb").exists() or not (folder / "run.json").exists():
        time.sleep(0.02)
        continue
    begun = time.monotonic()
    try:
        run = open_run(folder)
        views = run.views()
        for view in views:
            run.sql(f"SELECT count(*) FROM {view}").fetchall()
        with plainly(folder / "catalog.duckdb") as plain:
            for view in ("examples", "queries", "runs", *expected):
                if plain.execute(f"SELECT count(*) FROM {view}").fetchone()[0] == 0:
                    faults.append(f"{view} is empty")
        faults += [f"{view} is gone" for view in expected if view not in views]
    except Exception as error:
        faults.append(repr(error)[:400])
    opened, slowest = opened + 1, max(slowest, time.monotonic() - begun)
    time.sleep(0.02)
print(json.dumps({"opened": opened, "slowest_s": slowest, "faults": faults[:5]}))
"""


@contextmanager
def reader(folder: Path, *expected: str) -> Iterator[dict[str, Any]]:
    """Reads the run in `folder` all the while, in another process; filled in at the end."""
    seen: dict[str, Any] = {}
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(folder), ",".join(expected or ("examples",))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        try:
            yield seen
        finally:
            out, _ = process.communicate(timeout=60)
    seen.update(json.loads(out))


def states(folder: Path) -> set[tuple[str, int]]:
    """Every file below `folder`, half-written ones too, as it is now; notes and caches apart."""
    found = set()
    for place, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f[0] != "." and f != "hashed"]
        for name in names:
            try:
                found.add((f"{place}/{name}", os.stat(f"{place}/{name}").st_mtime_ns))
            except FileNotFoundError:
                continue
    return found


def kill_after(process: Any, folder: Path, changes: int, delay_s: float) -> bool:
    """Whether the process was killed in the midst: once files changed so often, and a while later.

    Counting changes, not seconds, finds the same moments on a busy machine as on an idle one.
    """
    seen = before = states(folder)
    while process.poll() is None and len(seen) - len(before) < changes:
        seen = seen | states(folder)
        time.sleep(0.002)
    time.sleep(delay_s)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return bool(process.returncode == -signal.SIGKILL)


def check_nothing_is_half_written(run: Path) -> None:
    """Every file under a final name is whole, and what the manifests say it is."""
    listed = {}
    for path in (run / "store").rglob("*.json"):
        if path.name[0] != ".":
            manifest = json.loads(path.read_text())
            for shard in manifest.get("shards", []):
                listed[path.parent / f"{shard['key']}.parquet"] = shard["sha256"]
    shards = {p for p in (run / "store").rglob("*.parquet") if p.name[0] != "."}
    assert listed.keys() <= shards
    for shard in shards:
        pq.read_table(shard)
        if shard in listed:
            assert hashlib.sha256(shard.read_bytes()).hexdigest() == listed[shard]
    for name in ("run.json", "config.yaml"):
        assert not (run / name).exists() or (run / name).read_text().endswith("\n")


def settle(processes: Callable[[int], dict[int, str]], session: int) -> None:
    """Waits until nothing that a killed run had started is left."""
    until = time.monotonic() + 30
    while processes(session):
        assert time.monotonic() < until, processes(session)
        time.sleep(0.1)


def survive(
    kills: int,
    seed: int,
    folders: Iterator[Path],
    config: Callable[[Path], Path],
    tools: tuple[Any, Any, Any, Any],
    expected: dict[str, Any],
) -> list[dict[str, Any]]:
    """Kills runs `kills` times at random moments of their work; what the readers saw."""
    start, cli, tables_of, processes = tools
    moments = random.Random(seed)
    reports, done = [], 0
    while done < kills:
        folder = next(folders)
        path, run = config(folder), folder / "run"
        with reader(run) as seen:
            # Five kills to a run at most, or the last ones would find little left to interrupt.
            for nth in range(min(5, kills - done)):
                missing = len(expected) - len(tables_found(run))
                changes = moments.randint(1, max(1, 2 * missing // (6 - nth)))
                process = start("run", path, ASSAY_MAPS=str(folder / "maps"))
                if not kill_after(process, run, changes, moments.uniform(0, 0.4)):
                    break
                settle(processes, process.pid)
                check_nothing_is_half_written(run)
                assert not (run / "run.json").exists() or not run_status(run)["is_whole"]
                done += 1
            last = cli("run", path, ASSAY_MAPS=str(folder / "maps"))
            assert last.returncode == 0, last.stderr
        assert run_status(run)["is_whole"]
        assert tables_of(run / "store") == expected
        reports.append(seen)
    return reports


def tables_found(run: Path) -> list[Path]:
    return [f for f in (run / "store").rglob("*") if f.is_file() and f.name[0] != "."]


def check_readers(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert report["faults"] == []
        assert report["slowest_s"] < PATIENCE_S
        assert report["opened"] > 3


@pytest.fixture
def tools(start: Any, cli: Any, tables_of: Any, processes: Any) -> tuple[Any, Any, Any, Any]:
    return start, cli, tables_of, processes


@pytest.mark.parametrize(
    "kills",
    [pytest.param(1, marks=pytest.mark.smoke), pytest.param(3, marks=pytest.mark.slow)],
)
def test_a_killed_run_ends_as_an_unbroken_one(
    kills: int, unbroken: Any, write_config: Any, tools: Any, tables_of: Any, tmp_path: Path
) -> None:
    folders = (tmp_path / str(n) for n in range(100))
    expected = tables_of(unbroken.folder / "store")
    check_readers(survive(kills, 0, folders, write_config, tools, expected))


def test_readers_keep_their_views_while_a_changed_run_is_made_and_killed(
    unbroken: Any, assay: Any, start: Any, cli: Any, processes: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken.folder, run)
    assay("status", run)
    changed = tmp_path / "changed.yaml"
    changed.write_text((run / "config.yaml").read_text().replace(str(unbroken.folder), str(run)))
    settings = ("--set", "stages.ntk.projection.seed=1", "--set", "stages.freeshap.rounds=40")
    with reader(run, "shapley", "ntk", "predictions", "gradients") as seen:
        record = (run / "run.json").read_bytes()
        for changes in (0, 2):
            process = start("run", changed, *settings)
            # With its record the run is another. Readers change files of the folder, too.
            while process.poll() is None and (run / "run.json").read_bytes() == record:
                time.sleep(0.002)
            assert kill_after(process, run, changes, 0.1)
            settle(processes, process.pid)
            assert not run_status(run)["is_whole"]
        last = cli("run", changed, *settings)
        assert last.returncode == 0, last.stderr
    check_readers([seen])
    assert run_status(run)["is_whole"]
    fields = "SELECT DISTINCT fields->>'$.projection.seed' FROM runs WHERE stage = 'ntk'"
    assert json.loads(assay("sql", run, fields, "--json").stdout)[0].popitem()[1] == "1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "kills"),
    [("in_process", 14), pytest.param("ray", 6, marks=pytest.mark.ray)],
)
def test_twenty_kills(
    engine: str,
    kills: int,
    unbroken: Any,
    write_config: Any,
    tools: Any,
    tables_of: Any,
    tmp_path: Path,
) -> None:
    def config(folder: Path) -> Path:
        path: Path = write_config(folder, ray={"engine": engine})
        return path

    folders = (tmp_path / str(n) for n in range(100))
    reports = survive(kills, 1, folders, config, tools, tables_of(unbroken.folder / "store"))
    print(f"{engine}: {kills} kills of {len(reports)} runs", reports)
    check_readers(reports)
