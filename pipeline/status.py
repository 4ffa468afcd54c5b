"""How far a run is: the shards of each of its tables that are written."""

from pathlib import Path
from typing import Any

from pipeline.errors import RunFolderError
from pipeline.folder import RunFolder


def run_status(path: Path) -> dict[str, Any]:
    """The state of the run in the folder `path`, as plain values.

    Keys: run_id, path, store, catalog, is_whole, is_catalog_rebuilt, and tables, each with its
    instance, table, shards (how many it needs), done (how many are written) and is_whole. Rebuilds
    the catalog when the folder has been moved or the catalog is gone or damaged.

    Raises:
        pipeline.errors.RunFolderError: the folder holds no run, or its store is gone.
    """
    folder = RunFolder(path.expanduser().resolve())
    record = folder.read_record()
    store = folder.store()
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
    is_damaged = not folder.catalog.exists() or folder.catalog in folder.faults()
    is_rebuilt = record["path"] != str(folder.path) or is_damaged
    if is_rebuilt:
        folder.rebuild_catalog(store)
    return {
        "run_id": record["run_id"],
        "path": str(folder.path),
        "store": store.url,
        "catalog": str(folder.catalog),
        "is_whole": all(t["is_whole"] for t in tables),
        "is_catalog_rebuilt": is_rebuilt,
        "tables": tables,
    }
