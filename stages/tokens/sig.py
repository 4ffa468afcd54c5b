"""Sequential integrated gradients: the path of one token at a time, all others unchanged.

The embedding of token i alone follows the straight line from the baseline to its own, so that the
rest of the row stays as the model knows text; its score is the path integral of its own gradient,
and scores need not add up to anything. Costs `steps` gradients for every token: a query of L tokens
takes L times what integrated gradients take. `gradients` spreads a fixed number over the tokens
instead, at least one for each.

Source: Enguehard 2023, arXiv:2305.15853, eq. 3; here words are tokens, and the quadrature's rule is
a field.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from stages.saliency.cost import gradient_cost, queries_length
from stages.saliency.from_embeddings import BaselineName, FromEmbeddings, differentiate
from stages.saliency.outputs import ExplainedOutputs, ScoredOutput
from stages.saliency.path import LineRule, check_steps, nodes
from stages.stage import Cost, Work
from stages.tokens.scores import TokenScores


@dataclass(frozen=True)
class SequentialGradients(TokenScores):
    """Scores of the tokens of every query; positive raises the explained output."""

    steps: int = 10
    """Quadrature nodes for each token; each costs a gradient."""
    gradients: int | None = None
    """Gradients for each explained output, shared out evenly among its tokens, in place of
    `steps`."""
    rule: LineRule = "gauss_legendre"
    """Quadrature (`stages/saliency/path.py`)."""
    baseline: BaselineName = "mask"
    """Embedding where a token's path begins: of the mask or padding token, or the zero vector."""

    def __post_init__(self) -> None:
        """Refuses too few steps; see `check_steps`."""
        check_steps(self.steps, self.rule)
        if self.gradients is not None:
            check_steps(self.gradients, self.rule, "gradients")

    def score(self, embedded: FromEmbeddings, explained: ExplainedOutputs) -> list[ScoredOutput]:
        """See `TokenScores`."""
        text_tokens = [np.flatnonzero(offsets.is_text) for offsets in explained.offsets]
        steps = [self._steps(len(tokens)) for tokens in text_tokens]
        rules = {count: nodes(count, self.rule) for count in set(steps)}
        sums = [np.zeros(int(n)) for n in explained.tokens.lengths]
        start = embedded.baseline(self.baseline)

        def points(row: int, indices: Int[np.ndarray, " points"]) -> Tensor:
            vectors = embedded.vectors(explained.tokens.columns["input_ids"][row])
            token, step = text_tokens[row][indices // steps[row]], indices % steps[row]
            t = torch.from_numpy(rules[steps[row]][0][step]).to(vectors)[:, None]
            embeddings = vectors.repeat(len(indices), 1, 1)
            embeddings[torch.arange(len(indices)), torch.from_numpy(token)] = start + t * (
                vectors[torch.from_numpy(token)] - start
            )
            return embeddings

        def accumulate(
            row: int, indices: Int[np.ndarray, " points"], gradient: Tensor, _: Tensor
        ) -> None:
            vectors = embedded.vectors(explained.tokens.columns["input_ids"][row])
            token, step = text_tokens[row][indices // steps[row]], indices % steps[row]
            positions = torch.from_numpy(token)
            gradients = gradient[torch.arange(len(indices)), positions].double()
            products = (gradients * (vectors[positions] - start).double()).sum(1).cpu().numpy()
            np.add.at(sums[row], token, products * rules[steps[row]][1][step])

        counts = [len(tokens) * count for tokens, count in zip(text_tokens, steps, strict=True)]
        differentiate(
            embedded,
            explained.tokens,
            explained.targets,
            counts,
            points,
            accumulate,
            self.token_budget,
        )
        return [ScoredOutput(scores, count) for scores, count in zip(sums, counts, strict=True)]

    def _steps(self, n_text_tokens: int) -> int:
        """The quadrature nodes for each token of a row with so many text tokens."""
        least = 2 if self.rule == "trapezoid" else 1
        if self.gradients is None:
            return self.steps
        return max(least, self.gradients // max(1, n_text_tokens))

    def cost(self, work: Work) -> Cost:
        """The cost of one forward and one backward pass for each token and step of each query."""
        count = self.gradients or self.steps * queries_length(work)
        return gradient_cost(self.model, work, count, self.token_budget)


STAGE = SequentialGradients
