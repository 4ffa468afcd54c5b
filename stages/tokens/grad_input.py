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
from stages.saliency.outputs import ExplainedOutputs, Scored
from stages.stage import Cost, Work
from stages.tokens.scores import TokenScores


@dataclass(frozen=True)
class GradInput(TokenScores):
    """Scores of the tokens of every query; positive raises the explained output."""

    def score(self, embedded: FromEmbeddings, units: ExplainedOutputs) -> list[Scored]:
        """See `TokenScores`."""
        found = [Scored(np.zeros(0))] * units.n

        def points(unit: int, _: Int[np.ndarray, " points"]) -> Tensor:
            return embedded.vectors(units.tokens.columns["input_ids"][unit])[None]

        def take(unit: int, _: Int[np.ndarray, " points"], gradient: Tensor, __: Tensor) -> None:
            products = gradient[0].double() * points(unit, _)[0].double()
            moved = units.offsets[unit].is_text
            found[unit] = Scored(products.sum(1).cpu().numpy() * moved, 1)

        ones = [1] * units.n
        differentiate(embedded, units.tokens, units.targets, ones, points, take, self.token_budget)
        return found

    def cost(self, work: Work) -> Cost:
        """One forward and one backward pass."""
        return gradient_cost(self.model, work, 1, self.token_budget)


STAGE = GradInput
