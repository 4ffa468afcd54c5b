"""Grad x Input: the gradient at the query itself, times the word embedding.

It is exact for a model that is linear in its embeddings, up to the constant of a zero baseline.

Source: Shrikumar et al. 2016, arXiv:1605.01713.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from torch import Tensor

from stages.saliency.cost import gradient_cost
from stages.saliency.from_embeddings import FromEmbeddings, differentiate
from stages.saliency.outputs import ExplainedOutputs, ScoredOutput
from stages.stage import Cost, Work
from stages.tokens.scores import TokenScores


@dataclass(frozen=True)
class GradInput(TokenScores):
    """Scores of the tokens of every query; positive raises the explained output."""

    def score(self, embedded: FromEmbeddings, explained: ExplainedOutputs) -> list[ScoredOutput]:
        """See `TokenScores`."""
        scored = [ScoredOutput(np.zeros(0))] * explained.n

        def points(row: int, _: Int[np.ndarray, " points"]) -> Tensor:
            return embedded.vectors(explained.tokens.columns["input_ids"][row])[None]

        def accumulate(
            row: int, _: Int[np.ndarray, " points"], gradient: Tensor, __: Tensor
        ) -> None:
            products = gradient[0].double() * points(row, _)[0].double()
            text_tokens = explained.offsets[row].is_text
            scored[row] = ScoredOutput(products.sum(1).cpu().numpy() * text_tokens, 1)

        ones = [1] * explained.n
        differentiate(
            embedded,
            explained.tokens,
            explained.targets,
            ones,
            points,
            accumulate,
            self.token_budget,
        )
        return scored

    def cost(self, work: Work) -> Cost:
        """The cost of one forward and one backward pass for each query."""
        return gradient_cost(self.model, work, 1, self.token_budget)


STAGE = GradInput
