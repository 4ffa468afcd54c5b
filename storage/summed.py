"""Values of examples, summed once into a small table, which the view `shapley` then reads.

Sampled stages store the sums of every round. To add up 21 rounds of 10^6 rows takes seconds, so it
is done when all rounds are there and not at every question. The statements are those that the view
has where nothing is summed yet (`storage/sql/summed/`, one for each table of sums), so values are
the same to the last bit. What was summed is in the keys: more rounds, or another stage that writes
the same table, give other shards.
"""

import datetime
import logging
import time
from collections.abc import Iterator, Sequence

import duckdb
import pyarrow as pa

from storage.damage import Claim, Examination
from storage.manifest import Manifest, ShardRecord, digest, table_key
from storage.schema import FileError, StorageError, TableSpec
from storage.sql import quoted
from storage.table import Store
from storage.views import SUMMED, Entry, over_tables, summed_tables

LOG = logging.getLogger(__name__)
VALUE = TableSpec(
    name="shapley_value",
    schema=pa.schema(
        [
            ("semivalue", pa.string()),
            ("utility", pa.string()),
            ("example_id", pa.int64()),
            ("value", pa.float64()),
            ("stderr", pa.float64()),
            ("n_samples", pa.int64()),
            ("n_observed", pa.int64()),
            ("p_helpful", pa.float64()),
            ("rank", pa.int64()),
        ]
    ),
    key=("semivalue", "utility", "example_id"),
)
"""An example's value with its standard error, over all rounds or blocks; see the view `shapley`."""
SHARD_ROWS = 1 << 20
"""Examples in a shard of values, about."""
MEMORY = "1GB"
"""What DuckDB holds while it sums; the rest waits on the disk."""


def sum_values(entries: Sequence[Entry], store: Store) -> list[Entry]:
    """The tables of values over the tables of sums among `entries`, one for each.

    Those that the store lacks are computed and written; the files that they are computed from are
    compared with their hashes first. Where the store cannot be written to there are none, and that
    is logged.

    Raises:
        storage.schema.FileError: a file that is summed is gone or damaged.
    """
    found = []
    for table in summed_tables():
        writers = [entry for entry in entries if entry.manifest.table == table]
        wanted = {writer.instance: _shards(writer.manifest, writers) for writer in writers}
        lacking = {i: shards for i, shards in wanted.items() if not _is_whole(shards, store)}
        try:
            if lacking:
                _sum(table, writers, lacking, store)
        except FileError:
            raise
        except StorageError as error:
            LOG.warning("values are summed at every question: %s", error)
            return []
        keys = {i: table_key(VALUE.name, shards) for i, shards in wanted.items()}
        found += [Entry(i, store.read_manifest(VALUE.name, key)) for i, key in keys.items()]
    return found


def _shards(manifest: Manifest, writers: Sequence[Entry]) -> list[tuple[str, int, str]]:
    """Role, index and key of the shards with the values of one of the tables that are summed.

    All tables are in the key: the unit of exact sums is that of the largest number in any of them.
    """
    text = (SUMMED / f"{manifest.table}.sql").read_text(encoding="utf-8")
    of = [VALUE.signature, text, sorted(writer.manifest.key for writer in writers), manifest.key]
    rows = max(shard.rows for shard in manifest.shards)
    return [("", at, digest([of, at])) for at in range(max(1, -(-rows // SHARD_ROWS)))]


def _is_whole(shards: Sequence[tuple[str, int, str]], store: Store) -> bool:
    """Whether a table of values lies in the store, with the sizes that its manifest lists."""
    key = table_key(VALUE.name, shards)
    claim = Claim(VALUE.name, key, tuple(shard for _, _, shard in shards))
    return store.has_manifest(VALUE.name, key) and not Examination(store, 0).of(claim)


def _sum(
    table: str,
    writers: Sequence[Entry],
    wanted: dict[str, list[tuple[str, int, str]]],
    store: Store,
) -> None:
    """Writes the values of the instances in `wanted`, whose shards these are to be."""
    start = time.monotonic()
    for writer in writers:
        for shard in writer.manifest.shards:
            store.check_shard(table, shard.key, shard)
    of = {writer.instance: writer.manifest for writer in writers}
    with duckdb.connect(config={"memory_limit": MEMORY}) as connection:
        try:
            over_tables(connection, writers, store)
            text = (SUMMED / f"{table}.sql").read_text(encoding="utf-8")
            connection.execute(f"CREATE TEMP TABLE summed AS {text}")
            for instance, shards in wanted.items():
                parts = zip(shards, _rows(connection, instance, len(shards)), strict=True)
                records = [
                    store.write_shard(VALUE, key, role, at, rows) for (role, at, key), rows in parts
                ]
                seconds = (time.monotonic() - start) / len(wanted)
                store.write_manifest(_manifest(of[instance], records, seconds), replaces=True)
        except duckdb.Error as error:
            raise StorageError(
                f"{table}: found that DuckDB cannot sum it ({str(error).splitlines()[0]}), "
                "expected room on the disk for temporary files. Make room, and give the same "
                "command again."
            ) from error
    LOG.info("summed %s of %s in %.1f s", table, ", ".join(wanted), time.monotonic() - start)


def _rows(connection: duckdb.DuckDBPyConnection, instance: str, n_parts: int) -> Iterator[pa.Table]:
    """The values of an instance in key order, in `n_parts` tables of about as many rows each."""
    where = f"FROM summed WHERE method = {quoted(instance)}"
    ((total,),) = connection.execute(f"SELECT count(*) {where}").fetchall()
    columns, order = ", ".join(VALUE.schema.names), ", ".join(VALUE.key)
    reader = connection.sql(f"SELECT {columns} {where} ORDER BY {order}").to_arrow_reader()
    left: list[pa.RecordBatch] = []
    for at in range(n_parts):
        lacking = total * (at + 1) // n_parts - total * at // n_parts
        taken = []
        while lacking:
            batch = left.pop() if left else reader.read_next_batch()
            taken.append(batch.slice(0, lacking))
            lacking -= taken[-1].num_rows
            if taken[-1].num_rows < batch.num_rows:
                left.append(batch.slice(taken[-1].num_rows))
        yield pa.Table.from_batches(taken, reader.schema).cast(VALUE.schema)


def _manifest(of: Manifest, records: Sequence[ShardRecord], seconds: float) -> Manifest:
    """The manifest of the values that were summed over the table `of`."""
    return Manifest(
        table=VALUE.name,
        stage=of.stage,
        version=of.version,
        fields=of.fields,
        inputs={of.table: of.key},
        shards=tuple(records),
        seed=of.seed,
        packages={"duckdb": duckdb.__version__},
        seconds=seconds,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
