"""AttnLRP: the relevance of each token, by one backward pass with changed rules.

A token's score is its word embedding times the gradient that the rules of
`stages/saliency/relevance.py` give. Scores add up to the explained output but for the shares of
biases, positions, special tokens and templates, and for what the Taylor rule of softmax leaves.

Source: Achtibat et al. 2024, arXiv:2402.05602; epsilon of the linear rule is 0.
"""

from dataclasses import dataclass

from stages.saliency.cost import gradient_cost
from stages.saliency.from_embeddings import FromEmbeddings
from stages.saliency.gradient_input import gradient_times_input
from stages.saliency.outputs import ExplainedOutputs, ScoredOutput
from stages.saliency.relevance import relevance_rules
from stages.stage import Cost, Work
from stages.tokens.scores import TokenScores


@dataclass(frozen=True)
class AttnLrp(TokenScores):
    """Scores of the tokens of every query; positive raises the explained output."""

    def score(self, embedded: FromEmbeddings, explained: ExplainedOutputs) -> list[ScoredOutput]:
        """See `TokenScores`.

        Raises:
            ModelError: the model has an operation without a rule.
            ConfigError: its attention is neither `eager` nor `sdpa`.
        """
        with relevance_rules(embedded.network):
            return gradient_times_input(embedded, explained, self.token_budget)

    def cost(self, work: Work) -> Cost:
        """The cost of one forward and one backward pass for each query."""
        return gradient_cost(self.model, work, 1, self.token_budget)


STAGE = AttnLrp
