"""Rows of feature tables, read from their memory maps when they are asked for."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.stage import Vectors


class FeatureRows:
    """Rows of several feature tables side by side, read from their maps when they are asked for.

    Each is scaled to unit length, or its table to a mean square length of 1 where there are
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
        """Rows for `ids`; those of queries are told the `scales` of the examples."""
        self._dtype, self._is_unit = dtype, is_unit
        self._tables = [(table.matrix, _places(table, ids)) for table in tables]
        self.scales = scales or [1.0] * len(tables)
        if scales is None and not is_unit and len(tables) > 1:
            self.scales = [_mean_length(m, at) for m, at in self._tables]

    def __call__(self, rows: Int64[Tensor, " rows"]) -> Float[Tensor, "rows dim"]:
        """The features of some examples, by their place among the ids."""
        at = rows.numpy()
        parts = []
        for (matrix, places), scale in zip(self._tables, self.scales, strict=True):
            part = torch.from_numpy(matrix[places[at]]).to(self._dtype)
            if self._is_unit:
                length = part.norm(dim=1, keepdim=True)
                part /= torch.where(length > 0, length, 1.0)
            if len(self._tables) > 1:
                part /= scale * len(self._tables) ** 0.5
            parts.append(part)
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def _places(table: Vectors, ids: np.ndarray) -> np.ndarray:
    order = np.argsort(table.ids, kind="stable")
    at: np.ndarray = order[np.searchsorted(table.ids, ids, sorter=order)]
    return at


def _mean_length(matrix: np.ndarray, places: np.ndarray) -> float:
    total = 0.0
    for start in range(0, len(places), 4096):
        part = np.asarray(matrix[places[start : start + 4096]], np.float64)
        total += float((part**2).sum())
    return float((total / len(places)) ** 0.5)
