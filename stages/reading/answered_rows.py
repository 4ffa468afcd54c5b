"""Features of the examples beside their answers, shard by shard."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from stages.reading.feature_rows import shard_features
from stages.reading.supervision import answers_in
from stages.stage import Inputs


class AnsweredRows(NamedTuple):
    """Rows of a shard that have features in every table."""

    ids: Int64[np.ndarray, " rows"]
    """Ascending."""
    features: Float[Tensor, "rows dim"]
    is_answered: Bool[np.ndarray, " rows"]
    answers: Float[Tensor, "answered outputs"]
    """One-hot labels or targets of those that have an answer."""
    n_left_out: int
    """Answered examples without features."""


def answered_rows(
    inputs: Inputs,
    label: pa.Table,
    tables: Sequence[pa.Table],
    is_unit: bool,
    part: int = 0,
    n_parts: int = 1,
    scales: list[float] | None = None,
) -> AnsweredRows:
    """The rows of one shard; the arguments from `is_unit` on are those of `shard_features`.

    Raises:
        DataError: the labels or the vectors cannot be used.
    """
    answered, columns = answers_in(inputs, label)
    ids, features = shard_features(tables, is_unit, part, n_parts, scales)
    is_answered, has_features = np.isin(ids, answered), np.isin(answered, ids)
    answers = columns[torch.from_numpy(has_features)]
    return AnsweredRows(ids, features, is_answered, answers, int((~has_features).sum()))


def shards_of_examples(
    inputs: Inputs, kernel: Sequence[str], most: int | None = None
) -> Iterator[tuple[pa.Table, ...]]:
    """Labels and the feature tables `kernel`, shard by shard; `most` as in `Inputs.by_shard`."""
    tables = (inputs.by_shard(name, "example", most) for name in ("label", *kernel))
    return zip(*tables, strict=True)
