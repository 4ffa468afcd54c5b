"""Grad x Input: the gradient at the query itself, times the word embedding.

It is exact for a model that is linear in its embeddings, up to the constant of a zero baseline.

Source: Shrikumar et al. 2016, arXiv:1605.01713.
"""

from dataclasses import dataclass

from stages.saliency.cost import gradient_cost
from stages.saliency.from_embeddings import FromEmbeddings
from stages.saliency.gradient_input import gradient_times_input
from stages.saliency.outputs import ExplainedOutputs, ScoredOutput
from stages.stage import Cost, Work
from stages.tokens.scores import TokenScores


@dataclass(frozen=True)
class GradInput(TokenScores):
    """Scores of the tokens of every query; positive raises the explained output."""

    def score(self, embedded: FromEmbeddings, explained: ExplainedOutputs) -> list[ScoredOutput]:
        """See `TokenScores`."""
        return gradient_times_input(embedded, explained, self.token_budget)

    def cost(self, work: Work) -> Cost:
        """The cost of one forward and one backward pass for each query."""
        return gradient_cost(self.model, work, 1, self.token_budget)


STAGE = GradInput
