"""The engine for any number of examples: recursive least squares on d features.

With Phi the features of those who have joined, P = (damping I + Phi^T Phi)^-1 and w = P Phi^T y are
all that is kept of them. Beside fewer than d / 2 examples F_D, P is cheaper by its factor: with
L L^T = F_D F_D^T + damping I and V = L^-1 F_D it is (I - V^T V) / damping. For a block of others
with rows F, in the kernel's terms, the Schur complement is damping (I + F P F^T), its column of the
queries damping F P Phi_queries^T, and the residuals y - F w. Cost 2 d (2 d + b + m) per example
that joins in blocks of b beside m queries: linear in the number of examples. [derived, design.md
5.2]
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.game.regression import Blocks, Joined, Members, join

SHORT = 0.5
"""Up to this share of d, examples are kept by their factor."""
GRAM_ROWS = 4096
"""Rows read at a time where many join at once."""

Rows = Callable[[Int64[Tensor, " rows"]], Float[Tensor, "rows dim"]]


class RecursiveLeastSquares:
    """`Regression` by features; memory 8 d^2 + d m numbers, whatever has joined."""

    rows = 256
    """The cost per example grows with them, the speed of products too."""

    def __init__(
        self,
        read: Rows,
        queries: Float[Tensor, "queries dim"],
        targets: Float[Tensor, "examples outputs"],
        damping: float,
    ):
        """The regression on no example; `read` gives features, in the precision of `queries`."""
        self._read, self._queries, self._targets, self._damping = read, queries, targets, damping
        dim = queries.shape[1]
        self._inverse = torch.eye(dim, dtype=queries.dtype) / damping
        self._weights = queries.new_zeros(dim, targets.shape[1])
        self._factor: Tensor | None = queries.new_zeros(0, dim)
        self._members: Tensor | None = None
        self.outputs = queries.new_zeros(targets.shape[1], len(queries))

    def take(self, ids: Int64[Tensor, " rows"]) -> None:
        """See `Regression.take`; from none, n d^2 + d^3 by the normal equations, in float64.

        Of k < d / 2 examples k^2 d.
        """
        if self._members is not None:
            for some in torch.split(ids, self.rows):
                blocks = self.outside(some[None])
                self.take_block(some, blocks, join(blocks))
            return
        self._members = ids
        dim = self._queries.shape[1]
        if len(ids) < SHORT * dim:
            self._take_few(ids)
            return
        self._factor = None
        gram = torch.eye(dim, dtype=torch.float64) * self._damping
        moment = gram.new_zeros(dim, self._targets.shape[1])
        for some in torch.split(ids, GRAM_ROWS):
            rows = self._read(some)
            gram += rows.T @ rows
            moment += rows.T @ self._targets[some]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        self._inverse = inverse.to(self._queries.dtype)
        self._weights = (inverse @ moment).to(self._queries.dtype)
        self.outputs = self._weights.T @ self._queries.T

    def outside(self, ids: Int64[Tensor, "blocks rows"]) -> Blocks:
        """See `Regression.outside`; 2 d (d + rows + queries) per example, k d beside k < d / 2."""
        rows = self._read(ids.flatten())
        products, to_queries, seen = self._products(rows, ids.shape)
        products.mul_(self._damping).diagonal(dim1=1, dim2=2).add_(self._damping)
        residual = self._targets[ids.flatten()] - rows @ self._weights
        return Blocks(
            products,
            to_queries.mul_(self._damping).view(*ids.shape, -1),
            residual.view(*ids.shape, -1),
            self.outputs[None],
            () if seen is None else (seen.view(*ids.shape, -1),),
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
            ((seen,),) = blocks.rows
        else:
            self._inverse.addmm_(self._factor.T, self._factor, alpha=-1 / self._damping)
            self._factor = None
            seen = self._read(ids) @ self._inverse
        (lower,), (to_queries,), (residual,) = joined
        step = torch.linalg.solve_triangular(lower, seen, upper=False)
        self._inverse.addmm_(step.T, step, alpha=-self._damping)
        self._weights.addmm_(step.T, residual, alpha=self._damping)
        self._members = ids if self._members is None else torch.cat([self._members, ids])
        self.outputs = self.outputs + residual.T @ to_queries

    def _take_few(self, ids: Int64[Tensor, " rows"]) -> None:
        rows = self._read(ids).double()
        gram = rows @ rows.T
        gram.diagonal().add_(self._damping)
        lower = torch.linalg.cholesky(gram)
        right = torch.cat([rows, self._targets[ids].double()], 1)
        solved = torch.linalg.solve_triangular(lower, right, upper=False)
        factor, goal = solved[:, : rows.shape[1]], solved[:, rows.shape[1] :]
        self._factor = factor.to(self._queries.dtype)
        self._weights = (factor.T @ goal).to(self._queries.dtype)
        self.outputs = self._weights.T @ self._queries.T

    def _products(
        self, rows: Float[Tensor, "flat dim"], shape: tuple[int, ...]
    ) -> tuple[
        Float[Tensor, "blocks rows rows"],
        Float[Tensor, "flat queries"],
        Float[Tensor, "flat dim"] | None,
    ]:
        """F P F^T by blocks, F P Phi_queries^T, and F P where P is kept as it is."""
        if self._factor is None:
            seen = rows @ self._inverse
            return _by_block(rows, seen, shape), seen @ self._queries.T, seen
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
    """The products of rows of the same block."""
    if shape[1] == 1:
        return (left * right).sum(1).view(-1, 1, 1)
    return left.view(*shape, -1) @ right.view(*shape, -1).mT
