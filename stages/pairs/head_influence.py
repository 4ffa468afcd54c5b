"""Influence through the last layer alone, by the exact Hessian of the probe's objective.

The probe minimises a mean loss plus penalty (`stages/surrogate/linear.py`), which is convex: one
more unit of weight on example i moves its weights and biases by -H^-1 g_i, to first order, where
g_i is the gradient of the example's loss (`stages/surrogate/probe_head.py`) and H that of the
second derivatives of the whole objective, penalties included, over outputs * (dim + 1) parameters.
The score is what that does to the measured output m of a query, the log-probability of the class
that the probe predicts, or the number that it predicts:

    score(t, i) = -(grad m_t)' H^-1 g_i.

Weight is relative to the mean loss, so that a copy of the example adds 1 / n. With H = L L' and
u = L^-1 g it is -(u_t . u_i).

Global: |u_i|, the root of the example's self-influence; local: -(u_t . u_i) / |u_i|.

H is over the examples that have a label and an embedding now. All in float64, but for the products
of queries and examples. What a refit moves besides is left out: the embeddings' mean and scale.

Source: Koh and Liang 2017, arXiv:1703.04730, eq. 2, less its sign, with the measured output for the
test loss.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stages.pairs.scores import FactorRows, PairScores, left_out, pairs_cost, whitened
from stages.reading.vectors import BLOCK
from stages.stage import Cost, DataError, Inputs, Role, Work
from stages.surrogate.linear import BIAS_PENALTY, lower_factor
from stages.surrogate.probe_head import (
    LABEL_BYTES,
    Head,
    ProbeExamples,
    all_examples,
    examples_of,
    queries_of,
    read_head,
    slopes,
)

MOST_PARAMETERS = 8192
"""Most parameters of the head: H and its factor then take 1 GB."""


class ProbeHessian(NamedTuple):
    """The probe and its Hessian, which the factors of every shard of examples need."""

    head: Head
    lower: Float[Tensor, "parameters parameters"]
    """L, the Hessian's lower Cholesky factor."""
    n_examples: int
    """Examples that the Hessian is the mean over."""


def outer(
    left: Float[Tensor, "rows outputs"], x: Float[Tensor, "rows dim"]
) -> Float[Tensor, "rows parameters"]:
    """Outer products of each row's `left` and (x, 1), flattened output by output.

    With the slopes of a loss for `left`, the gradient of the loss.
    """
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    return (left[:, :, None] * x[:, None, :]).flatten(1)


def hessian(
    head: Head, blocks: Iterator[ProbeExamples]
) -> tuple[Float[Tensor, "parameters parameters"], int]:
    """The Hessian of the probe's objective at the probe, and the number of examples in `blocks`.

    Mean over the examples of (diag p - p p') x (x, 1)(x, 1)', of a regression without the first
    factor, plus the penalties. Cost n dim^2 outputs^2; memory 8 bytes per number.
    """
    n_outputs, dim = head.weight.shape
    sums = torch.zeros(n_outputs, dim + 1, n_outputs, dim + 1, dtype=torch.float64)
    n_examples = 0
    for rows in blocks:
        n_examples += len(rows.ids)
        x = torch.cat([rows.x, torch.ones(len(rows.x), 1, dtype=torch.float64)], 1)
        p = torch.softmax(head.outputs(rows.x), 1)
        for c in range(n_outputs):
            for k in range(c + 1):
                curved = p[:, c] * (float(c == k) - p[:, k])
                weighed = x if head.is_regression else x * curved[:, None]
                sums[c, :, k] += weighed.T @ x
                if k < c:
                    sums[k, :, c] = sums[c, :, k]
    matrix = (sums / n_examples).flatten(2).flatten(0, 1)
    penalty = torch.full((n_outputs, dim + 1), head.regularization, dtype=torch.float64)
    penalty[:, -1] = 0.0 if head.is_regression else BIAS_PENALTY
    matrix.diagonal().add_(penalty.flatten())
    return matrix, n_examples


@dataclass(frozen=True)
class HeadInfluence(PairScores):
    """Scores of the pairs of all queries and all examples that have a label and an embedding.

    A task holds the Hessian's factor, 8 bytes for the square of the head's parameters, one shard's
    gradients, the embeddings of 65,536 examples, 16 million scores, and 40 bytes per example for
    its label. Every worker makes the factor anew, from all examples.
    """

    embedding: str = "embedding"
    """Feature table that the probe was fitted on: an instance of `embedding`, or `features`."""

    speaks_for: ClassVar[str] = "prediction"
    opens: ClassVar[tuple[Role, ...]] = ("example", "query")
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression")

    @property
    def reads(self) -> tuple[str, ...]:
        """The embeddings that the probe was fitted on, the probe, and the labels."""
        return (self.embedding, "probe", "label")

    def queries(self, inputs: Inputs) -> FactorRows:
        """Whitened gradients of the queries' losses; the Hessian's factor is `shared`.

        Raises:
            DataError: the head has too many parameters.
        """
        head = read_head(inputs, self.embedding)
        n_outputs, dim = head.weight.shape
        if n_outputs * (dim + 1) > MOST_PARAMETERS:
            raise DataError(
                f"probe: found {n_outputs} x {dim + 1} parameters, expected at most "
                f"{MOST_PARAMETERS} in all, as the Hessian has their square. Use the stage "
                "influence, or representer, instead."
            )
        matrix, n_examples = hessian(head, all_examples(head, inputs, self.embedding))
        lower = lower_factor(matrix)
        queries = queries_of(head, inputs, self.embedding)
        # The measured output is less the loss at the predicted class, or the output itself.
        falls = -queries.chosen
        if not head.is_regression:
            falls = slopes(queries.outputs, queries.outputs.argmax(1))
        rows = whitened(outer(falls, queries.x), lower).float()
        return FactorRows(queries.ids, (rows,), shared=ProbeHessian(head, lower, n_examples))

    def examples(self, inputs: Inputs) -> FactorRows:
        """Whitened loss gradients of a shard's examples that have a label and an embedding."""
        shared: ProbeHessian = inputs.opened.shared
        examples = examples_of(shared.head, inputs, self.embedding)
        rows = whitened(outer(examples.slopes, examples.x), shared.lower).float()
        return FactorRows(examples.ids, (rows,), rows.norm(dim=1))

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """Counts: examples and parameters of the Hessian, the shard's examples left out."""
        shared: ProbeHessian = inputs.opened.shared
        return {
            "n_examples": shared.n_examples,
            "n_parameters": len(shared.lower),
            "n_left_out": left_out(inputs, (self.embedding,)),
        }

    def cost(self, work: Work) -> Cost:
        """The Hessian and its factor, which every worker makes, counted once; and the scores."""
        size = min(MOST_PARAMETERS, work.n_classes * (work.dim + 1))
        pairs = pairs_cost(work, size, self.top_k)
        rows = float(work.n_examples + work.n_queries)
        return Cost(
            flops=pairs.flops + 2 * rows * size**2 + size**3 / 3,
            written_bytes=pairs.written_bytes,
            memory_bytes=pairs.memory_bytes
            + 24 * size**2
            + LABEL_BYTES * work.n_examples
            + 44 * min(BLOCK, work.n_examples) * work.dim,
        )


STAGE = HeadInfluence
