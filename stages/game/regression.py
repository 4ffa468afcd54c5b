"""Ridge regression on the examples that have joined, and what others add to it.

With K the kernel, D those who have joined, lambda the damping, and B a block of others, an engine
gives the Schur complement S = K_BB + lambda I - K_BD (K_DD + lambda I)^-1 K_DB, the like for the
columns of the queries, and the residuals of the targets. In whatever order B joins, its marginal
contributions follow from these alone. [derived, methods.md 1.6 and design.md 5.1]

The two engines, `stages.game.prefix_cholesky` and `stages.game.least_squares`, differ in what they
hold.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.stage import DataError

Measure = Callable[[Tensor], Tensor]
"""From outputs (..., outputs, queries) to what sets are worth: (...), or (..., queries)."""


class Blocks(NamedTuple):
    """Blocks of examples that have not joined, seen from those who have."""

    schur: Float[Tensor, "blocks rows rows"]
    to_queries: Float[Tensor, "blocks rows queries"]
    residual: Float[Tensor, "blocks rows outputs"]
    outputs: Float[Tensor, "some outputs queries"]
    """Of the regression without the block: one for all blocks, or one for each."""
    rows: tuple[Float[Tensor, "blocks rows columns"], ...] = ()
    """What the engine needs again should a block join."""

    def singles(self) -> "Blocks":
        """Every example as a block of its own; all blocks must share one regression."""
        n = self.residual.shape[0] * self.residual.shape[1]
        return Blocks(
            self.schur.diagonal(dim1=1, dim2=2).reshape(n, 1, 1),
            self.to_queries.reshape(n, 1, -1),
            self.residual.reshape(n, 1, -1),
            self.outputs,
        )

    def at(self, some: slice) -> "Blocks":
        """Some of the blocks."""
        outputs = self.outputs if len(self.outputs) == 1 else self.outputs[some]
        rows = tuple(row[some] for row in self.rows)
        return Blocks(self.schur[some], self.to_queries[some], self.residual[some], outputs, rows)


class Members(NamedTuple):
    """Blocks of examples that have joined: their rows of M = (K + lambda I)^-1 and its products."""

    precision: Float[Tensor, "blocks rows rows"]
    """M_BB."""
    to_queries: Float[Tensor, "blocks rows queries"]
    """(M K_queries)_B."""
    dual: Float[Tensor, "blocks rows outputs"]
    """(M targets)_B."""
    outputs: Float[Tensor, "outputs queries"]
    """Of the regression on all members."""

    def without(self) -> Blocks:
        """The blocks as if they, each alone, had not joined.

        By the inverse of a partitioned matrix the Schur complement of B is the inverse of M_BB.
        """
        if self.precision.shape[1] == 1:
            schur = 1 / self.precision
            to_queries, residual = schur * self.to_queries, schur * self.dual
        else:
            schur = torch.linalg.inv(self.precision)
            to_queries, residual = schur @ self.to_queries, schur @ self.dual
        return Blocks(schur, to_queries, residual, self.outputs - residual.mT @ self.to_queries)

    def singles(self) -> Blocks:
        """Every member as the only one who has not joined: leave-one-out in closed form."""
        n = self.dual.shape[0] * self.dual.shape[1]
        return Members(
            self.precision.diagonal(dim1=1, dim2=2).reshape(n, 1, 1),
            self.to_queries.reshape(n, 1, -1),
            self.dual.reshape(n, 1, -1),
            self.outputs,
        ).without()


class Joined(NamedTuple):
    """Blocks that join in one order: L^-1 times what `Blocks` holds, with L L^T = S.

    After the first p rows of a block its outputs have grown by sum_{q<p} residual[q] to_queries[q].
    """

    lower: Float[Tensor, "blocks rows rows"]
    to_queries: Float[Tensor, "blocks rows queries"]
    residual: Float[Tensor, "blocks rows outputs"]

    def at(self, some: slice) -> "Joined":
        """Some of the blocks."""
        return Joined(self.lower[some], self.to_queries[some], self.residual[some])


@runtime_checkable
class Regression(Protocol):
    """An engine: a regression on some examples, ready to be asked about others and to take them."""

    rows: int
    """How many examples had best join at a time."""
    outputs: Float[Tensor, "outputs queries"]
    """Predictions for the queries, less the offset of the targets."""

    def take(self, ids: Int64[Tensor, " rows"]) -> None:
        """These examples join."""

    def outside(self, ids: Int64[Tensor, "blocks rows"]) -> Blocks:
        """Blocks of examples that have not joined."""

    def inside(self, at: Int64[Tensor, "blocks rows"]) -> Members:
        """Blocks of those who joined by `take`, named by their places among them."""

    def take_block(self, ids: Int64[Tensor, " rows"], blocks: Blocks, joined: Joined) -> None:
        """One block joins that `outside` has given and `join` has solved in its own order."""


def join(blocks: Blocks, order: Int64[Tensor, " rows"] | None = None) -> Joined:
    """The blocks joined in their own order, or in another order of their rows.

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
    joined: Joined, outputs: Float[Tensor, "some outputs queries"], measures: list[Measure]
) -> list[Tensor]:
    """What each example adds to each measure when its block joins in order: (blocks, rows, ...).

    An example without similarity to anything adds exactly zero.
    """
    grown = joined.residual[..., None] * joined.to_queries[:, :, None]
    grown[:, 0] += outputs
    # In place: a second array of this size would no longer lie in the cache.
    torch.cumsum(grown, 1, out=grown)
    found = []
    for measure in measures:
        before, after = measure(outputs)[:, None], measure(grown)
        before = before.expand(after.shape[0], *before.shape[1:])
        found.append(torch.cat([before, after], 1).diff(dim=1))
    # Equal outputs at two places of a vector may differ in the last bit of their logarithm.
    idle = joined.to_queries[..., 0] == 0
    if idle.any():
        idle &= (joined.to_queries == 0).all(-1)
        for gain in found:
            gain[idle] = 0
    return found
