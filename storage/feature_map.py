"""Read-only memory maps of vector columns, built once per machine from the Parquet shards.

Parquet must be decoded to reach one row; a map is decoded once and then gives any row for the
price of a page read, shared by all processes of the machine through the page cache. It lies under
its temporary folder, named by the hashes of its shards, so that it is never stale.

NumPy's own file format rather than Arrow IPC: a map is one matrix, `.npy` is written shard by shard
in bounded memory and mapped as one contiguous array, where an IPC file would be one array a batch.
"""

import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.lib.format import open_memmap

from storage.manifest import Manifest, ShardRecord, digest
from storage.schema import StorageError
from storage.table import Store


def map_folder() -> Path:
    """Folder of this machine's maps; `ASSAY_MAPS` names another, say on a larger or faster disk."""
    default = Path(tempfile.gettempdir()) / f"assay-maps-{os.getuid()}"
    return Path(os.environ.get("ASSAY_MAPS", default))


def open_map(store: Store, manifest: Manifest, role: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids (rows,) and vectors (rows, dim) of one role, memory-mapped read-only.

    Vectors keep the value type they are stored in, float16 or float32: code that computes with them
    casts them up. The first call on a machine writes rows * (4 dim + 8) bytes, rows * (2 dim + 8)
    for float16; later calls map them. Of two processes that build the same map at once, one renames
    its copy into place and the other deletes its own.

    A role without rows gives empty arrays: a run need not have queries.

    Raises:
        StorageError: the table has no vector column.
    """
    shards = [s for s in manifest.shards if s.role == role and s.rows]
    if manifest.vector_length is None:
        raise StorageError(
            f"{manifest.table} {manifest.key}: found no vectors in it, expected a feature table. "
            "Name a table such as embedding or ntk."
        )
    # A manifest of before there was a choice names no type: its vectors are float32.
    dtype = np.dtype(manifest.dtype or np.float32)
    if not shards:
        return np.empty(0, np.int64), np.empty((0, manifest.vector_length), dtype)
    place = map_folder() / digest([manifest.table, role, [s.sha256 for s in shards]])
    if not place.exists():
        shape = (sum(s.rows for s in shards), manifest.vector_length)
        _build(store, manifest.table, shards, shape, dtype, place)
    return np.load(place / "ids.npy", mmap_mode="r"), np.load(place / "vectors.npy", mmap_mode="r")


def _build(
    store: Store,
    table: str,
    shards: list[ShardRecord],
    shape: tuple[int, int],
    dtype: np.dtype[np.floating[Any]],
    place: Path,
) -> None:
    """Writes the map of these shards to the folder `place`, which appears whole."""
    building = place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")
    building.mkdir(parents=True)
    try:
        ids = open_memmap(building / "ids.npy", "w+", np.int64, shape[:1])
        vectors = open_memmap(building / "vectors.npy", "w+", dtype, shape)
        start = 0
        for shard in shards:
            part = store.read_shard(table, shard.key, ["id", "vector"])
            stop = start + part.num_rows
            ids[start:stop] = part["id"].to_numpy()
            flat = pc.list_flatten(part["vector"]).to_numpy()
            vectors[start:stop] = flat.reshape(part.num_rows, shape[1])
            start = stop
        ids.flush()
        vectors.flush()
        os.replace(building, place)
    except OSError:
        if not place.exists():
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
