"""Numbers that are computed from the order of values: rank correlations, areas, precisions.

Each is its textbook definition, with equal values at their mean rank. `rank_correlations` gives
many at once, of rows that are counted several times, as the bootstrap draws them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64


def ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The rank of each value in ascending order, from 1; equal values share their mean rank."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranked: np.ndarray = (counts.cumsum() - (counts - 1) / 2)[group]
    return ranked


def spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation; NaN where `a` or `b` is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def auc(values: Float[np.ndarray, " n"], is_positive: Bool[np.ndarray, " n"]) -> float:
    """Area under the ROC curve of `values`; NaN where all rows are positive, or none is."""
    n_positive = int(is_positive.sum())
    n_negative = len(values) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    above = ranks(values)[is_positive].sum() - n_positive * (n_positive + 1) / 2
    return float(above / (n_positive * n_negative))


def average_precision(
    values: Float[np.ndarray, " n"], is_positive: Bool[np.ndarray, " n"]
) -> float:
    """Area under the curve of precision by recall, from the largest value down; NaN without one.

    The sum over distinct values of the gain in recall times the precision of all rows from there
    up, so that equal values have no order.
    """
    return areas(coded(values[None]).codes[0], is_positive, np.ones(len(values), np.int64))[1]


def areas(
    codes: Int64[np.ndarray, " n"],
    is_positive: Bool[np.ndarray, " n"],
    counts: Int64[np.ndarray, " n"],
) -> tuple[float, float]:
    """Areas under the ROC curve and under that of precision by recall, of rows counted `counts`.

    `codes` are those of `coded`. NaN where no row is positive, and the first where all are.
    """
    positive = np.bincount(codes, counts * is_positive)
    negative = np.bincount(codes, counts * ~is_positive)
    n_positive, n_negative = positive.sum(), negative.sum()
    if not n_positive:
        return float("nan"), float("nan")
    hits = positive[::-1].cumsum()
    read = hits + negative[::-1].cumsum()
    precision = np.divide(hits, read, out=np.zeros(len(hits)), where=read > 0)
    by_recall = float(positive[::-1] @ precision / n_positive)
    if not n_negative:
        return float("nan"), by_recall
    below = negative.cumsum() - negative / 2
    return float(positive @ below / (n_positive * n_negative)), by_recall


class Coded(NamedTuple):
    """Rows of values by their order alone: equal values of a row have one code, 0 the least."""

    codes: Int64[np.ndarray, "rows n"]

    def ranks(self, counts: Int64[np.ndarray, " n"]) -> Float[np.ndarray, "rows n"]:
        """The mean rank of each value in its row, where value j stands there `counts[j]` times."""
        rows, n = self.codes.shape
        flat = (self.codes + n * np.arange(rows)[:, None]).ravel()
        weight = np.bincount(flat, np.tile(counts, rows), rows * n).reshape(rows, n)
        ranked: np.ndarray = np.take_along_axis(
            weight.cumsum(1) - (weight - 1) / 2, self.codes, axis=1
        )
        return ranked


def coded(values: Float[np.ndarray, "rows n"]) -> Coded:
    """The order of each row's values. Cost rows n log n."""
    order = np.argsort(values, axis=1, kind="stable")
    ascending = np.take_along_axis(values, order, axis=1)
    step = np.diff(ascending, axis=1, prepend=ascending[:, :1]) > 0
    codes = np.empty(values.shape, np.int64)
    np.put_along_axis(codes, order, step.cumsum(1), axis=1)
    return Coded(codes)


def rank_correlations(
    a: Coded, b: Coded, counts: Int64[np.ndarray, " n"]
) -> Float[np.ndarray, " rows"]:
    """Spearman's correlation of each row of `a` with that of `b`; NaN where one is constant.

    Column j is counted `counts[j]` times. Cost rows n.
    """
    ranked = [side.ranks(counts) for side in (a, b)]
    total = counts.sum()
    centred = [side - (side @ counts / total)[:, None] for side in ranked]
    squares = [np.square(side) @ counts for side in centred]
    # A constant row leaves the rounding of its mean; two ranks differ by a half at least.
    is_known = (squares[0] > 1e-6) & (squares[1] > 1e-6)
    found = np.full(len(is_known), np.nan)
    found[is_known] = ((centred[0] * centred[1]) @ counts)[is_known] / np.sqrt(
        squares[0][is_known] * squares[1][is_known]
    )
    return found
