"""Read-only memory maps of vector columns, built once per machine from the Parquet shards.

Parquet must be decoded to reach one row; a map is decoded once and then gives any row for the
price of a page read, shared by all processes of the machine through the page cache. It lies under
its temporary folder, named by the hashes of its shards, so that it is never stale.

NumPy's own file format rather than Arrow IPC: a map is one matrix, `.npy` is written shard by shard
in bounded memory and mapped as one contiguous array, where an IPC file would be one array a batch.

The checksums of all blocks are written with a map and compared when a process first opens it, so
nothing is computed with a map that was cut, zeroed or changed: it is built again. That reads the
file once, at about 4 GB a second; a check where single rows are read would have to stand between
NumPy and its memory, in every method.
"""

import contextlib
import logging
import os
import shutil
import tempfile
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.lib import format as npy

from storage.files import FULL
from storage.manifest import Manifest, ShardRecord, digest, open_sealed, sealed_json
from storage.schema import StorageError
from storage.table import Store

LOG = logging.getLogger(__name__)
BLOCK = 1 << 20
"""Bytes that one checksum is over."""
SUMS = "sums.json"
FILES = ("ids.npy", "vectors.npy")
_CHECKED: dict[Path, tuple[int, ...]] = {}
"""Files that this process has compared with their checksums, with their state at that time."""


def map_folder() -> Path:
    """Folder of this machine's maps; `ASSAY_MAPS` names another, say on a larger or faster disk."""
    default = Path(tempfile.gettempdir()) / f"assay-maps-{os.getuid()}"
    return Path(os.environ.get("ASSAY_MAPS", default))


def open_map(store: Store, manifest: Manifest, role: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids (rows,) and vectors (rows, dim) of one role, memory-mapped read-only.

    Vectors keep the value type they are stored in, float16 or float32: code that computes with them
    casts them up. The first call on a machine writes rows * (4 dim + 8) bytes, rows * (2 dim + 8)
    for float16; later calls map them. A map that is not as it was written is built again, and that
    is logged. Of two processes that build the same map at once, one renames its copy into place and
    the other deletes its own.

    A role without rows gives empty arrays: a run need not have queries.

    Raises:
        StorageError: the table has no vector column, or there is no room for the map.
        storage.schema.FileError: a shard is gone or damaged.
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
    place = map_place(manifest, role)
    shape = (sum(s.rows for s in shards), manifest.vector_length)
    if place.exists() and (fault := map_fault(place)):
        LOG.warning("%s: the map is built again, as %s", place, fault)
        remove_map(place)
    if not place.exists():
        _build(store, manifest.table, shards, shape, dtype, place)
        if fault := map_fault(place):
            raise StorageError(
                f"{place}: found that a map is not as it was just written ({fault}), expected the "
                "same bytes. Set ASSAY_MAPS to a folder on another disk."
            )
    return np.load(place / FILES[0], mmap_mode="r"), np.load(place / FILES[1], mmap_mode="r")


def map_place(manifest: Manifest, role: str) -> Path:
    """The folder of the map of a table's vectors of one role, whether it is there or not."""
    shards = [s for s in manifest.shards if s.role == role and s.rows]
    return map_folder() / digest(["sums", manifest.table, role, [s.sha256 for s in shards]])


def map_fault(place: Path) -> str | None:
    """What is wrong with the map in the folder `place`, after "as"; None where nothing is."""
    try:
        sums = open_sealed((place / SUMS).read_bytes())
    except (OSError, ValueError) as error:
        return f"its checksums cannot be read ({error})"
    for name in FILES:
        path, wanted = place / name, sums[name]
        try:
            stat = path.stat()
        except OSError:
            return f"{name} is gone"
        # A file that is shorter than its array would end the process when it is read.
        if stat.st_size != wanted["bytes"]:
            return f"{name} has {stat.st_size} bytes, {wanted['bytes']} were written"
        state = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if _CHECKED.get(path) == state:
            continue
        for block, (found, written) in enumerate(zip(_sums_of(path), wanted["crc32"], strict=True)):
            if found != written:
                return f"block {block} of {name} is not what was written"
        _CHECKED[path] = state
    return None


def remove_map(place: Path) -> None:
    """Removes a map, which disappears whole; who reads it meanwhile keeps what is mapped."""
    doomed = place.with_name(f".{place.name.strip('.')}.{uuid.uuid4().hex}.tmp")
    try:
        os.replace(place, doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


def _sums_of(path: Path) -> Iterator[int]:
    """The checksum of every block of a file."""
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            while len(block) < BLOCK and (more := file.read(BLOCK - len(block))):
                block += more
            yield zlib.crc32(block)


class _Summed:
    """Writes a new file, and adds up its checksums from what is written, not what is read back."""

    def __init__(self, path: Path):
        self._file = path.open("xb")
        self._sums: list[int] = []
        self._bytes = 0

    def write(self, data: Any) -> None:
        """Writes bytes, or the numbers of an array."""
        if isinstance(data, np.ndarray):
            data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        view = memoryview(data)
        self._file.write(view)
        while len(view):
            filled = self._bytes % BLOCK
            part, view = view[: BLOCK - filled], view[BLOCK - filled :]
            if filled:
                self._sums[-1] = zlib.crc32(part, self._sums[-1])
            else:
                self._sums.append(zlib.crc32(part))
            self._bytes += len(part)

    def array(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> None:
        """Writes the header of an array, whose numbers follow."""
        header = {"shape": shape, "fortran_order": False, "descr": npy.dtype_to_descr(dtype)}
        npy.write_array_header_1_0(self, header)

    def close(self) -> dict[str, Any]:
        """Ends the file; its size and the checksums of its blocks."""
        self._file.close()
        return {"bytes": self._bytes, "crc32": self._sums}

    def abandon(self) -> None:
        """Closes the file, if it is open."""
        with contextlib.suppress(OSError):
            self._file.close()


def _build(
    store: Store,
    table: str,
    shards: list[ShardRecord],
    shape: tuple[int, int],
    dtype: "np.dtype[np.floating[Any]]",
    place: Path,
) -> None:
    """Writes the map of these shards to the folder `place`, which appears whole."""
    building = place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")
    files: dict[str, _Summed] = {}
    try:
        with _room(place):
            building.mkdir(parents=True)
            for name in FILES:
                files[name] = _Summed(building / name)
            ids, vectors = files.values()
            ids.array(shape[:1], np.dtype(np.int64))
            vectors.array(shape, dtype)
        for shard in shards:
            part = store.read_shard(table, shard.key, ["id", "vector"], shard)
            flat = pc.list_flatten(part["vector"]).to_numpy().astype(dtype, copy=False)
            with _room(place):
                ids.write(part["id"].to_numpy())
                vectors.write(flat)
        with _room(place):
            sums = {name: file.close() for name, file in files.items()}
            (building / SUMS).write_text(sealed_json(sums))
        try:
            os.replace(building, place)
        except OSError:
            if not place.exists():
                raise
    finally:
        for file in files.values():
            file.abandon()
        shutil.rmtree(building, ignore_errors=True)


@contextlib.contextmanager
def _room(place: Path) -> Iterator[None]:
    """Within this context a full disk or a forbidden folder is a StorageError with advice."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in FULL
        raise StorageError(
            f"{place.parent}: found that a map of vectors cannot be written ({error.strerror}), "
            f"expected a folder {'with room' if is_full else 'of this account'}. Set ASSAY_MAPS to "
            "another folder and give the same command again."
        ) from error
