"""A subset for a ridge regression, built row by row by exact marginal utility.

The regression on a set S of rows with features x and targets y has the weights

    W_S = P_S sum_S x y',    P_S = (sum_S x x' + damping I)^-1.

What it is for is a weighted set T of rows with the outputs r that are wanted there: the loss is the
weighted sum over T of |r - W_S' x|^2. One more row (x, y) moves the weights by u g', with u = P_S x
and g = (y - W_S' x) / (1 + x' u) (Sherman and Morrison 1950, doi:10.1214/aoms/1177729893), hence
lowers the loss by exactly

    2 g' (Q - M W_S)' u - |g|^2 u' M u,    M = sum_T w x x',    Q = sum_T w x r',

whatever the size of T. Each step takes the row that lowers it most, among those of the class that
lags furthest behind its share. Within a batch of rows all u and their products are kept up to date
by rank-one updates: a step costs 6 dim operations a row of the batch. Values of single rows
(Shapley) say what a row is worth beside a random set; this is what it is worth beside the rows that
are taken already, so that of two alike the second is worth little.

Beyond a tenth of the rows the damping grows with the share that is taken: the more rows there are,
the less is left to say for one, and by then a small damping chases the oddities of single ones. It
was chosen on draws of six sets that are not reported. [ours]
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

ALONE, BATCH = 4096, 1024
"""Most rows that compete all together, and in a batch where there are more."""
FIRST_SHARE = 1 / 64
"""Share of the rows that the first pass takes; each later one doubles it."""
FULL_SHARE = 0.1
"""Share up to which the damping is as given; beyond, it grows in proportion."""


RowsAt = Callable[[Int64[Tensor, " rows"]], Float[Tensor, "rows dim"]]
"""Feature vectors of the rows at some positions; float64."""


class Wanted(NamedTuple):
    """Outputs that the regression should have: sums over rows, with weights that sum to 1."""

    moment: Float[Tensor, "dim dim"]
    """M, the weighted sum of x x'."""
    product: Float[Tensor, "dim outputs"]
    """Q, the weighted sum of x r'."""

    @classmethod
    def of(cls, features: RowsAt, outputs: Float[Tensor, "rows outputs"]) -> "Wanted":
        """These outputs at all rows of `features`, which weigh alike. Memory: `BATCH` rows."""
        moment, product = torch.zeros(0), torch.zeros(0)
        for first in range(0, len(outputs), BATCH):
            at = torch.arange(first, min(first + BATCH, len(outputs)))
            x = features(at)
            if not moment.numel():
                moment = x.new_zeros(x.shape[1], x.shape[1])
                product = x.new_zeros(x.shape[1], outputs.shape[1])
            moment.addmm_(x.T, x)
            product.addmm_(x.T, outputs[at])
        return cls(moment / len(outputs), product / len(outputs))

    def mixed(self, other: "Wanted", share: float) -> "Wanted":
        """This with the weight 1 - `share` and `other` with `share`."""
        return Wanted(
            torch.lerp(self.moment, other.moment, share),
            torch.lerp(self.product, other.product, share),
        )


class Order(NamedTuple):
    """All rows in an order to take them in."""

    rows: Int64[np.ndarray, " rows"]
    gains: Float[np.ndarray, " rows"]
    """The fall of the loss by each when it was taken; of the others what each would add now."""
    n_taken: int


class _Regression:
    """The regression on the rows taken so far."""

    def __init__(self, wanted: Wanted, damping: float) -> None:
        dim, n_outputs = wanted.product.shape
        self.wanted, self.damping = wanted, damping
        self.gram = torch.zeros(dim, dim, dtype=torch.float64)
        self.product = torch.zeros(dim, n_outputs, dtype=torch.float64)

    def add(self, features: Tensor, targets: Tensor) -> None:
        self.gram.addmm_(features.T, features)
        self.product.addmm_(features.T, targets)

    def inverse(self) -> Tensor:
        """P_S."""
        damped = self.gram + self.damping * torch.eye(len(self.gram), dtype=torch.float64)
        inverse: Tensor = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return inverse


class _Batch:
    """What one more row of a batch would do, kept up to date while rows of it are taken."""

    def __init__(self, features: Tensor, targets: Tensor, regression: _Regression) -> None:
        self.x, self.y, self.moment = features, targets, regression.wanted.moment
        inverse = regression.inverse()
        weights = inverse @ regression.product
        self.u = features @ inverse
        self.spread = torch.einsum("rd,rd->r", self.u @ self.moment, self.u)
        self.weight = 1 + torch.einsum("rd,rd->r", features, self.u)
        self.outputs = features @ weights
        self.pull = self.u @ (regression.wanted.product - self.moment @ weights)

    def gains(self) -> Float[Tensor, " rows"]:
        """By how much each row would lower the loss."""
        step = (self.y - self.outputs) / self.weight[:, None]
        return 2 * (step * self.pull).sum(1) - step.square().sum(1) * self.spread

    def take(self, row: int) -> None:
        """Counts the row among those that the regression is fitted on."""
        u, pull, spread = self.u[row].clone(), self.pull[row].clone(), self.spread[row].clone()
        step = (self.y[row] - self.outputs[row]) / self.weight[row]
        to_u = self.x @ u
        shrinks = to_u / self.weight[row]
        across = self.u @ (self.moment @ u)
        self.spread += shrinks.square() * spread - 2 * shrinks * across
        self.pull -= torch.outer(shrinks, pull) + torch.outer(across - shrinks * spread, step)
        self.outputs += torch.outer(to_u, step)
        self.u.addr_(shrinks, u, alpha=-1)
        # At least 1 but for rounding, which a row like many that were taken leaves in a difference.
        self.weight = (self.weight - shrinks * to_u).clamp_min(1.0)


def take_greedily(
    features: RowsAt,
    targets: Float[Tensor, "rows outputs"],
    classes: Int64[np.ndarray, " rows"],
    wanted: Wanted,
    damping: float,
    share: float,
    candidates: Bool[np.ndarray, " rows"],
    generator: np.random.Generator,
) -> Order:
    """A `share` of the rows, all of them among the `candidates`, the same share of each class.

    Up to `ALONE` rows compete all together. More are cut into batches at random. Passes take 1/64
    of the rows, 1/32 and so on, so that the first of any number are spread over all batches; the
    damping is that of the pass. The rows that are not taken follow by their gains, the candidates
    before all others.

    `features` gives the vectors of rows, `targets` are what each row says. A class that has too few
    candidates is taken whole, and its share is left to others. Cost, for n rows and k passes:
    4 k n dim^2 + 12 share n BATCH dim operations. Memory: 32 BATCH dim + 40 dim^2 bytes.
    """
    n = len(targets)
    n_classes = int(classes.max()) + 1
    is_left = candidates.copy()
    total = min(round(share * n), int(is_left.sum()))
    n_batches = -(-n // BATCH) if n > ALONE else 1
    batches = np.array_split(generator.permutation(n), n_batches)
    shares = [share]
    while shares[0] > FIRST_SHARE:
        shares.insert(0, shares[0] / 2)
    regression = _Regression(wanted, damping)
    behind = np.zeros(n_classes)  # rows of each class that are due and not taken
    rows: list[int] = []
    gains: list[float] = []
    before = 0.0
    for end in shares:
        due = 0.0
        regression.damping = damping * max(1.0, end / FULL_SHARE)
        for batch in batches:
            n_of = np.bincount(classes[batch], minlength=n_classes)
            due += (end - before) * len(batch)
            goal = min(total, round(before * n + due))
            chosen = batch[is_left[batch]]
            if not len(chosen) or len(rows) >= goal:
                behind += (end - before) * n_of
                continue
            at = torch.from_numpy(chosen)
            now = _Batch(features(at), targets[at], regression)
            left = np.ones(len(chosen), bool)
            of_class = classes[chosen]
            n_left = np.bincount(of_class, minlength=n_classes)
            n_here = min(goal - len(rows), len(chosen))
            taken: list[int] = []
            for _ in range(n_here):
                behind += (end - before) * n_of / n_here
                turn = int(np.where(n_left > 0, behind, -np.inf).argmax())
                open_rows = torch.from_numpy(left & (of_class == turn))
                gain = torch.where(open_rows, now.gains(), -torch.inf)
                row = int(gain.argmax())
                taken.append(row)
                gains.append(float(gain[row]))
                left[row] = False
                n_left[turn] -= 1
                behind[turn] -= 1
                now.take(row)
            rows += chosen[taken].tolist()
            is_left[chosen[taken]] = False
            regression.add(now.x[taken], now.y[taken])
        before = end
    others = np.setdiff1d(np.arange(n), rows)
    would_add = np.zeros(len(others))
    for part in np.array_split(np.arange(len(others)), -(-len(others) // BATCH) or 1):
        at = torch.from_numpy(others[part])
        would_add[part] = _Batch(features(at), targets[at], regression).gains().numpy()
    after = np.lexsort((others, -would_add, ~candidates[others]))
    return Order(
        np.concatenate([np.array(rows, np.int64), others[after]]),
        np.concatenate([np.array(gains), would_add[after]]),
        len(rows),
    )
