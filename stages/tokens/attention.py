"""A floor for token scores: the attention that a token receives in the last layer.

The mean over heads and over the row's tokens, which all read it. It is the same for every output,
has no sign, and says where the model looks, not what it makes of it.

Source: Jain and Wallace 2019, arXiv:1902.10186, on what it does not explain.
"""

from dataclasses import dataclass

import numpy as np
import torch

from stages.model.batches import batches
from stages.model.networks import attention_of
from stages.saliency.cost import gradient_cost
from stages.saliency.from_embeddings import FromEmbeddings
from stages.saliency.outputs import ExplainedOutputs, Scored
from stages.stage import Cost, Work
from stages.tokens.scores import TokenScores


@dataclass(frozen=True)
class Attention(TokenScores):
    """Scores of the tokens of every query, without a sign."""

    def score(self, embedded: FromEmbeddings, units: ExplainedOutputs) -> list[Scored]:
        """See `TokenScores`."""
        found = [Scored(np.zeros(0))] * units.n
        for rows in batches(units.tokens.lengths, self.token_budget):
            batch = embedded.batch(units.tokens, rows)
            with torch.no_grad():
                weights = attention_of(embedded.network, batch)
            mask = batch["attention_mask"].to(weights.dtype)
            read = (weights * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            for row, own in zip(rows.tolist(), read, strict=True):
                n = int(units.tokens.lengths[row])
                found[row] = Scored(own[:n].double().cpu().numpy())
        return found

    def cost(self, work: Work) -> Cost:
        """A forward pass, and those that say what is explained."""
        return gradient_cost(self.model, work, 0, self.token_budget, 3)


STAGE = Attention
