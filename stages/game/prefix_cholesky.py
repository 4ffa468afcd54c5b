"""The engine for up to 10^4 examples: their kernel in memory, and a growing Cholesky factor.

One factor gives every prefix of a permutation: with L that of K[order, order] + damping I and
V = L^-1 K[order, queries], Z = L^-1 targets[order], the outputs after p examples are
sum_{q<p} V[q,t] Z[q,c]. It grows block by block, nearly all of the work being products of matrices,
so a permutation that is cut short costs what it has used. [derived]
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.game.regression import Blocks, Joined, Members, join


class _Step(NamedTuple):
    """One block of members: its rows of the Cholesky factor, and of L^-1 times the rest."""

    ids: Int64[Tensor, " rows"]
    before: tuple[Float[Tensor, "rows earlier"], ...]
    """Its rows of the factor in the columns of each earlier step."""
    lower: Float[Tensor, "rows rows"]
    solved: Float[Tensor, "rows queries_and_outputs"]


class _Inverse(NamedTuple):
    """M = (K_DD + damping I)^-1 of the members, and its products with [K_Dq, targets]."""

    matrix: Float[Tensor, "members members"]
    solved: Float[Tensor, "members queries_and_outputs"]


class PrefixCholesky:
    """`Regression` by a kernel, float64; memory 8 k^2 bytes for k members, beside the kernel."""

    rows = 512
    """Enough for matrix products at full speed, and few enough for the factors of the blocks
    themselves, which run at a third of it, not to count."""

    def __init__(
        self,
        kernel: Float[Tensor, "examples examples"],
        to_queries: Float[Tensor, "examples queries"],
        targets: Float[Tensor, "examples outputs"],
        damping: float,
    ):
        """The regression on no example."""
        self._kernel, self._to_queries, self._targets = kernel, to_queries, targets
        self._damping = damping
        self._steps: list[_Step] = []
        self._inverse: _Inverse | None = None
        self.outputs = kernel.new_zeros(targets.shape[1], to_queries.shape[1])

    def take(self, ids: Int64[Tensor, " rows"]) -> None:
        """See `Regression.take`; the first k members cost k^3 / 3 + k^2 (queries + outputs)."""
        for block in torch.split(ids, self.rows):
            blocks = self.outside(block[None])
            self.take_block(block, blocks, join(blocks))

    def outside(self, ids: Int64[Tensor, "blocks rows"]) -> Blocks:
        """See `Regression.outside`; k^2 + 2 k (queries + rows) per example, for k members."""
        flat, (n_blocks, n_rows) = ids.flatten(), ids.shape
        schur = self._kernel[ids[:, :, None], ids[:, None, :]]
        schur.diagonal(dim1=1, dim2=2).add_(self._damping)
        right = torch.cat([self._to_queries[flat], self._targets[flat]], 1)
        rows: list[Tensor] = []
        kept: list[Tensor] = []
        for step in self._steps:
            row = self._kernel[step.ids[:, None], flat]
            for before, earlier in zip(step.before, rows, strict=True):
                row.addmm_(before, earlier, alpha=-1)
            row = torch.linalg.solve_triangular(step.lower, row, upper=False)
            right.addmm_(row.T, step.solved, alpha=-1)
            by_block = row.T.view(n_blocks, n_rows, -1)
            schur.baddbmm_(by_block, by_block.mT, alpha=-1)
            rows.append(row)
            kept.append(by_block)
        right = right.view(n_blocks, n_rows, -1)
        n_queries = self._to_queries.shape[1]
        return Blocks(
            schur, right[..., :n_queries], right[..., n_queries:], self.outputs[None], tuple(kept)
        )

    def inside(self, at: Int64[Tensor, "blocks rows"]) -> Members:
        """See `Regression.inside`; the first call costs 2 k^3 / 3 + k^2 (queries + outputs)."""
        if self._inverse is None:
            self._inverse = self._invert()
        matrix, solved = self._inverse
        n_queries = self._to_queries.shape[1]
        return Members(
            matrix[at[:, :, None], at[:, None, :]],
            solved[at][..., :n_queries],
            solved[at][..., n_queries:],
            self.outputs,
        )

    def take_block(self, ids: Int64[Tensor, " rows"], blocks: Blocks, joined: Joined) -> None:
        """See `Regression.take_block`."""
        (lower,), (to_queries,), (residual,) = joined
        before = tuple(row[0] for row in blocks.rows)
        self._steps.append(_Step(ids, before, lower, torch.cat([to_queries, residual], 1)))
        self._inverse = None
        self.outputs = self.outputs + residual.T @ to_queries

    def _invert(self) -> _Inverse:
        """The inverse, from the factor's rows of all blocks."""
        rows = []
        n = sum(len(step.ids) for step in self._steps)
        for step in self._steps:
            row = torch.cat([*step.before, step.lower], 1)
            rows.append(torch.nn.functional.pad(row, (0, n - row.shape[1])))
        lower = torch.cat(rows)
        solved = torch.cat([step.solved for step in self._steps])
        return _Inverse(
            torch.cholesky_inverse(lower),
            torch.linalg.solve_triangular(lower.T, solved, upper=True),
        )
