"""SmoothGrad: the mean gradient at noisy copies of the query, squared; it has no sign.

Source: Smilkov et al. 2017, arXiv:1706.03825, in the form of arXiv:2204.10893.
"""

from dataclasses import dataclass

from stages.saliency.cost import gradient_cost
from stages.saliency.from_embeddings import FromEmbeddings
from stages.saliency.outputs import ExplainedOutputs, ScoredOutput
from stages.saliency.squares import Squares, squared_scores
from stages.stage import Cost, Work
from stages.tokens.scores import TokenScores


@dataclass(frozen=True)
class SmoothGrad(TokenScores):
    """Scores of the tokens of every query, without a sign: large matters."""

    samples: int = 25
    """Noisy copies of a query; each costs a gradient."""
    noise: float = 0.1
    """Standard deviation of the noise, as a share of the range of a query's word embeddings."""
    seed: int = 0
    """Seed of the noise, which depends on this seed and the query alone."""

    def __post_init__(self) -> None:
        """Refuses parameters out of range; see `Squares`."""
        Squares("smooth", self.samples, self.noise)

    def score(self, embedded: FromEmbeddings, explained: ExplainedOutputs) -> list[ScoredOutput]:
        """See `TokenScores`."""
        squares = Squares("smooth", self.samples, self.noise, seed=self.seed)
        scores = squared_scores(embedded, explained, squares, self.token_budget)
        return [ScoredOutput(of_row, squares.n_gradients) for of_row in scores]

    def cost(self, work: Work) -> Cost:
        """The cost of one forward and one backward pass for each copy of each query."""
        return gradient_cost(self.model, work, self.samples, self.token_budget)


STAGE = SmoothGrad
