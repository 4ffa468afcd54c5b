"""Running sums of marginal contributions: every semivalue at once, and a diagnosis by size."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor


class Tally:
    """Sums over the units of a round, and how marginals spread over coalition sizes.

    A marginal of an example that joins k others adds weight_k times itself to each semivalue, where
    weight_k = w_k / (n times how often a unit shows an example at size k, on average): so a unit's
    total is an unbiased estimate of the semivalue, whatever the sampling. [ours; the estimator of
    Horvitz and Thompson 1952]
    """

    def __init__(
        self,
        utilities: tuple[str, ...],
        weights: Mapping[str, Float[np.ndarray, "semivalues sizes"]],
        n_queries: int | None = None,
    ):
        """No unit yet. `weights` are per utility; with `n_queries`, values are kept per query."""
        self._at = {name: row for row, name in enumerate(utilities)}
        self._weights = {name: torch.from_numpy(found) for name, found in weights.items()}
        n_semivalues, n = next(iter(weights.values())).shape
        shape = (n_semivalues, len(utilities), n)
        self._unit = torch.zeros(*shape, *((n_queries,) if n_queries else ()), dtype=torch.float64)
        self._seen = torch.zeros(len(utilities), n, dtype=torch.bool)
        self.total, self.total_sq = torch.zeros_like(self._unit), torch.zeros_like(self._unit)
        self.n_observed = torch.zeros(len(utilities), n, dtype=torch.int64)
        self.n_units = 0
        self.strata = torch.zeros(len(utilities), n.bit_length(), 3, dtype=torch.float64)
        """Of each utility and stratum: marginals, the sum of their sizes |.|, of their squares."""

    def add(
        self,
        utility: str,
        ids: Int64[Tensor, "blocks rows"],
        first: int,
        gains: Float[Tensor, "blocks rows *queries"],
    ) -> None:
        """Marginals of examples, each named once, that join `first`, `first` + 1, ... others."""
        row, size = self._at[utility], slice(first, first + ids.shape[1])
        weights = self._weights[utility][:, None, size]
        weights = weights.reshape(*weights.shape, *([1] * (gains.ndim - 2)))
        gains = gains.to(torch.float64)
        flat = (weights * gains).flatten(1, 2)
        self._unit[:, row].index_add_(1, ids.flatten(), flat)
        self._seen[row, ids.flatten()] = True
        if gains.ndim == 2:
            stratum = torch.arange(size.start, size.stop).add(1).log2().floor().long()
            counts = torch.full((ids.shape[1],), float(ids.shape[0]), dtype=torch.float64)
            moments = [counts, gains.abs().sum(0), gains.square().sum(0)]
            self.strata[row].index_add_(0, stratum, torch.stack(moments, 1))

    def estimates(self) -> tuple[Tensor, Tensor]:
        """The means over the units, and their standard errors; those take two units at least."""
        mean = self.total / self.n_units
        # Equal units leave only the rounding of two nearly equal numbers, which is no spread.
        spread = self.total_sq - self.total * mean
        spread = torch.where(spread > 1e-13 * self.total_sq, spread, 0.0)
        return mean, (spread / (self.n_units - 1) / self.n_units).sqrt()

    def close_unit(self) -> None:
        """What was added since the last call is one unit."""
        self.total += self._unit
        self.total_sq += self._unit.square()
        self.n_observed += self._seen
        self.n_units += 1
        self._unit.zero_()
        self._seen.zero_()
