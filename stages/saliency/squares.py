"""Token scores without a sign: the squared gradient, summed over the embedding's dimensions.

m_i = sum_j S_ij^2 with one of three S, of shape (tokens, dim):

    simple      dF/dx at the text itself
    smooth      its mean over noisy copies of the text (SmoothGrad)
    integrated  integrated gradients before they are summed over dimensions

Source: Zhang et al. 2022, arXiv:2204.10893, section 3, where all end in a sum of squares; Simonyan
et al. 2014, arXiv:1312.6034; Smilkov et al. 2017, arXiv:1706.03825. The noise level of the paper is
not given; here it is a share of the range of a text's embeddings, as SmoothGrad has it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.model.seeded import generator_of
from stages.saliency.from_embeddings import BaselineName, FromEmbeddings, differentiate
from stages.saliency.outputs import ExplainedOutputs
from stages.saliency.path import baseline_rows, nodes
from stages.stage import ConfigError

Base = Literal["simple", "smooth", "integrated"]


@dataclass(frozen=True)
class Squares:
    """The choice of S among the three, and its parameters."""

    base: Base = "simple"
    """The S: the gradient, its mean over noisy copies, or integrated gradients."""
    samples: int = 25
    """Noisy copies of a text, or quadrature nodes of its integral."""
    noise: float = 0.1
    """Standard deviation of the noise, as a share of the range of a text's word embeddings."""
    baseline: BaselineName = "mask"
    """The baseline at which the path of integrated gradients begins."""
    seed: int = 0
    """Seed of the noise, which depends on this seed and the text alone."""

    def __post_init__(self) -> None:
        """Refuses parameters out of range.

        Raises:
            ConfigError: there are no samples, or the noise is negative.
        """
        if self.samples < 1 or self.noise < 0:
            raise ConfigError(
                f"scores: found samples: {self.samples}, noise: {self.noise}, expected at least 1, "
                "and at least 0. Correct them."
            )

    @property
    def n_gradients(self) -> int:
        """Gradients that are computed for each text."""
        return 1 if self.base == "simple" else self.samples


def squared_scores(
    embedded: FromEmbeddings, explained: ExplainedOutputs, squares: Squares, token_budget: int
) -> list[Float[np.ndarray, " tokens"]]:
    """The scores m_i of every explained row's tokens; 0 for special and template tokens.

    Cost: `Squares.n_gradients` forward and backward passes for each row.
    """
    count = squares.n_gradients
    sums: dict[int, Tensor] = {}
    scores: list[np.ndarray] = [np.zeros(0)] * explained.n
    t, weights = (torch.from_numpy(part).float() for part in nodes(count, "gauss_legendre"))
    t, weights = t.to(embedded.table.device), weights.to(embedded.table.device)
    noisy: dict[int, Tensor] = {}

    def points(row: int, indices: Int[np.ndarray, " points"]) -> Tensor:
        vectors = embedded.vectors(explained.tokens.columns["input_ids"][row])
        if squares.base == "simple":
            return vectors[None]
        if squares.base == "integrated":
            start = baseline_rows(embedded, explained, row, squares.baseline)
            return start + t[torch.from_numpy(indices)][:, None, None] * (vectors - start)
        if row not in noisy:
            noisy[row] = _noisy(explained, row, vectors, squares)
        return noisy[row][torch.from_numpy(indices)]

    def accumulate(
        row: int, indices: Int[np.ndarray, " points"], gradient: Tensor, _: Tensor
    ) -> None:
        share = weights[torch.from_numpy(indices)] if squares.base == "integrated" else None
        weighted = gradient if share is None else gradient * share[:, None, None]
        total = weighted.double().sum(0) / (1 if share is not None else count)
        sums[row] = sums[row] + total if row in sums else total
        if indices[-1] == count - 1:
            noisy.pop(row, None)
            slope = sums.pop(row)
            if squares.base == "integrated":
                vectors = embedded.vectors(explained.tokens.columns["input_ids"][row])
                start = baseline_rows(embedded, explained, row, squares.baseline)
                slope = slope * (vectors - start)
            scores[row] = slope.square().sum(1).cpu().numpy() * explained.offsets[row].is_text

    counts = [count] * explained.n
    differentiate(
        embedded, explained.tokens, explained.targets, counts, points, accumulate, token_budget
    )
    return scores


def _noisy(
    explained: ExplainedOutputs, row: int, vectors: Float[Tensor, "tokens dim"], squares: Squares
) -> Float[Tensor, "samples tokens dim"]:
    """Copies of a row's word embeddings with noise at the tokens of its text."""
    name = f"{squares.seed}/{explained.query_ids[row]}/{explained.targets.choice[row]}"
    shape = (squares.samples, *vectors.shape)
    noise = torch.randn(shape, generator=generator_of(name)).to(vectors)
    text_tokens = torch.from_numpy(explained.offsets[row].is_text).to(vectors)
    spread = squares.noise * float(vectors.max() - vectors.min())
    return vectors + spread * noise * text_tokens[:, None]
