"""Marginal contributions of every example to coalitions of systematically drawn sizes.

A unit draws H sizes a_1 to a_H from a law q, systematically: u, u + 1, ... over H uniform, through
the inverse distribution, so that every unit sees small, middle and large coalitions. For each size
it draws one coalition, and *every* example's marginal contribution to it: of those outside by
joining, of those inside by leaving, both in closed form. A unit thus has H marginals of every
example, at sizes that are spread as the law wants, where a permutation has one, at one random size.

Why this is the default. Marginals shrink as 1/k with the size k of the coalition, so along
permutations an example's value hangs on how early it happened to come, and most of the work is
spent at large k, where there is least to learn. Here little is left to chance but the coalition's
members, and the law follows from a pilot (`stages/game/pilot.py`). A marginal at size k counts
w_k / (n H Q(k)), where Q(k) is the expected number of marginals of an example at size k in one
draw: unbiased for every semivalue and any law that reaches all sizes.

Accuracy is a count of queries that change sides, and which of several examples makes a query change
is chance. So it is measured in blocks: `block` examples join in `orders` orders, rotations of one
random order, and each is credited its mean. The linear algebra is that of one block, an order costs
block^2 / 3 + block * queries per example.

Sources: sampling by coalition size and its allocation by variance and cost, Neyman 1934 and, for
Shapley values, Wu et al. 2023, arXiv:2210.16835; the systematic draws, a coalition's use for all
examples and the blocks are ours.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.game.game import Game
from stages.game.marginals import NUMBERS, block_gains, parts_of, single_gains
from stages.game.regression import Blocks, Members, Regression, join
from stages.game.sums import MarginalSums
from stages.game.utility import Utility

WIDE_NUMBERS = 2**22
"""Most numbers of a matrix product's result held at a time."""


@dataclass(frozen=True)
class Design:
    """How a unit draws its coalitions, and the orders in which examples join them."""

    n: int
    """Players of the game."""
    law: Float[np.ndarray, " sizes_and_one"]
    """q(a), the probability of a coalition of a examples, a = 0 to n."""
    draws: int
    """Coalitions per unit."""
    block: int
    """Examples of a block that joins together, for the utility accuracy; for others it is 1."""
    orders: int
    """Orders in which the examples of a block join, and over which marginals are averaged."""

    @property
    def median(self) -> int:
        """The median size of a coalition."""
        return int(np.searchsorted(np.cumsum(self.law), 0.5))

    def expected(self, block: int) -> Float[np.ndarray, " sizes"]:
        """Q(k) for k = 0 to n - 1: expected marginals of an example at size k in one draw.

        A coalition of a examples cuts those outside into blocks of `block` and one of the rest;
        each shows one example at every size from a on. Those inside are cut in the same way, and
        the last of a block to join does so at size a - 1.
        """
        steps = np.zeros(self.n + 1)
        sizes = np.arange(self.n + 1)
        for count, is_inside in ((self.n - sizes, False), (sizes, True)):
            for width, times in (
                (np.full(self.n + 1, block), count // block),
                (count % block, (count % block > 0).astype(int)),
            ):
                weight = self.law * times / self.n
                start = sizes - width if is_inside else sizes
                use = times > 0
                np.add.at(steps, start[use], weight[use])
                np.add.at(steps, (start + width)[use], -weight[use])
        expected: np.ndarray = np.cumsum(steps)[: self.n]
        return expected

    def sizes(self, generator: np.random.Generator) -> Int64[np.ndarray, " draws"]:
        """The coalition sizes of one unit, ascending, drawn systematically from the law."""
        points = (np.arange(self.draws) + generator.random()) / self.draws
        sizes = np.searchsorted(np.cumsum(self.law), points, side="right")
        capped: np.ndarray = np.minimum(sizes, self.n).astype(np.int64)
        return capped


def add_unit(
    game: Game,
    design: Design,
    utilities: tuple[Utility, ...],
    tally: MarginalSums,
    generator: np.random.Generator,
) -> None:
    """Adds the marginals of one unit to `tally`, drawing its coalitions with `generator`."""
    for size in design.sizes(generator):
        order = torch.from_numpy(generator.permutation(design.n).astype(np.int64))
        for utility, ids, first, marginals in coalition(game, design, order, int(size), utilities):
            tally.add(utility, ids, first, marginals)


def coalition(
    game: Game,
    design: Design,
    order: Int64[Tensor, " n"],
    size: int,
    utilities: tuple[Utility, ...],
) -> Iterator[tuple[Utility, Int64[Tensor, "blocks rows"], int, Tensor]]:
    """Marginals of all examples for the coalition of the first `size` examples of `order`.

    Yields the utility, ids of examples by block and row, the coalition size that the first row of
    each block joins (row j joins j more), and the marginals, in the form of `MarginalSums.add`.
    """
    regression = game.regression()
    members, others = order[:size], order[size:]
    if size:
        regression.take(members)
    yield from outside(game, design, regression, others, size, utilities)
    block = design.block if "accuracy" in utilities else 1
    for at in _cut(size, block, WIDE_NUMBERS // _numbers_per_row(game)):
        inside: Members = regression.inside(at)
        first = size - at.shape[1]
        for utility, ids, start, gain in _marginals(
            game, design, inside, members[at], first, utilities
        ):
            yield utility, ids, start if utility == "accuracy" else size - 1, gain


def outside(
    game: Game,
    design: Design,
    regression: Regression,
    others: Int64[Tensor, " others"],
    size: int,
    utilities: tuple[Utility, ...],
) -> Iterator[tuple[Utility, Int64[Tensor, "blocks rows"], int, Tensor]]:
    """The marginals that `coalition` yields of the examples `others`, which are not members.

    `regression` is fitted on the `size` members.
    """
    block = design.block if "accuracy" in utilities else 1
    widest = max(_numbers_per_row(game), size if game.dim is None else 0)
    for at in _cut(len(others), block, WIDE_NUMBERS // widest):
        ids = others[at]
        blocks = regression.outside(ids)
        yield from _marginals(game, design, blocks, ids, size, utilities)


def _numbers_per_row(game: Game) -> int:
    """Numbers of the widest row that an engine makes for one example."""
    return max(game.width, game.dim or 1)


def _marginals(
    game: Game,
    design: Design,
    blocks: Blocks | Members,
    ids: Int64[Tensor, "blocks rows"],
    first: int,
    utilities: tuple[Utility, ...],
) -> Iterator[tuple[Utility, Int64[Tensor, "blocks rows"], int, Tensor]]:
    """Marginals of the examples `ids`: of accuracy in their blocks, of other utilities alone.

    `first` is the coalition size that the first row of a block joins.
    """
    for name in utilities:
        if name != "accuracy":
            yield name, ids.reshape(-1, 1), first, single_gains(game, blocks, name)
    if "accuracy" in utilities:
        width = ids.shape[1]
        turns = min(design.orders, width)
        seen = blocks.without() if isinstance(blocks, Members) else blocks
        for part in parts_of(len(ids), NUMBERS // (game.judge.n_queries * width)):
            together = seen.at(part)
            for turn in range(turns):
                order = torch.arange(width).roll(-(turn * width // turns))
                gain = block_gains(game, join(together, order), together.outputs)
                yield "accuracy", ids[part][:, order], first, gain / turns


def _cut(count: int, block: int, most: int) -> Iterator[Int64[Tensor, "blocks rows"]]:
    """Positions 0 to count - 1 in blocks, about `most` rows at a time; the rest as one block."""
    whole = count // block
    per_part = max(1, most // block)
    for start in range(0, whole, per_part):
        stop = min(whole, start + per_part)
        yield torch.arange(start * block, stop * block).view(-1, block)
    if count % block:
        yield torch.arange(whole * block, count)[None]
