"""Occlusion: how much the explained output falls without a token, one at a time.

score_i = F(x) - F(x with the baseline in place of token i): what leaving one token out changes.

Source: Zeiler and Fergus 2014, arXiv:1311.2901, there of parts of images; Li et al. 2016,
arXiv:1612.08220, of words.
"""

from dataclasses import dataclass

import numpy as np

from stages.saliency.ablation import Variant, variant_outputs
from stages.saliency.cost import gradient_cost, queries_length
from stages.saliency.from_embeddings import BaselineName, FromEmbeddings
from stages.saliency.outputs import ExplainedOutputs, ScoredOutput
from stages.stage import Cost, Work
from stages.tokens.scores import TokenScores


@dataclass(frozen=True)
class Occlusion(TokenScores):
    """Scores of the tokens of every query; positive raises the explained output."""

    baseline: BaselineName = "mask"
    """What a token's embedding is replaced with: that of the mask or padding token, or zero."""

    def score(self, embedded: FromEmbeddings, explained: ExplainedOutputs) -> list[ScoredOutput]:
        """See `TokenScores`."""
        none = np.zeros(0, np.int64)
        text_tokens = [np.flatnonzero(offsets.is_text) for offsets in explained.offsets]
        variants = [
            Variant(row, none, np.array([token], np.int64))
            for row, tokens in enumerate(text_tokens)
            for token in tokens.tolist()
        ]
        without = iter(
            variant_outputs(
                embedded, explained, variants, self.baseline, self.token_budget, "logit"
            ).tolist()
        )
        scored = []
        for tokens, value, length in zip(
            text_tokens, explained.values, explained.tokens.lengths, strict=True
        ):
            scores = np.zeros(int(length))
            for token in tokens.tolist():
                scores[token] = float(value) - next(without)
            scored.append(ScoredOutput(scores))
        return scored

    def cost(self, work: Work) -> Cost:
        """The cost of one forward pass for each token of each query."""
        return gradient_cost(self.model, work, 0, self.token_budget, 2 + queries_length(work))


STAGE = Occlusion
