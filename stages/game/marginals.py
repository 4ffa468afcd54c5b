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
from collections.abc import Iterator, Sequence
from typing import NamedTuple

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
"""Up to this share of queries are computed one by one; of more, all are."""


def parts_of(count: int, most: int) -> Iterator[slice]:
    """Slices of 0 to count - 1, each of at most `most`."""
    for start in range(0, count, max(1, most)):
        yield slice(start, start + max(1, most))


class Moves(NamedTuple):
    """Examples that join one coalition, or leave it, each alone: outputs move by rank one."""

    outputs: Float[Tensor, "outputs queries"]
    """Of the coalition."""
    to_queries: Float[Tensor, "examples queries"]
    residual: Float[Tensor, "examples outputs"]
    """An example moves the outputs of query t to outputs[:, t] + to_queries[:, t] residual."""
    is_leaving: bool
    """Whether the coalition has the examples, whose marginals are then what is lost."""

    def at(self, part: slice) -> "Moves":
        """A slice of the examples."""
        return self._replace(to_queries=self.to_queries[part], residual=self.residual[part])


def moves_of(blocks: Blocks | Members) -> Moves:
    """The examples of all blocks, each moving the outputs alone; `Blocks` must share theirs."""
    if isinstance(blocks, Blocks):
        pivot = blocks.schur.diagonal(dim1=1, dim2=2).reshape(-1, 1)
        residual = blocks.residual.flatten(0, 1) / pivot
        return Moves(blocks.outputs[0], blocks.to_queries.flatten(0, 1), residual, False)
    pivot = blocks.precision.diagonal(dim1=1, dim2=2).reshape(-1, 1)
    residual = blocks.dual.flatten(0, 1) / -pivot
    return Moves(blocks.outputs, blocks.to_queries.flatten(0, 1), residual, True)


def single_gains(
    game: Game, blocks: Blocks | Members, utilities: Sequence[Utility]
) -> list[Float[Tensor, "examples one *queries"]]:
    """Marginals of the examples of all blocks, each alone, to each of the utilities. Float64."""
    judge, moves = game.judge, moves_of(blocks)
    found: list[list[Tensor]] = [[] for _ in utilities]
    for part in parts_of(len(moves.residual), NUMBERS // game.width):
        for name, parts in zip(utilities, found, strict=True):
            gain = None
            if name == "cross_entropy" and isinstance(judge, Judge) and not judge.is_binary:
                gain = _cross_entropy(judge, moves.at(part))
            if gain is None:
                alone = blocks.singles(part)
                (by_definition,) = gains(join(alone), alone.outputs, [game.measure(name)])
                parts.append(by_definition.to(torch.float64))
            elif game.by_query:
                parts.append(gain[:, None].to(torch.float64))
            else:
                parts.append(gain.mean(1, keepdim=True, dtype=torch.float64))
    return [torch.cat(parts) for parts in found]


def block_gains(
    game: Game, joined: Joined, outputs: Float[Tensor, "one_or_blocks outputs queries"]
) -> Float[Tensor, "blocks rows *queries"]:
    """Marginals to accuracy of each row of each block, in joining order; see `gains`. Float64.

    `outputs` are those before the block joins, one for all blocks or one each.
    """
    judge = game.judge
    assert isinstance(judge, Judge), "only classes are right or wrong"
    n_blocks, n_rows = joined.residual.shape[:2]
    is_open, measure = _may_turn(judge, joined, outputs), game.measure("accuracy")
    if is_open.count_nonzero() > MOST_OPEN * is_open.numel():
        return torch.cat(
            [
                gains(joined.at(part), outputs[part] if len(outputs) > 1 else outputs, [measure])[0]
                for part in parts_of(n_blocks, NUMBERS // (game.width * n_rows))
            ]
        ).to(torch.float64)
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


def _cross_entropy(judge: Judge, moves: Moves) -> Float[Tensor, "examples queries"] | None:
    """Each query's gain by each example; None where more than `MOST_OPEN` move far."""
    dtype = moves.outputs.dtype
    sign = -1.0 if moves.is_leaving else 1.0
    x = moves.to_queries / judge.temperature
    furthest = (torch.finfo(dtype).eps * math.factorial(TERMS + 1)) ** (1 / (TERMS + 1))
    is_far = x.abs() * moves.residual.abs().amax(1, keepdim=True) > furthest
    if is_far.count_nonzero() > MOST_OPEN * is_far.numel():
        return None
    logs = (moves.outputs / judge.temperature).log_softmax(0)
    shares, powers = logs.exp(), moves.residual
    moments = [powers @ shares]
    for k in range(2, TERMS + 1):
        powers = powers * (moves.residual / k)
        moments.append(powers @ shares)
    total = moments.pop()
    while moments:
        total.mul_(x).add_(moments.pop())
    gain = x * moves.residual[:, judge.labels] - total.mul_(x).log1p_()
    for pairs in torch.split(is_far.nonzero(), max(1, NUMBERS // judge.n_outputs)):
        example, query = pairs.T
        step = x[example, query, None] * moves.residual[example]
        after = (logs.T[query] + step).logsumexp(1)
        own = step.gather(1, judge.labels[query, None])[:, 0]
        gain[example, query] = own - after
    return gain.mul_(sign)
