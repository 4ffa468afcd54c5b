"""The mean distance of a path's points to the nearest word: the word approximation error.

The mean is over the points of a path and the tokens of the text, the distance Euclidean, to the
nearest word embedding. A token's part depends on its word and the baseline alone, and is computed
once for each word.

Source: the metric of Sanyal and Ren 2021, arXiv:2108.13654.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stages.saliency.from_embeddings import BaselineName, FromEmbeddings
from stages.saliency.outputs import ExplainedOutputs

ROWS = 256
"""Points that are compared with the whole vocabulary at a time."""


def nearest_distance(
    table: Float[Tensor, "vocabulary dim"], points: Float[Tensor, "points dim"]
) -> Float[Tensor, " points"]:
    """The distance of each point to the nearest word embedding. Cost 2 points vocabulary dim.

    The nearest word is found by products in float32, its distance then taken from the difference.
    """
    squares = table.square().sum(1)
    distances = []
    for start in range(0, len(points), ROWS):
        block = points[start : start + ROWS]
        nearest = torch.addmm(squares, block, table.T, alpha=-2).argmin(1)
        distances.append((block - table[nearest]).norm(dim=1))
    return torch.cat(distances) if distances else torch.zeros(0)


def mean_distance(
    embedded: FromEmbeddings,
    explained: ExplainedOutputs,
    points_of: Callable[[Tensor], Float[Tensor, "points words dim"]],
) -> Callable[[int], float]:
    """A function from the number of an explained row to the mean distance of its path.

    `points_of` gives the points of the paths of words, by their token ids.
    """
    distance_of: dict[int, float] = {}

    def distance(row: int) -> float:
        ids = np.array(explained.tokens.columns["input_ids"][row])[explained.offsets[row].is_text]
        for word in sorted(set(ids.tolist()) - distance_of.keys()):
            points = points_of(torch.tensor([word], device=embedded.table.device))[:, 0]
            distance_of[word] = float(nearest_distance(embedded.table, points).mean())
        return float(np.mean([distance_of[word] for word in ids.tolist()])) if len(ids) else 0.0

    return distance


def line_distance(
    embedded: FromEmbeddings,
    explained: ExplainedOutputs,
    t: Float[Tensor, " points"],
    baseline: BaselineName,
) -> Callable[[int], float]:
    """As `mean_distance`, of the points at shares `t` of the straight line from the baseline."""
    start = embedded.baseline(baseline)
    return mean_distance(
        embedded,
        explained,
        lambda words: start + t[:, None, None] * (embedded.table[words] - start),
    )
