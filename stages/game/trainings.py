"""Units of trainings on subsets, and the values that the outcomes of a unit estimate."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.game.sample_reuse import Drawn, Reuse, best_law, draw_orders, draw_sizes, values_of
from stages.game.semivalue import size_weights
from stages.game.utility import Utility, mean_utilities


class Walk(NamedTuple):
    """Prefixes of one order of the examples that are trained on."""

    order: Int64[np.ndarray, " examples"]
    sizes: tuple[int, ...]
    visits: Int64[np.ndarray, " examples"]
    """The order in which a training visits its examples, in every epoch."""


def marginals(
    outputs: Float[Tensor, "prefixes classes queries"],
    labels: Int64[Tensor, " queries"],
    order: Int64[np.ndarray, " examples"],
    sizes: tuple[int, ...],
    utilities: tuple[Utility, ...],
) -> Float[Tensor, "utilities examples"]:
    """Marginals of each example for each utility, from the `outputs` for prefixes of `order`.

    `sizes` are those of the prefixes. The gain between two sizes is shared equally by the examples
    that joined. Column i is example i, whatever its place in `order`; a row sums to
    U(all) - U(empty).
    """
    first = torch.zeros_like(outputs[:1])
    gains = mean_utilities(torch.cat([first, outputs]), labels, utilities).diff(dim=1)
    joined = torch.tensor(sizes).diff(prepend=torch.tensor([0]))
    shared = (gains / joined).repeat_interleave(joined, dim=1)
    scattered = torch.empty(len(utilities), len(order), dtype=torch.float64)
    scattered[:, torch.from_numpy(order)] = shared
    return scattered


def coalition_unit(n: int, count: int, kind: Reuse, generator: np.random.Generator) -> list[Walk]:
    """`count` coalitions of drawn sizes, each trained on alone, and at last all `n` examples.

    The second of a pair is visited in the order of the first.
    """
    unit: list[Walk] = []
    if n > 1:
        orders = draw_orders(n, count, kind, generator)
        law = best_law(size_weights("shapley", n)[None])
        sizes = draw_sizes(law, count, kind, generator)[:, 0].tolist()
        for order, size in zip(orders.numpy(), sizes, strict=True):
            is_second = kind == "regression_msr" and len(unit) % 2
            visits = unit[-1].visits if is_second else generator.permutation(n)
            unit.append(Walk(order, (size,), visits))
    return [*unit, Walk(np.arange(n), (n,), generator.permutation(n))]


def reused(
    unit: list[Walk],
    outputs: Float[Tensor, "trainings classes queries"],
    labels: Int64[Tensor, " queries"],
    utilities: tuple[Utility, ...],
    kind: Reuse,
) -> Float[Tensor, "utilities examples"]:
    """The Shapley values that a unit of `coalition_unit` estimates; a row sums to U(all) - U(0)."""
    n = len(unit[0].order)
    none = torch.zeros_like(outputs[:1])
    worth = mean_utilities(torch.cat([none, outputs]), labels, utilities).T
    drawn = Drawn(
        torch.from_numpy(np.array([walk.order for walk in unit[:-1]]).reshape(-1, n)),
        torch.tensor([walk.sizes for walk in unit[:-1]]).reshape(-1, 1),
        worth[1:-1, None],
    )
    weights = size_weights("shapley", n)[None]
    return values_of(drawn, worth[[0, -1]], weights, best_law(weights), kind)[0].T
