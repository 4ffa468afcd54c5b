"""Ids of rows: a property of the row alone, so that they survive appended and corrected rows."""

import hashlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.corpus.cells import Loaded
from stages.corpus.source import Source
from stages.stage import DataError

_DECIMAL = re.compile("0|[1-9][0-9]{0,18}")


def read_ids(source: Source, loaded: Loaded) -> tuple[np.ndarray, pa.Array]:
    """Example ids, and the user's own ids as text (null where there is none)."""
    n_rows = loaded.table.num_rows
    if source.id is None:
        numbers = np.arange(n_rows, dtype=np.int64)
        return numbers, pc.cast(pa.array(numbers), pa.string())
    kind = loaded.table[source.id].type
    values = loaded.values(source.id)
    if pa.types.is_floating(kind):
        values = [int(v) if v is not None and v.is_integer() else v for v in values]
    strange = next((v for v in values if not isinstance(v, int | str | None)), None)
    if strange is not None or pa.types.is_boolean(kind):
        raise DataError(
            f"{source.path}: found {strange if strange is not None else 'true or false'!r} in the "
            f"id column {source.id} ({kind}), expected integers or strings. Name another column, "
            "or set id: null to go by row number."
        )
    ids = np.fromiter((_id(v, loaded.is_typed) for v in values), dtype=np.int64, count=n_rows)
    return ids, pa.array([None if v is None else str(v) for v in values], pa.string())


def _id(value: int | str | None, is_typed: bool) -> int:
    """The integer itself if it is one that fits, else 63 bits of the value's SHA-256."""
    if value is None:
        return 0
    is_number = isinstance(value, int) or (not is_typed and _DECIMAL.fullmatch(value))
    if is_number and 0 <= int(value) < 2**63:
        return int(value)
    return int.from_bytes(hashlib.sha256(str(value).encode()).digest()[:8], "big") & (2**63 - 1)
