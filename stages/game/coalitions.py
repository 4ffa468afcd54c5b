"""Marginal contributions of every example to coalitions of systematically drawn sizes.

A unit draws H sizes a_1 to a_H from a law q, systematically: u, u + 1, ... over H uniform, through
the inverse distribution, so that every unit sees small, middle and large coalitions. For each size
it draws one coalition, and *every* example's marginal contribution to it: of those outside by
joining, of those inside by leaving, both in closed form. An example is thus seen H times a unit, at
sizes that are spread as the law wants, where a permutation shows it once, at one random size.

Why this is the default. Marginals shrink as 1/k with the size k of the coalition, so along
permutations an example's value hangs on how early it happened to come, and most of the work is
spent at large k, where there is least to learn. Here little is left to chance but the coalition's
members, and the law follows from a pilot (`stages/game/pilot.py`). An example that is seen at size
k counts w_k / (n H Q(k)), where Q(k) is how often one draw shows it at size k, on average: unbiased
for every semivalue and any law that reaches all sizes.

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
from stages.game.regression import Blocks, Members, Regression, gains, join
from stages.game.sums import Tally
from stages.game.utility import Utility

NUMBERS = 2**19
"""Outputs (blocks x rows x outputs x queries) held at a time; a few megabytes stay in the cache."""
WIDE_NUMBERS = 2**22
"""Numbers of a matrix product's result held at a time."""


@dataclass(frozen=True)
class Design:
    """How coalitions are drawn and used."""

    n: int
    law: Float[np.ndarray, " sizes_and_one"]
    """q(a), the probability of a coalition of a examples, a = 0 to n."""
    draws: int
    """Coalitions per unit."""
    block: int
    """Examples that join together where accuracy is measured."""
    orders: int
    """Orders they join in."""

    @property
    def median(self) -> int:
        """Half of the coalitions have no more examples."""
        return int(np.searchsorted(np.cumsum(self.law), 0.5))

    def expected(self, block: int) -> Float[np.ndarray, " sizes"]:
        """Q(k): how often an example is seen at size k = 0 to n - 1 in a draw, on average.

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
        found: np.ndarray = np.cumsum(steps)[: self.n]
        return found

    def sizes(self, generator: np.random.Generator) -> Int64[np.ndarray, " draws"]:
        """The sizes of a unit, ascending."""
        points = (np.arange(self.draws) + generator.random()) / self.draws
        at = np.searchsorted(np.cumsum(self.law), points, side="right")
        found: np.ndarray = np.minimum(at, self.n).astype(np.int64)
        return found


def add_unit(
    game: Game,
    design: Design,
    utilities: tuple[Utility, ...],
    tally: Tally,
    generator: np.random.Generator,
) -> None:
    """Adds the marginals of one unit to `tally`."""
    for size in design.sizes(generator):
        order = torch.from_numpy(generator.permutation(design.n).astype(np.int64))
        for utility, ids, first, found in coalition(game, design, order, int(size), utilities):
            tally.add(utility, ids, first, found)


def coalition(
    game: Game,
    design: Design,
    order: Int64[Tensor, " n"],
    size: int,
    utilities: tuple[Utility, ...],
) -> Iterator[tuple[Utility, Int64[Tensor, "blocks rows"], int, Tensor]]:
    """Utility, examples, the size they join at, and gains, for the first `size` of `order`."""
    regression = game.regression()
    members, others = order[:size], order[size:]
    if size:
        regression.take(members)
    yield from outside(game, design, regression, others, size, utilities)
    block = design.block if "accuracy" in utilities else 1
    for at in _cut(size, block, WIDE_NUMBERS // _numbers_per_row(game)):
        found: Members = regression.inside(at)
        left_out = found.without() if "accuracy" in utilities else None
        first = size - at.shape[1]
        for utility, ids, start, gain in _measured(
            game, design, found.singles(), left_out, members[at], first, utilities
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
    """What `coalition` yields for those outside, beside a regression on `size` examples."""
    block = design.block if "accuracy" in utilities else 1
    widest = max(_numbers_per_row(game), size if game.dim is None else 0)
    for at in _cut(len(others), block, WIDE_NUMBERS // widest):
        ids = others[at]
        blocks = regression.outside(ids)
        yield from _measured(game, design, blocks.singles(), blocks, ids, size, utilities)


def _numbers_per_row(game: Game) -> int:
    return max(game.width, game.dim or 1)


def _measured(
    game: Game,
    design: Design,
    singles: Blocks,
    blocks: Blocks | None,
    ids: Int64[Tensor, "blocks rows"],
    first: int,
    utilities: tuple[Utility, ...],
) -> Iterator[tuple[Utility, Int64[Tensor, "blocks rows"], int, Tensor]]:
    smooth = [name for name in utilities if name != "accuracy"]
    flat = ids.reshape(-1, 1)
    if smooth:
        for part in _parts(len(flat), NUMBERS // game.width):
            some = singles.at(part)
            found = gains(join(some), some.outputs, [game.measure(name) for name in smooth])
            for name, gain in zip(smooth, found, strict=True):
                yield name, flat[part], first, gain
    if blocks is not None and "accuracy" in utilities:
        measure, width = [game.measure("accuracy")], ids.shape[1]
        turns = min(design.orders, width)
        for part in _parts(len(ids), NUMBERS // (game.width * width)):
            some = blocks.at(part)
            for turn in range(turns):
                order = torch.arange(width).roll(-(turn * width // turns))
                (gain,) = gains(join(some, order), some.outputs, measure)
                yield "accuracy", ids[part][:, order], first, gain / turns


def _cut(count: int, block: int, most: int) -> Iterator[Int64[Tensor, "blocks rows"]]:
    """0 to count - 1 as blocks, about `most` rows at a time, and one block of those left over."""
    whole = count // block
    per_part = max(1, most // block)
    for start in range(0, whole, per_part):
        stop = min(whole, start + per_part)
        yield torch.arange(start * block, stop * block).view(-1, block)
    if count % block:
        yield torch.arange(whole * block, count)[None]


def _parts(count: int, most: int) -> Iterator[slice]:
    for start in range(0, count, max(1, most)):
        yield slice(start, start + max(1, most))
