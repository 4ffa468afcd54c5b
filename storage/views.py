"""The catalog: one DuckDB file of views over the tables a run uses.

Every table becomes a base view `tables.<table>`, the union over the instances that write it, with
`method` (the instance) and `run_id` beside its columns; every `sql/<view>.sql` that finds its base
views becomes a view of `main`. Files are named one by one by absolute URL, as the manifests list
them, never by glob. The catalog is built beside and renamed into place: a reader keeps the file it
opened, whatever the run does meanwhile.
"""

import dataclasses
import glob
import json
import os
import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from storage.catalog_files import serve
from storage.manifest import HEALS, Manifest, ShardRecord, digest
from storage.schema import FILE_COLUMN, CorruptError, StorageError
from storage.sql import named, quoted
from storage.table import Store

SQL = Path(__file__).parent / "sql"
SUMMED = SQL / "summed"
"""Statements of the view `shapley` over tables of sums, by the name of the table."""
SUMS = "shapley_value"
"""The table that holds what these statements give (`storage.summed`)."""
DIFFERING = ("extra",)
"""Tables that carry the user's own columns, which may differ between examples and queries."""
NESTED = re.compile("(list|large_list|fixed_size_list|struct|map)<")
"""Arrow's names of types that hold others."""
OF_TASK = {
    "completions": "completion",
    "issues.answers": "completion",
    "issues.preferences": "preference",
    "preferences": "preference",
}
"""Files of `sql` that are for corpora of one task alone."""


@dataclass(frozen=True)
class Entry:
    """A table of a run: the stage instance that wrote it, and its manifest."""

    instance: str
    manifest: Manifest


def build_catalog(
    path: Path, entries: Sequence[Entry], store: Store, run_id: str, splits: Mapping[str, str]
) -> None:
    """Writes a catalog of the tables `entries` to `path`; readers see the old or the new one whole.

    `splits` names the split of the source that each role was read from.

    Raises:
        StorageError: there is a question mark in the path, or the disk is full.
        CorruptError: DuckDB cannot read a file of a table.
    """
    if "?" in str(path):
        raise StorageError(
            f"{path}: found a question mark in the path of a run, expected none: DuckDB takes what "
            "follows for options. Rename the folder, or set another one as `run:`."
        )
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with duckdb.connect(str(temporary)) as connection:
            # At once: else DuckDB writes and flushes its log after every statement.
            connection.begin()
            _fill(connection, entries, store, run_id, splits)
            connection.commit()
            connection.execute("CHECKPOINT")
        os.replace(temporary, path)
    except (duckdb.IOException, duckdb.FatalException, duckdb.TransactionException) as error:
        raise StorageError(
            f"{path}: found that the catalog cannot be written ({str(error).splitlines()[0]}), "
            "expected room on the disk. Make room, and give the same command again: it goes on "
            "from here."
        ) from error
    finally:
        for leftover in (temporary, temporary.with_name(f"{temporary.name}.wal")):
            leftover.unlink(missing_ok=True)


def catalog_in_memory(
    entries: Sequence[Entry], store: Store, run_id: str, splits: Mapping[str, str]
) -> duckdb.DuckDBPyConnection:
    """A connection to a catalog that is in no file.

    Raises:
        CorruptError: DuckDB cannot read a file of a table.
    """
    connection = duckdb.connect()
    _fill(connection, entries, store, run_id, splits)
    return connection


def _fill(
    connection: duckdb.DuckDBPyConnection,
    entries: Sequence[Entry],
    store: Store,
    run_id: str,
    splits: Mapping[str, str],
) -> None:
    over_tables(connection, entries, store, run_id)
    connection.execute("CREATE SCHEMA provenance")
    rows = [_provenance(entry, run_id) for entry in entries]
    _keep(connection, "manifest", pa.Table.from_pylist(rows, schema=PROVENANCE))
    _facts(connection, entries, store, splits)
    tasks = {entry.manifest.details.get("task") for entry in entries}
    _views(connection, {entry.manifest.table for entry in entries}, tasks)


def content_of(
    entries: Sequence[Entry], store: Store, run_id: str, splits: Mapping[str, str]
) -> str:
    """Stands for all that a catalog is built from: the same for catalogs of the same content."""
    manifests = [[entry.instance, _provenance(entry, run_id)] for entry in entries]
    files = [*sorted(SQL.rglob("*.sql")), Path(__file__)]
    sql = [file.read_text(encoding="utf-8") for file in files]
    return digest([store.url, run_id, dict(splits), manifests, sql, duckdb.__version__])


def over_tables(
    connection: duckdb.DuckDBPyConnection, entries: Sequence[Entry], store: Store, run_id: str = ""
) -> None:
    """Creates the macros, and a base view `tables.NAME` over the Parquet files of each table.

    Raises:
        CorruptError: DuckDB cannot read a file of a table.
    """
    by_table: dict[str, list[Entry]] = {}
    for entry in entries:
        by_table.setdefault(entry.manifest.table, []).append(entry)
    if not store.is_local:
        listed = {
            table: [shard for writer in writers for shard in writer.manifest.shards]
            for table, writers in by_table.items()
        }
        serve(connection, store, listed)
    for macro in sorted((SQL / "macros").glob("*.sql")):
        connection.execute(macro.read_text(encoding="utf-8"))
    connection.execute("CREATE SCHEMA tables")
    for table, writers in by_table.items():
        try:
            connection.execute(_base_view(table, writers, store, run_id))
        except (duckdb.TransactionException, duckdb.FatalException):
            raise  # of the catalog's own file, such as on a full disk
        except duckdb.Error as error:
            raise CorruptError(
                f"{table}: found files that DuckDB cannot read ({str(error).splitlines()[0]}), "
                f"expected the shards that its manifest lists. {HEALS}"
            ) from error


def _facts(
    connection: duckdb.DuckDBPyConnection,
    entries: Sequence[Entry],
    store: Store,
    splits: Mapping[str, str],
) -> None:
    """Creates small tables: every file with its hash, shard numbers, names of classes, splits."""
    shards: dict[str, list[object]] = {FILE_COLUMN: [], "shard": []}
    files: dict[tuple[str, str], dict[str, object]] = {}
    classes: list[str] = []
    for manifest in (entry.manifest for entry in entries):
        for listed in manifest.shards:
            of_file = {"key": listed.key, "bytes": listed.bytes, "sha256": listed.sha256}
            files[manifest.table, listed.key] = {"table": manifest.table, **of_file}
        if manifest.table == "text":
            for shard in manifest.shards:
                shards[FILE_COLUMN].append(store.absolute_url("text", shard.key))
                shards["shard"].append(shard.index)
        if manifest.table == "label":
            classes = list(manifest.details["classes"])
    schema = pa.schema([(FILE_COLUMN, pa.string()), ("shard", pa.int64())])
    _keep(connection, "shard", pa.table(shards, schema=schema))
    _keep(connection, "file", pa.Table.from_pylist(list(files.values()), schema=FILES))
    labels = pa.array(range(len(classes)), pa.int64())
    _keep(
        connection,
        "class",
        pa.table({"label": labels, "label_name": pa.array(classes, pa.string())}),
    )
    roles = {"role": list(splits), "split": list(splits.values())}
    _keep(connection, "split", pa.table(roles))


def _views(connection: duckdb.DuckDBPyConnection, tables: set[str], tasks: set[str | None]) -> None:
    """Creates every view whose tables the run has, and that is of the task of its corpus.

    Raises:
        StorageError: a table has not the columns that this version writes.
    """
    for name, texts in statements(tables, tasks).items():
        union = " UNION ALL BY NAME ".join(f"(\n{text}\n)" for text in texts)
        try:
            connection.execute(f"CREATE VIEW {named(name)} AS {union}")
        except duckdb.BinderException as error:
            raise StorageError(
                f"{name}: found a table that another version of assay wrote "
                f"({str(error).splitlines()[0]}), expected the columns that this one writes. Give "
                "`assay run` again with the run's config.yaml: it computes that table anew."
            ) from error


def statements(
    tables: set[str], tasks: Collection[str | None] = tuple(OF_TASK.values())
) -> dict[str, list[str]]:
    """The SQL of every view over `tables`; one view may have several, whose rows it unites.

    `VIEW.sql` and `VIEW.PART.sql` are of the view VIEW. Files for other tasks are left out.
    """
    files = [(file.name.split(".")[0], file) for file in sorted(SQL.glob("*.sql"))]
    if SUMS not in tables:
        files += [("shapley", file) for file in sorted(SUMMED.glob("*.sql"))]
    parts: dict[str, list[str]] = {}
    for name, file in files:
        text = file.read_text(encoding="utf-8").strip().rstrip(";")
        if tables_in(text) <= tables and OF_TASK.get(file.stem) in (None, *tasks):
            parts.setdefault(name, []).append(text)
    return parts


def summed_tables() -> list[str]:
    """Names of the tables of sums, whose values are summed once."""
    return [file.stem for file in sorted(SUMMED.glob("*.sql"))]


def tables_in(text: str) -> set[str]:
    """Names of the tables that a view's SQL reads."""
    return set(re.findall(r"\btables\.(\w+)", text))


def _keep(connection: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> None:
    """Stores rows in the catalog as the table `provenance.name`."""
    connection.register("kept_rows", rows)
    connection.execute(f"CREATE TABLE provenance.{named(name)} AS SELECT * FROM kept_rows")
    connection.unregister("kept_rows")


def _base_view(table: str, writers: Sequence[Entry], store: Store, run_id: str) -> str:
    """The statement that creates `tables.table`, the union over the instances that write it."""
    # Files that all have the same columns need not all be opened to know them: with many shards,
    # above all on an object store, that is the time of a query.
    differ = str(table in DIFFERING).lower()
    parts = []
    for writer in writers:
        for shards, columns in _alike(writer.manifest):
            urls = [store.absolute_url(table, shard.key) for shard in shards]
            # DuckDB takes every path for a pattern, and reads columns from folders named key=value.
            files = ", ".join(quoted(glob.escape(url)) for url in urls)
            parts.append(
                f"SELECT {quoted(writer.instance)} AS method, {quoted(run_id)} AS run_id, "
                f"{columns} FROM read_parquet([{files}], union_by_name = {differ}, "
                f"hive_partitioning = false, filename = {quoted(FILE_COLUMN)})"
            )
    return f"CREATE VIEW tables.{named(table)} AS " + " UNION ALL BY NAME ".join(parts)


def _alike(manifest: Manifest) -> list[tuple[Sequence[ShardRecord], str]]:
    """Shards that are read together, and what is selected of them.

    Columns of the user's own that hold lists or objects in one role and something else in the
    other, such as JSON where types are mixed, are JSON in both: DuckDB would cast the texts of one
    to the objects of the other, and lose keys.
    """
    if manifest.table not in DIFFERING:
        return [(manifest.shards, "*")]
    types: dict[str, dict[str, str]] = {}
    for role, columns in (manifest.details.get("columns") or {}).items():
        for column in columns:
            types.setdefault(column["stored"], {})[role] = column["type"]
    nested = {
        name: [role for role, kind in of.items() if NESTED.match(kind)]
        for name, of in types.items()
    }
    mixed = [name for name, roles in nested.items() if 0 < len(roles) < len(types[name])]
    if not mixed:
        return [(manifest.shards, "*")]
    found: list[tuple[Sequence[ShardRecord], str]] = []
    for role in sorted({shard.role for shard in manifest.shards}):
        texts = [
            f"{f'to_json({named(name)})' if role in nested[name] else named(name)}::VARCHAR "
            f"AS {named(name)}"
            for name in mixed
            if role in types[name]
        ]
        shards = [shard for shard in manifest.shards if shard.role == role]
        found.append((shards, f"* REPLACE ({', '.join(texts)})" if texts else "*"))
    return found


FILES = pa.schema(
    [("table", pa.string()), ("key", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string())]
)
PROVENANCE = pa.schema(
    [
        ("run_id", pa.string()),
        ("instance", pa.string()),
        ("table", pa.string()),
        ("stage", pa.string()),
        ("version", pa.int64()),
        ("fields", pa.string()),
        ("inputs", pa.string()),
        ("manifest", pa.string()),
        ("model", pa.string()),
        ("revision", pa.string()),
        ("seed", pa.int64()),
        ("threads", pa.int64()),
        ("shards", pa.int64()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("vector_length", pa.int64()),
        ("dtype", pa.string()),
        ("seconds", pa.float64()),
        ("created", pa.string()),
        ("packages", pa.string()),
        ("details", pa.string()),
    ]
)


def _provenance(entry: Entry, run_id: str) -> Mapping[str, object]:
    """The row of a table in the view `runs`."""
    manifest = entry.manifest
    plain = {f.name: getattr(manifest, f.name) for f in dataclasses.fields(manifest)}
    for name in ("fields", "inputs", "packages", "details"):
        plain[name] = json.dumps(plain[name], sort_keys=True)
    return {
        **{name: plain[name] for name in PROVENANCE.names if name in plain},
        "run_id": run_id,
        "instance": entry.instance,
        "manifest": manifest.key,
        "shards": len(manifest.shards),
        "rows": manifest.rows,
        "bytes": manifest.bytes,
        "vector_length": manifest.vector_length,
        "dtype": manifest.dtype,
    }
