"""The Parquet files behind a view, for readers that take files and not SQL."""

import re

import duckdb

from storage.catalog import view_names
from storage.names import near
from storage.schema import StorageError
from storage.table import Store
from storage.views import statements, tables_in

AS_IT_IS = re.compile(r'SELECT\s+"?\w+"?(?:,\s*"?\w+"?)*\s+FROM tables\.(\w+)')
"""Matches the SQL of a view that selects columns of one table, and all of its rows."""


def table_behind(connection: duckdb.DuckDBPyConnection, view: str) -> str:
    """The table whose rows a view shows as they are; of `tables.NAME` the table NAME.

    Raises:
        StorageError: the catalog has no such view, or the view's rows are computed.
    """
    tables = _table_names(connection)
    if view in (f"tables.{table}" for table in tables):
        return view.removeprefix("tables.")
    existing = view_names(connection)
    texts = {name: sql for name, sql in statements(set(tables)).items() if name in existing}
    plain = {name: table for name, sql in texts.items() if (table := only_table(sql))}
    if view in plain:
        return plain[view]
    if view not in existing:
        raise StorageError(
            f"files: found no view {view!r}{near(view, plain)}, expected one of "
            f"{', '.join(plain)}, or a table as "
            f"{', '.join(f'tables.{table}' for table in tables)}. "
            "Correct the name, or add the stage that writes it and run again."
        )
    read = sorted(set().union(*map(tables_in, texts.get(view, []))))
    advice = f"Name a table that it reads ({', '.join(f'tables.{t}' for t in read)}), or write"
    raise StorageError(
        f"files: found the view {view}, whose rows are computed and lie in no file, expected one "
        f"that shows a table as it is: {', '.join(plain)}. {advice if read else 'Write'} the rows "
        f'to a file: assay sql RUN "FROM {view}" --out {view}.parquet.'
    )


def files_of(
    connection: duckdb.DuckDBPyConnection, store: Store, table: str, instance: str
) -> list[str]:
    """Paths or URLs of the shards of a table that an instance wrote, in their order.

    Shards without rows are left out, as the type of their vector column has no length; where no
    shard has rows, the first is given.

    Raises:
        storage.schema.MissingError: the manifest is not in the store.
    """
    ((key,),) = connection.execute(
        'SELECT manifest FROM provenance.manifest WHERE "table" = ? AND instance = ?',
        [table, instance],
    ).fetchall()
    shards = store.read_manifest(table, key).shards
    filled = [shard for shard in shards if shard.rows] or shards[:1]
    return [store.absolute_url(table, shard.key) for shard in filled]


def only_table(texts: list[str]) -> str | None:
    """The table that a view with this SQL shows as it is; None where its rows are computed."""
    bare = [re.sub(r"^--.*$", "", text, flags=re.MULTILINE).strip() for text in texts]
    match = AS_IT_IS.fullmatch(bare[0]) if len(bare) == 1 else None
    return match[1] if match else None


def _table_names(connection: duckdb.DuckDBPyConnection) -> list[str]:
    rows = connection.execute('SELECT DISTINCT "table" FROM provenance.manifest ORDER BY 1')
    return [str(row[0]) for row in rows.fetchall()]
