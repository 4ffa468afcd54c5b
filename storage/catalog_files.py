"""The files behind the views of an open catalog, which are checked before their rows are shown."""

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import duckdb

from storage.files import KEPT_BYTES
from storage.hashed import HashedFiles
from storage.manifest import HEALS, ShardRecord
from storage.schema import CorruptError, MissingError
from storage.served import ServedFiles
from storage.table import Store

HASHED_BYTES = 1 << 30
"""Of the files that a statement reads and that were not hashed before, this much is hashed."""


@contextlib.contextmanager
def catalog_read() -> Iterator[None]:
    """Within this context a catalog is asked for what it always has: an error means damage.

    Raises:
        storage.schema.CorruptError: DuckDB cannot read the catalog's file.
    """
    try:
        yield
    except duckdb.CatalogException:
        raise
    except duckdb.Error as error:
        raise damaged_catalog(error) from error


def is_damage(error: duckdb.Error) -> bool:
    """Whether DuckDB found damaged blocks in the catalog: an error of no subclass."""
    return type(error) is duckdb.Error


def damaged_catalog(error: duckdb.Error) -> CorruptError:
    """The error of a catalog whose bytes DuckDB cannot read."""
    return CorruptError(
        f"catalog.duckdb: found a file that DuckDB cannot read ({str(error).splitlines()[0]}), "
        "expected the catalog as it was written. Run `assay status` on the run's folder: it builds "
        "the catalog anew."
    )


class CatalogFiles:
    """The shards that a catalog lists, by table, with the size and hash of each."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, store: Store, memory: Path | None = None
    ):
        """Reads the list of files; a catalog without one is asked for its manifests.

        `memory` is the folder that remembers which files were hashed (`storage.hashed`).
        """
        self._connection, self._store = connection, store
        self._hashed = HashedFiles(memory)
        self.by_table: dict[str, list[ShardRecord]] = {}
        with catalog_read():
            self._list(connection, store)

    def _list(self, connection: duckdb.DuckDBPyConnection, store: Store) -> None:
        try:
            rows = connection.execute(
                'SELECT "table", key, bytes, sha256 FROM provenance.file ORDER BY ALL'
            ).fetchall()
            for table, key, n_bytes, sha256 in rows:
                listed = ShardRecord(key, "", 0, 0, n_bytes, sha256, None, None)
                self.by_table.setdefault(table, []).append(listed)
        except duckdb.CatalogException:
            rows = connection.execute(
                'SELECT DISTINCT "table", manifest FROM provenance.manifest ORDER BY ALL'
            ).fetchall()
            for table, key in rows:
                shards = store.read_manifest(table, key).shards
                self.by_table.setdefault(table, []).extend(shards)

    def serve(self) -> None:
        """Lets DuckDB read the shards where the store is no local folder."""
        if not self._store.is_local:
            serve(self._connection, self._store, self.by_table)

    def tables_read(self, statement: str) -> list[str]:
        """Names of the tables that the views named in a statement read, or that it names itself."""
        with catalog_read():
            rows = self._connection.execute(
                "SELECT view_name, sql FROM duckdb_views() "
                "WHERE NOT internal AND schema_name = 'main'"
            ).fetchall()
        views = {str(name): str(text) for name, text in rows}
        texts, seen = [statement], set[str]()
        for text in texts:  # grows by the texts of the views that are named
            words = set(re.findall(r"\w+", text.lower()))
            new = {name for name in views if name.lower() in words} - seen
            seen |= new
            texts += [views[name] for name in sorted(new)]
        # SQL does not tell TABLES.text from tables.text.
        named = re.findall(r'\btables"?\s*\.\s*"?(\w+)', "\n".join(texts).lower())
        return [table for table in self.by_table if table in named]

    def check(self, tables: Iterable[str], most_bytes: int | None = HASHED_BYTES) -> None:
        """Raises unless the files of some tables are those that were written.

        Sizes are compared first. Then at most `most_bytes` are hashed, all where it is None, of
        those that were not hashed before or were touched since. Of an object store DuckDB gets its
        bytes checked in any case, but for large shards.

        Raises:
            storage.schema.MissingError: a shard is gone.
            storage.schema.CorruptError: a shard does not hold what was written.
        """
        listed = [(table, shard) for table in tables for shard in self.by_table.get(table, ())]
        if self._store.is_local:
            self._check_local(listed, most_bytes)
            return
        # What is read here is kept for DuckDB, which can only say of an error what it was.
        if most_bytes is None or sum(shard.bytes for _, shard in listed) <= KEPT_BYTES:
            for table, shard in _first(listed, most_bytes):
                self._store.check_shard(table, shard.key, shard)

    def _check_local(
        self, listed: Sequence[tuple[str, ShardRecord]], most_bytes: int | None
    ) -> None:
        states = {(table, shard.key): self._state(table, shard) for table, shard in listed}
        new = [
            (table, shard)
            for table, shard in listed
            if not self._hashed.knows(table, shard, states[table, shard.key])
        ]
        began = time.time()
        for table, shard in _first(new, most_bytes):
            self._store.check_shard(table, shard.key, shard)
            self._hashed.add(table, shard, states[table, shard.key], began)
        self._hashed.save()

    def _state(self, table: str, shard: ShardRecord) -> os.stat_result:
        """The state of a shard's file, whose size is that of the shard."""
        path = self._store.path(table, f"{shard.key}.parquet")
        file = (table, f"{shard.key}.parquet")
        try:
            state = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            raise MissingError(
                f"{path}: found nothing there, expected a file of table {table}. {HEALS}", file
            ) from None
        if state.st_size != shard.bytes:
            raise CorruptError(
                f"{path}: found a file of {state.st_size} bytes, expected the {shard.bytes} that "
                f"were written. {HEALS}",
                file,
            )
        return state


def _first(
    listed: Sequence[tuple[str, ShardRecord]], most_bytes: int | None
) -> Iterator[tuple[str, ShardRecord]]:
    """The first of some shards that have `most_bytes` together, all where it is None."""
    left = most_bytes
    for table, shard in listed:
        if left is not None:
            left -= shard.bytes
            if left < 0:
                return
        yield table, shard


def serve(
    connection: duckdb.DuckDBPyConnection, store: Store, by_table: dict[str, list[ShardRecord]]
) -> None:
    """Lets a connection read these shards of an object store, and nothing else of it."""
    files = {
        store.absolute_url(table, shard.key): (table, shard)
        for table, shards in by_table.items()
        for shard in shards
    }
    connection.register_filesystem(ServedFiles().serve(store, files))
