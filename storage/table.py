"""Read and write the shards and manifests of a store.

    <store>/<table>/<shard key>.parquet
    <store>/<table>/<manifest key>.json

A store is a local folder or a URL that fsspec knows (`s3://`, `gs://`). Nothing is overwritten: on
a local disk a file is written under a temporary name and renamed; on an object store the object
appears whole. Two writers of one key write the same bytes, so whoever comes last does no harm.
"""

import hashlib
import io
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.manifest import Manifest, ShardRecord, parse_manifest
from storage.schema import CorruptError, MissingError, SchemaError, StorageError, TableSpec

DETAILS = b"assay.details"


class Store:
    """A folder or URL that holds the shards and manifests of tables."""

    def __init__(self, url: str):
        """Opens the store at `url`, a folder or an fsspec URL; creates nothing.

        Raises:
            StorageError: no file system is known for the URL's protocol.
        """
        try:
            # A listing kept in this process would hide what other processes write.
            self.fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StorageError(
                f"store {url}: found no file system for it ({error}), expected a folder, s3:// or "
                "gs://. Correct `store:`, or install the extra (pip install -e '.[s3]' or '.[gs]')."
            ) from error
        self.is_local = "file" in _protocols(self.fs)
        self.root = os.path.abspath(root) if self.is_local else root.rstrip("/")
        self.url = self.root if self.is_local else url.rstrip("/")

    def path(self, table: str, name: str) -> str:
        """Path of a file of `table` as this store's file system knows it."""
        return f"{self.root}/{table}/{name}"

    def absolute_url(self, table: str, key: str) -> str:
        """Path or URL under which DuckDB reads the shard `key` of `table`."""
        path = self.path(table, f"{key}.parquet")
        return path if self.is_local else str(self.fs.unstrip_protocol(path))

    def shard_keys(self, table: str) -> set[str]:
        """Keys of the shards of `table` that lie in the store, from one listing."""
        return {name[: -len(".parquet")] for name in self._names(table) if _is_shard(name)}

    def manifest_keys(self, table: str) -> list[str]:
        """Keys of the manifests of `table`, oldest first."""
        folder = f"{self.root}/{table}"
        if not self.fs.isdir(folder):
            return []
        entries = [e for e in self.fs.ls(folder, detail=True) if e["name"].endswith(".json")]
        entries.sort(key=lambda e: (str(e.get("mtime", e.get("LastModified", ""))), e["name"]))
        return [e["name"].rsplit("/", 1)[-1][: -len(".json")] for e in entries]

    def write_shard(
        self,
        spec: TableSpec,
        key: str,
        role: str,
        index: int,
        rows: pa.Table,
        details: Mapping[str, Any] | None = None,
    ) -> ShardRecord:
        """Checks rows and writes them as the shard `key` of a table; returns its record.

        `details` are facts that the stage recorded about the rows.

        Raises:
            SchemaError: the rows are not what the table declares.
        """
        rows = spec.check(rows)
        if details:
            rows = rows.replace_schema_metadata({DETAILS: json.dumps(details, sort_keys=True)})
        else:
            rows = rows.replace_schema_metadata(None)
        buffer = io.BytesIO()
        # A dictionary of numbers that hardly repeat only takes room, up to a quarter of a shard.
        plain = [f.name for f in rows.schema if not pa.types.is_nested(f.type)]
        is_flat = len(plain) == len(rows.schema)
        pq.write_table(
            rows,
            buffer,
            compression="zstd",
            store_schema=True,
            use_dictionary=True if is_flat or spec.carries_columns else plain,
        )
        data = buffer.getvalue()
        self._put(self.path(spec.name, f"{key}.parquet"), data)
        return _record(spec, key, role, index, rows, data)

    def read_shard(self, table: str, key: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of one shard.

        Raises:
            MissingError: the shard is not in the store.
            CorruptError: the file is not Parquet.
        """
        rows = _parse_shard(self._get(table, f"{key}.parquet"), table, key, columns)
        return rows.replace_schema_metadata(None)

    def read_whole_shard(self, table: str, key: str) -> tuple[pa.Table, dict[str, Any]]:
        """Rows of one shard, and the facts that its writer recorded with it.

        Raises:
            MissingError: the shard is not in the store.
            CorruptError: the file is not Parquet.
        """
        rows = _parse_shard(self._get(table, f"{key}.parquet"), table, key, None)
        return rows.replace_schema_metadata(None), _details(rows)

    def record_of(self, spec: TableSpec, key: str, role: str, index: int) -> ShardRecord:
        """The record of a shard that lies in the store, read from its file."""
        data = self._get(spec.name, f"{key}.parquet")
        rows = _parse_shard(data, spec.name, key, None)
        return _record(spec, key, role, index, rows, data)

    def write_manifest(self, manifest: Manifest) -> str:
        """Writes a manifest, after all of its shards; returns its key.

        Raises:
            SchemaError: shards disagree in the length or the value type of their vectors.
        """
        _check_alike(manifest)
        path = self.path(manifest.table, f"{manifest.key}.json")
        if not self.fs.exists(path):
            self._put(path, manifest.to_json().encode())
        return manifest.key

    def has_manifest(self, table: str, key: str) -> bool:
        """Whether the manifest `key` of `table` lies in the store."""
        return bool(self.fs.exists(self.path(table, f"{key}.json")))

    def read_manifest(self, table: str, key: str) -> Manifest:
        """The manifest `key` of `table`.

        Raises:
            MissingError: it is not in the store.
            CorruptError: the file is no manifest.
        """
        name = f"{key}.json"
        return parse_manifest(self._get(table, name).decode(), self.path(table, name))

    def read_table(
        self, manifest: Manifest, role: str | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """All rows that `manifest` lists, of one role if given, in the order of its shards."""
        shards = [s for s in manifest.shards if role is None or s.role in ("", role)]
        if not shards:
            # A role without rows still has columns, and another role's shard knows them.
            first = self.read_shard(manifest.table, manifest.shards[0].key, columns)
            return first.slice(0, 0)
        # A shard without rows knows the declared columns only, not the length of its vectors.
        shards = [s for s in shards if s.rows] or shards[:1]
        return pa.concat_tables([self.read_shard(manifest.table, s.key, columns) for s in shards])

    def write_note(self, table: str, name: str, note: Mapping[str, Any]) -> None:
        """Writes a small JSON object, the note `name`, beside the shards of `table`."""
        text = json.dumps(note, indent=1, sort_keys=True) + "\n"
        self._put(self.path(table, f"{name}.json"), text.encode())

    def read_note(self, table: str, name: str) -> dict[str, Any] | None:
        """The note `name` of `table`; None where the store has none, or it cannot be read."""
        try:
            note = json.loads(self._get(table, f"{name}.json"))
        except (MissingError, ValueError):
            return None
        return note if isinstance(note, dict) else None

    def _names(self, table: str) -> Iterable[str]:
        """Names of the files in the folder of a table."""
        folder = f"{self.root}/{table}"
        if not self.fs.isdir(folder):
            return []
        return [str(p).rsplit("/", 1)[-1] for p in self.fs.ls(folder, detail=False)]

    def _get(self, table: str, name: str) -> bytes:
        """The content of a file of a table."""
        path = self.path(table, name)
        try:
            return bytes(self.fs.cat_file(path))
        except FileNotFoundError as error:
            raise MissingError(
                f"{path}: found nothing there, expected a file of table {table}. "
                "Run `assay run` again: it computes what is missing."
            ) from error

    def _put(self, path: str, data: bytes) -> None:
        """Writes a file, whole or not at all."""
        if not self.is_local:
            self.fs.pipe_file(path, data)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_whole(Path(path), data)


def write_whole(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, so that any reader sees all of it or the earlier file."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _protocols(fs: Any) -> tuple[str, ...]:
    protocol = fs.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _is_shard(name: str) -> bool:
    return name.endswith(".parquet") and not name.startswith(".")


def _parse_shard(data: bytes, table: str, key: str, columns: Sequence[str] | None) -> pa.Table:
    """The rows in the bytes of a Parquet file."""
    try:
        return pq.read_table(io.BytesIO(data), columns=list(columns) if columns else None)
    except pa.ArrowInvalid as error:
        raise CorruptError(
            f"{table}/{key}.parquet: found a file that is not Parquet ({error}), expected a whole "
            "shard. Delete the file and run again: it is computed anew."
        ) from error


def _check_alike(manifest: Manifest) -> None:
    """Raises unless the vectors of all shards have one length and one value type."""
    shards = [s for s in manifest.shards if s.vector_length is not None]
    for other in shards[1:]:
        first = shards[0]
        if (other.vector_length, other.dtype) != (first.vector_length, first.dtype):
            raise SchemaError(
                f"{manifest.table} {manifest.key}: found vectors of {other.vector_length} "
                f"{other.dtype} in shard {other.index} ({other.role}) and of {first.vector_length} "
                f"{first.dtype} in shard {first.index} ({first.role}), expected one length and one "
                f"type. Delete both, {first.key}.parquet and {other.key}.parquet, and run again: "
                "they are computed anew."
            )


def _record(
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
        details=_details(rows),
    )


def _details(rows: pa.Table) -> dict[str, Any]:
    """The facts in the metadata of a shard's file."""
    details: dict[str, Any] = json.loads((rows.schema.metadata or {}).get(DETAILS, b"{}"))
    return details
