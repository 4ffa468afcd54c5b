"""Scaled feature vectors of several tables, read from their memory maps as they are needed."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.reading.vectors import matrix_of
from stages.stage import DataError, Vectors

LONGEST = 4096
"""Most numbers of the vectors that `shard_features` gives: matrices with that side take 134 MB."""


class FeatureRows:
    """Feature vectors of several tables side by side, read from memory maps as they are needed.

    Each vector is scaled to unit length, or its table to a mean square length of 1 where there are
    several, as in `stages.surrogate.kernel.gram`, so that inner products of rows are entries of the
    kernel.
    """

    def __init__(
        self,
        tables: list[Vectors],
        ids: np.ndarray,
        is_unit: bool,
        dtype: torch.dtype,
        scales: list[float] | None = None,
    ) -> None:
        """The rows of `ids` in each of `tables`.

        `is_unit` scales vectors to unit length. `scales`, one per table, are those that the
        examples' `FeatureRows` chose; queries must be given them.
        """
        self._dtype, self._is_unit = dtype, is_unit
        self._tables = [(table.matrix, _rows_of(table, ids)) for table in tables]
        self.scales = scales or [1.0] * len(tables)
        if scales is None and not is_unit and len(tables) > 1:
            self.scales = [_mean_length(matrix, rows) for matrix, rows in self._tables]

    def __call__(self, rows: Int64[Tensor, " rows"]) -> Float[Tensor, "rows dim"]:
        """The feature vectors of the ids at positions `rows`."""
        positions = rows.numpy()
        parts = []
        for (matrix, table_rows), scale in zip(self._tables, self.scales, strict=True):
            part = torch.from_numpy(matrix[table_rows[positions]]).to(self._dtype)
            if self._is_unit:
                # In float64: the squares of long and of short vectors leave the range of float32.
                length = torch.linalg.vector_norm(part, dim=1, keepdim=True, dtype=torch.float64)
                part /= torch.where(length > 0, length, 1.0)
            if len(self._tables) > 1:
                part /= scale * len(self._tables) ** 0.5
            parts.append(part)
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def shard_features(
    tables: Sequence[pa.Table],
    is_unit: bool,
    part: int = 0,
    n_parts: int = 1,
    scales: list[float] | None = None,
) -> tuple[Int64[np.ndarray, " rows"], Float[Tensor, "rows dim"]]:
    """Ids, ascending, and scaled features of the rows that every feature table of a shard has.

    Each vector is cut into `n_parts` equal parts, of which number `part` is taken, and then scaled
    as by `FeatureRows`; without `scales`, tables that are not of unit length keep their own. In
    float64. Of more than `LONGEST` numbers, a sketch of `LONGEST` is taken.

    Raises:
        DataError: a table's vectors cannot be cut so.
    """
    ids = tables[0]["id"].to_numpy()
    for table in tables[1:]:
        ids = np.intersect1d(ids, table["id"].to_numpy())
    if not len(ids):
        return np.zeros(0, np.int64), torch.zeros(0, 0, dtype=torch.float64)
    vectors, lengths = [], []
    for table in tables:
        matrix = matrix_of(table["vector"])
        width, rest = divmod(matrix.shape[1], n_parts)
        if rest or not width:
            raise not_a_multiple(matrix.shape[1], n_parts)
        vectors.append(
            Vectors(table["id"].to_numpy(), matrix[:, part * width : (part + 1) * width])
        )
        lengths.append(width)
    ids = np.sort(ids)
    rows = FeatureRows(vectors, ids, is_unit, torch.float64, scales or [1.0] * len(tables))
    return ids, sketched(rows(torch.arange(len(ids))), lengths)


def sketched_lengths(lengths: Sequence[int]) -> list[int]:
    """How many numbers `sketched` leaves of each table, whose vectors have these lengths."""
    if sum(lengths) <= LONGEST:
        return list(lengths)
    return [min(length, LONGEST // len(lengths)) for length in lengths]


def sketched(
    rows: Float[Tensor, "rows dim"], lengths: Sequence[int]
) -> Float[Tensor, "rows shorter"]:
    """Rows of tables side by side, of which no more than `LONGEST` numbers are left.

    Each number of a longer table is added, with a random sign, to one of the numbers that are left,
    to each of them as many: inner products stay what they are on average, with a standard deviation
    of at most sqrt(2 n / LONGEST) of the vectors' lengths, for n tables. The draws depend on the
    length alone, so that tables of one length share theirs.
    Source: Charikar, Chen and Farach-Colton 2004, doi:10.1016/S0304-3975(03)00400-6.
    """
    parts = []
    tables = torch.split(rows, list(lengths), 1)
    for part, length in zip(tables, sketched_lengths(lengths), strict=True):
        n_numbers = part.shape[1]
        if length < n_numbers:
            drawn = np.random.default_rng(n_numbers)
            place = torch.from_numpy(drawn.permutation(n_numbers) % length)
            sign = torch.from_numpy(drawn.integers(0, 2, n_numbers) * 2.0 - 1.0)
            left = torch.zeros(len(part), length, dtype=part.dtype)
            part = left.index_add_(1, place, part * sign.to(part.dtype))
        parts.append(part)
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def not_a_multiple(length: int, n_parts: int) -> DataError:
    """The error of vectors that cannot be cut into one part per class."""
    return DataError(
        f"kernel: found vectors of length {length}, expected a multiple of {n_parts}, one part per "
        "class. Set per_class: false, or name tables that hold one part per class."
    )


def _rows_of(table: Vectors, ids: np.ndarray) -> np.ndarray:
    """The row of each id in the table's matrix."""
    order = np.argsort(table.ids, kind="stable")
    rows: np.ndarray = order[np.searchsorted(table.ids, ids, sorter=order)]
    return rows


def _mean_length(matrix: np.ndarray, rows: np.ndarray) -> float:
    """Root mean square length of these rows of the matrix."""
    total = 0.0
    for start in range(0, len(rows), 4096):
        part = np.asarray(matrix[rows[start : start + 4096]], np.float64)
        total += float((part**2).sum())
    return float((total / len(rows)) ** 0.5)
