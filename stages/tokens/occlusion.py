"""Occlusion: how much the explained output falls without a token, one at a time.

score_i = F(x) - F(x with the baseline in place of token i): what leaving one token out changes.

Source: Zeiler and Fergus 2014, arXiv:1311.2901, there of parts of images; Li et al. 2016,
arXiv:1612.08220, of words.
"""

from dataclasses import dataclass

import numpy as np

from stages.saliency.ablation import Variant, answers
from stages.saliency.cost import gradient_cost, queries_length
from stages.saliency.from_embeddings import BaselineName, FromEmbeddings
from stages.saliency.outputs import ExplainedOutputs, Scored
from stages.stage import Cost, Work
from stages.tokens.scores import TokenScores


@dataclass(frozen=True)
class Occlusion(TokenScores):
    """Scores of the tokens of every query; positive raises the explained output."""

    baseline: BaselineName = "mask"
    """What a token is replaced with: the token for masking or padding, or the zero vector."""

    def score(self, embedded: FromEmbeddings, units: ExplainedOutputs) -> list[Scored]:
        """See `TokenScores`."""
        none = np.zeros(0, np.int64)
        moved = [np.flatnonzero(places.is_text) for places in units.offsets]
        variants = [
            Variant(unit, none, np.array([at], np.int64))
            for unit, own in enumerate(moved)
            for at in own.tolist()
        ]
        without = iter(
            answers(embedded, units, variants, self.baseline, self.token_budget, "logit").tolist()
        )
        found = []
        for own, value, length in zip(moved, units.values, units.tokens.lengths, strict=True):
            scores = np.zeros(int(length))
            for at in own.tolist():
                scores[at] = float(value) - next(without)
            found.append(Scored(scores))
        return found

    def cost(self, work: Work) -> Cost:
        """One forward pass for each token."""
        return gradient_cost(self.model, work, 0, self.token_budget, 2 + queries_length(work))


STAGE = Occlusion
