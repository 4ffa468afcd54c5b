"""The bytes of a shard: Parquet that carries a seal over all of its bytes.

A manifest lists the hash of every shard, but is written last: a shard that a killed run leaves, a
round that does not count yet and the inner nodes of a merge tree are in none. So each file can be
checked by itself: its footer has the key `assay.seal`, whose value is the SHA-256 over table, key
and all bytes of the file, those of the value read as zeros. It covers the footer, which DuckDB
prunes by and which checksums of Parquet's pages leave out; it costs no second file and no second
request, which a hash beside the shard would; and a whole shard under another shard's name is seen.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.manifest import HEALS, ShardRecord
from storage.schema import CorruptError, TableSpec

DETAILS = b"assay.details"
SEAL = "assay.seal"
UNSEALED = b"0" * 64


def encode(
    spec: TableSpec, key: str, rows: pa.Table, details: Mapping[str, Any] | None
) -> tuple[pa.Table, bytes]:
    """The rows with the facts about them, and the sealed Parquet file of both."""
    text = {DETAILS: json.dumps(details, sort_keys=True)} if details else None
    rows = rows.replace_schema_metadata(text)
    # A dictionary of numbers that hardly repeat only takes room, up to a quarter of a shard.
    plain = [f.name for f in rows.schema if not pa.types.is_nested(f.type)]
    is_flat = len(plain) == len(rows.schema)
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer,
        rows.schema,
        compression="zstd",
        store_schema=True,
        use_dictionary=True if is_flat or spec.carries_columns else plain,
    ) as writer:
        writer.write_table(rows)
        writer.add_key_value_metadata({SEAL: UNSEALED.decode()})
    data = bytearray(buffer.getvalue())
    place = _place_of_seal(data)
    data[place : place + len(UNSEALED)] = _seal(data, place, spec.name, key)
    return rows, bytes(data)


def decode(data: bytes, table: str, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows in the bytes of a Parquet file, with the facts about them in its metadata.

    Raises:
        CorruptError: the bytes are no Parquet.
    """
    try:
        # A fifth of what `pq.read_table` takes of a small shard: that plans a scan of a data set.
        return pq.ParquetFile(pa.BufferReader(data)).read(list(columns) if columns else None)
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
