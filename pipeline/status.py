"""How far a run is: the shards of each of its tables that are written."""

import dataclasses
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.errors import RunFolderError
from pipeline.folder import RunFolder
from pipeline.lock import driver_of, hold
from pipeline.store_users import register
from storage.schema import StorageError
from storage.views import SUMS


def run_status(path: Path) -> dict[str, Any]:
    """The state of the run in the folder `path`, as plain values.

    Keys: run_id, path, store, catalog, is_whole, is_catalog_rebuilt, driver (pid, host and since of
    the process that works on the run now, or None), and tables, each with its instance, table,
    shards (how many it needs), done (how many are written) and is_whole. Rebuilds the catalog when
    the folder has been moved or the catalog is gone or damaged, unless a driver is at work, which
    does that.

    Raises:
        pipeline.errors.RunFolderError: the folder holds no run, or its store is gone.
    """
    folder = RunFolder(path.expanduser().resolve())
    record = folder.read_record()
    store = folder.store(record)
    if store.is_local and not Path(store.root).exists():
        raise RunFolderError(
            f"{folder.path}: found no store at {store.root}, expected the tables of this run. "
            "Move the store back (it may lie in another run's folder that was moved), or run "
            f"`assay run {folder.config} --set store=...` with its new place."
        )
    tables = []
    for instance, states in record["tables"].items():
        for table, state in states.items():
            present = store.shard_keys(table)
            tables.append(
                {
                    "instance": instance,
                    "table": table,
                    "shards": len(state["shards"]),
                    "done": sum(key in present for key in state["shards"]),
                    "is_whole": state["manifest"] is not None,
                }
            )
    driver = driver_of(folder.path)
    is_damaged = not folder.catalog.exists() or folder.catalog in folder.faults()
    # A run of somebody else's, where only they may write, is left as it is.
    is_damaged |= os.access(folder.path, os.W_OK) and not folder.has_own_catalog()
    has_values = all(t["done"] == t["shards"] for t in tables if t["table"] == SUMS)
    is_stale = record["path"] != str(folder.path) or is_damaged or not has_values
    is_rebuilt = is_stale and driver is None
    if is_rebuilt:
        with hold(folder.path):
            folder.rebuild_catalog(store)
            # Where the run was moved, the store knows its old place alone, and may be told to
            # forget that one. A store that only others may write to is left as it is.
            with suppress(OSError, StorageError):
                register(store, folder.read_record())
    return {
        "run_id": record["run_id"],
        "path": str(folder.path),
        "store": store.url,
        "catalog": str(folder.catalog),
        "is_whole": all(t["is_whole"] for t in tables),
        "is_catalog_rebuilt": is_rebuilt,
        "driver": dataclasses.asdict(driver) if driver is not None else None,
        "tables": tables,
    }
