"""Marginal contributions from `Blocks` and `Members`, and what of them needs no computing.

Nearly all of the time of a game goes into turning outputs into utilities: n examples times queries
times classes for one coalition. Most of it can be saved:

- Accuracy: a block of examples moves the outputs of query t by sum_j to_queries[j, t] residual[j].
  The difference of two classes moves by no more than sum_j |to_queries[j, t]| spread_j, where
  spread_j is the largest less the smallest of residual[j], and for two classes, of which one output
  stands for both, |residual[j]|. Where the label leads or trails by more, no example of the block
  changes anything, in whatever order they join, and the marginals are exactly 0. [derived]
- Cross-entropy of more than two classes: one example moves the outputs o of query t, with the
  softmax p and the label y, to o + x r, where x = to_queries[t] and r is its residual. The gain is

      x r_y - log sum_c p_c exp(x r_c) = x r_y - log(1 + sum_{k >= 1} x^k / k! sum_c p_c r_c^k).

  The inner sums are matrix products. `TERMS` of them leave a remainder below the rounding of 1
  where |x| max|r| is at most (eps (TERMS + 1)!)^(1 / (TERMS + 1)): 0.35 in float32, 0.02 in
  float64. The few queries that an example moves further are computed by the definition. [derived]

Both give what the definition does, up to rounding; where little could be saved, `gains` computes
the definition.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stages.game.game import Game
from stages.game.regression import Blocks, Joined, Members, gains, join
from stages.game.utility import Judge, Utility

NUMBERS = 2**19
"""Most outputs (blocks x rows x outputs x queries) held at a time; a few megabytes stay in the
cache."""
TERMS = 6
"""Terms of the series of a cross-entropy's gain."""
MOST_OPEN = 0.25
"""Up to this share of a part's pairs of examples or blocks and queries are computed one by one; of
more, all are, but for the accuracy of more than two classes, where that never was faster."""


def parts_of(count: int, most: int) -> Iterator[slice]:
    """Slices of 0 to count - 1, each of at most `most`."""
    for start in range(0, count, max(1, most)):
        yield slice(start, min(count, start + max(1, most)))


def single_gains(
    game: Game, blocks: Blocks | Members, utility: Utility
) -> Float[Tensor, "examples one *queries"]:
    """Marginals of the examples of all blocks, each alone. Float64.

    `Blocks` must share one regression.
    """
    judge, n = game.judge, blocks.to_queries.shape[:2].numel()
    if utility == "cross_entropy" and isinstance(judge, Judge) and not judge.is_binary:
        step = _Step(judge, blocks)
        return torch.cat(
            [
                _by_definition(game, blocks, utility, part) if gain is None else gain
                for part in parts_of(n, NUMBERS // judge.n_queries)
                for gain in [step.gains(part, game.by_query)]
            ]
        )
    return _by_definition(game, blocks, utility, slice(0, n))


def _by_definition(
    game: Game, blocks: Blocks | Members, utility: Utility, part: slice
) -> Float[Tensor, "examples one *queries"]:
    """What `single_gains` gives for a slice of the examples, every output computed."""
    found, measure = [], [game.measure(utility)]
    for inner in parts_of(part.stop - part.start, NUMBERS // game.width):
        alone = blocks.singles(slice(part.start + inner.start, part.start + inner.stop))
        found.append(gains(join(alone), alone.outputs, measure)[0].to(torch.float64))
    return torch.cat(found)


class _Step:
    """Cross-entropies of the queries where single examples join a coalition, or leave it."""

    def __init__(self, judge: Judge, blocks: Blocks | Members):
        if isinstance(blocks, Blocks):
            outputs, square, residual = blocks.outputs[0], blocks.schur, blocks.residual
            self._sign = 1.0
        else:  # Their outputs are those with them, and what is lost is gained the other way.
            outputs, square, residual = blocks.outputs, blocks.precision, blocks.dual
            self._sign = -1.0
        self._judge = judge
        self._logs = (outputs / judge.temperature).log_softmax(0)
        self._shares = self._logs.exp()
        pivot = square.diagonal(dim1=1, dim2=2).reshape(-1, 1)
        self._residual = residual.flatten(0, 1) / (self._sign * pivot * judge.temperature)
        self._to_queries = blocks.to_queries.flatten(0, 1)
        eps = torch.finfo(outputs.dtype).eps
        self._furthest = (eps * math.factorial(TERMS + 1)) ** (1 / (TERMS + 1))

    def gains(self, part: slice, by_query: bool) -> Float[Tensor, "examples one *queries"] | None:
        """The gains by a slice of the examples; None where more than `MOST_OPEN` move far."""
        x, residual = self._to_queries[part], self._residual[part]
        is_far = x.abs() * residual.abs().amax(1, keepdim=True) > self._furthest
        if is_far.count_nonzero() > MOST_OPEN * is_far.numel():
            return None
        powers = [residual]
        for k in range(2, TERMS + 1):
            powers.append(powers[-1] * (residual / k))
        total = powers.pop() @ self._shares
        while powers:
            total.mul_(x).addmm_(powers.pop(), self._shares)
        gain = x * residual[:, self._judge.labels] - total.mul_(x).log1p_()
        for pairs in torch.split(is_far.nonzero(), max(1, NUMBERS // len(self._logs))):
            example, query = pairs.T
            move = x[example, query, None] * residual[example]
            own = move.gather(1, self._judge.labels[query, None])[:, 0]
            gain[example, query] = own - (self._logs.T[query] + move).logsumexp(1)
        gain = gain.mul_(self._sign)[:, None]
        return gain.double() if by_query else gain.mean(2, dtype=torch.float64)


def block_gains(
    game: Game, joined: Joined, outputs: Float[Tensor, "one_or_blocks outputs queries"]
) -> Float[Tensor, "blocks rows *queries"]:
    """Marginals to accuracy of each row of each block, in joining order; see `gains`. Float64.

    `outputs` are those before the block joins, one for all blocks or one each.
    """
    judge = game.judge
    assert isinstance(judge, Judge), "only classes are right or wrong"
    n_blocks, n_rows = joined.residual.shape[:2]
    is_open = _may_turn(judge, joined, outputs)
    if judge.is_binary and is_open.count_nonzero() > MOST_OPEN * is_open.numel():
        return gains(joined, outputs, [game.measure("accuracy")])[0].to(torch.float64)
    shape = (n_rows, n_blocks, judge.n_queries) if game.by_query else (n_rows, n_blocks)
    found = torch.zeros(shape, dtype=torch.float64)
    to_queries, residual = joined.to_queries.transpose(0, 1), joined.residual.permute(1, 2, 0)
    for pairs in torch.split(is_open.nonzero(), max(1, NUMBERS // (judge.n_outputs * n_rows))):
        block, query = pairs.T
        before = outputs.transpose(0, 1)[:, block if len(outputs) > 1 else 0, query]
        grown = residual[..., block] * to_queries[:, None, block, query]
        grown[0] += before
        torch.cumsum(grown, 0, out=grown)
        judged = judge.of(query).each(torch.cat([before[None], grown]), "accuracy")
        gain = judged.diff(dim=0).to(torch.float64)
        if game.by_query:
            found[:, block, query] = gain
        else:
            found.index_add_(1, block, gain / judge.n_queries)
    return found.transpose(0, 1)


def _may_turn(
    judge: Judge, joined: Joined, outputs: Float[Tensor, "one_or_blocks outputs queries"]
) -> Bool[Tensor, "blocks queries"]:
    """Whether some example of the block could change whether the query is right."""
    if judge.is_binary:
        spread, lead = joined.residual[..., 0].abs(), outputs[:, 0]
    else:
        spread = joined.residual.amax(-1) - joined.residual.amin(-1)
        lead = judge.each(outputs, "margin")
    furthest = (spread[:, None] @ joined.to_queries.abs())[:, 0]
    return lead.abs() <= furthest + 2 * judge.tie(outputs.dtype)
