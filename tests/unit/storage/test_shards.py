"""Rows in shards: each once, in the shard it was first put into, known by what it holds."""

import numpy as np
import pyarrow as pa
import pytest

from storage.schema import SchemaError
from storage.shards import content_hash, cut


def test_cut_keeps_rows_in_the_shard_they_were_first_put_into() -> None:
    ids = np.arange(10, 17)
    first = cut(ids, [], 3)
    assert [part.tolist() for part in first] == [[0, 1, 2], [3, 4, 5], [6]]
    previous = [ids[part] for part in first]
    after = np.array([99, 15, 10, 98, 12, 13, 97, 96, 95])
    assert [part.tolist() for part in cut(after, previous, 3)] == [
        [2, 4],
        [1, 5],
        [0, 3, 6],
        [7, 8],
    ]
    assert cut(np.array([], dtype=np.int64), previous, 3) == []
    assert [part.tolist() for part in cut(ids, [np.array([], dtype=np.int64)], 7)] == [[*range(7)]]
    with pytest.raises(SchemaError, match=r"shard_size: found 0, expected at least 1. Leave"):
        cut(ids, [], 0)


def test_cut_gives_every_row_exactly_once() -> None:
    rng = np.random.default_rng(0)
    ids = rng.permutation(5000)
    previous = [ids[part] for part in cut(ids[:3000], [], 256)]
    parts = cut(rng.permutation(ids), previous, 100)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(5000))
    assert all(np.all(np.diff(part) > 0) for part in parts)


def test_content_hash_sees_values_and_nothing_else() -> None:
    table = pa.table({"id": [1, 2, 3], "text": ["a", None, "ü"], "tags": [["x"], [], None]})
    value = content_hash(table)
    assert len(value) == 16
    assert int(value, 16) >= 0
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    padded = pa.concat_tables([table, table]).slice(3)
    strict = table.cast(
        pa.schema([f.with_nullable(f.name != "id") for f in table.schema], metadata={"a": "b"})
    )
    for same in (chunked, padded, strict, chunked.combine_chunks()):
        assert content_hash(same) == value
    for other in (
        table.slice(1),
        table.rename_columns(["id", "text", "tag"]),
        table.take([1, 0, 2]),
        table.set_column(1, "text", [["a", "", "ü"]]),
        table.set_column(1, "text", [["a", "None", "ü"]]),
    ):
        assert content_hash(other) != value


def test_content_hash_does_not_depend_on_its_block() -> None:
    table = pa.table({"id": range(70000)})
    chunks = pa.concat_tables([table.slice(0, 65000), table.slice(65000)])
    assert content_hash(chunks) == content_hash(table)


@pytest.mark.parametrize(
    "kind", [pa.date32(), pa.timestamp("us", "Mars/Olympus"), pa.time64("ns"), pa.timestamp("us")]
)
def test_content_hash_of_values_that_python_has_not(kind: pa.DataType) -> None:
    def table(*counts: int) -> pa.Table:
        width = pa.int32() if kind.bit_width == 32 else pa.int64()
        return pa.table({"x": pa.array(counts, width).view(kind)})

    far = 2**30 if kind.bit_width == 32 else 2**46
    first = table(far, 5)
    assert content_hash(pa.concat_tables([first.slice(0, 1), first.slice(1)])) == content_hash(
        first
    )
    assert content_hash(table(far, 5)) == content_hash(first)
    assert content_hash(table(far, 6)) != content_hash(first)
