"""Marginal contributions of examples along random permutations, whole or truncated.

Units, the independent estimates: one permutation (`uniform`), a permutation and its reverse
(`paired`, antithetic, arXiv:2104.12199), or a permutation and its rotations by whole fractions of
its length (`quasi_random`: within a unit every example is once in each fraction of the order; ours,
after lattice rules). Truncation: by the paper's rule, biased towards small coalitions, or at a
random length T that is drawn first, with P(T >= s) = min(1, survival / s), which is made up for by
weights. [paper]
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.game.game import Game
from stages.game.regression import Measure, Regression, gains, join
from stages.game.utility import Utility

Sampling = Literal["stratified", "uniform", "paired", "quasi_random", "regression_msr", "adalina"]
Truncation = Literal["none", "tolerance", "random"]

JoinedBlock = tuple[Int64[Tensor, "blocks rows"], int, list[Tensor]]
"""Ids of examples, the coalition size that their first row joins, and marginals per utility."""


@runtime_checkable
class TakesMarginals(Protocol):
    """What marginals along permutations are added to, such as `MarginalSums`."""

    def add(
        self,
        utility: Utility,
        ids: Int64[Tensor, "blocks rows"],
        first: int,
        gains: Float[Tensor, "blocks rows *queries"],
    ) -> None:
        """See `MarginalSums.add`."""


ROTATIONS = 4
PRIOR_ORDERS = 16
"""Permutations that the examples' mean variance counts for. Of 8, 12, 16 and 24 the first with
which 95 % intervals of 24 units held 94 % of values (scripts/benchmarks/coverage.md).
"""
BATCH = 16
"""Permutations whose first examples join together, in one batch of matrix products."""
FIRST = 64
"""Examples at the start of a permutation that are computed for a batch of permutations at once,
since they join the empty coalition."""


def orders_per_unit(n: int, sampling: Sampling) -> int:
    """How many permutations of n examples a unit has."""
    return {"paired": 2, "quasi_random": min(ROTATIONS, n)}.get(sampling, 1)


def prior_units(n: int, sampling: Sampling) -> int:
    """`n_prior` of `stages.game.uncertainty.moderated` in units of permutations."""
    return PRIOR_ORDERS // orders_per_unit(n, sampling)


def unit_of(order: Int64[Tensor, " n"], sampling: Sampling) -> list[Int64[Tensor, " n"]]:
    """The permutations of one unit, the first being `order`."""
    if sampling == "paired":
        return [order, order.flip(0)]
    if sampling == "quasi_random":
        count = orders_per_unit(len(order), sampling)
        return [order.roll(-(turn * len(order) // count)) for turn in range(count)]
    return [order]


def survival_of(n: int, truncation: Truncation, survival: float) -> Float[np.ndarray, " sizes"]:
    """The probability that a permutation reaches a marginal at each size 0 to n - 1."""
    sizes = np.arange(1, n + 1)
    return np.minimum(1, survival / sizes) if truncation == "random" else np.ones(n)


def walk(
    game: Game,
    orders: list[Int64[Tensor, " n"]],
    lengths: list[int],
    utilities: tuple[Utility, ...],
    tally: TakesMarginals,
    ends: Float[Tensor, "utilities ends *queries"],
    tolerance: float | None = None,
) -> Iterator[int]:
    """Adds the marginals along each permutation, up to its length, to `tally`.

    Yields the index of each permutation in `orders` once it is done, in order. `ends` are U(empty)
    and U(all) of each utility: with a `tolerance`, a permutation ends after two examples in a row
    at which every utility is within that share of |U(all) - U(empty)| from its U(all).
    """
    first = min(FIRST, len(orders[0]))
    measures = [game.measure(name) for name in utilities]
    for start in range(0, len(orders), BATCH):
        ids = torch.stack([order[:first] for order in orders[start : start + BATCH]])
        blocks = game.regression().outside(ids)
        joined = join(blocks)
        by_utility = gains(joined, blocks.outputs, measures)
        for row in range(len(ids)):
            order, length = orders[start + row], lengths[start + row]
            stop = _ToleranceRule(ends, tolerance)
            kept = stop.after([gain[row] for gain in by_utility], min(first, length))
            own = slice(row, row + 1)
            walked: Iterable[JoinedBlock] = [
                (ids[own, :kept], 0, [gain[own, :kept] for gain in by_utility])
            ]
            if length > first and not stop.is_reached:
                regression = game.regression()
                regression.take_block(ids[row], blocks.at(own), joined.at(own))
                walked = itertools.chain(
                    walked, _walk_on(regression, order[:length], first, measures, stop)
                )
            for joining, size, marginals in walked:
                for name, gain in zip(utilities, marginals, strict=True):
                    tally.add(name, joining, size, gain)
            yield start + row


def _walk_on(
    regression: Regression,
    order: Int64[Tensor, " length"],
    first: int,
    measures: list[Measure],
    stop: "_ToleranceRule",
) -> Iterator[JoinedBlock]:
    """The marginals of `order` after its `first` examples, block by block, until `stop`."""
    for block in torch.split(order[first:], regression.rows):
        blocks = regression.outside(block[None])
        joined = join(blocks)
        by_utility = gains(joined, blocks.outputs, measures)
        kept = stop.after([gain[0] for gain in by_utility], len(block))
        yield block[None, :kept], first, [gain[:, :kept] for gain in by_utility]
        first += len(block)
        if stop.is_reached or first == len(order):
            return
        regression.take_block(block, blocks, joined)


class _ToleranceRule:
    """The paper's truncation of one permutation, for all utilities together."""

    def __init__(self, ends: Float[Tensor, "utilities ends *queries"], tolerance: float | None):
        self._value, self._end = ends[:, 0], ends[:, 1]
        self._near = None if tolerance is None else tolerance * (ends[:, 1] - ends[:, 0]).abs()
        self._was_near = False
        self.is_reached = False

    def after(self, marginals: list[Tensor], most: int) -> int:
        """How many marginals of the next block count, at most `most`; one tensor per utility."""
        if self._near is None:
            return most
        values = self._value[:, None] + torch.stack(marginals).cumsum(1)
        self._value = values[:, -1]
        is_near = ((values - self._end[:, None]).abs() <= self._near[:, None]).all(0)
        twice = is_near & torch.cat([torch.tensor([self._was_near]), is_near[:-1]])
        self._was_near = bool(is_near[-1])
        if not twice.any():
            return most
        self.is_reached = True
        return int(twice.nonzero()[0]) + 1
