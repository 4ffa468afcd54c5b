"""How rows are cut into shards that later rows leave as they are; the hash of their content."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.export import json_texts
from storage.schema import SchemaError


def cut(ids: np.ndarray, previous: Sequence[np.ndarray], shard_size: int) -> list[np.ndarray]:
    """Positions in `ids` of the rows of every shard, each in ascending order.

    `previous` holds the ids of each earlier shard. Their rows that remain come first, in the order
    of these shards and whatever their size; new ids follow in shards of `shard_size`, the last one
    shorter. Cost O((ids + previous) log previous).

    Raises:
        SchemaError: `shard_size` is not positive.
    """
    if shard_size < 1:
        raise SchemaError(
            f"shard_size: found {shard_size}, expected at least 1. Leave it out for the default."
        )
    *kept, new = remaining(ids, previous)
    starts = range(0, len(new), shard_size)
    return [part for part in kept if len(part)] + [new[i : i + shard_size] for i in starts]


def remaining(ids: np.ndarray, previous: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Positions in `ids` of the rows of each earlier shard, and at the end of the new rows.

    `previous` holds the ids of each earlier shard. Memory: some 40 bytes an id.
    """
    if not sum(len(shard) for shard in previous):
        nothing = np.zeros(0, dtype=np.int64)
        return [*[nothing for _ in previous], np.arange(len(ids))]
    known = np.concatenate(list(previous))
    shards = np.repeat(np.arange(len(previous), dtype=np.int32), [len(s) for s in previous])
    order = np.argsort(known, kind="stable")
    known, shards = known[order], shards[order]
    # Looking ids up in ascending order reads memory in order: ten times as fast at 10^7 rows.
    shard_of = np.full(len(ids), len(previous), dtype=np.int32)
    order = np.argsort(ids)
    sought = ids[order]
    position = np.minimum(np.searchsorted(known, sought), len(known) - 1)
    shard_of[order] = np.where(known[position] == sought, shards[position], len(previous))
    del known, shards, sought, position
    order = np.argsort(shard_of, kind="stable")
    bounds = np.searchsorted(shard_of[order], np.arange(1, len(previous) + 1))
    return np.split(order, bounds)


def content_hash(rows: pa.Table) -> str:
    """16 hex digits that depend on the columns' names and order and the cells' values alone.

    How the table is chunked, sliced or padded and which fields may be null make no difference.
    About 3 microseconds a row of short text; vectors of float32 are hashed as bytes, at the speed
    of memory.
    """
    digest = hashlib.sha256(repr((rows.column_names, rows.num_rows)).encode())
    block = 65536
    for column in rows.columns:
        for start in range(0, len(column), block):
            cells = column.slice(start, block)
            digest.update(_vector_bytes(cells) or repr(_values(cells)).encode())
    return digest.hexdigest()[:16]


def _values(cells: pa.ChunkedArray) -> list[Any]:
    """The cells as Python values; as texts where Python has none that are as exact."""
    if cells.type != pa.time64("ns"):
        try:
            return list(cells.to_pylist())
        except (OverflowError, ValueError):  # Of years beyond 9999, and of unknown time zones.
            pass
    return json_texts(pa.concat_arrays(cells.chunks))


def _vector_bytes(cells: pa.ChunkedArray) -> bytes | None:
    """The numbers of a column of float32 vectors; None for other columns and where some is null."""
    kind = cells.type
    if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float32():
        return None
    numbers = pc.list_flatten(cells)
    if cells.null_count or numbers.null_count:
        return None
    return bytes(numbers.to_numpy().tobytes())
