"""How far the points of a path are from any word: the word approximation error.

It is the mean, over the points of a path and the tokens that move, of the Euclidean distance to the
nearest word embedding. It depends on the word and the baseline alone, and is kept by word.

Source: the metric of Sanyal and Ren 2021, arXiv:2108.13654 (methods.md 3.5).
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stages.saliency.from_embeddings import BaselineName, FromEmbeddings
from stages.saliency.outputs import ExplainedOutputs

ROWS = 256
"""Points that are compared with the vocabulary at a time."""


def nearest_distance(
    table: Float[Tensor, "vocabulary dim"], points: Float[Tensor, "points dim"]
) -> Float[Tensor, " points"]:
    """The distance of each point to the nearest word. Cost 2 points vocabulary dim.

    The nearest word is found by products in float32, its distance then taken from the difference.
    """
    squares = table.square().sum(1)
    found = []
    for start in range(0, len(points), ROWS):
        block = points[start : start + ROWS]
        nearest = torch.addmm(squares, block, table.T, alpha=-2).argmin(1)
        found.append((block - table[nearest]).norm(dim=1))
    return torch.cat(found) if found else torch.zeros(0)


def mean_distance(
    embedded: FromEmbeddings,
    units: ExplainedOutputs,
    points_of: Callable[[Tensor], Float[Tensor, "points words dim"]],
) -> Callable[[int], float]:
    """By unit, the mean over its moved tokens; `points_of` gives the points of some words."""
    known: dict[int, float] = {}

    def distance(unit: int) -> float:
        ids = np.array(units.tokens.columns["input_ids"][unit])[units.offsets[unit].is_text]
        for word in sorted(set(ids.tolist()) - known.keys()):
            points = points_of(torch.tensor([word], device=embedded.table.device))[:, 0]
            known[word] = float(nearest_distance(embedded.table, points).mean())
        return float(np.mean([known[word] for word in ids.tolist()])) if len(ids) else 0.0

    return distance


def line_distance(
    embedded: FromEmbeddings,
    units: ExplainedOutputs,
    at: Float[Tensor, " points"],
    baseline: BaselineName,
) -> Callable[[int], float]:
    """The same of points on the straight line from the baseline."""
    start = embedded.baseline(baseline)
    return mean_distance(
        embedded,
        units,
        lambda words: start + at[:, None, None] * (embedded.table[words] - start),
    )
