"""Marginal contributions along random permutations, whole or cut short.

ExplainedOutputs: one permutation (`uniform`), a permutation and its reverse (`paired`, antithetic,
arXiv:2104.12199), or a permutation and its rotations by whole fractions of its length
(`quasi_random`: within a unit every example is once in each fraction of the order; ours, after
lattice rules). Cutting short: by the paper's rule, biased towards small coalitions, or at a random
length T that is drawn first, with P(T >= s) = min(1, survival / s), which is made up for by
weights. [paper; design.md 5.3]
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.game.game import Game
from stages.game.regression import Measure, Regression, gains, join
from stages.game.sums import Tally
from stages.game.utility import Utility

Sampling = Literal["stratified", "uniform", "paired", "quasi_random"]
Truncation = Literal["none", "tolerance", "random"]

Piece = tuple[Int64[Tensor, "blocks rows"], int, list[Tensor]]
"""Examples, the size of the coalition that their first row joins, and gains of each utility."""

ROTATIONS = 4
BATCH = 16
FIRST = 64
"""Examples of every permutation of a round that join in one batch, since they join nobody."""


def orders_per_unit(n: int, sampling: Sampling) -> int:
    """Permutations of n examples in one unit."""
    return {"paired": 2, "quasi_random": min(ROTATIONS, n)}.get(sampling, 1)


def unit_of(order: Int64[Tensor, " n"], sampling: Sampling) -> list[Int64[Tensor, " n"]]:
    """The permutations of one unit, the first being `order`."""
    if sampling == "paired":
        return [order, order.flip(0)]
    if sampling == "quasi_random":
        count = orders_per_unit(len(order), sampling)
        return [order.roll(-(turn * len(order) // count)) for turn in range(count)]
    return [order]


def survival_of(n: int, truncation: Truncation, survival: float) -> Float[np.ndarray, " sizes"]:
    """Share of permutations that go on to a marginal at each size 0 to n - 1."""
    sizes = np.arange(1, n + 1)
    return np.minimum(1, survival / sizes) if truncation == "random" else np.ones(n)


def walk(
    game: Game,
    orders: list[Int64[Tensor, " n"]],
    lengths: list[int],
    utilities: tuple[Utility, ...],
    tally: Tally,
    ends: Float[Tensor, "utilities ends *queries"],
    tolerance: float | None = None,
) -> Iterator[int]:
    """Adds the marginals along each permutation, up to its length, to `tally`.

    Yields the place of a permutation when it is done, in order. `ends` are each utility of none and
    of all examples: with a `tolerance`, a permutation ends after two steps in a row at which every
    utility is within that share of their distance from its end.
    """
    first = min(FIRST, len(orders[0]))
    measures = [game.measure(name) for name in utilities]
    for start in range(0, len(orders), BATCH):
        ids = torch.stack([order[:first] for order in orders[start : start + BATCH]])
        blocks = game.regression().outside(ids)
        joined = join(blocks)
        found = gains(joined, blocks.outputs, measures)
        for at in range(len(ids)):
            order, length = orders[start + at], lengths[start + at]
            stop = _Stop(ends, tolerance)
            kept = stop.after([gain[at] for gain in found], min(first, length))
            one = slice(at, at + 1)
            pieces: Iterable[Piece] = [(ids[one, :kept], 0, [gain[one, :kept] for gain in found])]
            if length > first and not stop.is_reached:
                regression = game.regression()
                regression.take_block(ids[at], blocks.at(one), joined.at(one))
                pieces = itertools.chain(
                    pieces, _go_on(regression, order[:length], first, measures, stop)
                )
            for some, size, piece in pieces:
                for name, gain in zip(utilities, piece, strict=True):
                    tally.add(name, some, size, gain)
            yield start + at


def _go_on(
    regression: Regression,
    order: Int64[Tensor, " length"],
    first: int,
    measures: list[Measure],
    stop: "_Stop",
) -> Iterator[Piece]:
    """The rest of a permutation, block by block, until its end or `stop`."""
    for block in torch.split(order[first:], regression.rows):
        blocks = regression.outside(block[None])
        joined = join(blocks)
        found = gains(joined, blocks.outputs, measures)
        kept = stop.after([gain[0] for gain in found], len(block))
        yield block[None, :kept], first, [gain[:, :kept] for gain in found]
        first += len(block)
        if stop.is_reached or first == len(order):
            return
        regression.take_block(block, blocks, joined)


class _Stop:
    """The paper's rule (methods.md 1.5), over the utilities that are asked for."""

    def __init__(self, ends: Float[Tensor, "utilities ends *queries"], tolerance: float | None):
        self._value, self._end = ends[:, 0], ends[:, 1]
        self._near = None if tolerance is None else tolerance * (ends[:, 1] - ends[:, 0]).abs()
        self._was_near = False
        self.is_reached = False

    def after(self, found: list[Tensor], most: int) -> int:
        """How many of a block's marginals count, `most` at most."""
        if self._near is None:
            return most
        values = self._value[:, None] + torch.stack(found).cumsum(1)
        self._value = values[:, -1]
        is_near = ((values - self._end[:, None]).abs() <= self._near[:, None]).all(0)
        twice = is_near & torch.cat([torch.tensor([self._was_near]), is_near[:-1]])
        self._was_near = bool(is_near[-1])
        if not twice.any():
            return most
        self.is_reached = True
        return int(twice.nonzero()[0]) + 1
