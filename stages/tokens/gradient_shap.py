"""GradientSHAP: the mean over random points between baseline and noisy query.

With a uniform in [0, 1] and e Gaussian noise, the score of token i is the mean over samples of
sum_j dF/dx_ij(x' + a (x + e - x')) (x + e - x')_ij: a Monte-Carlo estimate of integrated gradients
where there is no noise.

Source: Lundberg and Lee 2017, arXiv:1705.07874, in the form of the libraries shap and captum.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from stages.model.seeded import generator_of
from stages.saliency.cost import gradient_cost
from stages.saliency.from_embeddings import BaselineName, FromEmbeddings, differentiate
from stages.saliency.outputs import ExplainedOutputs, Scored
from stages.saliency.path import baseline_rows, values_at
from stages.stage import ConfigError, Cost, Work
from stages.tokens.scores import TokenScores


@dataclass(frozen=True)
class GradientShap(TokenScores):
    """Scores of the tokens of every query; positive raises the explained output."""

    samples: int = 50
    """Random points per output, a gradient each."""
    noise: float = 0.0
    """Standard deviation of the noise, as a share of the range of a query's word embeddings."""
    baseline: BaselineName = "mask"
    """The token for masking or padding, or the zero vector."""
    seed: int = 0
    """Of points and noise, which depend on the query beside it."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range.

        Raises:
            ConfigError: one is.
        """
        if self.samples < 1 or self.noise < 0:
            raise ConfigError(
                f"gradient_shap: found samples: {self.samples}, noise: {self.noise}, expected at "
                "least 1, and at least 0. Correct them."
            )

    def score(self, embedded: FromEmbeddings, units: ExplainedOutputs) -> list[Scored]:
        """See `TokenScores`."""
        sums = [np.zeros(int(n)) for n in units.tokens.lengths]
        drawn: dict[int, tuple[Tensor, Tensor]] = {}

        def draw(unit: int) -> tuple[Tensor, Tensor]:
            rows = embedded.vectors(units.tokens.columns["input_ids"][unit])
            start = baseline_rows(embedded, units, unit, self.baseline)
            name = f"{self.seed}/{units.query_ids[unit]}/{units.outputs[unit]}"
            generator = generator_of(name)
            at = torch.rand(self.samples, 1, 1, generator=generator).to(rows)
            step = (rows - start).expand(self.samples, *rows.shape)
            if self.noise:
                spread = self.noise * float(rows.max() - rows.min())
                noise = torch.randn(step.shape, generator=generator).to(rows) * spread
                step = step + noise * torch.from_numpy(units.offsets[unit].is_text)[:, None].to(
                    rows
                )
            return start + at * step, step

        def points(unit: int, some: Int[np.ndarray, " points"]) -> Tensor:
            if unit not in drawn:
                drawn[unit] = draw(unit)
            return drawn[unit][0][torch.from_numpy(some)]

        def take(unit: int, some: Int[np.ndarray, " points"], gradient: Tensor, _: Tensor) -> None:
            steps = drawn[unit][1][torch.from_numpy(some)]
            own = (gradient.double() * steps.double()).sum((0, 2)) / self.samples
            sums[unit] += own.cpu().numpy()
            if some[-1] == self.samples - 1:
                del drawn[unit]

        counts = [self.samples] * units.n
        differentiate(
            embedded, units.tokens, units.targets, counts, points, take, self.token_budget
        )
        starts = values_at(
            embedded,
            units,
            lambda unit: baseline_rows(embedded, units, unit, self.baseline),
            self.token_budget,
        )
        found = [
            Scored(own, self.samples, float(start), float(own.sum()) - float(value) + float(start))
            for own, start, value in zip(sums, starts, units.values, strict=True)
        ]
        return found

    def cost(self, work: Work) -> Cost:
        """One forward and one backward pass for each sample."""
        return gradient_cost(self.model, work, self.samples, self.token_budget)


STAGE = GradientShap
