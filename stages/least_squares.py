"""The engine for any number of examples: recursive least squares on d features.

With Phi the features of those who have joined, P = (damping I + Phi^T Phi)^-1 and w = P Phi^T y are
all that is kept of them. For a block of others with rows F, in the kernel's terms, the Schur
complement is damping (I + F P F^T), its column of the queries damping F P Phi_queries^T, and the
residuals y - F w. Cost 2 d (2 d + b + m) per example that joins in blocks of b beside m queries:
linear in the number of examples. [derived, design.md 5.2]
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.conditioned import Blocks, Joined, Members, join

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
        self._members: Tensor | None = None
        self.outputs = queries.new_zeros(targets.shape[1], len(queries))

    def take(self, ids: Int64[Tensor, " rows"]) -> None:
        """See `Regression.take`; from none, n d^2 + d^3 by the normal equations, in float64."""
        if self._members is not None:
            for some in torch.split(ids, self.rows):
                blocks = self.outside(some[None])
                self.take_block(some, blocks, join(blocks))
            return
        self._members = ids
        dim = self._queries.shape[1]
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
        """See `Regression.outside`; 2 d (d + rows + queries) per example."""
        flat, shape = ids.flatten(), ids.shape
        rows = self._read(flat)
        seen = rows @ self._inverse
        schur = rows.view(*shape, -1) @ seen.view(*shape, -1).mT
        schur.diagonal(dim1=1, dim2=2).add_(1)
        residual = self._targets[flat] - rows @ self._weights
        return Blocks(
            schur.mul_(self._damping),
            (seen @ self._queries.T).mul_(self._damping).view(*shape, -1),
            residual.view(*shape, -1),
            self.outputs[None],
            (seen.view(*shape, -1),),
        )

    def inside(self, at: Int64[Tensor, "blocks rows"]) -> Members:
        """See `Regression.inside`; 2 d (d + rows + queries) per example.

        (K + damping I)^-1 Phi = Phi P, hence M_BB = (I - F P F^T) / damping.
        """
        assert self._members is not None, "none has joined"
        flat, shape = self._members[at.flatten()], at.shape
        rows = self._read(flat)
        seen = rows @ self._inverse
        precision = -(rows.view(*shape, -1) @ seen.view(*shape, -1).mT)
        precision.diagonal(dim1=1, dim2=2).add_(1)
        dual = (self._targets[flat] - rows @ self._weights) / self._damping
        return Members(
            precision.div_(self._damping),
            (seen @ self._queries.T).view(*shape, -1),
            dual.view(*shape, -1),
            self.outputs,
        )

    def take_block(self, ids: Int64[Tensor, " rows"], blocks: Blocks, joined: Joined) -> None:
        """See `Regression.take_block`; 2 d^2 per example."""
        ((seen,),) = blocks.rows
        (lower,), (to_queries,), (residual,) = joined
        step = torch.linalg.solve_triangular(lower, seen, upper=False)
        self._inverse.addmm_(step.T, step, alpha=-self._damping)
        self._weights.addmm_(step.T, residual, alpha=self._damping)
        self._members = ids if self._members is None else torch.cat([self._members, ids])
        self.outputs = self.outputs + residual.T @ to_queries
