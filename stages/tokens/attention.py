"""A floor for token scores: the attention that a token receives in the last layer.

A token's score is its attention weight, a mean over heads and over the tokens of the row that
attend to it. It is the same for every output, has no sign, and says what the model reads, not how
that changes an output.

Source: Jain and Wallace 2019, arXiv:1902.10186, on why attention is no explanation.
"""

from dataclasses import dataclass

import numpy as np
import torch

from stages.model.batches import batches
from stages.model.networks import attention_of
from stages.saliency.cost import gradient_cost
from stages.saliency.from_embeddings import FromEmbeddings
from stages.saliency.outputs import ExplainedOutputs, ScoredOutput
from stages.stage import Cost, Work
from stages.tokens.scores import TokenScores


@dataclass(frozen=True)
class Attention(TokenScores):
    """Scores of the tokens of every query, without a sign."""

    def score(self, embedded: FromEmbeddings, explained: ExplainedOutputs) -> list[ScoredOutput]:
        """See `TokenScores`."""
        scored = [ScoredOutput(np.zeros(0))] * explained.n
        for rows in batches(explained.tokens.lengths, self.token_budget):
            batch = embedded.batch(explained.tokens, rows)
            with torch.no_grad():
                weights = attention_of(embedded.network, batch)
            mask = batch["attention_mask"].to(weights.dtype)
            received = (weights * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            for row, scores in zip(rows.tolist(), received, strict=True):
                n = int(explained.tokens.lengths[row])
                scored[row] = ScoredOutput(scores[:n].double().cpu().numpy())
        return scored

    def cost(self, work: Work) -> Cost:
        """The cost of a forward pass, and of those that find the explained outputs."""
        return gradient_cost(self.model, work, 0, self.token_budget, 3)


STAGE = Attention
