from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from storage.feature_map import open_map
from storage.manifest import Manifest
from storage.schema import StorageError, TableSpec
from storage.table import Store

SPEC = TableSpec("f", pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32()))]), ("id",))


def write(store, key, role, index, ids, matrix):
    cells = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])
    table = pa.table({"id": pa.array(ids, pa.int64()), "vector": cells})
    return store.write_shard(SPEC, key, role, index, table)


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setenv("ASSAY_MAPS", str(tmp_path / "maps"))
    store = Store(str(tmp_path / "store"))
    matrix = np.arange(12, dtype=np.float32).reshape(6, 2)
    shards = [
        write(store, "a", "example", 0, [0, 1, 2], matrix[:3]),
        write(store, "b", "example", 1, [7, 8], matrix[3:5]),
        write(store, "c", "query", 0, [0], matrix[5:]),
    ]
    return store, Manifest("f", "s", 1, {}, {}, tuple(shards)), matrix


def test_rows_of_a_role_in_shard_order(table, tmp_path):
    store, manifest, matrix = table
    ids, vectors = open_map(store, manifest, "example")
    assert ids.tolist() == [0, 1, 2, 7, 8]
    np.testing.assert_array_equal(vectors, matrix[:5])
    assert isinstance(vectors, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        vectors[0, 0] = 1.0
    assert len(list((tmp_path / "maps").iterdir())) == 1


def test_a_map_keeps_the_stored_type(tmp_path, monkeypatch):
    monkeypatch.setenv("ASSAY_MAPS", str(tmp_path / "maps"))
    store = Store(str(tmp_path / "store"))
    # A third is no number of half precision, and 6e-5 is a subnormal one.
    matrix = np.array([[1 / 3, 6e-5], [-65504.0, 0.0]], dtype=np.float16)
    shards = (write(store, "a", "example", 0, [0, 1], matrix),)
    manifest = Manifest("f", "s", 1, {}, {}, shards)
    _, vectors = open_map(store, manifest, "example")
    assert vectors.dtype == np.float16
    np.testing.assert_array_equal(vectors, matrix)
    assert open_map(store, manifest, "query")[1].dtype == np.float16
    data = next((tmp_path / "maps").glob("*/vectors.npy"))
    assert data.stat().st_size <= 128 + 2 * matrix.size


def test_a_map_is_built_once(table, tmp_path):
    store, manifest, matrix = table
    open_map(store, manifest, "example")
    (tmp_path / "store" / "f" / "a.parquet").unlink()
    np.testing.assert_array_equal(open_map(store, manifest, "example")[1], matrix[:5])


def test_tables_without_vectors_are_refused(table):
    store, _manifest, _ = table
    empty = Manifest("f", "s", 1, {}, {}, ())
    with pytest.raises(StorageError, match="found no vectors in it, expected a feature table"):
        open_map(store, empty, "example")


def test_a_role_without_rows_is_empty(table):
    store, manifest, _ = table
    ids, vectors = open_map(store, replace(manifest, shards=manifest.shards[:2]), "query")
    assert (ids.shape, vectors.shape) == ((0,), (0, 2))
