import json
import threading
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from storage.files import write_whole
from storage.manifest import Manifest, Recipe, table_key
from storage.schema import CorruptError, MissingError, SchemaError, StorageError, TableSpec
from storage.table import Store

SPEC = TableSpec("t", pa.schema([("id", pa.int64()), ("x", pa.float64())]), ("id",))
VECTOR = TableSpec(
    "v", pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32()))]), ("id",)
)


def rows(n=3):
    return pa.table({"id": pa.array(range(n), pa.int64()), "x": [float(i) for i in range(n)]})


def vector_rows(length, kind=None):
    cells = pa.array([[0.0] * length], pa.list_(kind or pa.float32(), length))
    return pa.table({"id": pa.array([0], pa.int64()), "vector": cells})


def manifest(shards, table="t"):
    return Manifest(table, "stage", 1, {"a": 1}, {"text": "00"}, tuple(shards))


def test_shards_come_back_with_their_record(tmp_path):
    store = Store(str(tmp_path))
    record = store.write_shard(SPEC, "k1", "example", 0, rows(), {"ridge": 0.5})
    assert (record.rows, record.smallest_id, record.largest_id) == (3, 0, 2)
    assert record.bytes == (tmp_path / "t" / "k1.parquet").stat().st_size
    assert store.read_shard("t", "k1").equals(rows())
    assert store.record_of(SPEC, "k1", "example", 0) == record
    assert record.details == {"ridge": 0.5}
    assert store.shard_keys("t") == {"k1"}


def test_the_same_rows_give_the_same_bytes(tmp_path):
    one = Store(str(tmp_path / "a")).write_shard(SPEC, "k", "", 0, rows())
    chunked = pa.concat_tables([rows().slice(2), rows().slice(0, 2)])
    two = Store(str(tmp_path / "b")).write_shard(SPEC, "k", "", 0, chunked)
    assert one == two


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_whole(tmp_path / "f", 3)
    assert list(tmp_path.iterdir()) == []


def test_readers_see_the_old_file_or_the_new_one(tmp_path):
    path, seen = tmp_path / "f", set()
    write_whole(path, b"a" * 100_000)
    done = threading.Event()

    def read():
        while not done.is_set():
            seen.add(len(set(path.read_bytes())))

    reader = threading.Thread(target=read)
    reader.start()
    for letter in b"bcdefgh":
        write_whole(path, bytes([letter]) * 100_000)
    done.set()
    reader.join()
    assert seen == {1}


def test_manifests_round_trip_and_are_found(tmp_path):
    store = Store(str(tmp_path))
    written = manifest([store.write_shard(SPEC, "k1", "example", 0, rows())])
    key = store.write_manifest(written)
    assert key == table_key("t", [("example", 0, "k1")])
    assert store.read_manifest("t", key) == written
    assert store.manifest_keys("t") == [key]
    assert store.read_table(written, "example").num_rows == 3
    empty = store.read_table(written, "query")
    assert (empty.num_rows, empty.schema) == (0, rows().schema)


def test_keys_depend_on_each_ingredient():
    longer = replace(SPEC, schema=SPEC.schema.append(pa.field("more", pa.int64())))
    retyped = replace(SPEC, schema=SPEC.schema.set(0, pa.field(SPEC.schema[0].name, pa.int32())))
    base = Recipe("s", 1, {"a": 1}, (SPEC,))
    changed = [
        replace(base, stage="r"),
        replace(base, version=2),
        replace(base, fields={"a": 2}),
        replace(base, tables=()),
        replace(base, tables=(SPEC, SPEC)),
        *(replace(base, tables=(table,)) for table in (longer, retyped)),
        replace(base, tables=(replace(SPEC, key=SPEC.key[:0]),)),
    ]
    keys = {recipe.key(["i"]) for recipe in [base, *changed]} | {
        base.key(["j"]),
        base.key(["i"], 1),
    }
    assert len(keys) == 1 + len(changed) + 2
    assert Recipe("s", 1, {"a": 1, "b": 2}).key([]) == Recipe("s", 1, {"b": 2, "a": 1}).key([])
    assert len(base.key([])) == 16


def test_vectors_of_two_lengths_are_refused(tmp_path):
    store = Store(str(tmp_path))
    shards = [store.write_shard(VECTOR, f"k{n}", "example", n, vector_rows(n)) for n in (2, 3)]
    refused = r"vectors of 3 float32 in shard 3 \(example\) and of 2 float32 in shard 2"
    with pytest.raises(SchemaError, match=f"{refused}.*assay verify RUN --repair"):
        store.write_manifest(manifest(shards, "v"))


def test_vectors_of_two_types_are_refused(tmp_path):
    store = Store(str(tmp_path))
    shards = [
        store.write_shard(VECTOR, kind, "example", n, vector_rows(2, getattr(pa, kind)()))
        for n, kind in enumerate(("float16", "float32"))
    ]
    with pytest.raises(SchemaError, match="of 2 float32 in shard 1 .* of 2 float16 in shard 0"):
        store.write_manifest(manifest(shards, "v"))


def test_half_precision_is_recorded_and_takes_two_bytes_a_number(tmp_path):
    store = Store(str(tmp_path))
    random = np.random.default_rng(0).normal(size=4096)
    sizes = {}
    for kind in (np.float16, np.float32):
        cells = pa.FixedSizeListArray.from_arrays(pa.array(random.astype(kind)), 4096)
        table = pa.table({"id": pa.array([0], pa.int64()), "vector": cells})
        name = np.dtype(kind).name
        record = store.write_shard(VECTOR, name, "example", 0, table)
        sizes[name] = record.bytes
        assert (record.dtype, record.vector_length) == (name, 4096)
        assert store.record_of(VECTOR, name, "example", 0) == record
        assert manifest([record], "v").dtype == name
        assert store.read_shard("v", name).equals(table)
    assert sizes["float16"] <= 1.2 * 2 * 4096
    assert manifest([store.write_shard(SPEC, "k", "", 0, rows())]).dtype is None


def test_a_shard_without_rows_does_not_hide_the_others(tmp_path):
    store = Store(str(tmp_path))
    shards = [
        store.write_shard(VECTOR, "none", "example", 0, VECTOR.schema.empty_table()),
        store.write_shard(VECTOR, "some", "example", 1, vector_rows(2, pa.float16())),
    ]
    written = manifest(shards, "v")
    store.write_manifest(written)
    assert (written.vector_length, written.dtype) == (2, "float16")
    assert store.read_table(written).equals(vector_rows(2, pa.float16()))


def test_missing_and_broken_files_are_named(tmp_path):
    store = Store(str(tmp_path))
    with pytest.raises(MissingError, match=r"gone\.parquet: found nothing there"):
        store.read_shard("t", "gone")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(CorruptError, match="found a file without a seal, which no manifest lists"):
        store.read_shard("t", "bad")
    (tmp_path / "t" / "bad.json").write_text("{")
    with pytest.raises(
        CorruptError,
        match="the JSON of this manifest as it was written. Run `assay",
    ):
        store.read_manifest("t", "bad")
    (tmp_path / "t" / "new.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(CorruptError, match="found manifest format 99, expected 1"):
        store.read_manifest("t", "new")


def test_unknown_protocols_are_refused():
    with pytest.raises(StorageError, match="found no file system for it"):
        Store("nowhere://bucket")
