"""The bytes of a shard: Parquet that carries a seal over all of its bytes.

A manifest lists the hash of every shard, but is written last: a shard that a killed run leaves, a
round that does not count yet and the inner nodes of a merge tree are in none. So each file can be
checked by itself: its footer has the key `assay.seal`, whose value is the SHA-256 over table, key
and all bytes of the file, those of the value read as zeros. It covers the footer, which DuckDB
prunes by and which checksums of Parquet's pages leave out; it costs no second file and no second
request, which a hash beside the shard would; and a whole shard under another shard's name is seen.

Vectors are written plain: not compressed, in one page a row group, so that a row group ends with
its numbers as they are in memory and a matrix is taken from the file's bytes at once. To decode
such a column costs more than to multiply it (`scripts/benchmarks/storage.md`), by the levels that
Parquet keeps for each number. Every other reader decodes it as it does any column.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.manifest import HEALS, ShardRecord
from storage.schema import CorruptError, TableSpec

DETAILS = b"assay.details"
PLAIN = "assay.plain"
"""Key of the name of a column whose numbers lie plain at the end of each row group."""
SEAL = "assay.seal"
UNSEALED = b"0" * 64
GROUP_ROWS = 1 << 15
"""Rows of a row group at most: DuckDB skips groups by the smallest and largest id. Of 10^6 rows one
is found in 6 ms, where it takes 30 in a single group; larger ones are read whole a little faster.
"""
GROUP_BYTES = 1 << 23
"""Bytes of the vectors in a row group, at most."""
PAGE_ROWS = 20_000
"""Rows that pyarrow writes to one page at most."""


def encode(
    spec: TableSpec, key: str, rows: pa.Table, details: Mapping[str, Any] | None
) -> tuple[pa.Table, bytes]:
    """The rows with the facts about them, and the sealed Parquet file of both."""
    text = {DETAILS: json.dumps(details, sort_keys=True)} if details else None
    rows = rows.replace_schema_metadata(text)
    column = _plain_column(spec, rows)
    data = _written(spec, rows, column)
    if column is not None and not _lies_plain(data, rows, column):
        data = _written(spec, rows, None)
    place = _place_of_seal(data)
    data[place : place + len(UNSEALED)] = _seal(data, place, spec.name, key)
    return rows, bytes(data)


def _plain_column(spec: TableSpec, rows: pa.Table) -> str | None:
    """The vector column whose numbers can lie plain in the file; None where there is none."""
    if rows.num_rows and (length := spec.vector_length(rows.schema)):
        for field in rows.schema:
            kind = field.type
            if field.name in spec.schema.names and pa.types.is_fixed_size_list(kind):
                has_nulls = rows[field.name].null_count or _numbers(rows[field.name]).null_count
                is_small = length * kind.value_type.bit_width <= 8 * GROUP_BYTES
                return field.name if is_small and not has_nulls else None
    return None


def _written(spec: TableSpec, rows: pa.Table, plain: str | None) -> bytearray:
    """The Parquet file of the rows, not sealed yet."""
    # A dictionary of numbers that hardly repeat only takes room, up to a quarter of a shard.
    flat = [f.name for f in rows.schema if not pa.types.is_nested(f.type)]
    is_flat = len(flat) == len(rows.schema)
    settings: dict[str, Any] = {"compression": "zstd"}
    group_rows = GROUP_ROWS
    if plain is not None:
        kind = rows.schema.field(plain).type
        width = kind.list_size * kind.value_type.bit_width // 8
        group_rows = max(1, min(GROUP_ROWS, PAGE_ROWS, GROUP_BYTES // width))
        settings = {
            "compression": {f.name: "zstd" for f in rows.schema if f.name != plain}
            | {f"{plain}.list.element": "none"},
            "data_page_size": 2 * GROUP_BYTES,
            "write_statistics": flat,
        }
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer,
        rows.schema,
        store_schema=True,
        use_dictionary=True if is_flat or spec.carries_columns else flat,
        **settings,
    ) as writer:
        writer.write_table(rows, row_group_size=group_rows)
        marks = {PLAIN: plain} if plain is not None else {}
        writer.add_key_value_metadata({**marks, SEAL: UNSEALED.decode()})
    return bytearray(buffer.getbuffer())


def _numbers(column: pa.ChunkedArray) -> pa.Array:
    """The numbers of a column of vectors, one after the other."""
    return pc.list_flatten(column.combine_chunks())


def _lies_plain(data: bytearray, rows: pa.Table, column: str) -> bool:
    """Whether the numbers of a column are where `_plain_places` has them."""
    kind = rows.schema.field(column).type
    numbers = _numbers(rows[column]).to_numpy().view(np.uint8)
    file = np.frombuffer(data, np.uint8)
    places = list(_plain_places(pq.read_metadata(pa.BufferReader(data)), kind, column))
    ends = np.cumsum([end - start for start, end in places])
    return len(numbers) == ends[-1] and all(
        np.array_equal(file[start:end], part)
        for (start, end), part in zip(places, np.split(numbers, ends[:-1]), strict=True)
    )


def _plain_places(
    written: pq.FileMetaData, kind: pa.DataType, column: str
) -> Iterator[tuple[int, int]]:
    """Where the numbers of a column that lies plain begin and end, in each row group."""
    width = kind.list_size * kind.value_type.bit_width // 8
    for group in range(written.num_row_groups):
        of_group = written.row_group(group)
        pages = next(
            pages
            for pages in map(of_group.column, range(of_group.num_columns))
            if pages.path_in_schema == f"{column}.list.element"
        )
        end = pages.data_page_offset + pages.total_compressed_size
        yield end - of_group.num_rows * width, end


def _plain_vectors(
    data: bytes, written: pq.FileMetaData, kind: pa.DataType, column: str
) -> pa.ChunkedArray:
    """The vectors of a column that lies plain, copied together.

    Numbers in a file lie at any place, and in memory at multiples of their width.
    """
    places = list(_plain_places(written, kind, column))
    numbers = np.empty(sum(end - start for start, end in places), np.uint8)
    file, done = np.frombuffer(data, np.uint8), 0
    for start, end in places:
        numbers[done : done + end - start] = file[start:end]
        done += end - start
    count = written.num_rows * kind.list_size
    flat = pa.Array.from_buffers(kind.value_type, count, [None, pa.py_buffer(numbers)])
    return pa.chunked_array([pa.FixedSizeListArray.from_arrays(flat, type=kind)])


def decode(data: bytes, table: str, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows in the bytes of a Parquet file, with the facts about them in its metadata.

    Raises:
        CorruptError: the bytes are no Parquet.
    """
    try:
        # A fifth of what `pq.read_table` takes of a small shard: that plans a scan of a data set.
        file = pq.ParquetFile(pa.BufferReader(data))
        schema = file.schema_arrow
        plain = (file.metadata.metadata or {}).get(PLAIN.encode(), b"").decode()
        wanted = list(columns) if columns else schema.names
        # A column of the user's may be called "".
        if not plain or plain not in wanted:
            return file.read(wanted)
        rows = file.read([name for name in wanted if name != plain])
        kind = schema.field(plain).type
        vectors = _plain_vectors(data, file.metadata, kind, plain)
        rows = rows.append_column(schema.field(plain), vectors)
        return rows.select(wanted) if columns else rows.select(schema.names)
    except (pa.ArrowException, OSError) as error:
        raise damaged(table, key, f"that is not Parquet ({error})") from error


def details_of(rows: pa.Table) -> dict[str, Any]:
    """The facts in the metadata of a shard's file."""
    details: dict[str, Any] = json.loads((rows.schema.metadata or {}).get(DETAILS, b"{}"))
    return details


def record(
    spec: TableSpec, key: str, role: str, index: int, rows: pa.Table, data: bytes
) -> ShardRecord:
    """The record of a shard with these rows, whose file holds `data`."""
    id_column = next((n for n in spec.key if n in ("id", "example_id", "query_id")), None)
    ids = rows[id_column] if id_column and rows.num_rows else None
    return ShardRecord(
        key=key,
        role=role,
        index=index,
        rows=rows.num_rows,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        smallest_id=pc.min(ids).as_py() if ids is not None else None,
        largest_id=pc.max(ids).as_py() if ids is not None else None,
        vector_length=spec.vector_length(rows.schema),
        dtype=spec.dtype(rows.schema),
        details=details_of(rows),
    )


def check_bytes(data: bytes, table: str, listed: ShardRecord) -> None:
    """Raises CorruptError unless `data` are the bytes that a manifest lists for a shard."""
    if len(data) != listed.bytes:
        raise damaged(table, listed.key, f"of {len(data)} bytes, {listed.bytes} were written")
    if hashlib.sha256(data).hexdigest() != listed.sha256:
        raise damaged(table, listed.key, "whose hash is not the one in its manifest")


def is_sealed(data: bytes) -> bool:
    """Whether a file has a seal; shards of before there were seals have none."""
    return _place_of_seal(data) >= 0


def has_valid_seal(data: bytes, table: str, key: str) -> bool:
    """Whether `data` are the bytes that were written as the shard `key` of `table`."""
    place = _place_of_seal(data)
    if place < 0:
        return False
    return data[place : place + len(UNSEALED)] == _seal(data, place, table, key)


def damaged(table: str, key: str, what: str) -> CorruptError:
    """The error of a shard whose file is not what was written; `what` follows "found a file"."""
    return CorruptError(
        f"{table}/{key}.parquet: found a file {what}, expected the whole shard as it was written. "
        f"{HEALS}",
        (table, f"{key}.parquet"),
    )


def _place_of_seal(data: bytes | bytearray) -> int:
    """Where the value of the seal begins; negative where there is none."""
    found = data.rfind(SEAL.encode())
    # Thrift puts two bytes between a key and its value: the next field, and the value's length.
    return found + len(SEAL) + 2 if found >= 0 else -1


def _seal(data: bytes | bytearray, place: int, table: str, key: str) -> bytes:
    """The seal of a file, 64 hex digits."""
    hashed = hashlib.sha256(f"{table}/{key}\n".encode())
    view = memoryview(data)
    for part in (view[:place], UNSEALED, view[place + len(UNSEALED) :]):
        hashed.update(part)
    return hashed.hexdigest().encode()
