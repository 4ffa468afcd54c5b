"""Vectors that the user has: columns and files, what is refused and why, and their hash."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from source_rows import reasons
from whole_corpus import Corpus, read

from stages.corpus.ingest import tables
from stages.corpus.load import fingerprint
from stages.corpus.source import Source
from stages.corpus.vectors import FEATURES
from stages.stage import DataError, Role
from storage.shards import content_hash

VECTORS = np.arange(12, dtype=np.float64).reshape(4, 3)


def parquet(path: Path, vectors: pa.Array, **columns: Any) -> str:
    import pyarrow.parquet

    table = {"v": vectors, "label": [i % 2 for i in range(len(vectors))], **columns}
    pyarrow.parquet.write_table(pa.table(table), path)
    return str(path)


def jsonl(path: Path, vectors: list[Any]) -> str:
    rows = [{"v": v, "label": i % 2} for i, v in enumerate(vectors)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def npy(path: Path, vectors: np.ndarray) -> str:
    np.save(path, vectors)
    return str(path)


def vectors_of(
    path: str, features: str = "v", role: Role = "example", length: int | None = None, **more: Any
) -> Corpus:
    source = Source(path, text=None, features=features, classes=("0", "1"), **more)
    return read(source, role, ("0", "1"), length)


def matrix(corpus: Corpus) -> list[list[float]]:
    found: list[list[float]] = tables(corpus.rows)["features"]["vector"].to_pylist()
    return found


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float64()),
        pa.list_(pa.float32(), 3),
        pa.large_list(pa.float16()),
        pa.list_(pa.int64()),
        pa.list_(pa.uint8(), 3),
    ],
    ids=str,
)
def test_a_column_of_lists(tmp_path: Path, kind: pa.DataType) -> None:
    as_lists = [[kind.value_type.to_pandas_dtype()(x) for x in row] for row in VECTORS]
    corpus = vectors_of(parquet(tmp_path / "a.parquet", pa.array(as_lists, kind)))
    assert matrix(corpus) == VECTORS.tolist()
    assert corpus.vector_length == 3
    assert not corpus.has_text
    assert corpus.rows["text"].to_pylist() == [""] * 4
    parts = tables(corpus.rows)
    FEATURES.check(parts["features"])
    assert "v" not in parts["extra"].column_names
    assert (corpus.columns[0]["name"], corpus.columns[0]["stored"]) == ("v", "features_vector")


def test_rows_without_a_usable_vector_are_rejected(tmp_path: Path) -> None:
    lists = [[1, 2], None, [1], [], [1, float("nan")], [1e300, 0], [None, 1], [3, 4], [1, 2, 3]]
    column = pa.array(lists, pa.list_(pa.float64()))
    corpus = vectors_of(parquet(tmp_path / "a.parquet", column))
    assert matrix(corpus) == [[1, 2], [3, 4]]
    assert reasons(corpus) == {
        1: "missing vector",
        2: "vector of another length",
        3: "vector of another length",
        4: "vector is not finite",
        5: "vector is not finite",
        6: "vector is not finite",
        8: "vector of another length",
    }


def test_fixed_size_lists_with_nulls(tmp_path: Path) -> None:
    column = pa.array([[1, 2], None, [3, 4]], pa.list_(pa.float32(), 2))
    corpus = vectors_of(parquet(tmp_path / "a.parquet", column))
    assert matrix(corpus) == [[1, 2], [3, 4]]
    assert reasons(corpus) == {1: "missing vector"}


def test_cells_of_several_types_in_jsonl(tmp_path: Path) -> None:
    cells = [[1, 2], "x", {"a": 1}, [1, "x"], [True, 1], [0.5, 2**60], None, [[1], [2]]]
    corpus = vectors_of(jsonl(tmp_path / "a.jsonl", cells))
    assert matrix(corpus) == [[1, 2], [0.5, 2**60]]
    strange = "vector is not a list of numbers"
    assert reasons(corpus) == dict.fromkeys((1, 2, 3, 4, 7), strange) | {6: "missing vector"}


def test_lists_of_several_types_in_jsonl(tmp_path: Path) -> None:
    corpus = vectors_of(jsonl(tmp_path / "a.jsonl", [[1, 2], [1, "x"], [0.5, None], [3, 4.5]]))
    assert matrix(corpus) == [[1, 2], [3, 4.5]]
    assert reasons(corpus) == {1: "vector is not a list of numbers", 2: "vector is not finite"}


def test_columns_that_hold_no_vectors_are_refused(tmp_path: Path) -> None:
    for column in (pa.array(["a", "b"]), pa.array([["a"], ["b"]]), pa.array([1.0, 2.0])):
        with pytest.raises(DataError, match="in the features column v, expected a list of numbers"):
            vectors_of(parquet(tmp_path / "a.parquet", column))
    empty = pa.array([[], []], pa.list_(pa.float32()))
    with pytest.raises(DataError, match="found vectors of length 0 in v, expected at least 1"):
        vectors_of(parquet(tmp_path / "a.parquet", empty))
    path = parquet(tmp_path / "a.parquet", pa.array(VECTORS.tolist()))
    with pytest.raises(DataError, match="found no column 'w' for features"):
        vectors_of(path, "w")
    with pytest.raises(DataError, match="For rows that are vectors alone, set text: null"):
        read(Source(path, features="v"), "example")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint16, ">f8"])
def test_a_file_with_one_row_per_row_of_the_source(tmp_path: Path, dtype: Any) -> None:
    path = jsonl(tmp_path / "a.jsonl", [None] * 4)
    corpus = vectors_of(path, npy(tmp_path / "x.npy", VECTORS.astype(dtype)))
    assert matrix(corpus) == VECTORS.tolist()
    images = npy(tmp_path / "images.npy", np.arange(16, dtype=dtype).reshape(4, 2, 2))
    assert matrix(vectors_of(path, images))[1] == [4, 5, 6, 7]
    assert corpus.rows["v"].null_count == 4


def test_a_file_follows_the_rows_that_are_kept(tmp_path: Path) -> None:
    rows = [{"text": t, "label": i % 2} for i, t in enumerate(["a", "", "c", "d"])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    vectors = VECTORS.copy()
    vectors[3, 1] = np.inf
    source = Source(
        str(tmp_path / "a.jsonl"), features=npy(tmp_path / "x.npy", vectors), classes=("0", "1")
    )
    corpus = read(source, "example")
    assert corpus.has_text
    assert corpus.rows["row_number"].to_pylist() == [0, 2]
    assert matrix(corpus) == [[0, 1, 2], [6, 7, 8]]
    assert reasons(corpus) == {1: "empty text", 3: "vector is not finite"}


def test_a_file_must_fit_the_rows_of_the_split(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [None] * 4)
    two = npy(tmp_path / "two.npy", VECTORS[:2])
    with pytest.raises(
        DataError, match=r"shape \(2, 3\).*one row of numbers for each of the 4 row"
    ):
        vectors_of(path, two)
    assert matrix(vectors_of(path, two, split="train[2:]")) == VECTORS[:2].tolist()
    four = npy(tmp_path / "four.npy", VECTORS)
    with pytest.raises(DataError, match=r"each of the 2 rows of .* in the split train\[2:\]"):
        vectors_of(path, four, split="train[2:]")


def test_files_that_are_no_array_of_numbers_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [None] * 4)
    for array in (np.zeros(4), np.zeros((4, 2), complex), np.full((4, 2), "x")):
        with pytest.raises(DataError, match="expected one row of numbers for each of the 4 rows"):
            vectors_of(path, npy(tmp_path / "x.npy", array))
    with pytest.raises(DataError, match="expected a .npy file of numbers"):
        vectors_of(path, npy(tmp_path / "x.npy", np.array([[None]] * 4)))
    (tmp_path / "x.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match="expected a .npy file of numbers"):
        vectors_of(path, str(tmp_path / "x.npy"))
    np.savez(tmp_path / "y.npz", VECTORS)
    (tmp_path / "y.npz").rename(tmp_path / "y.npy")
    with pytest.raises(DataError, match="found an archive of arrays"):
        vectors_of(path, str(tmp_path / "y.npy"))


def test_queries_have_the_length_of_the_corpus(tmp_path: Path) -> None:
    path = parquet(tmp_path / "q.parquet", pa.array([[1.0, 2.0], [3.0, 4.0, 5.0]]))
    corpus = vectors_of(path, role="query", length=3)
    assert reasons(corpus) == {0: "vector of another length"}
    file = npy(tmp_path / "x.npy", np.ones((2, 2)))
    with pytest.raises(
        DataError, match="found vectors of length 2 in .*, expected 3, as in the co"
    ):
        vectors_of(path, file, role="query", length=3)
    fixed = parquet(tmp_path / "f.parquet", pa.array([[1.0], [2.0]], pa.list_(pa.float32(), 1)))
    with pytest.raises(DataError, match=r"no usable row among 2 \(2 vector of another length\)"):
        vectors_of(fixed, role="query", length=3)


def test_a_column_of_the_users_own_may_be_called_vector(tmp_path: Path) -> None:
    own = pa.array([[0.0, 1.0]] * 4, pa.list_(pa.float32(), 2))
    path = parquet(tmp_path / "a.parquet", pa.array(VECTORS.tolist()), vector=own)
    plain = read(Source(path, text=None, features="v"), "example")
    assert plain.rows["vector"].to_pylist() == [[0, 1]] * 4
    assert matrix(plain) == VECTORS.tolist()
    without = parquet(tmp_path / "b.parquet", own, text=["t"] * 4, vector=own)
    assert set(tables(read(Source(without), "example").rows)) == {"text", "label", "extra"}


def test_the_file_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [None] * 4)
    source = Source(path, text=None, features=npy(tmp_path / "x.npy", VECTORS))
    before = fingerprint(source)
    assert fingerprint(source) == before
    npy(tmp_path / "x.npy", VECTORS + 1)
    assert fingerprint(source) != before
    (tmp_path / "x.npy").unlink()
    with pytest.raises(DataError, match="found no such file, expected the vectors that features"):
        fingerprint(source)


def test_the_hash_of_vectors_sees_values_and_nothing_else() -> None:
    def table(rows: Any, kind: Any = None) -> pa.Table:
        return pa.table({"v": pa.array(rows, kind or pa.list_(pa.float32(), 2))})

    one = table([[1, 2], [3, 4], [5, 6]])
    value = content_hash(one)
    for same in (
        pa.concat_tables([one.slice(0, 1), one.slice(1)]),
        pa.concat_tables([one, one]).slice(3),
        one.cast(pa.schema([pa.field("v", pa.list_(pa.field("x", pa.float32()), 2), False)])),
    ):
        assert content_hash(same) == value
    for other in (
        one.slice(1),
        one.take([1, 0, 2]),
        table([[1, 2], [3, 4], [5, 7]]),
        table([[1, 2, 3], [4, 5, 6]], pa.list_(pa.float32(), 3)),
        table([[1, 2], [3, 4], None]),
        table([[1, 2], [3, 4], [5, None]]),
        table([[1, 2], [3, 4], [5, float("nan")]]),
    ):
        assert content_hash(other) != value
    assert content_hash(table([[1, None]])) != content_hash(table([[1, float("nan")]]))


def test_tensors_of_one_shape_are_vectors_and_may_be_carried_along(tmp_path: Path) -> None:
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(VECTORS)
    path = parquet(tmp_path / "a.parquet", tensors, other=tensors)
    found = vectors_of(path)
    assert matrix(found) == VECTORS.tolist()
    assert found.rows["other"].to_pylist() == VECTORS.tolist()


class Ray(pa.ExtensionType):  # type: ignore[misc]
    """A tensor as Ray has it, once its library is imported."""

    def __init__(self) -> None:
        super().__init__(pa.large_list(pa.float64()), "ray.tensor")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "Ray":
        return cls()


def test_types_that_a_library_registers_are_what_they_are_without_it(tmp_path: Path) -> None:
    lists = pa.array(VECTORS.tolist(), pa.large_list(pa.float64()))
    path = parquet(tmp_path / "a.parquet", pa.ExtensionArray.from_storage(Ray(), lists))
    pa.register_extension_type(Ray())
    try:
        assert matrix(vectors_of(path)) == VECTORS.tolist()
    finally:
        pa.unregister_extension_type("ray.tensor")
    assert matrix(vectors_of(path)) == VECTORS.tolist()
