"""The engine for any number of examples: recursive least squares on d features.

With Phi the features of the coalition's members, P = (damping I + Phi^T Phi)^-1 and w = P Phi^T y
are all that is kept of them. For fewer than d / 2 members F_D, P is cheaper by its factor: with
L L^T = F_D F_D^T + damping I and V = L^-1 F_D it is (I - V^T V) / damping. For a block of others
with rows F, in the kernel's terms, the Schur complement is damping (I + F P F^T), its column of the
queries damping F P Phi_queries^T, and the residuals y - F w. Cost 2 d (2 d + b + m) per example
that joins in blocks of b beside m queries: linear in the number of examples. [derived]
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.game.regression import Blocks, Joined, Members, join

SHORT = 0.5
"""Up to this number of members, as a share of d, P is kept as its factor V."""
GRAM_ROWS = 4096
"""Feature rows read at a time where many examples join at once."""

Rows = Callable[[Int64[Tensor, " rows"]], Float[Tensor, "rows dim"]]
"""Reads the feature vectors of examples, by their number as players."""


class RecursiveLeastSquares:
    """`Regression` by features; memory 8 d^2 + d m numbers, however many members there are."""

    rows = 256
    """Larger blocks cost more operations per example, in faster matrix products."""

    def __init__(
        self,
        read: Rows,
        queries: Float[Tensor, "queries dim"],
        targets: Float[Tensor, "examples outputs"],
        damping: float,
    ):
        """The regression on no example; `read` has features in the precision of `queries`."""
        self._read, self._queries, self._targets, self._damping = read, queries, targets, damping
        dim = queries.shape[1]
        self._inverse = torch.eye(dim, dtype=queries.dtype) / damping
        self._weights = queries.new_zeros(dim, targets.shape[1])
        self._factor: Tensor | None = queries.new_zeros(0, dim)
        self._members: Tensor | None = None
        self.outputs = queries.new_zeros(targets.shape[1], len(queries))

    def take(self, ids: Int64[Tensor, " rows"]) -> None:
        """See `Regression.take`. The first n members cost n d^2 + d^3, by the normal equations.

        Fewer than d / 2 of them, k, cost k^2 d. Both in float64.
        """
        if self._members is not None:
            for block in torch.split(ids, self.rows):
                blocks = self.outside(block[None])
                self.take_block(block, blocks, join(blocks))
            return
        self._members = ids
        dim = self._queries.shape[1]
        if len(ids) < SHORT * dim:
            self._take_few(ids)
            return
        self._factor = None
        gram = torch.eye(dim, dtype=torch.float64) * self._damping
        moment = gram.new_zeros(dim, self._targets.shape[1])
        for part in torch.split(ids, GRAM_ROWS):
            rows = self._read(part)
            gram += rows.T @ rows
            moment += rows.T @ self._targets[part]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        self._inverse = inverse.to(self._queries.dtype)
        self._weights = (inverse @ moment).to(self._queries.dtype)
        self.outputs = self._weights.T @ self._queries.T

    def outside(self, ids: Int64[Tensor, "blocks rows"]) -> Blocks:
        """See `Regression.outside`; 2 d (d + rows + queries) per example.

        With k < d / 2 members k d instead of d^2.
        """
        rows = self._read(ids.flatten())
        products, to_queries, through = self._products(rows, ids.shape)
        products.mul_(self._damping).diagonal(dim1=1, dim2=2).add_(self._damping)
        residual = self._targets[ids.flatten()] - rows @ self._weights
        return Blocks(
            products,
            to_queries.mul_(self._damping).view(*ids.shape, -1),
            residual.view(*ids.shape, -1),
            self.outputs[None],
            () if through is None else (through.view(*ids.shape, -1),),
        )

    def inside(self, at: Int64[Tensor, "blocks rows"]) -> Members:
        """See `Regression.inside`; the cost is that of `outside`.

        (K + damping I)^-1 Phi = Phi P, hence M_BB = (I - F P F^T) / damping.
        """
        assert self._members is not None, "none has joined"
        flat = self._members[at.flatten()]
        rows = self._read(flat)
        products, to_queries, _ = self._products(rows, at.shape)
        products.neg_().diagonal(dim1=1, dim2=2).add_(1)
        dual = (self._targets[flat] - rows @ self._weights) / self._damping
        return Members(
            products.div_(self._damping),
            to_queries.view(*at.shape, -1),
            dual.view(*at.shape, -1),
            self.outputs,
        )

    def take_block(self, ids: Int64[Tensor, " rows"], blocks: Blocks, joined: Joined) -> None:
        """See `Regression.take_block`; 2 d^2 per example."""
        if self._factor is None:
            ((through,),) = blocks.rows
        else:
            self._inverse.addmm_(self._factor.T, self._factor, alpha=-1 / self._damping)
            self._factor = None
            through = self._read(ids) @ self._inverse
        (lower,), (to_queries,), (residual,) = joined
        step = torch.linalg.solve_triangular(lower, through, upper=False)
        self._inverse.addmm_(step.T, step, alpha=-self._damping)
        self._weights.addmm_(step.T, residual, alpha=self._damping)
        self._members = ids if self._members is None else torch.cat([self._members, ids])
        self.outputs = self.outputs + residual.T @ to_queries

    def _take_few(self, ids: Int64[Tensor, " rows"]) -> None:
        """Fits the first members, fewer than d / 2, and keeps P as its factor V."""
        rows = self._read(ids).double()
        gram = rows @ rows.T
        gram.diagonal().add_(self._damping)
        lower = torch.linalg.cholesky(gram)
        right = torch.cat([rows, self._targets[ids].double()], 1)
        solved = torch.linalg.solve_triangular(lower, right, upper=False)
        factor, solved_targets = solved[:, : rows.shape[1]], solved[:, rows.shape[1] :]
        self._factor = factor.to(self._queries.dtype)
        self._weights = (factor.T @ solved_targets).to(self._queries.dtype)
        self.outputs = self._weights.T @ self._queries.T

    def _products(
        self, rows: Float[Tensor, "flat dim"], shape: tuple[int, ...]
    ) -> tuple[
        Float[Tensor, "blocks rows rows"],
        Float[Tensor, "flat queries"],
        Float[Tensor, "flat dim"] | None,
    ]:
        """F P F^T by blocks, F P Phi_queries^T, and F P, which is None where P is a factor."""
        if self._factor is None:
            through = rows @ self._inverse
            return _by_block(rows, through, shape), through @ self._queries.T, through
        short = rows @ self._factor.T
        products = _by_block(rows, rows, shape) - _by_block(short, short, shape)
        to_queries = rows @ self._queries.T
        to_queries.addmm_(short, self._factor @ self._queries.T, alpha=-1)
        return products.div_(self._damping), to_queries.div_(self._damping), None


def _by_block(
    left: Float[Tensor, "flat columns"],
    right: Float[Tensor, "flat columns"],
    shape: tuple[int, ...],
) -> Float[Tensor, "blocks rows rows"]:
    """Inner products of the rows of `left` with those of `right` in the same block."""
    if shape[1] == 1:
        return (left * right).sum(1).view(-1, 1, 1)
    return left.view(*shape, -1) @ right.view(*shape, -1).mT
