"""Attribution along a path of word embeddings: integrated gradients and its discrete relatives.

A path of a row is a list of points x^0, ..., x^M, from the baseline to the row's own embeddings; on
it only the tokens of the text move. With F the explained output the score of token i is a sum

    A_i = sum_k sum_j dF/dx_ij(x^k) W^k_ij,

whose weights W make it a quadrature of the path integral, so that the scores add up to
F(x) - F(baseline) but for the *convergence delta*, which is stored:

    left         W^k = x^{k+1} - x^k at the lower end of each step, as DIG and UDIG
    trapezoid    the mean of the steps below and above a point
    gauss_legendre   on the straight line only

Source: Sundararajan, Taly and Yan 2017, arXiv:1703.01365; the sum over steps of unequal size is
Sanyal and Ren 2021, arXiv:2108.13654 (methods.md 3.2).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.model.batches import batches
from stages.saliency.from_embeddings import BaselineName, FromEmbeddings, differentiate
from stages.saliency.outputs import ExplainedOutputs, Scored
from stages.stage import ConfigError

Rule = Literal["left", "trapezoid"]
LineRule = Literal["left", "trapezoid", "gauss_legendre"]


class Path(NamedTuple):
    """Where a row's gradients are taken, and what each is multiplied with."""

    points: Float[Tensor, "points tokens dim"]
    weights: Float[Tensor, "points tokens dim"]


Paths = Callable[[int], Path]
"""The path of a unit."""


def quadrature(points: Float[Tensor, "points tokens dim"], rule: Rule) -> Path:
    """A path through these points; the left rule does without a gradient at the last of them."""
    steps = points.diff(dim=0)
    if rule == "left":
        return Path(points[:-1], steps)
    weights = torch.zeros_like(points)
    weights[:-1] += steps / 2
    weights[1:] += steps / 2
    return Path(points, weights)


def nodes(steps: int, rule: LineRule) -> tuple[np.ndarray, np.ndarray]:
    """Places in [0, 1] and weights of a quadrature with `steps` nodes; weights add up to 1."""
    if rule == "left":
        return np.arange(steps) / steps, np.full(steps, 1 / steps)
    if rule == "trapezoid":
        weights = np.full(steps, 1 / (steps - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, steps), weights
    at, weights = np.polynomial.legendre.leggauss(steps)
    return (at + 1) / 2, weights / 2


def check_steps(steps: int, rule: LineRule, name: str = "steps") -> None:
    """Refuses too few points for a rule.

    Raises:
        ConfigError: there are.
    """
    least = 2 if rule == "trapezoid" else 1
    if steps < least:
        raise ConfigError(
            f"{name}: found {steps} with rule: {rule}, expected at least {least}. Raise it."
        )


def baseline_rows(
    embedded: FromEmbeddings, units: ExplainedOutputs, unit: int, baseline: BaselineName
) -> Float[Tensor, "tokens dim"]:
    """A unit's embeddings with the baseline in place of every token of its text."""
    rows = embedded.vectors(units.tokens.columns["input_ids"][unit]).clone()
    rows[torch.from_numpy(units.offsets[unit].is_text)] = embedded.baseline(baseline)
    return rows


def follow(
    embedded: FromEmbeddings,
    units: ExplainedOutputs,
    paths: Paths,
    n_points: int,
    baseline: BaselineName,
    token_budget: int,
    largest: bool = False,
    distance: Callable[[int], float] | None = None,
) -> list[Scored]:
    """The scores of every unit along its path of `n_points` gradients.

    `distance` gives a unit's mean distance to the nearest word, where it is wanted. Cost per unit:
    `n_points` forward and backward passes, and one forward pass at the baseline.
    """
    sums = [np.zeros(int(n)) for n in units.tokens.lengths]
    kept: dict[int, Path] = {}
    left = dict.fromkeys(range(units.n), n_points)

    def points(unit: int, some: Int[np.ndarray, " points"]) -> Tensor:
        if unit not in kept:
            kept[unit] = paths(unit)
        return kept[unit].points[torch.from_numpy(some)]

    def take(unit: int, some: Int[np.ndarray, " points"], gradient: Tensor, _: Tensor) -> None:
        weights = kept[unit].weights[torch.from_numpy(some)]
        sums[unit] += (gradient.double() * weights.double()).sum((0, 2)).cpu().numpy()
        left[unit] -= len(some)
        if not left[unit]:
            del kept[unit]

    counts = [n_points] * units.n
    differentiate(
        embedded, units.tokens, units.targets, counts, points, take, token_budget, largest
    )
    ends = values_at(
        embedded, units, lambda unit: baseline_rows(embedded, units, unit, baseline), token_budget
    )
    found = []
    for unit in range(units.n):
        start = float(ends[unit])
        found.append(
            Scored(
                sums[unit],
                n_points,
                start,
                float(sums[unit].sum()) - (float(units.values[unit]) - start),
                None if distance is None else distance(unit),
            )
        )
    return found


def values_at(
    embedded: FromEmbeddings,
    units: ExplainedOutputs,
    rows: Callable[[int], Float[Tensor, "tokens dim"]],
    token_budget: int,
) -> Float[np.ndarray, " units"]:
    """Every unit's output at other embeddings, by a forward pass each."""
    found = np.zeros(units.n)
    lengths = units.tokens.lengths
    for batch in batches(lengths, token_budget):
        arguments = embedded.batch(units.tokens, batch)
        longest = arguments["input_ids"].shape[1]
        given = torch.zeros(len(batch), longest, embedded.table.shape[1]).to(embedded.table)
        for at, unit in enumerate(batch.tolist()):
            given[at, : lengths[unit]] = rows(unit)
        with torch.no_grad():
            own = units.targets.of(batch)
            logits = embedded.choices(arguments, own.which, given)
        found[batch] = logits[torch.arange(len(batch)), torch.from_numpy(own.choice)].cpu().numpy()
    return found
