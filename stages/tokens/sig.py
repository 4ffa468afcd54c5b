"""Sequential integrated gradients: one word at a time, all others as they are.

Token i moves alone on the straight line from the baseline to its embedding, so that the rest of the
text stays a text; its score is the path integral of its own gradient, and scores need not add up to
anything. Costs `steps` gradients for every token: a query of L tokens takes L times what integrated
gradients take. `gradients` spreads a fixed number over the tokens instead, at least one for each.

Source: Enguehard 2023, arXiv:2305.15853, eq. 3; words are tokens, and the quadrature is a choice.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from stages.saliency.cost import gradient_cost, queries_length
from stages.saliency.from_embeddings import BaselineName, FromEmbeddings, differentiate
from stages.saliency.outputs import ExplainedOutputs, Scored
from stages.saliency.path import LineRule, check_steps, nodes
from stages.stage import Cost, Work
from stages.tokens.scores import TokenScores


@dataclass(frozen=True)
class SequentialGradients(TokenScores):
    """Scores of the tokens of every query; positive raises the explained output."""

    steps: int = 10
    """Gradients per token."""
    gradients: int | None = None
    """Gradients per output, shared out evenly among its tokens, in place of `steps`."""
    rule: LineRule = "gauss_legendre"
    """Quadrature (`stages/saliency/path.py`)."""
    baseline: BaselineName = "mask"
    """Where a token begins: the token for masking or padding, or the zero vector."""

    def __post_init__(self) -> None:
        """Refuse too few steps; see `check_steps`."""
        check_steps(self.steps, self.rule)
        if self.gradients is not None:
            check_steps(self.gradients, self.rule, "gradients")

    def score(self, embedded: FromEmbeddings, units: ExplainedOutputs) -> list[Scored]:
        """See `TokenScores`."""
        moved = [np.flatnonzero(places.is_text) for places in units.offsets]
        steps = [self._steps(len(own)) for own in moved]
        rules = {count: nodes(count, self.rule) for count in set(steps)}
        sums = [np.zeros(int(n)) for n in units.tokens.lengths]
        start = embedded.baseline(self.baseline)

        def points(unit: int, some: Int[np.ndarray, " points"]) -> Tensor:
            rows = embedded.vectors(units.tokens.columns["input_ids"][unit])
            which, step = moved[unit][some // steps[unit]], some % steps[unit]
            at = torch.from_numpy(rules[steps[unit]][0][step]).to(rows)[:, None]
            found = rows.repeat(len(some), 1, 1)
            found[torch.arange(len(some)), torch.from_numpy(which)] = start + at * (
                rows[torch.from_numpy(which)] - start
            )
            return found

        def take(unit: int, some: Int[np.ndarray, " points"], gradient: Tensor, _: Tensor) -> None:
            rows = embedded.vectors(units.tokens.columns["input_ids"][unit])
            which, step = moved[unit][some // steps[unit]], some % steps[unit]
            places = torch.from_numpy(which)
            own = gradient[torch.arange(len(some)), places].double()
            products = (own * (rows[places] - start).double()).sum(1).cpu().numpy()
            np.add.at(sums[unit], which, products * rules[steps[unit]][1][step])

        counts = [len(own) * count for own, count in zip(moved, steps, strict=True)]
        differentiate(
            embedded, units.tokens, units.targets, counts, points, take, self.token_budget
        )
        found = [Scored(own, count) for own, count in zip(sums, counts, strict=True)]
        return found

    def _steps(self, n_moved: int) -> int:
        """Gradients for each token of a unit."""
        least = 2 if self.rule == "trapezoid" else 1
        if self.gradients is None:
            return self.steps
        return max(least, self.gradients // max(1, n_moved))

    def cost(self, work: Work) -> Cost:
        """One forward and one backward pass for each token and step."""
        count = self.gradients or self.steps * queries_length(work)
        return gradient_cost(self.model, work, count, self.token_budget)


STAGE = SequentialGradients
