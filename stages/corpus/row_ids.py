"""Ids of rows; they depend on the row alone, so that they survive appended and corrected rows."""

import hashlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus.cells import SourceRows, is_number
from stages.corpus.source import Source
from stages.stage import DataError

_DECIMAL = re.compile("0|[1-9][0-9]{0,18}")


def read_ids(source: Source, loaded: SourceRows) -> tuple[np.ndarray, pa.Array]:
    """The integer id of every row, and the user's own id as text (null where there is none).

    Raises:
        DataError: the id column holds neither integers nor strings.
    """
    n_rows = loaded.table.num_rows
    if source.id is None:
        numbers = np.arange(n_rows, dtype=np.int64)
        return numbers, pc.cast(pa.array(numbers), pa.string())
    kind = loaded.table[source.id].type
    values = loaded.values(source.id)
    if pa.types.is_floating(kind):
        values = [int(v) if v is not None and v.is_integer() else v for v in values]
    wrong = (v for v in values if isinstance(v, bool) or not isinstance(v, int | str | None))
    strange = next(wrong, None)
    if strange is not None or pa.types.is_boolean(kind):
        raise DataError(
            f"{source.path}: found {strange if strange is not None else 'true or false'!r} in the "
            f"id column {source.id} ({kind}), expected integers or strings. Name another column, "
            "or set id: null to go by row number."
        )
    ids = np.fromiter((_id(v, loaded.is_typed) for v in values), dtype=np.int64, count=n_rows)
    return ids, pa.array([None if v is None else str(v) for v in values], pa.string())


def written_type(source: Source, loaded: SourceRows, source_ids: pa.Array) -> str:
    """The name of the Arrow type that holds the ids `source_ids` as the source has them.

    Ids of a CSV are numbers where every one is written as Python writes a number.
    """
    if loaded.is_typed:
        return str(loaded.table[source.id].type) if source.id else "int64"
    return "int64" if all(map(is_number, source_ids.drop_null().to_pylist())) else "string"


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
