"""A floor for token scores: random numbers, the same for a query whatever stands beside it.

Every method should do better.
"""

from dataclasses import dataclass

import torch

from stages.model.seeded import generator_of
from stages.saliency.cost import gradient_cost
from stages.saliency.from_embeddings import FromEmbeddings
from stages.saliency.outputs import ExplainedOutputs, Scored
from stages.stage import Cost, Work
from stages.tokens.scores import TokenScores


@dataclass(frozen=True)
class RandomToken(TokenScores):
    """A standard normal score for every token of every query."""

    seed: int = 0
    """Of the numbers, which depend on the query beside it."""

    def score(self, embedded: FromEmbeddings, units: ExplainedOutputs) -> list[Scored]:
        """See `TokenScores`."""
        found = []
        for unit in range(units.n):
            name = f"{self.seed}/{units.query_ids[unit]}/{units.outputs[unit]}"
            n = int(units.tokens.lengths[unit])
            found.append(Scored(torch.randn(n, generator=generator_of(name)).double().numpy()))
        return found

    def cost(self, work: Work) -> Cost:
        """The forward passes that say what is explained."""
        return gradient_cost(self.model, work, 0, self.token_budget)


STAGE = RandomToken
