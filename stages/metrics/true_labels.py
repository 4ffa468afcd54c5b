"""Which labels of the examples are wrong, where true ones are known."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int64

from stages.corpus.cells import is_number
from stages.stage import DataError, Inputs
from storage.names import near


class KnownLabels(NamedTuple):
    """The labelled examples whose true label is known."""

    ids: Int64[np.ndarray, " examples"]
    """Ascending."""
    is_wrong: Bool[np.ndarray, " examples"]
    n_labelled: int
    """Labelled examples, whether their true label is known or not."""


def known_labels(inputs: Inputs, column: str | None = None) -> KnownLabels:
    """The true labels that the corpus knows, or those in a `column` of it, by name or number.

    Memory: 10 bytes a row; the table `label` is read shard by shard, `extra` whole.

    Raises:
        DataError: there is no such column, or a value of it is no class.
    """
    ids, is_wrong, n_labelled = [np.zeros(0, np.int64)], [np.zeros(0, bool)], 0
    true_of = None if column is None else _column(inputs, column)
    for table in inputs.by_shard("label", "example"):
        rows = table.select(["id", "label", "true_label"])
        if true_of is not None:
            rows = rows.set_column(2, "true_label", _matched(rows["id"], *true_of))
        labelled = rows.filter(pc.is_valid(rows["label"]))
        known = labelled.drop_null()
        n_labelled += labelled.num_rows
        ids.append(known["id"].to_numpy())
        is_wrong.append(pc.not_equal(known["label"], known["true_label"]).to_numpy())
    all_ids, all_wrong = np.concatenate(ids), np.concatenate(is_wrong)
    order = np.argsort(all_ids, kind="stable")
    return KnownLabels(all_ids[order], all_wrong[order], n_labelled)


def _column(inputs: Inputs, column: str) -> tuple[pa.Array, pa.Array]:
    """Ids of the examples, and the class that a column of the corpus names for each."""
    table = inputs.table("extra", "example")
    table = table.filter(pc.equal(table["role"], "example"))
    others = table.column_names[4:]
    if column not in others:
        raise DataError(
            f"true_label: found no column {column} among the examples{near(column, others)}, "
            f"expected one of {', '.join(others) or 'none'}. Name another, or leave it out for the "
            "true labels that the corpus knows."
        )
    names = [str(name) for name in inputs.details("label")["classes"]]
    numbers = {name: at for at, name in enumerate(names)}
    values = _whole(table[column].combine_chunks())
    known = {str(value) for value in values.drop_null().unique()}
    if not set(numbers) >= known and all(map(is_number, known)):
        numbers = {str(at): at for at in range(len(names))}
    found = []
    for value in values.to_pylist():
        if value is not None and str(value) not in numbers:
            raise DataError(
                f"true_label: found {value!r} in the column {column}, expected a class: "
                f"{', '.join(names[:8])}, or its number. Correct the column, or name another."
            )
        found.append(None if value is None else numbers[str(value)])
    return table["id"].combine_chunks(), pa.array(found, pa.int64())


def _whole(values: pa.Array) -> pa.Array:
    """The cells of a column, floats as integers where all are whole; NaN is null.

    So pandas writes whole numbers beside missing ones.
    """
    if not pa.types.is_floating(values.type):
        return values
    values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    is_whole = pc.and_(pc.is_finite(values), pc.equal(pc.round(values), values))
    return values.cast(pa.int64()) if pc.all(is_whole).as_py() else values


def _matched(ids: pa.ChunkedArray, known: pa.Array, classes: pa.Array) -> pa.ChunkedArray:
    """The class of each id; null where it has none."""
    return pa.chunked_array([classes.take(pc.index_in(ids.combine_chunks(), known))])
