"""Integrated gradients: the path is the straight line from the baseline to the text's words.

Source: Sundararajan, Taly and Yan 2017, arXiv:1703.01365; Gauss-Legendre nodes as in captum.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from stages.saliency.cost import gradient_cost
from stages.saliency.from_embeddings import BaselineName, FromEmbeddings
from stages.saliency.outputs import ExplainedOutputs, ScoredOutput
from stages.saliency.path import LineRule, Path, baseline_rows, check_steps, follow, nodes
from stages.saliency.word_distance import line_distance
from stages.stage import Cost, Work
from stages.tokens.scores import TokenScores


@dataclass(frozen=True)
class IntegratedGradients(TokenScores):
    """Scores of the tokens of every query; positive raises the explained output."""

    steps: int = 50
    """Quadrature nodes for each explained output; each costs a gradient."""
    rule: LineRule = "gauss_legendre"
    """Quadrature (`stages/saliency/path.py`)."""
    baseline: BaselineName = "mask"
    """Embedding where the path begins: of the mask or padding token, or the zero vector."""
    output: Literal["predicted", "largest"] = "predicted"
    """Which output is explained: `predicted`, that of the query's own prediction; or `largest`, at
    every point of the path the output that is largest there."""
    word_distance: bool = False
    """Whether the mean distance of the path's points to the nearest word is computed, too."""

    def __post_init__(self) -> None:
        """Refuses too few steps; see `check_steps`."""
        check_steps(self.steps, self.rule)

    def score(self, embedded: FromEmbeddings, explained: ExplainedOutputs) -> list[ScoredOutput]:
        """See `TokenScores`."""
        t, weights = (torch.from_numpy(part).float() for part in nodes(self.steps, self.rule))
        t, weights = t.to(embedded.table.device), weights.to(embedded.table.device)

        def path(row: int) -> Path:
            start = baseline_rows(embedded, explained, row, self.baseline)
            step = embedded.vectors(explained.tokens.columns["input_ids"][row]) - start
            return Path(start + t[:, None, None] * step, weights[:, None, None] * step)

        distance = (
            line_distance(embedded, explained, t, self.baseline) if self.word_distance else None
        )
        return follow(
            *(embedded, explained, path, self.steps, self.baseline, self.token_budget),
            *(self.output == "largest", distance),
        )

    def cost(self, work: Work) -> Cost:
        """The cost of one forward and one backward pass for each step of each query."""
        return gradient_cost(self.model, work, self.steps, self.token_budget)


STAGE = IntegratedGradients
