"""Influence: how much the loss of a query falls when an example is given more weight.

Where theta minimises the mean loss, one more unit of weight on example i moves it by -H^-1 g_i, to
first order, and lowers the loss of query t by

    score(t, i) = g_t' H^-1 g_i,

with g the loss gradients and H the second-order part of the mean loss. Weight is relative to the
mean, so that a copy of the example adds 1 / n_examples. A positive score raises the log-probability
of the class that the query's loss is taken at: its label, where it has one, or with `gradient:
{queries: predicted}` the class that the model predicts. A regression's squared error falls.

H is a matrix per layer, from a stage `curvature`: each block, of size d, is damped by

    H_b + damping * (trace H_b / d) I = L L',

relative to its mean eigenvalue, so that layers of any scale are damped alike. With u = L^-1 g of
every block the score is u_t . u_i. A block whose matrix is zero, such as that of a layer which no
example's gradient reaches, has no part in the scores; `details` counts the others.

Global: |u_i|, the root of the example's self-influence; local: u_t . u_i / |u_i|.

Source: Koh and Liang 2017, arXiv:1703.04730, eq. 2, less its sign; Gauss-Newton or Fisher matrices
for the Hessian and blocks of layers as in Grosse et al. 2023, arXiv:2308.03296. Projected gradients
stand for whole ones, and the damping is ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stages.gradients.blocks import Block, blocks_of, read_curvature
from stages.gradients.projection import BY_LAYER
from stages.pairs.scores import FactorRows, PairScores, check_gradients, whitened
from stages.reading.vectors import query_vectors, vectors_of
from stages.stage import (
    ConfigError,
    Cost,
    DataError,
    Inputs,
    Work,
)

BLOCK_SIZE = 256
"""Numbers of a block, for the cost; of other gradients than those that are asked for a guess."""

BlockFactors = tuple[tuple[Block, Float[Tensor, "_ _"]], ...]
"""Blocks that have curvature, and their lower Cholesky factors."""


def damped_factors(
    matrices: Mapping[str, Float[Tensor, "_ _"]], blocks: Sequence[Block], damping: float
) -> BlockFactors:
    """The lower Cholesky factor L of H + damping * (trace H / size) I of every block with H != 0.

    Cost size^3 / 3 a block.

    Raises:
        DataError: the matrices are of other blocks, or one is indefinite in spite of its damping.
    """
    sizes = {block.name: block.size for block in blocks}
    if {name: len(matrix) for name, matrix in matrices.items()} != sizes:
        raise DataError(
            f"curvature: found {len(matrices)} blocks of "
            f"{sum(len(matrix) for matrix in matrices.values())} numbers, expected those of the "
            f"gradients, {len(blocks)} of {sum(sizes.values())}. Project in the same way what both "
            "stages read."
        )
    factors = []
    for block in blocks:
        matrix = matrices[block.name]
        scale = float(matrix.diagonal().mean())
        if scale == 0:
            continue
        damped = matrix.clone()
        damped.diagonal().add_(damping * scale)
        lower, info = torch.linalg.cholesky_ex(damped)
        if int(info):
            raise DataError(
                f"curvature: found the block {block.name} not positive definite with damping "
                f"{damping}, expected one that is. Raise damping."
            )
        factors.append((block, lower))
    return tuple(factors)


def whiten(gradients: Float[Tensor, "rows _"], factors: BlockFactors) -> Float[Tensor, "rows _"]:
    """L^-1 g of every block side by side, in float32; products are computed in float64."""
    parts = [whitened(gradients[:, block.part], lower).float() for block, lower in factors]
    return torch.cat(parts, 1) if parts else torch.zeros(len(gradients), 0)


@dataclass(frozen=True)
class Influence(PairScores):
    """Scores of the pairs of all queries and examples that have gradients.

    A task holds the factors of all blocks, one shard's gradients and the queries', 16 million
    scores.
    """

    gradient: str = "gradient"
    """Instance with the loss gradients of queries and examples."""
    curvature: str = "curvature"
    """Instance with the matrices of their blocks."""
    damping: float = 0.1
    """Relative to the mean eigenvalue of each block."""

    def __post_init__(self) -> None:
        """Refuses a damping that is not a positive number.

        Raises:
            ConfigError: the damping is not positive.
        """
        super().__post_init__()
        if not 0 < self.damping < float("inf"):
            raise ConfigError(
                f"damping: found {self.damping}, expected a positive number, as projected "
                "curvature can be singular. Raise it."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """Gradients, and the curvature of the loss."""
        return (self.gradient, self.curvature)

    @property
    def asks(self) -> Mapping[str, Mapping[str, Any]]:
        """Gradients whose layers are not mixed, and the curvature of these."""
        return {
            self.gradient: {"projection": BY_LAYER},
            self.curvature: {"gradient": self.gradient},
        }

    def check_reads(self, writers: Mapping[str, Any]) -> None:
        """Refuses curvature in other coordinates than those of the gradients.

        Raises:
            ConfigError: it is of other gradients, or of logits that these were not made from; or
                gradients are of tokens.
        """
        check_gradients(self.gradient, writers[self.gradient])
        gradient, curvature = writers[self.gradient], writers[self.curvature]
        kind = getattr(curvature, "kind", None)
        if kind == "fisher" and curvature.gradient != self.gradient:
            raise ConfigError(
                f"{self.curvature}: found the curvature of {curvature.gradient}, expected that of "
                f"{self.gradient}, whose gradients are scored. Name the same in both."
            )
        if kind == "gauss_newton" and getattr(gradient, "ntk", None) != curvature.ntk:
            raise ConfigError(
                f"{self.curvature}: found kind: gauss_newton of {curvature.ntk}, expected "
                f"gradients that are put together from it. Set ntk: {curvature.ntk} in "
                f"{self.gradient}, with the projection of {curvature.ntk}."
            )

    def queries(self, inputs: Inputs) -> FactorRows:
        """The queries' gradients, whitened; the factors of all blocks are shared."""
        ids, rows = query_vectors(inputs, self.gradient)
        blocks = blocks_of(inputs.details(self.gradient), rows.shape[1])
        matrices = read_curvature(inputs.table(self.curvature))
        factors = damped_factors(matrices, blocks, self.damping)
        return FactorRows(ids, (whiten(rows, factors),), shared=factors)

    def examples(self, inputs: Inputs) -> FactorRows:
        """The gradients of the examples of one shard, whitened."""
        ids, gradients = vectors_of(inputs, self.gradient)
        rows = whiten(gradients, inputs.opened.shared) if len(ids) else gradients
        return FactorRows(ids, (rows,), rows.norm(dim=1))

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """How many blocks have curvature, and hence a part in the scores."""
        return {"n_blocks": len(inputs.opened.shared)}

    def cost(self, work: Work) -> Cost:
        """A product with each block's inverse factor, and one of queries and examples."""
        pairs = super().cost(work)
        solves = float(work.n_examples + work.n_queries) * work.dim * BLOCK_SIZE
        return Cost(
            flops=pairs.flops + solves + work.dim * BLOCK_SIZE**2 / 3,
            written_bytes=pairs.written_bytes,
            memory_bytes=pairs.memory_bytes
            + 16 * work.dim * BLOCK_SIZE
            + 16 * work.dim * work.n_examples // max(1, work.n_shards),
        )


STAGE = Influence
