"""Read and write the shards and manifests of a store.

    <store>/<table>/<shard key>.parquet
    <store>/<table>/<manifest key>.json

A store is a local folder or a URL that fsspec knows (`s3://`, `gs://`). Nothing is overwritten, but
for a file that is proven damaged: on a local disk a file is written under a temporary name and
renamed; on an object store the object appears whole. Two writers of one key write the same bytes,
so whoever comes last does no harm.

All bytes that are read are checked: those of a shard against the hash in its manifest, or against
the seal that it carries (`storage.shard_file`), those of a manifest against its own seal and key.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from storage import shard_file
from storage.files import Files
from storage.listing import File
from storage.manifest import Manifest, ShardRecord, open_sealed, parse_manifest, sealed_json
from storage.schema import CorruptError, MissingError, SchemaError, TableSpec

LOG = logging.getLogger(__name__)
_CHECKED: dict[tuple[str, str | None], tuple[int, ...]] = {}
"""Local shards that this process has checked, with the state of the file at that time."""


class Store:
    """A folder or URL that holds the shards and manifests of tables, for one command's length."""

    def __init__(self, url: str):
        """Opens the store at `url`, a folder or an fsspec URL; creates nothing.

        Raises:
            StorageError: no file system is known for the URL's protocol, or it holds credentials.
        """
        self._files = Files(url)
        self.fs, self.is_local = self._files.fs, self._files.is_local
        self.root, self.url = self._files.root, self._files.url
        self._manifests: dict[tuple[str, str], Manifest] = {}
        self._listed_records: dict[str, dict[str, ShardRecord]] = {}

    def refresh(self) -> None:
        """Forgets the listings, so that what other processes wrote is seen."""
        self._files.refresh()
        self._listed_records = {}

    def path(self, table: str, name: str) -> str:
        """Path of a file of `table` as this store's file system knows it."""
        return self._files.path(table, name)

    def absolute_url(self, table: str, key: str) -> str:
        """Path or URL under which DuckDB reads the shard `key` of `table`."""
        path = self.path(table, f"{key}.parquet")
        return path if self.is_local else str(self.fs.unstrip_protocol(path))

    @property
    def absolute_root(self) -> str:
        """Path or URL of the folder that all `absolute_url` lie in."""
        return self.root if self.is_local else str(self.fs.unstrip_protocol(self.root))

    def sizes(self, table: str) -> dict[str, int]:
        """Bytes of every file of `table` by its name, from one listing."""
        return {name: file.bytes for name, file in self._files.of(table).items()}

    def shard_keys(self, table: str) -> set[str]:
        """Keys of the shards of `table` that lie in the store, from one listing."""
        names = self._files.of(table)
        return {name[: -len(".parquet")] for name in names if name.endswith(".parquet")}

    def manifest_keys(self, table: str) -> list[str]:
        """Keys of the manifests of `table`, oldest first."""
        found: list[tuple[str, File]] = list(self._files.of(table).items())
        found.sort(key=lambda item: (item[1].written, item[0]))
        return [name[: -len(".json")] for name, _ in found if name.endswith(".json")]

    def earlier_manifests(self, table: str, most: int | None = None) -> Iterator[Manifest]:
        """The manifests of `table`, newest first; one that is damaged is told of and left out."""
        for key in self.manifest_keys(table)[::-1][:most]:
            try:
                yield self.read_manifest(table, key)
            except (CorruptError, MissingError) as error:
                LOG.warning("left out: %s", error)

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
            StorageError: the file cannot be written.
        """
        rows, data = shard_file.encode(spec, key, spec.check(rows), details)
        self._put(spec.name, f"{key}.parquet", data)
        return shard_file.record(spec, key, role, index, rows, data)

    def read_shard(
        self,
        table: str,
        key: str,
        columns: Sequence[str] | None = None,
        listed: ShardRecord | None = None,
    ) -> pa.Table:
        """Rows of one shard, whose bytes are checked.

        Args:
            table: The table.
            key: The shard's key.
            columns: Columns to read, by default all.
            listed: What a manifest lists of the shard; without it the file's own seal counts.

        Raises:
            MissingError: the shard is not in the store.
            CorruptError: the file does not hold what was written.
        """
        rows = shard_file.decode(self._shard(table, key, listed), table, key, columns)
        return rows.replace_schema_metadata(None)

    def read_whole_shard(self, table: str, key: str) -> tuple[pa.Table, dict[str, Any]]:
        """Rows of one shard by its seal, and the facts that its writer recorded with it.

        Raises:
            MissingError: the shard is not in the store.
            CorruptError: the file does not hold what was written.
        """
        rows = shard_file.decode(self._shard(table, key, None), table, key)
        return rows.replace_schema_metadata(None), shard_file.details_of(rows)

    def record_of(self, spec: TableSpec, key: str, role: str, index: int) -> ShardRecord:
        """The record of a shard that lies in the store, read from its file, by its seal.

        Raises:
            MissingError: the shard is not in the store.
            CorruptError: the file does not hold what was written.
        """
        data = self._shard(spec.name, key, None)
        rows = shard_file.decode(data, spec.name, key)
        return shard_file.record(spec, key, role, index, rows, data)

    def check_shard(self, table: str, key: str, listed: ShardRecord | None = None) -> None:
        """Raises unless the bytes of a shard are those that were written.

        Reads all of them, but of a local file that this process has checked and nobody has touched.

        Raises:
            MissingError: the shard is not in the store.
            CorruptError: the file does not hold what was written.
        """
        state = _state(self.path(table, f"{key}.parquet")) if self.is_local else None
        checked = (self.path(table, key), listed.sha256 if listed is not None else None)
        if state is None or _CHECKED.get(checked) != state:
            self._shard(table, key, listed)
        if state is not None:
            _CHECKED[checked] = state

    def is_whole(self, table: str, key: str) -> bool:
        """Whether a shard is there with a valid seal, whatever a manifest says of it."""
        try:
            return shard_file.has_valid_seal(self._files.read(table, f"{key}.parquet"), table, key)
        except MissingError:
            return False

    def write_manifest(self, manifest: Manifest, replaces: bool = False) -> str:
        """Writes a manifest, after all of its shards; returns its key.

        One that is there stays as it is, unless it is to be replaced, as its shards are others.

        Raises:
            SchemaError: shards disagree in the length or the value type of their vectors.
            StorageError: the file cannot be written.
        """
        _check_alike(manifest)
        if replaces or not self.has_manifest(manifest.table, manifest.key):
            self._put(manifest.table, f"{manifest.key}.json", manifest.to_json().encode())
            self._manifests[manifest.table, manifest.key] = manifest
        return manifest.key

    def has_manifest(self, table: str, key: str) -> bool:
        """Whether the manifest `key` of `table` lies in the store; on an object store as listed."""
        if self.is_local:
            return os.path.exists(self.path(table, f"{key}.json"))
        return f"{key}.json" in self._files.of(table)

    def read_manifest(self, table: str, key: str) -> Manifest:
        """The manifest `key` of `table`, which is read once.

        Raises:
            MissingError: it is not in the store.
            CorruptError: the file does not hold what was written.
        """
        if (table, key) not in self._manifests:
            name = f"{key}.json"
            data = self._files.read(table, name)
            found = parse_manifest(data, self.path(table, name), table, key)
            self._manifests[table, key] = found
        return self._manifests[table, key]

    def read_table(
        self, manifest: Manifest, role: str | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """All rows that `manifest` lists, of one role if given, in the order of its shards.

        Raises:
            MissingError: a shard is not in the store.
            CorruptError: a shard does not hold what the manifest lists.
        """
        table = manifest.table

        def read(shard: ShardRecord) -> pa.Table:
            return self.read_shard(table, shard.key, columns, shard)

        shards = [s for s in manifest.shards if role is None or s.role in ("", role)]
        if not shards:
            # A role without rows still has columns, and another role's shard knows them.
            return read(manifest.shards[0]).slice(0, 0)
        # A shard without rows knows the declared columns only, not the length of its vectors.
        return pa.concat_tables(map(read, [s for s in shards if s.rows] or shards[:1]))

    def write_note(self, table: str, name: str, note: Mapping[str, Any]) -> None:
        """Writes a small JSON object, the note `name`, beside the shards of `table`."""
        self._put(table, f"{name}.json", sealed_json(note).encode())

    def read_note(self, table: str, name: str) -> dict[str, Any] | None:
        """The note `name` of `table`; None where the store has none.

        Raises:
            CorruptError: the file does not hold what was written.
        """
        try:
            return open_sealed(self._files.read(table, f"{name}.json"))
        except MissingError:
            return None
        except ValueError as error:
            raise CorruptError(
                f"{self.path(table, name)}.json: found {error}, expected the note as it was "
                "written. Run `assay run` again: it writes the note anew.",
                (table, f"{name}.json"),
            ) from error

    def checked_bytes(self, table: str, listed: ShardRecord) -> bytes:
        """The bytes of a shard, which are those that a manifest lists.

        Raises:
            MissingError: the shard is not in the store.
            CorruptError: the file does not hold what was written.
        """
        return self._shard(table, listed.key, listed)

    def part(self, table: str, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a file of an object store."""
        return self._files.read_part(table, name, start, stop)

    def remove(self, table: str, name: str) -> None:
        """Removes a file, which must be proven damaged; one that is gone is no error."""
        self._manifests.pop((table, name.removesuffix(".json")), None)
        self._files.remove(table, name)

    def _put(self, table: str, name: str, data: bytes) -> None:
        self._manifests.pop((table, name.removesuffix(".json")), None)
        self._files.write(table, name, data)

    def _shard(self, table: str, key: str, listed: ShardRecord | None) -> bytes:
        """The checked bytes of a shard; see `check_shard` for what is raised."""
        data = self._files.read(table, f"{key}.parquet")
        try:
            if listed is None and not shard_file.is_sealed(data):
                listed = self._listed_anywhere(table, key)
            if listed is not None:
                shard_file.check_bytes(data, table, listed)
            elif not shard_file.has_valid_seal(data, table, key):
                raise shard_file.damaged(table, key, "that its seal does not fit")
        except CorruptError:
            # Nobody reads damaged bytes again without a look at the file.
            self._files.drop(table, f"{key}.parquet")
            raise
        return data

    def _listed_anywhere(self, table: str, key: str) -> ShardRecord:
        """What any manifest of the table lists of a shard of before there were seals."""
        if table not in self._listed_records:
            manifests = list(self.earlier_manifests(table))
            records = {s.key: s for manifest in manifests for s in manifest.shards}
            self._listed_records[table] = records
        try:
            return self._listed_records[table][key]
        except KeyError:
            raise shard_file.damaged(
                table, key, "without a seal, which no manifest lists"
            ) from None


def _state(path: str) -> tuple[int, ...] | None:
    """What changes when a file is replaced or written to; None where there is none."""
    try:
        stat = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


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
                "type. Give `assay verify RUN --repair`, which removes what is not as it was "
                "written, and run again."
            )
