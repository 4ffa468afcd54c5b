"""The engine protocol: a kernel ridge regression that grows, and marginal contributions from it.

An engine (`Regression`) holds a ridge regression fitted on the examples of a coalition D, its
members, and predicts the queries. A game asks it three things, always for many blocks of examples
at a time, a block B being a few examples that join or leave together:

- `outside` gives `Blocks`: what the marginal contributions of examples outside D depend on. With K
  the kernel and lambda the damping these are the Schur complement
  S = K_BB + lambda I - K_BD (K_DD + lambda I)^-1 K_DB, the like for the columns of the queries, and
  the residuals of the block's targets under the regression on D.
- `inside` gives `Members`: the block's rows of M = (K_DD + lambda I)^-1. `Members.without` turns
  them into the `Blocks` of the same examples as seen from D without them.
- `take` and `take_block` add examples to D.

`join` takes the rows of each block in one order, which gives `Joined`: the Cholesky factor L of S,
and L^-1 times the rest of `Blocks`. From it `gains` has the marginal contribution of every example
of the block in that order. In whatever order B joins, S, the columns and the residuals are enough.
[derived]

The two engines, `stages.game.prefix_cholesky` and `stages.game.least_squares`, differ in what they
hold of D: a Cholesky factor of the kernel, or matrices of the features.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.stage import DataError

Measure = Callable[[Tensor], Tensor]
"""A utility: from outputs (..., outputs, queries) to the utility of each coalition, (...), or of
each coalition for each query, (..., queries)."""


class Blocks(NamedTuple):
    """Blocks of examples outside a coalition D: all that their marginal contributions depend on."""

    schur: Float[Tensor, "blocks rows rows"]
    """S, the Schur complement of each block."""
    to_queries: Float[Tensor, "blocks rows queries"]
    """K_Bq - K_BD (K_DD + lambda I)^-1 K_Dq, with q the queries."""
    residual: Float[Tensor, "blocks rows outputs"]
    """Targets of the block's examples less what the regression on D predicts for them."""
    outputs: Float[Tensor, "one_or_blocks outputs queries"]
    """Of the regression on the coalition without the block: one for all blocks, or one each."""
    rows: tuple[Float[Tensor, "blocks rows columns"], ...] = ()
    """The engine's own intermediate rows, which `Regression.take_block` needs again."""

    def singles(self, part: slice) -> "Blocks":
        """A slice of the same examples as blocks of one; all blocks must share one regression."""
        n = self.residual.shape[0] * self.residual.shape[1]
        return Blocks(
            self.schur.diagonal(dim1=1, dim2=2).reshape(n, 1, 1)[part],
            self.to_queries.reshape(n, 1, -1)[part],
            self.residual.reshape(n, 1, -1)[part],
            self.outputs,
        )

    def at(self, part: slice) -> "Blocks":
        """A slice of the blocks."""
        outputs = self.outputs if len(self.outputs) == 1 else self.outputs[part]
        rows = tuple(row[part] for row in self.rows)
        return Blocks(self.schur[part], self.to_queries[part], self.residual[part], outputs, rows)


class Members(NamedTuple):
    """Blocks of members of a coalition: their rows of M = (K_DD + lambda I)^-1 and its products."""

    precision: Float[Tensor, "blocks rows rows"]
    """M_BB."""
    to_queries: Float[Tensor, "blocks rows queries"]
    """(M K_queries)_B."""
    dual: Float[Tensor, "blocks rows outputs"]
    """(M targets)_B."""
    outputs: Float[Tensor, "outputs queries"]
    """Of the regression on all members."""

    def without(self) -> Blocks:
        """Each block as seen from the coalition that lacks this block alone.

        By the inverse of a partitioned matrix the Schur complement of B is the inverse of M_BB.
        """
        if self.precision.shape[1] == 1:
            schur = 1 / self.precision
            to_queries, residual = schur * self.to_queries, schur * self.dual
        else:
            schur = torch.linalg.inv(self.precision)
            to_queries, residual = schur @ self.to_queries, schur @ self.dual
        return Blocks(schur, to_queries, residual, self.outputs - residual.mT @ self.to_queries)

    def singles(self, part: slice) -> Blocks:
        """Each of a slice of members as a block, seen from all others: leave-one-out, exactly."""
        n = self.dual.shape[0] * self.dual.shape[1]
        return Members(
            self.precision.diagonal(dim1=1, dim2=2).reshape(n, 1, 1)[part],
            self.to_queries.reshape(n, 1, -1)[part],
            self.dual.reshape(n, 1, -1)[part],
            self.outputs,
        ).without()


class Joined(NamedTuple):
    """Blocks whose rows join one by one: L^-1 times what `Blocks` holds, with L L^T = S.

    Once the first p rows of a block are members, the outputs have grown by
    sum_{q<p} residual[q] to_queries[q].
    """

    lower: Float[Tensor, "blocks rows rows"]
    """L, the lower Cholesky factor of S."""
    to_queries: Float[Tensor, "blocks rows queries"]
    residual: Float[Tensor, "blocks rows outputs"]

    def at(self, part: slice) -> "Joined":
        """A slice of the blocks."""
        return Joined(self.lower[part], self.to_queries[part], self.residual[part])


@runtime_checkable
class Regression(Protocol):
    """An engine: the ridge regression on the members of a coalition, to which examples are added.

    Examples are named by their number as players of the game, 0 to n - 1.
    """

    rows: int
    """Block size at which the engine takes new members fastest."""
    outputs: Float[Tensor, "outputs queries"]
    """Predictions for the queries, less the offset of the targets; 0 without members."""

    def take(self, ids: Int64[Tensor, " rows"]) -> None:
        """Adds examples to the coalition."""

    def outside(self, ids: Int64[Tensor, "blocks rows"]) -> Blocks:
        """Blocks of examples, none of which is a member."""

    def inside(self, at: Int64[Tensor, "blocks rows"]) -> Members:
        """Blocks of members, `at` being their positions in the order in which `take` had them."""

    def take_block(self, ids: Int64[Tensor, " rows"], blocks: Blocks, joined: Joined) -> None:
        """Adds one block, given what `outside` and `join`, in the block's own order, made of it."""


def join(blocks: Blocks, order: Int64[Tensor, " rows"] | None = None) -> Joined:
    """The blocks with their rows joining in their own order, or in the permutation `order` of it.

    Cost rows^3 / 3 + rows^2 (queries + outputs) a block.

    Raises:
        DataError: a Schur complement is not positive definite to working precision.
    """
    schur, to_queries, residual = blocks[:3]
    if schur.shape[1] == 1:
        lower = schur.sqrt()
        return Joined(lower, to_queries / lower, residual / lower)
    if order is not None:
        schur, to_queries = schur[:, order[:, None], order], to_queries[:, order]
        residual = residual[:, order]
    lower, info = torch.linalg.cholesky_ex(schur)
    if info.any():
        raise DataError(
            f"kernel: found a matrix that is not positive definite at row {int(info.max())} of a "
            "block of examples, expected one that is. Raise ridge, set ridge: auto, or set "
            "precision: float64."
        )
    solve = torch.linalg.solve_triangular
    return Joined(lower, solve(lower, to_queries, upper=False), solve(lower, residual, upper=False))


def gains(
    joined: Joined,
    outputs: Float[Tensor, "one_or_blocks outputs queries"],
    measures: list[Measure],
) -> list[Tensor]:
    """Marginal contributions of each row of each block, in joining order, to each of `measures`.

    One tensor (blocks, rows, ...) per measure. `outputs` are those before the block joins, one for
    all blocks or one each. An example without similarity to anything adds exactly zero.
    """
    grown = joined.residual[..., None] * joined.to_queries[:, :, None]
    grown[:, 0] += outputs
    # In place: a second array of this size would no longer lie in the cache.
    torch.cumsum(grown, 1, out=grown)
    marginals = []
    for measure in measures:
        before, after = measure(outputs)[:, None], measure(grown)
        before = before.expand(after.shape[0], *before.shape[1:])
        marginals.append(torch.cat([before, after], 1).diff(dim=1))
    # Equal outputs at two places of a vector may differ in the last bit of their logarithm.
    idle = joined.to_queries[..., 0] == 0
    if idle.any():
        idle &= (joined.to_queries == 0).all(-1)
        for marginal in marginals:
            marginal[idle] = 0
    return marginals
