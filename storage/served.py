"""What DuckDB sees of an object store: the shards of a catalog, asked for once each.

DuckDB asks a file system for a file's size, age and existence before it reads any of it, several
times over. The catalog knows all of that, so nothing is asked but the content: one request for a
shard of usual size, which is checked and kept; the ranges that are wanted of a large one.
"""

import datetime
import glob
import io
from collections.abc import Mapping
from typing import Any

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from storage.manifest import ShardRecord
from storage.table import Store

WHOLE_BYTES = 16 << 20
"""Shards up to this size are read whole, and checked."""


class ServedFiles(AbstractFileSystem):  # type: ignore[misc]
    """The shards of a store as a file system; reads nothing but them."""

    cachable = False

    def serve(self, store: Store, files: Mapping[str, tuple[str, ShardRecord]]) -> "ServedFiles":
        """Sets what is served: table and record of each shard, by URL."""
        self._store, self._served = store, files
        self._by_pattern = {glob.escape(url): url for url in files}
        self.protocol = store.fs.protocol
        return self

    def unstrip_protocol(self, name: str) -> str:
        """The path as it is: catalogs name whole URLs."""
        return name

    def glob(self, path: str, **_: Any) -> list[str]:
        """The one file that a path names: catalogs escape what could be a pattern."""
        return [self._by_pattern[path]] if path in self._by_pattern else []

    def exists(self, path: str, **_: Any) -> bool:
        """Whether the catalog has the file."""
        return path in self._served

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Size and kind of a file, as its manifest has them."""
        return {"name": path, "size": self._record(path).bytes, "type": "file"}

    def modified(self, path: str) -> datetime.datetime:
        """The same time for all files: no shard is ever changed."""
        return datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)

    def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        """The content of a shard.

        Raises:
            storage.schema.FileError: the shard is gone or damaged.
            storage.schema.StorageError: the store does not answer.
        """
        if mode != "rb":
            raise PermissionError(f"{path}: a catalog is read-only")
        listed = self._record(path)
        table = self._served[path][0]
        if listed.bytes <= WHOLE_BYTES:
            return io.BytesIO(self._store.checked_bytes(table, listed))
        name = f"{listed.key}.parquet"
        return _Ranges(self, path, size=listed.bytes, cache_type="none").of(
            self._store, table, name
        )

    def _record(self, path: str) -> ShardRecord:
        if path not in self._served:
            raise FileNotFoundError(path)
        return self._served[path][1]


class _Ranges(AbstractBufferedFile):  # type: ignore[misc]
    """A file of which the ranges that are read are asked for, and no more."""

    def of(self, store: Store, table: str, name: str) -> "_Ranges":
        """Sets where the ranges are read from."""
        self._store, self._table, self._name = store, table, name
        return self

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._store.part(self._table, self._name, start, end)
