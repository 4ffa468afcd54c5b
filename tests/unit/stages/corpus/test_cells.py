"""Arrow columns in any layout: the values in the plain one are the same, or it is refused."""

import pyarrow as pa
import pytest

from stages.corpus.cells import from_table
from stages.stage import DataError

NANOSECONDS = pa.array([1, 10**9 + 1, None], pa.int64()).cast(pa.time64("ns"))


def run_ends() -> pa.Array:
    return pa.RunEndEncodedArray.from_arrays(pa.array([1, 2, 3], pa.int32()), NANOSECONDS)


@pytest.mark.parametrize(
    "layout",
    [
        run_ends(),
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), NANOSECONDS),
        NANOSECONDS,
    ],
    ids=["run ends", "dictionary", "plain"],
)
def test_layouts_keep_their_values(layout: pa.Array) -> None:
    """Python's times have no nanoseconds, so none may be in between."""
    read = from_table(pa.table({"at": layout})).table["at"]
    assert read.type == pa.time64("ns")
    assert read.cast(pa.int64()).to_pylist() == [1, 10**9 + 1, None]


def test_a_layout_that_cannot_be_read_is_refused() -> None:
    nested = pa.StructArray.from_arrays([run_ends()], ["at"])
    with pytest.raises(DataError, match=r"found a column of struct.*expected.*Write it as struct"):
        from_table(pa.table({"row": nested}))
