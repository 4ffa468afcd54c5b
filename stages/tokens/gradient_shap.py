"""GradientSHAP: the mean over random points between baseline and noisy query.

With x the embeddings, x' the baseline, a uniform in [0, 1] and e Gaussian noise, the score of token
i is the mean over samples of sum_j dF/dx_ij(x' + a (x + e - x')) (x + e - x')_ij: a Monte-Carlo
estimate of integrated gradients where there is no noise.

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
from stages.saliency.outputs import ExplainedOutputs, ScoredOutput
from stages.saliency.path import baseline_rows, values_at
from stages.stage import ConfigError, Cost, Work
from stages.tokens.scores import TokenScores


@dataclass(frozen=True)
class GradientShap(TokenScores):
    """Scores of the tokens of every query; positive raises the explained output."""

    samples: int = 50
    """Random points for each explained output; each costs a gradient."""
    noise: float = 0.0
    """Standard deviation of the noise, as a share of the range of a query's word embeddings."""
    baseline: BaselineName = "mask"
    """Embedding x': of the mask or padding token, or the zero vector."""
    seed: int = 0
    """Seed of points and noise, which depend on this seed and the query alone."""

    def __post_init__(self) -> None:
        """Refuses parameters out of range.

        Raises:
            ConfigError: there are no samples, or the noise is negative.
        """
        if self.samples < 1 or self.noise < 0:
            raise ConfigError(
                f"gradient_shap: found samples: {self.samples}, noise: {self.noise}, expected at "
                "least 1, and at least 0. Correct them."
            )

    def score(self, embedded: FromEmbeddings, explained: ExplainedOutputs) -> list[ScoredOutput]:
        """See `TokenScores`."""
        sums = [np.zeros(int(n)) for n in explained.tokens.lengths]
        drawn: dict[int, tuple[Tensor, Tensor]] = {}

        def draw(row: int) -> tuple[Tensor, Tensor]:
            vectors = embedded.vectors(explained.tokens.columns["input_ids"][row])
            start = baseline_rows(embedded, explained, row, self.baseline)
            name = f"{self.seed}/{explained.query_ids[row]}/{explained.outputs[row]}"
            generator = generator_of(name)
            t = torch.rand(self.samples, 1, 1, generator=generator).to(vectors)
            step = (vectors - start).expand(self.samples, *vectors.shape)
            if self.noise:
                spread = self.noise * float(vectors.max() - vectors.min())
                noise = torch.randn(step.shape, generator=generator).to(vectors) * spread
                step = step + noise * torch.from_numpy(explained.offsets[row].is_text)[:, None].to(
                    vectors
                )
            return start + t * step, step

        def points(row: int, indices: Int[np.ndarray, " points"]) -> Tensor:
            if row not in drawn:
                drawn[row] = draw(row)
            return drawn[row][0][torch.from_numpy(indices)]

        def accumulate(
            row: int, indices: Int[np.ndarray, " points"], gradient: Tensor, _: Tensor
        ) -> None:
            steps = drawn[row][1][torch.from_numpy(indices)]
            products = (gradient.double() * steps.double()).sum((0, 2)) / self.samples
            sums[row] += products.cpu().numpy()
            if indices[-1] == self.samples - 1:
                del drawn[row]

        counts = [self.samples] * explained.n
        differentiate(
            embedded,
            explained.tokens,
            explained.targets,
            counts,
            points,
            accumulate,
            self.token_budget,
        )
        baseline_values = values_at(
            embedded,
            explained,
            lambda row: baseline_rows(embedded, explained, row, self.baseline),
            self.token_budget,
        )
        return [
            ScoredOutput(
                scores,
                self.samples,
                float(start),
                float(scores.sum()) - float(value) + float(start),
            )
            for scores, start, value in zip(sums, baseline_values, explained.values, strict=True)
        ]

    def cost(self, work: Work) -> Cost:
        """The cost of one forward and one backward pass for each sample of each query."""
        return gradient_cost(self.model, work, self.samples, self.token_budget)


STAGE = GradientShap
