"""A floor for token scores: random numbers that depend on the seed and the query alone.

Every method should do better.
"""

from dataclasses import dataclass

import torch

from stages.model.seeded import generator_of
from stages.saliency.cost import gradient_cost
from stages.saliency.from_embeddings import FromEmbeddings
from stages.saliency.outputs import ExplainedOutputs, ScoredOutput
from stages.stage import Cost, Work
from stages.tokens.scores import TokenScores


@dataclass(frozen=True)
class RandomToken(TokenScores):
    """A standard normal score for every token of every query."""

    seed: int = 0
    """Seed of the scores, which depend on this seed and the query alone."""

    def score(self, embedded: FromEmbeddings, explained: ExplainedOutputs) -> list[ScoredOutput]:
        """See `TokenScores`."""
        scored = []
        for row in range(explained.n):
            name = f"{self.seed}/{explained.query_ids[row]}/{explained.outputs[row]}"
            n = int(explained.tokens.lengths[row])
            scored.append(
                ScoredOutput(torch.randn(n, generator=generator_of(name)).double().numpy())
            )
        return scored

    def cost(self, work: Work) -> Cost:
        """The cost of the forward passes that find the explained outputs."""
        return gradient_cost(self.model, work, 0, self.token_budget)


STAGE = RandomToken
