"""SmoothGrad: the squared mean of gradients at noisy copies of the query; it has no sign.

Source: Smilkov et al. 2017, arXiv:1706.03825, in the form of arXiv:2204.10893.
"""

from dataclasses import dataclass

from stages.saliency.cost import gradient_cost
from stages.saliency.from_embeddings import FromEmbeddings
from stages.saliency.outputs import ExplainedOutputs, Scored
from stages.saliency.squares import Squares, squared_scores
from stages.stage import Cost, Work
from stages.tokens.scores import TokenScores


@dataclass(frozen=True)
class SmoothGrad(TokenScores):
    """Scores of the tokens of every query, without a sign: large matters."""

    samples: int = 25
    """Noisy copies, a gradient each."""
    noise: float = 0.1
    """Standard deviation of the noise, as a share of the range of a query's word embeddings."""
    seed: int = 0
    """Of the noise, which depends on the query beside it."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range; see `Squares`."""
        Squares("smooth", self.samples, self.noise)

    def score(self, embedded: FromEmbeddings, units: ExplainedOutputs) -> list[Scored]:
        """See `TokenScores`."""
        squares = Squares("smooth", self.samples, self.noise, seed=self.seed)
        scores = squared_scores(embedded, units, squares, self.token_budget)
        return [Scored(own, squares.n_gradients) for own in scores]

    def cost(self, work: Work) -> Cost:
        """One forward and one backward pass for each copy."""
        return gradient_cost(self.model, work, self.samples, self.token_budget)


STAGE = SmoothGrad
