import pyarrow as pa
import pytest

from storage.schema import SchemaError, TableSpec

SCORES = TableSpec(
    "score", pa.schema([("id", pa.int64()), ("role", pa.string()), ("x", pa.float64())]), ("id",)
)
VECTORS = TableSpec(
    "vec", pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32()))]), ("id",)
)


RAGGED = TableSpec(
    "rag", pa.schema([("id", pa.int64()), ("row", pa.large_list(pa.float64()))]), ("id",)
)


def ragged(rows):
    ids = pa.array(range(len(rows)), pa.int64())
    return pa.table({"id": ids, "row": pa.array(rows, pa.large_list(pa.float64()))})


def scores(ids, x):
    return pa.table(
        {"id": pa.array(ids, pa.int64()), "role": ["example"] * len(ids), "x": x},
        schema=SCORES.schema,
    )


def vectors(rows, length=2, kind=None):
    ids = pa.array(range(len(rows)), pa.int64())
    return pa.table({"id": ids, "vector": pa.array(rows, pa.list_(kind or pa.float32(), length))})


def test_rows_are_sorted_by_key():
    assert SCORES.check(scores([3, 1, 2], [0.3, 0.1, 0.2]))["x"].to_pylist() == [0.1, 0.2, 0.3]


def test_sorting_keeps_vectors_with_their_ids():
    table = pa.table(
        {
            "id": pa.array([5, 4], pa.int64()),
            "vector": pa.array([[5.0, 5.5], [4.0, 4.5]], pa.list_(pa.float32(), 2)),
        }
    )
    assert VECTORS.check(table)["vector"].to_pylist() == [[4.0, 4.5], [5.0, 5.5]]


def test_repeated_key_is_named():
    with pytest.raises(SchemaError, match=r"key \{'id': 2\} occurs twice.*Drop or rename"):
        SCORES.check(scores([2, 1, 2], [0.0, 0.0, 0.0]))


def test_null_key_is_refused():
    with pytest.raises(SchemaError, match="key column id has 1 nulls, expected none"):
        SCORES.check(scores([1, None], [0.0, 0.0]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad):
    with pytest.raises(SchemaError, match="holds 1 NaN or infinite values"):
        SCORES.check(scores([1, 2], [0.0, bad]))
    with pytest.raises(SchemaError, match="vector holds 1 NaN or infinite"):
        VECTORS.check(vectors([[0.0, bad]]))
    with pytest.raises(SchemaError, match="vector holds 1 NaN or infinite"):
        VECTORS.check(vectors([[0.0, bad]], kind=pa.float16()))
    with pytest.raises(SchemaError, match="row holds 1 NaN or infinite"):
        RAGGED.check(ragged([[0.0], [1.0, bad]]))


def test_vectors_may_be_of_half_precision_and_of_no_other():
    table = vectors([[0.5, -2.0]], kind=pa.float16())
    assert VECTORS.check(table)["vector"].to_pylist() == [[0.5, -2.0]]
    assert (VECTORS.dtype(table.schema), VECTORS.vector_length(table.schema)) == ("float16", 2)
    assert VECTORS.dtype(vectors([[0.0, 1.0]]).schema) == "float32"
    assert SCORES.dtype(SCORES.schema) is None
    with pytest.raises(SchemaError, match="vector has type fixed_size_list<item: double>"):
        VECTORS.check(vectors([[0.0, 1.0]], kind=pa.float64()))


def test_rows_of_unequal_length_are_declared_as_large_lists():
    table = ragged([[3.0], [1.0, 2.0]])
    assert RAGGED.check(table)["row"].to_pylist() == [[3.0], [1.0, 2.0]]
    assert (RAGGED.vector_length(table.schema), RAGGED.dtype(table.schema)) == (None, None)


def test_missing_extra_and_reordered_columns_are_refused():
    good = scores([1], [0.0])
    with pytest.raises(SchemaError, match="found columns.*expected"):
        SCORES.check(good.drop_columns(["x"]))
    with pytest.raises(SchemaError, match="found columns"):
        SCORES.check(good.append_column("y", [[1]]))
    with pytest.raises(SchemaError, match="in the order"):
        SCORES.check(good.select(["role", "id", "x"]))


def test_wrong_types_are_refused():
    table = scores([1], [0.0]).set_column(0, "id", pa.array([1], pa.int32()))
    with pytest.raises(SchemaError, match="id has type int32, expected int64. Cast it"):
        SCORES.check(table)
    ragged = pa.table(
        {"id": pa.array([1], pa.int64()), "vector": pa.array([[1.0]], pa.list_(pa.float32()))}
    )
    with pytest.raises(SchemaError, match="vector has type"):
        VECTORS.check(ragged)


def test_vector_length():
    assert VECTORS.vector_length(vectors([[0.0, 1.0]]).schema) == 2
    assert SCORES.vector_length(SCORES.schema) is None


def test_empty_tables_pass():
    assert VECTORS.check(VECTORS.schema.empty_table()).num_rows == 0
