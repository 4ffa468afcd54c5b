"""Token scores without a sign: the squared gradient, summed over the embedding's dimensions.

m_i = sum_j S_ij^2 with one of three S, of shape (tokens, dim):

    simple      dF/dx at the text itself
    smooth      its mean over noisy copies of the text (SmoothGrad)
    integrated  integrated gradients before they are summed over dimensions

Source: Zhang et al. 2022, arXiv:2204.10893, section 3 (methods.md 4.2), where all end in a sum of
squares; Simonyan et al. 2014, arXiv:1312.6034; Smilkov et al. 2017, arXiv:1706.03825. The noise
level of the paper is not given; here it is a share of the range of a text's embeddings, as
SmoothGrad has it.
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
    """Which S, and what it takes."""

    base: Base = "simple"
    """The gradient, its mean over noisy copies, or integrated gradients."""
    samples: int = 25
    """Noisy copies, or points of the integral."""
    noise: float = 0.1
    """Standard deviation of the noise, as a share of the range of a text's word embeddings."""
    baseline: BaselineName = "mask"
    """Where integrated gradients begin."""
    seed: int = 0
    """Of the noise, which depends on the text beside it."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range.

        Raises:
            ConfigError: one is.
        """
        if self.samples < 1 or self.noise < 0:
            raise ConfigError(
                f"scores: found samples: {self.samples}, noise: {self.noise}, expected at least 1, "
                "and at least 0. Correct them."
            )

    @property
    def n_gradients(self) -> int:
        """Gradients per text."""
        return 1 if self.base == "simple" else self.samples


def squared_scores(
    embedded: FromEmbeddings, units: ExplainedOutputs, squares: Squares, token_budget: int
) -> list[Float[np.ndarray, " tokens"]]:
    """The scores of every unit's tokens; 0 for those that are no piece of its text.

    Cost: `Squares.n_gradients` forward and backward passes a unit.
    """
    count = squares.n_gradients
    sums: dict[int, Tensor] = {}
    found: list[np.ndarray] = [np.zeros(0)] * units.n
    at, weights = (torch.from_numpy(part).float() for part in nodes(count, "gauss_legendre"))
    at, weights = at.to(embedded.table.device), weights.to(embedded.table.device)
    noisy: dict[int, Tensor] = {}

    def points(unit: int, some: Int[np.ndarray, " points"]) -> Tensor:
        rows = embedded.vectors(units.tokens.columns["input_ids"][unit])
        if squares.base == "simple":
            return rows[None]
        if squares.base == "integrated":
            start = baseline_rows(embedded, units, unit, squares.baseline)
            return start + at[torch.from_numpy(some)][:, None, None] * (rows - start)
        if unit not in noisy:
            noisy[unit] = _noisy(units, unit, rows, squares)
        return noisy[unit][torch.from_numpy(some)]

    def take(unit: int, some: Int[np.ndarray, " points"], gradient: Tensor, _: Tensor) -> None:
        share = weights[torch.from_numpy(some)] if squares.base == "integrated" else None
        own = gradient if share is None else gradient * share[:, None, None]
        total = own.double().sum(0) / (1 if share is not None else count)
        sums[unit] = sums[unit] + total if unit in sums else total
        if some[-1] == count - 1:
            noisy.pop(unit, None)
            slope = sums.pop(unit)
            if squares.base == "integrated":
                rows = embedded.vectors(units.tokens.columns["input_ids"][unit])
                start = baseline_rows(embedded, units, unit, squares.baseline)
                slope = slope * (rows - start)
            scores = slope.square().sum(1).cpu().numpy()
            found[unit] = scores * units.offsets[unit].is_text

    counts = [count] * units.n
    differentiate(embedded, units.tokens, units.targets, counts, points, take, token_budget)
    return found


def _noisy(
    units: ExplainedOutputs, unit: int, rows: Float[Tensor, "tokens dim"], squares: Squares
) -> Float[Tensor, "samples tokens dim"]:
    """Copies of a text with noise at the tokens that move."""
    name = f"{squares.seed}/{units.query_ids[unit]}/{units.targets.choice[unit]}"
    shape = (squares.samples, *rows.shape)
    noise = torch.randn(shape, generator=generator_of(name)).to(rows)
    moved = torch.from_numpy(units.offsets[unit].is_text).to(rows)
    spread = squares.noise * float(rows.max() - rows.min())
    return rows + spread * noise * moved[:, None]
