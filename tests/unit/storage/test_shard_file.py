"""The layout of a shard's file: vectors that lie plain, row groups, and files of before."""

import io
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.features.ntk import NTK
from storage import shard_file
from storage.manifest import Manifest
from storage.schema import TableSpec
from storage.table import Store

SCORE = TableSpec("s", pa.schema([("id", pa.int64()), ("score", pa.float64())]), ("id",))


def vectors(n: int, dim: int, kind: type = np.float32, first: int = 0) -> pa.Table:
    numbers = np.random.default_rng(n).normal(size=n * dim).astype(kind)
    cells = pa.FixedSizeListArray.from_arrays(pa.array(numbers), dim)
    ids = pa.array(np.arange(first, first + n))
    return pa.table({"id": ids, "role": ["example"] * n, "vector": cells})


def encoded(rows: pa.Table, spec: TableSpec = NTK) -> bytes:
    return shard_file.encode(spec, "key", rows, None)[1]


def is_plain(data: bytes) -> bool:
    return shard_file.PLAIN.encode() in (pq.read_metadata(io.BytesIO(data)).metadata or {})


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize(("n", "dim", "n_groups"), [(1, 1, 1), (7, 3, 1), (10, 5, 3), (40, 96, 20)])
def test_every_reader_has_the_same_vectors(
    kind: type, n: int, dim: int, n_groups: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shard_file, "GROUP_ROWS", 4 if n == 10 else 100)
    width = np.dtype(kind).itemsize * dim
    monkeypatch.setattr(shard_file, "GROUP_BYTES", 2 * width + 1 if n == 40 else 1 << 20)
    rows = vectors(n, dim, kind)
    data = encoded(rows)
    assert is_plain(data)
    assert pq.read_metadata(io.BytesIO(data)).num_row_groups == n_groups
    assert shard_file.decode(data, "ntk", "key").equals(rows)
    assert pq.read_table(io.BytesIO(data)).equals(rows)
    (tmp_path / "a.parquet").write_bytes(data)
    found = duckdb.sql(f"SELECT id, vector, typeof(vector) FROM '{tmp_path}/a.parquet'").fetchall()
    wanted = zip(rows["id"].to_pylist(), rows["vector"].to_pylist(), strict=True)
    assert found == [(i, v, "FLOAT[]") for i, v in wanted]


def test_a_column_without_a_name_is_no_vector() -> None:
    spec = TableSpec("extra", pa.schema([("id", pa.int64())]), ("id",), carries_columns=True)
    rows = pa.table({"id": [1, 2], "": ["a", "b"]})
    assert shard_file.decode(encoded(rows, spec), "extra", "key").equals(rows)


def test_columns_come_in_the_order_that_is_asked_for() -> None:
    rows = vectors(7, 3)
    data = encoded(rows)
    for columns in (["vector", "id"], ["role"], ["vector"]):
        assert shard_file.decode(data, "ntk", "key", columns).equals(rows.select(columns))


def test_a_part_of_a_larger_table_is_written_as_itself() -> None:
    rows = vectors(20, 3).slice(5, 9)
    assert shard_file.decode(encoded(rows), "ntk", "key").equals(rows)


@pytest.mark.parametrize("is_null", ["vector", "number"])
def test_vectors_with_nulls_are_decoded(is_null: str) -> None:
    cells = [[1.0, None], [2.0, 3.0]] if is_null == "number" else [None, [2.0, 3.0]]
    column = pa.array(cells, pa.list_(pa.float32(), 2))
    rows = pa.table({"id": [1, 2], "role": ["example"] * 2, "vector": column})
    data = encoded(rows)
    assert not is_plain(data)
    assert shard_file.decode(data, "ntk", "key").to_pylist() == rows.to_pylist()


def test_numbers_that_do_not_lie_where_they_are_looked_for_are_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another version of pyarrow may cut pages otherwise: here it does after each row."""
    real = pq.ParquetWriter

    def cutting(*arguments: Any, **settings: Any) -> Any:
        return real(*arguments, **{**settings, "data_page_size": 1, "write_batch_size": 1})

    monkeypatch.setattr(pq, "ParquetWriter", cutting)
    rows = vectors(9, 3)
    data = encoded(rows)
    assert not is_plain(data)
    assert shard_file.decode(data, "ntk", "key").equals(rows)


def test_shards_of_before_are_read_beside_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(shard_file, "_plain_column", lambda *_: None)
        old = store.write_shard(NTK, "old", "example", 0, vectors(5, 4))
    new = store.write_shard(NTK, "new", "example", 1, vectors(6, 4, first=5))
    manifest = Manifest("ntk", "ntk", 1, {}, {}, (old, new))
    wanted = pa.concat_tables([vectors(5, 4), vectors(6, 4, first=5)])
    assert store.read_table(manifest).equals(wanted)
    assert [is_plain((tmp_path / f"ntk/{key}.parquet").read_bytes()) for key in ("old", "new")] == [
        False,
        True,
    ]


@pytest.mark.parametrize("spec", [NTK, SCORE])
def test_row_groups_hold_neighbouring_ids_and_say_which(
    spec: TableSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_file, "GROUP_ROWS", 8)
    order = np.random.default_rng(0).permutation(30)
    score = pa.table({"id": np.arange(30), "score": np.linspace(0, 1, 30)})
    rows = spec.check((vectors(30, 2) if spec is NTK else score).take(pa.array(order)))
    written = pq.read_metadata(io.BytesIO(encoded(rows, spec)))
    ids = [written.row_group(i).column(0).statistics for i in range(written.num_row_groups)]
    assert [(s.min, s.max) for s in ids] == [(0, 7), (8, 15), (16, 23), (24, 29)]
