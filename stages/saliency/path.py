"""Attribution along a path of word embeddings: integrated gradients and its discrete relatives.

A path of a row is a list of points x^0, ..., x^M, from the baseline to the row's own embeddings; on
it only the embeddings of the text's tokens change; special and template tokens keep theirs. With F
the explained output the score of token i is a sum

    A_i = sum_k sum_j dF/dx_ij(x^k) W^k_ij,

whose weights W make it a quadrature of the path integral, so that the scores add up to
F(x) - F(baseline) but for the *convergence delta*, which is stored:

    left         W^k = x^{k+1} - x^k at the lower end of each step, as DIG and UDIG
    trapezoid    the mean of the steps below and above a point
    gauss_legendre   on the straight line only

Source: Sundararajan, Taly and Yan 2017, arXiv:1703.01365; the sum over steps of unequal size is
Sanyal and Ren 2021, arXiv:2108.13654.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stages.model.batches import batches
from stages.saliency.from_embeddings import BaselineName, FromEmbeddings, differentiate
from stages.saliency.outputs import ExplainedOutputs, ScoredOutput
from stages.stage import ConfigError

Rule = Literal["left", "trapezoid"]
LineRule = Literal["left", "trapezoid", "gauss_legendre"]


class Path(NamedTuple):
    """The points at which a row's gradients are taken, and the weight W^k of each gradient."""

    points: Float[Tensor, "points tokens dim"]
    weights: Float[Tensor, "points tokens dim"]


Paths = Callable[[int], Path]
"""The path of the explained row with this number."""


def quadrature(points: Float[Tensor, "points tokens dim"], rule: Rule) -> Path:
    """The path through `points` with the weights of a rule; `left` leaves out the last point."""
    steps = points.diff(dim=0)
    if rule == "left":
        return Path(points[:-1], steps)
    weights = torch.zeros_like(points)
    weights[:-1] += steps / 2
    weights[1:] += steps / 2
    return Path(points, weights)


def nodes(steps: int, rule: LineRule) -> tuple[np.ndarray, np.ndarray]:
    """The nodes in [0, 1] and the weights of a quadrature with `steps` nodes; weights sum to 1."""
    if rule == "left":
        return np.arange(steps) / steps, np.full(steps, 1 / steps)
    if rule == "trapezoid":
        weights = np.full(steps, 1 / (steps - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, steps), weights
    zeros, weights = np.polynomial.legendre.leggauss(steps)
    return (zeros + 1) / 2, weights / 2


def check_steps(steps: int, rule: LineRule, name: str = "steps") -> None:
    """Refuses too few quadrature nodes; `name` is the field that says how many.

    Raises:
        ConfigError: there are fewer than the rule needs.
    """
    least = 2 if rule == "trapezoid" else 1
    if steps < least:
        raise ConfigError(
            f"{name}: found {steps} with rule: {rule}, expected at least {least}. Raise it."
        )


def baseline_rows(
    embedded: FromEmbeddings, explained: ExplainedOutputs, row: int, baseline: BaselineName
) -> Float[Tensor, "tokens dim"]:
    """A row's word embeddings with the baseline in place of every token of its text."""
    vectors = embedded.vectors(explained.tokens.columns["input_ids"][row]).clone()
    vectors[torch.from_numpy(explained.offsets[row].is_text)] = embedded.baseline(baseline)
    return vectors


def follow(
    embedded: FromEmbeddings,
    explained: ExplainedOutputs,
    paths: Paths,
    n_points: int,
    baseline: BaselineName,
    token_budget: int,
    largest: bool = False,
    distance: Callable[[int], float] | None = None,
) -> list[ScoredOutput]:
    """The token scores of every explained row, from gradients at the `n_points` of its path.

    `baseline` is where the paths begin, `largest` as in `differentiate`; `distance`, where it is
    wanted, gives the mean distance of a row's path to the nearest word. Cost per row:
    `n_points` forward and backward passes, and one forward pass at the baseline.
    """
    sums = [np.zeros(int(n)) for n in explained.tokens.lengths]
    open_paths: dict[int, Path] = {}
    n_left = dict.fromkeys(range(explained.n), n_points)

    def points(row: int, indices: Int[np.ndarray, " points"]) -> Tensor:
        if row not in open_paths:
            open_paths[row] = paths(row)
        return open_paths[row].points[torch.from_numpy(indices)]

    def accumulate(
        row: int, indices: Int[np.ndarray, " points"], gradient: Tensor, _: Tensor
    ) -> None:
        weights = open_paths[row].weights[torch.from_numpy(indices)]
        sums[row] += (gradient.double() * weights.double()).sum((0, 2)).cpu().numpy()
        n_left[row] -= len(indices)
        if not n_left[row]:
            del open_paths[row]

    counts = [n_points] * explained.n
    differentiate(
        embedded,
        explained.tokens,
        explained.targets,
        counts,
        points,
        accumulate,
        token_budget,
        largest,
    )
    baseline_values = values_at(
        embedded,
        explained,
        lambda row: baseline_rows(embedded, explained, row, baseline),
        token_budget,
    )
    scored = []
    for row in range(explained.n):
        baseline_value = float(baseline_values[row])
        scored.append(
            ScoredOutput(
                sums[row],
                n_points,
                baseline_value,
                float(sums[row].sum()) - (float(explained.values[row]) - baseline_value),
                None if distance is None else distance(row),
            )
        )
    return scored


def values_at(
    embedded: FromEmbeddings,
    explained: ExplainedOutputs,
    vectors: Callable[[int], Float[Tensor, "tokens dim"]],
    token_budget: int,
) -> Float[np.ndarray, " outputs"]:
    """Each row's explained output when its tokens have the embeddings that `vectors` gives.

    Cost: a forward pass for each row.
    """
    values = np.zeros(explained.n)
    lengths = explained.tokens.lengths
    for batch in batches(lengths, token_budget):
        arguments = embedded.batch(explained.tokens, batch)
        longest = arguments["input_ids"].shape[1]
        embeddings = torch.zeros(len(batch), longest, embedded.table.shape[1]).to(embedded.table)
        for batch_row, row in enumerate(batch.tolist()):
            embeddings[batch_row, : lengths[row]] = vectors(row)
        with torch.no_grad():
            targets = explained.targets.take(batch)
            logits = embedded.choices(arguments, targets.distribution, embeddings)
        choice = torch.from_numpy(targets.choice)
        values[batch] = logits[torch.arange(len(batch)), choice].cpu().numpy()
    return values
