"""Ids of rows; they depend on the row alone, so that they survive appended and corrected rows."""

import hashlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus.cells import SourceRows, is_number, is_text
from stages.corpus.source import Source
from stages.stage import DataError

_DECIMAL = re.compile("0|[1-9][0-9]{0,18}")
_SURE = "^(0|[1-9][0-9]{0,17})$"
"""Decimals that fit into 63 bits whatever their digits."""


def read_ids(source: Source, loaded: SourceRows, first: int = 0) -> tuple[np.ndarray, pa.Array]:
    """The integer id of every row, and the user's own id as text (null where there is none).

    `first` is the number of the first row in the whole source.

    Raises:
        DataError: the id column holds neither integers nor strings.
    """
    n_rows = loaded.table.num_rows
    if source.id is None:
        numbers = np.arange(first, first + n_rows, dtype=np.int64)
        return numbers, pc.cast(pa.array(numbers), pa.string())
    column = loaded.table[source.id].combine_chunks()
    if source.id not in loaded.mixed:
        if pa.types.is_integer(column.type):
            return _of_integers(column)
        if is_text(column.type):
            return _of_texts(pc.cast(column, pa.string()), loaded.is_typed)
    # NaN is what pandas has where there is no id.
    values = [None if value != value else value for value in loaded.values(source.id)]
    if pa.types.is_floating(column.type):
        values = [int(v) if v is not None and v.is_integer() else v for v in values]
    wrong = (v for v in values if isinstance(v, bool) or not isinstance(v, int | str | None))
    strange = next(wrong, None)
    if strange is not None or pa.types.is_boolean(column.type):
        raise DataError(
            f"{source.path}: found {strange if strange is not None else 'true or false'!r} in the "
            f"id column {source.id} ({column.type}), expected integers or strings. Name another "
            "column, or set id: null to go by row number."
        )
    ids = np.fromiter((_id(v, loaded.is_typed) for v in values), dtype=np.int64, count=n_rows)
    return ids, pa.array([None if v is None else str(v) for v in values], pa.string())


def are_numbers(source_ids: pa.Array) -> bool:
    """Whether every id of a CSV is written as Python writes an integer of 64 bits."""
    known = source_ids.drop_null()
    unsure = known.filter(pc.invert(pc.match_substring_regex(known, _SURE)))
    return all(map(is_number, unsure.to_pylist()))


def written_type(source: Source, empty: SourceRows, ids_are_numbers: bool) -> str:
    """The name of the Arrow type that holds the ids as the source has them.

    Ids of a CSV are numbers where every one is written as Python writes a number.
    """
    if empty.is_typed:
        return str(empty.table[source.id].type) if source.id else "int64"
    return "int64" if ids_are_numbers else "string"


def _of_integers(column: pa.Array) -> tuple[np.ndarray, pa.Array]:
    ids = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
    # A large uint64 is negative as int64, too.
    strange = np.flatnonzero(ids.astype(np.int64) < 0)
    ids = ids.astype(np.int64)
    for row in strange.tolist():
        ids[row] = _id(column[row].as_py(), True)
    return ids, pc.cast(column, pa.string())


def _of_texts(column: pa.Array, is_typed: bool) -> tuple[np.ndarray, pa.Array]:
    ids = np.zeros(len(column), dtype=np.int64)
    hashed = column.is_valid()
    if not is_typed:
        is_sure = pc.fill_null(pc.match_substring_regex(column, _SURE), False)
        rows = np.flatnonzero(is_sure.to_numpy(zero_copy_only=False))
        ids[rows] = pc.cast(column.take(pa.array(rows)), pa.int64()).to_numpy()
        hashed = pc.and_(hashed, pc.invert(is_sure))
    rows = np.flatnonzero(hashed.to_numpy(zero_copy_only=False))
    texts = column.take(pa.array(rows)).to_pylist()
    ids[rows] = np.fromiter((_id(text, is_typed) for text in texts), np.int64, len(rows))
    return ids, column


def _id(value: int | str | None, is_typed: bool) -> int:
    """The user's id itself if it is an integer in [0, 2^63), else 63 bits of its SHA-256.

    0 for a row without one, which is rejected.
    """
    if value is None:
        return 0
    is_number = isinstance(value, int) or (not is_typed and _DECIMAL.fullmatch(value))
    if is_number and 0 <= int(value) < 2**63:
        return int(value)
    return int.from_bytes(hashlib.sha256(str(value).encode()).digest()[:8], "big") & (2**63 - 1)
