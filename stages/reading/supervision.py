"""Labels or regression targets of a corpus, as arrays and as the columns that a regression fits.

An answer is what a row should be predicted as: a class label or a target.

A classification has one output per class, one-hot targets less 1/C; a regression has one output,
the target less the mean of all targets. The offset is added back to what is predicted.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from stages.stage import DataError, Inputs, Role


class Answers(NamedTuple):
    """The target columns of the examples that a regression is fitted on, less their offset."""

    ids: Int64[np.ndarray, " examples"]
    """Ascending."""
    targets: Float[Tensor, "examples outputs"]
    """One-hot labels or targets, less `offset`; float64."""
    offset: float
    """Mean of all entries, which is added back to what is predicted."""


def task_of(inputs: Inputs) -> str:
    """The `task` of the corpus (`stages.stage.CorpusTask`)."""
    return str(inputs.details("label").get("task", "classification"))


def read_answers(
    inputs: Inputs,
) -> tuple[Int64[np.ndarray, " examples"], Float[Tensor, "examples outputs"]]:
    """Ids, ascending, of the examples that have an answer, and the columns of these answers.

    One-hot labels of a classification, the targets of a regression; float64. Dropped and unlabelled
    examples have no answer.

    Raises:
        DataError: the corpus has another task, fewer than two classes, a label outside of them, or
            no example with a label.
    """
    ids, columns = answers_in(inputs, inputs.table("label", "example"))
    if len(ids) == 0:
        raise no_answer(inputs)
    return ids, columns


def answers_in(
    inputs: Inputs, table: pa.Table
) -> tuple[Int64[np.ndarray, " rows"], Float[Tensor, "rows outputs"]]:
    """Ids, ascending, and answers, as `read_answers` has them, in rows of the table `label`.

    Raises:
        DataError: the corpus has another task, fewer than two classes, or a label outside of them.
    """
    if task_of(inputs) == "regression":
        ids, targets = _ascending([table], "target")
        return ids, torch.from_numpy(targets.astype(np.float64))[:, None]
    n_classes = count_classes(inputs)
    ids, labels = labels_in(table, "example", n_classes)
    return ids, one_hot(torch.from_numpy(labels), n_classes)


def no_answer(inputs: Inputs) -> DataError:
    """The error of a corpus without an answer that a regression could be fitted on."""
    if task_of(inputs) == "regression":
        return DataError(
            "label: found no example with a target, expected at least 1. Give some rows a target."
        )
    return DataError(
        "label: found no example with a label, expected at least 1. Label some examples."
    )


def centre(
    ids: Int64[np.ndarray, " examples"], columns: Float[Tensor, "examples outputs"]
) -> Answers:
    """The columns less the mean of all their entries, which of one-hot columns is 1/C.

    The mean is over *all* these examples, also where one is left out later.
    """
    offset = float(columns.sum()) / columns.numel()
    return Answers(ids, columns - offset, offset)


def count_classes(inputs: Inputs) -> int:
    """How many classes the corpus has.

    Raises:
        DataError: it has no classes, or a single one.
    """
    task = task_of(inputs)
    n_classes = len(inputs.details("label")["classes"])
    if task != "classification" or n_classes < 2:
        raise DataError(
            f"label: found {n_classes} classes in a corpus with task: {task}, expected at least 2. "
            "This stage is for classifiers; leave it out for other tasks."
        )
    return n_classes


def read_labels(
    inputs: Inputs, role: Role, n_classes: int
) -> tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " rows"]]:
    """Ids, ascending, and labels of the rows of one role that have a label.

    Memory 32 bytes per row.

    Raises:
        DataError: a label is outside of the classes.
    """
    return _in_classes(*_ascending(_shards(inputs, role), "label"), role, n_classes)


def labels_in(
    table: pa.Table, role: Role, n_classes: int
) -> tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " rows"]]:
    """Ids, ascending, and labels of the rows of the table `label` that have one.

    Raises:
        DataError: a label is outside of the classes.
    """
    return _in_classes(*_ascending([table], "label"), role, n_classes)


def _in_classes(
    ids: Int64[np.ndarray, " rows"], labels: Int64[np.ndarray, " rows"], role: Role, n_classes: int
) -> tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " rows"]]:
    """The same; raises where a label is none of the classes."""
    if len(labels) and not (labels.min() >= 0 and labels.max() < n_classes):
        raise DataError(
            f"label: found labels {labels.min()} to {labels.max()} among {role} rows, expected 0 "
            f"to {n_classes - 1}. Correct the labels or the list of classes."
        )
    return ids, labels


def read_targets(
    inputs: Inputs, role: Role
) -> tuple[Int64[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Ids, ascending, and targets of the rows of one role that have a target, at least one.

    Raises:
        DataError: there is none.
    """
    ids, targets = _ascending(_shards(inputs, role), "target")
    if len(ids) == 0:
        raise DataError(
            f"label: found no {role} with a target, expected at least 1. Give some rows a target."
        )
    return ids, targets


def _shards(inputs: Inputs, role: Role) -> Iterable[pa.Table]:
    """The part's rows of the table `label` of one role; those of all examples shard by shard."""
    if role == "query" or inputs.part.role == "example":
        return [inputs.table("label", role)]
    return inputs.by_shard("label", "example")


def _ascending(
    tables: Iterable[pa.Table], name: str
) -> tuple[Int64[np.ndarray, " rows"], Shaped[np.ndarray, " rows"]]:
    """Ids, ascending, and one column of the rows that have it; of each table two columns are held.

    The arrays are new: torch warns about memory it may not write to.
    """
    ids, values = [np.zeros(0, np.int64)], []
    for table in tables:
        rows = table.select(["id", name]).drop_null()
        ids.append(rows["id"].to_numpy())
        values.append(rows[name].to_numpy())
    all_ids, all_values = np.concatenate(ids), np.concatenate(values or [np.zeros(0)])
    if (all_ids[1:] < all_ids[:-1]).any():
        order = np.argsort(all_ids, kind="stable")
        all_ids, all_values = all_ids[order], all_values[order]
    return all_ids, all_values


def answered_rows_of(
    ids: Int64[np.ndarray, " rows"], answered: Int64[np.ndarray, " answered"]
) -> tuple[Int64[np.ndarray, " both"], Int64[np.ndarray, " both"]]:
    """Positions in `ids`, ascending, of those that are in `answered`, and their positions there.

    `answered` ascends and may be long: it is searched, not sorted.
    """
    at = np.searchsorted(answered, ids).clip(max=max(len(answered) - 1, 0))
    rows = np.flatnonzero(answered[at] == ids) if len(answered) else np.zeros(0, np.int64)
    return rows, at[rows]


def one_hot(labels: Int64[Tensor, " rows"], n_classes: int) -> Float[Tensor, "rows classes"]:
    """1.0 in the column of each row's label, 0.0 elsewhere."""
    columns = torch.arange(n_classes)
    return (labels[:, None] == columns).to(torch.float64)
