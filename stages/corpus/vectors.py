"""Vectors that the user already has, as the corpus table `features`."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus.cells import SourceRows, holds_json
from stages.corpus.reasons import mark
from stages.corpus.source import Source, is_url, local
from stages.corpus.source_files import open_file
from stages.stage import DataError
from storage.schema import TableSpec

FEATURES = TableSpec(
    name="features",
    schema=pa.schema(
        [("id", pa.int64()), ("role", pa.string()), ("vector", pa.list_(pa.float32()))]
    ),
    key=("id",),
)


def read_features(
    source: Source, loaded: SourceRows, reasons: np.ndarray, length: int | None, first: int = 0
) -> tuple[np.ndarray, Counter[int]]:
    """The vector of every row, float32 (rows, length), and how many rows have one of which length.

    That of a rejected row is meaningless. `length` is that of the corpus; None takes the most
    frequent one in the column. Rows without a vector, with one of another length, or with NaN,
    infinity or null in it (in float32) are marked in `reasons`. `first` is the number of the first
    row in the whole source. Memory: the result and one float64 chunk of it.

    Raises:
        DataError: the column holds no vectors.
    """
    if source.features_file is not None:
        vectors = _rows_of_file(source.features_file, first, first + loaded.table.num_rows)
        lengths = Counter({vectors.shape[1]: len(vectors)})
    else:
        vectors, lengths = _read_column(source, loaded, reasons, length)
    mark(reasons, ~np.isfinite(vectors).all(axis=1), "vector is not finite")
    return vectors, lengths


def length_of_file(source: Source, n_rows: int) -> int:
    """The length of the vectors in the file that a source names, which has `n_rows` rows.

    Raises:
        DataError: there are no such vectors, or they do not fit the rows.
    """
    path = str(source.features_file)
    shape, kind = _header(path)
    if len(shape) < 2 or kind.kind not in "fiu" or shape[0] != n_rows:
        raise DataError(
            f"{path}: found an array of shape {shape} and type {kind}, expected one "
            f"row of numbers for each of the {n_rows} rows of {source.path}"
            f"{f' in the split {source.split}' if source.split else ''}. Save an array of floats "
            "or integers with the rows of the source in their order."
        )
    return int(np.prod(shape[1:]))


def check_length(source: Source, found: int, length: int | None) -> None:
    """Raises unless vectors of the length `found` can be used; `length` is that of the corpus.

    Raises:
        DataError: they are empty, or those of queries do not fit the corpus.
    """
    if found != (length or found) or found == 0:
        raise DataError(
            f"{source.path}: found vectors of length {found} in {source.features}, "
            f"expected {f'{length}, as in the corpus' if length else 'at least 1'}. Make the "
            "vectors of queries and corpus in one way."
        )


def most_frequent(lengths: Counter[int]) -> int:
    """The length that most vectors have, of several the smallest; 0 where there is no vector."""
    return min(lengths, key=lambda length: (-lengths[length], length), default=0)


def as_lists(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """The rows of a matrix as an Arrow array of float32 vectors, as `FEATURES` has them."""
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def _header(path: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the array in a file."""
    if is_url(path):
        with open_file(path) as stream:
            begin = _begin(stream)
        if begin is not None:
            return begin[:2]
    found = _opened(path)
    return found.shape, found.dtype


def _rows_of_file(path: str, start: int, stop: int) -> np.ndarray:
    """Some rows of the array in a file; of one at a URL no others are read."""
    if is_url(path):
        with open_file(path) as stream:
            begin = _begin(stream)
            if begin is not None:
                shape, kind, at = begin
                width = int(np.prod(shape[1:]))
                stream.seek(at + start * width * kind.itemsize)
                data = stream.read((stop - start) * width * kind.itemsize)
                if len(data) < (stop - start) * width * kind.itemsize:
                    raise DataError(
                        f"{path}: found that the file ends before row {stop}, expected the "
                        f"{shape[0]} rows of its header. Write the file again."
                    )
                return _float32(np.frombuffer(data, dtype=kind).reshape(stop - start, width))
    return _float32(_opened(path)[start:stop].reshape(stop - start, -1))


def _begin(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any], int] | None:
    """Shape and type of an array, and where its rows begin; None where they do not follow."""
    try:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, is_by_column, kind = read[version](stream)
    except (ValueError, KeyError, EOFError):
        return None
    return None if is_by_column or kind.hasobject else (shape, kind, stream.tell())


def _opened(path: str) -> np.ndarray:
    """The array in a file: on disk it is mapped, at a URL it is read."""
    try:
        if is_url(path):
            with open_file(path) as stream:
                found = np.load(stream, allow_pickle=False)
        else:
            found = np.load(local(path), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: found no array that can be loaded ({error}), expected a .npy file of "
            "numbers. Correct features, or write the file with numpy.save."
        ) from error
    if not isinstance(found, np.ndarray):
        raise DataError(
            f"{path}: found an archive of arrays, expected one array. Write it with numpy.save."
        )
    return found


def _read_column(
    source: Source, loaded: SourceRows, reasons: np.ndarray, length: int | None
) -> tuple[np.ndarray, Counter[int]]:
    name = str(source.features)
    column = loaded.table[name]
    if name in loaded.mixed or holds_json(column.type):
        cells = loaded.values(name)
        is_list = np.array([cell is None or _is_numbers(cell) for cell in cells], dtype=bool)
        mark(reasons, ~is_list, "vector is not a list of numbers")
        kept = [
            [None if v is None else float(v) for v in cell] if ok and cell is not None else None
            for cell, ok in zip(cells, is_list, strict=True)
        ]
        column = pa.chunked_array([pa.array(kept, pa.list_(pa.float64()))])
    if not _holds_vectors(column.type):
        raise DataError(
            f"{source.path}: found {column.type} in the features column {name}, expected a list of "
            "numbers. Name another column, or save the vectors with numpy.save and name the file."
        )
    mark(reasons, column.is_null(), "missing vector")
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy().astype(np.int64)
    counted = Counter(lengths[lengths >= 0].tolist())
    length = most_frequent(counted) if length is None else length
    mark(reasons, (lengths >= 0) & (lengths != length), "vector of another length")
    vectors = np.zeros((len(column), length), dtype=np.float32)
    start = 0
    for chunk in column.chunks:
        rows = start + np.flatnonzero(lengths[start : start + len(chunk)] == length)
        lists = chunk if len(rows) == len(chunk) else chunk.take(pa.array(rows - start))
        flat = lists.flatten()
        if flat.type != pa.float32():
            flat = pc.cast(flat, pa.float64(), safe=False)
        numbers = flat.to_numpy(zero_copy_only=False).reshape(len(rows), length)
        vectors[rows] = numbers if numbers.dtype == np.float32 else _float32(numbers)
        start += len(chunk)
    return vectors, counted


def _holds_vectors(kind: pa.DataType) -> bool:
    is_list = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(check(kind) for check in is_list):
        return False
    inner = kind.value_type
    return bool(pa.types.is_floating(inner) or pa.types.is_integer(inner))


def _is_numbers(cell: object) -> bool:
    return isinstance(cell, list) and all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        for value in cell
    )


def _float32(numbers: np.ndarray) -> np.ndarray:
    # A number beyond the range of float32 becomes infinite, hence its row is rejected.
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)
