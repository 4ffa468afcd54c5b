"""Base views over tables that several instances write, and the views over them."""

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from stages.corpus.ingest import EXTRA
from stages.features.ntk import NTK
from stages.tables import DIAGNOSTICS
from storage.catalog import fetch, open_catalog
from storage.manifest import Manifest
from storage.schema import CorruptError, StorageError, TableSpec
from storage.table import Store
from storage.views import Entry, build_catalog


def entry(store: Store, spec: Any, instance: str, *shards: pa.Table) -> Entry:
    """A table of `shards` that `instance` has written."""
    records = [
        store.write_shard(spec, f"{instance}{at}", "example", at, rows)
        for at, rows in enumerate(shards)
    ]
    manifest = Manifest(spec.name, "stage", 1, {}, {}, tuple(records))
    store.write_manifest(manifest)
    return Entry(instance, manifest)


def vectors(ids: list[int], kind: type) -> pa.Table:
    numbers = np.repeat(np.array(ids, dtype=kind), 3) + np.tile([0, 0.5, 1], len(ids)).astype(kind)
    cells = pa.FixedSizeListArray.from_arrays(pa.array(numbers), 3)
    return pa.table({"id": pa.array(ids), "role": ["example"] * len(ids), "vector": cells})


@pytest.fixture
def catalog(tmp_path: Path) -> Any:
    """Puts a catalog over entries and opens it."""
    opened: list[duckdb.DuckDBPyConnection] = []

    def build(store: Store, *entries: Entry) -> duckdb.DuckDBPyConnection:
        build_catalog(tmp_path / "catalog.duckdb", entries, store, "run", {"example": "train"})
        opened.append(open_catalog(tmp_path / "catalog.duckdb"))
        return opened[-1]

    yield build
    for connection in opened:
        connection.close()


def test_instances_with_vectors_of_two_types_share_a_view(tmp_path: Path, catalog: Any) -> None:
    store = Store(str(tmp_path / "store"))
    found = catalog(
        store,
        entry(store, NTK, "half", vectors([1, 2], np.float16), NTK.schema.empty_table()),
        entry(store, NTK, "single", vectors([1, 3], np.float32)),
    )
    rows = found.execute("SELECT method, id, vector FROM ntk ORDER BY ALL").fetchall()
    assert rows == [
        ("half", 1, [1.0, 1.5, 2.0]),
        ("half", 2, [2.0, 2.5, 3.0]),
        ("single", 1, [1.0, 1.5, 2.0]),
        ("single", 3, [3.0, 3.5, 4.0]),
    ]
    kinds = found.execute("SELECT DISTINCT typeof(vector) FROM ntk").fetchall()
    assert kinds == [("FLOAT[]",)]
    product = (
        "SELECT array_inner_product(a.vector::FLOAT[3], b.vector::FLOAT[3]) FROM ntk AS a, ntk AS b"
        " WHERE a.method = 'half' AND b.method = 'single' AND a.id = 1 AND b.id = 3"
    )
    assert found.execute(product).fetchall() == [(3 + 1.5 * 3.5 + 2 * 4,)]
    dtypes = found.execute("SELECT instance, dtype, vector_length FROM runs ORDER BY 1").fetchall()
    assert dtypes == [("half", "float16", 3), ("single", "float32", 3)]


def test_moments_of_a_time_zone_are_shown_without_another_package() -> None:
    moment = "TIMESTAMPTZ '2024-01-02 03:04:05+01'"
    rows = fetch(duckdb.sql(f'SELECT 7 AS n, {moment} AS "a ""b", [{moment}] AS c'))
    assert rows[0][0] == 7
    assert "2024-01-02" in rows[0][1]
    assert "2024-01-02" in str(rows[0][2])


def diagnostics(role: str, norms: list[float | None], start: int) -> pa.Table:
    n = len(norms)
    columns = {
        "id": pa.array(range(start, start + n), pa.int64()),
        "role": [role] * n,
        "n_tokens": pa.array([7] * n, pa.int64()),
        "measured": pa.array([None if norm is None else 0.5 for norm in norms], pa.float64()),
        "norm": pa.array(norms, pa.float64()),
        "status": ["not finite" if norm is None else "ok" for norm in norms],
    }
    return pa.table(columns)


def test_outliers_are_far_from_the_median_norm_of_their_method(
    tmp_path: Path, catalog: Any
) -> None:
    store = Store(str(tmp_path / "store"))
    # The median of all shards of `one` together is 2; that of either shard is not.
    shards = [diagnostics("example", [2.0, 20.0, 20.5, None], 0)]
    shards += [diagnostics("query", [0.2, 0.19, 1.0, 3.0], 10)]
    found = catalog(
        store,
        entry(store, DIAGNOSTICS, "one", *shards),
        entry(store, DIAGNOSTICS, "other", diagnostics("example", [20.0, 20.5, 21.0], 0)),
    )
    relation = found.sql("SELECT * FROM diagnostics")
    names = "method id role n_tokens measured norm status is_outlier run_id"
    assert relation.columns == names.split()
    rows = found.execute("SELECT method, id, is_outlier FROM diagnostics ORDER BY ALL").fetchall()
    one = [(0, False), (1, False), (2, True), (3, None), (10, False), (11, True)]
    one += [(12, False), (13, False)]
    assert rows == [("one", *row) for row in one] + [("other", i, False) for i in range(3)]
    bad = found.execute("SELECT method, id FROM diagnostics WHERE status <> 'ok'").fetchall()
    assert bad == [("one", 3)]


class Failing:
    """A connection whose first statement fails, while another catalog takes the file's place."""

    def __init__(self, path: Path, other: Path):
        self._path, self._other = path, other

    def execute(self, _: str) -> None:
        self._other.replace(self._path)
        raise duckdb.IOException("No more data remaining")

    def close(self) -> None:
        """Nothing is open."""


def test_a_catalog_that_is_replaced_while_it_is_opened_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that is not is refused: another try would find the same file."""
    path, whole = tmp_path / "catalog.duckdb", tmp_path / "whole"
    duckdb.connect(str(whole)).close()
    path.write_bytes(b"half of two catalogs")
    with pytest.raises(CorruptError, match="found a file that DuckDB cannot open"):
        open_catalog(path)
    found: list[Any] = [Failing(path, whole), duckdb.connect()]
    monkeypatch.setattr("storage.catalog.duckdb.connect", lambda: found.pop(0))
    open_catalog(path).close()
    assert found == []


def test_a_table_that_lacks_a_column_is_told(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    table = pa.table({"id": [1], "role": ["example"]})
    spec = TableSpec(DIAGNOSTICS.name, table.schema, ("id", "role"))
    with pytest.raises(StorageError, match=r"diagnostics: found .* another version .* expected"):
        build_catalog(tmp_path / "c", [entry(store, spec, "old", table)], store, "r", {})
    assert not (tmp_path / "c").exists()


def test_columns_of_two_kinds_of_cells_lose_nothing(tmp_path: Path, catalog: Any) -> None:
    """Chats of the corpus call tools, so that their types are mixed; those of queries do not."""
    store = Store(str(tmp_path / "store"))
    talk = [{"role": "user", "content": "a"}]
    called = '[{"role":"assistant","content":null,"tool_calls":[{"id":1}]}]'
    listed = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    cells = {"example": pa.array([called]), "query": pa.array([talk], listed)}
    records: list[Any] = []
    columns: dict[str, Any] = {}
    for at, (role, column) in enumerate(cells.items()):
        kind = "json" if role == "example" else str(listed)
        columns[role] = [{"name": "messages", "stored": "messages", "type": kind}]
        fixed = {"id": pa.array([at]), "role": [role], "source_id": [str(at)], "row_number": [at]}
        rows = pa.table({**fixed, "messages": column})
        records.append(store.write_shard(EXTRA, role, role, at, rows))
    manifest = Manifest("extra", "ingest", 1, {}, {}, tuple(records), details={"columns": columns})
    store.write_manifest(manifest)
    found = catalog(store, Entry("corpus", manifest))
    rows = found.execute("SELECT role, messages FROM tables.extra ORDER BY role").fetchall()
    assert {role: json.loads(cell) for role, cell in rows} == {
        "example": json.loads(called),
        "query": talk,
    }
