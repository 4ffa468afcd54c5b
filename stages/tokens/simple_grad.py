"""SimpleGrad: the squared gradient at the query itself, summed over dimensions; it has no sign.

Source: Simonyan et al. 2014, arXiv:1312.6034, in the form of arXiv:2204.10893.
"""

from dataclasses import dataclass

from stages.saliency.cost import gradient_cost
from stages.saliency.from_embeddings import FromEmbeddings
from stages.saliency.outputs import ExplainedOutputs, ScoredOutput
from stages.saliency.squares import Squares, squared_scores
from stages.stage import Cost, Work
from stages.tokens.scores import TokenScores


@dataclass(frozen=True)
class SimpleGrad(TokenScores):
    """Scores of the tokens of every query, without a sign: large matters."""

    def score(self, embedded: FromEmbeddings, explained: ExplainedOutputs) -> list[ScoredOutput]:
        """See `TokenScores`."""
        squares = Squares("simple")
        scores = squared_scores(embedded, explained, squares, self.token_budget)
        return [ScoredOutput(of_row, squares.n_gradients) for of_row in scores]

    def cost(self, work: Work) -> Cost:
        """The cost of one forward and one backward pass for each query."""
        return gradient_cost(self.model, work, 1, self.token_budget)


STAGE = SimpleGrad
