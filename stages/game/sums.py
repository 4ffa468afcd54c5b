"""Running sums of marginal contributions: for every semivalue at once, and by coalition size."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.game.uncertainty import moderated


class MarginalSums:
    """Sums of weighted marginals over the units of a round, and moments of marginals by size.

    A unit is one independent estimate of every value. The marginal of an example that joins k
    others adds weight_k times itself to each semivalue, where
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
        """Empty sums. `weights` holds each utility's weight_k; `n_queries` keeps sums per query."""
        self._row_of = {name: row for row, name in enumerate(utilities)}
        self._weights = {name: torch.from_numpy(by_size) for name, by_size in weights.items()}
        n_semivalues, n = next(iter(weights.values())).shape
        shape = (n_semivalues, len(utilities), n)
        self._unit = torch.zeros(*shape, *((n_queries,) if n_queries else ()), dtype=torch.float64)
        self._seen = torch.zeros(len(utilities), n, dtype=torch.bool)
        self.total, self.total_sq = torch.zeros_like(self._unit), torch.zeros_like(self._unit)
        self.n_observed = torch.zeros(len(utilities), n, dtype=torch.int64)
        self.n_units = 0
        self.unit_sums: list[Float[Tensor, "semivalues utilities *queries"]] = []
        """The sum over the examples of each unit's estimates."""
        self.strata = torch.zeros(len(utilities), n.bit_length(), 3, dtype=torch.float64)
        """By utility and stratum (sizes 2^s - 1 to 2^(s+1) - 2 for stratum s): how many marginals,
        the sum of their absolute values, the sum of their squares."""

    def add(
        self,
        utility: str,
        ids: Int64[Tensor, "blocks rows"],
        first: int,
        gains: Float[Tensor, "blocks rows *queries"],
    ) -> None:
        """Adds marginals: column j of `gains` is of examples that join coalitions of `first` + j.

        An example occurs once in `ids` at most.
        """
        row, size = self._row_of[utility], slice(first, first + ids.shape[1])
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

    def add_values(self, values: Float[Tensor, "semivalues utilities examples *queries"]) -> None:
        """Adds an unbiased estimate of all semivalues, by coalitions that show every example."""
        self._unit += values
        self._seen[:] = True

    def estimates(self, n_prior: int = 0) -> tuple[Tensor, Tensor]:
        """The values, means over the units, and their standard errors: NaN of one unit.

        `n_prior` is that of `moderated`.
        """
        mean = self.total / self.n_units
        if self.n_units < 2:
            return mean, torch.full_like(mean, float("nan"))
        # Equal units leave only the rounding of two nearly equal numbers, which is no spread.
        spread = self.total_sq - self.total * mean
        spread = torch.where(spread > 1e-13 * self.total_sq, spread, 0.0)
        own = (spread / (self.n_units - 1)).movedim(2, -1).numpy()
        variance = torch.from_numpy(moderated(own, self.n_units, n_prior)).movedim(-1, 2)
        return mean, (variance / self.n_units).sqrt()

    def close_unit(self) -> None:
        """Ends a unit: the marginals added since the last call are one estimate of the values."""
        self.total += self._unit
        self.total_sq += self._unit.square()
        self.n_observed += self._seen
        self.n_units += 1
        self.unit_sums.append(self._unit.sum(2))
        self._unit.zero_()
        self._seen.zero_()
