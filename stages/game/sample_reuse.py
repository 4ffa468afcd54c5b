"""Values from the utilities of whole coalitions, each used for all examples at once.

Where a utility costs a training, the difference of two of them is a dear way to learn about one
example. Here each utility enters the estimate of every example. [maximum sample reuse, Wang and Jia
2023, arXiv:2205.15466] With p the law of coalition sizes 1 to n - 1 and w_k the weights of
`stages.game.semivalue`, the value of example i is

    w_(n-1) / n U(all) - w_0 / n U(empty) + E_S c_i(S) U(S),
    c_i(S) = w_(s-1) / (s p_s) for a member, - w_s / ((n - s) p_s) for another, s = |S|.

The mean of c_i(S) U(S) over drawn coalitions is unbiased and useless: c_i is of size sqrt(n), U is
nearly a constant. So a game f whose values phi(f) are known is taken off the utility:

    value_i = phi_i(f) + (end terms of U - f) + mean_S c_i(S) (U(S) - f(S)).

It stays unbiased where f is fitted to other coalitions than S. Both estimators are of this form:

- **regression_msr**: f is a linear regression of U on who is a member. It is fitted to each of
  `FOLDS` folds' coalitions from those of the others, with weights |c(S)|^2, so that what it
  minimises is the error of the values; where every size is as frequent these are the weights of
  KernelSHAP, and phi(f) is nearly its estimate. Coalitions come in pairs with their complements:
  what U has in common for both, such as the part that pairs of examples add, then cancels. [Witter,
  Liu and Musco 2025, arXiv:2506.11849, the linear form; the weights and the ridge are ours]
- **adalina**: f is a constant, the mean utility (weighted likewise) of the other coalitions, which
  has the least error of all constants. Linear in memory. Coalitions are not paired: a pair has the
  error of a constant between the two, so that it helps where the utilities of a coalition and its
  complement, less f, are positively correlated, and the constant does nothing where they are
  paired. [Li, Yu and Low 2026, arXiv:2604.08438. They take the mean over all coalitions, S
  itself among them, which shrinks the sum by 1 / their number; left out here]

The error is least for p_s proportional to the root of w_(s-1)^2 / s + w_s^2 / (n - s), which is
1 / sqrt(s (n - s)) for Shapley values. [both papers] Coalitions that are prefixes of one
permutation, of all sizes, come cheaper where a regression grows, and need not be independent for
the mean to be right.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.game.utility import Utility
from stages.stage import ConfigError, DataError

Reuse = Literal["regression_msr", "adalina"]
REUSING: tuple[str, ...] = get_args(Reuse)
FOLDS = 8
"""Parts of a unit, each of whose residuals are from a regression on the others."""
RIDGE = 0.8
"""Of the regression on n members, in n coalitions: about what 2 n to 8 n coalitions of a trained
head are fitted best with (scripts/benchmarks/shapley_reuse.md)."""
MOST_REGRESSED = 5_000
"""Most examples of `regression_msr`; see `regression_bytes`."""
NUMBERS = 2**22
"""Most numbers of a matrix of members held at a time."""


class Drawn(NamedTuple):
    """Coalitions of a unit: the first examples of permutations, cut at one size or at several.

    Of `regression_msr` the permutations come in pairs, one after the other: the second is the
    reverse of the first, and is cut so that its coalitions are the complements.
    """

    orders: Int64[Tensor, "orders n"]
    sizes: Int64[Tensor, "orders cuts"]
    """Sizes 1 to n - 1 of the coalitions."""
    worth: Float[Tensor, "orders cuts columns"]
    """Utilities of the coalitions, a column for each utility and query."""


class Prefixes:
    """The utilities of all proper prefixes of permutations, from marginals along them."""

    def __init__(self, utilities: tuple[Utility, ...]):
        """Of no permutation."""
        self._gains: dict[Utility, list[Tensor]] = {name: [] for name in utilities}
        self._closed: list[Tensor] = []

    def add(
        self,
        utility: Utility,
        ids: Int64[Tensor, "one rows"],
        first: int,
        gains: Float[Tensor, "one rows *queries"],
    ) -> None:
        """Adds the marginals of the next examples of the permutation."""
        self._gains[utility].append(gains[0].double())

    def close_order(self, ends: Float[Tensor, "utilities ends *queries"]) -> None:
        """Ends a permutation; `ends` are U(empty) and U(all) of each utility."""
        worth: list[Tensor] = [
            none + torch.cat(gains)[:-1].cumsum(0)
            for none, gains in zip(ends[:, 0], self._gains.values(), strict=True)
        ]
        self._closed.append(torch.stack(worth, 1).flatten(1))
        for gains in self._gains.values():
            gains.clear()

    @property
    def worth(self) -> Float[Tensor, "orders cuts columns"]:
        """As in `Drawn`, cut at each size."""
        return torch.stack(self._closed)


def check_coalitions(kind: Reuse, count: int) -> None:
    """Refuses numbers of coalitions, or of permutations, that a unit cannot have.

    Raises:
        ConfigError: they are too few, or do not come in pairs.
    """
    if kind == "regression_msr" and (count < 4 or count % 2):
        raise ConfigError(
            f"coalitions: found {count} with regression_msr, expected an even number of at least "
            "4: they come in pairs, and some pairs correct a regression on the others. Correct it."
        )
    if count < 2:
        raise ConfigError(
            f"coalitions: found {count} with {kind}, expected at least 2: the utility of one is "
            "compared with the mean of the others. Raise it."
        )


def check_size(sampling: str, n: int) -> None:
    """Refuses `regression_msr` of too many examples.

    Raises:
        DataError: there are more than `MOST_REGRESSED`.
    """
    if sampling == "regression_msr" and n > MOST_REGRESSED:
        raise DataError(
            f"regression_msr: found {n:,} examples, expected at most {MOST_REGRESSED:,}: its "
            "regression has a coefficient for each. Leave it out for the default, or set adalina."
        )


def regression_bytes(n: int) -> int:
    """Memory of the normal equations of `regression_msr`, one for each fold and three at work."""
    return 8 * (FOLDS + 3) * n**2


def best_law(weights: Float[np.ndarray, "semivalues n"]) -> Float[np.ndarray, " sizes"]:
    """p_s for s = 1 to n - 1 with the least error, the same for a coalition and its complement."""
    n = weights.shape[1]
    sizes = np.arange(1, n)
    squares = weights[:, :-1] ** 2 / sizes + weights[:, 1:] ** 2 / (n - sizes)
    law = np.sqrt((squares / squares.max(1, keepdims=True, initial=1e-300)).sum(0))
    law = law + law[::-1]
    return np.asarray(law / law.sum())


def draw_orders(
    n: int, count: int, kind: Reuse, generator: np.random.Generator
) -> Int64[Tensor, "count n"]:
    """`count` permutations; of `regression_msr` each odd one is the reverse of the one before."""
    drawn = [generator.permutation(n) for _ in range(count if kind == "adalina" else count // 2)]
    orders = drawn if kind == "adalina" else [way for one in drawn for way in (one, one[::-1])]
    return torch.from_numpy(np.array(orders, dtype=np.int64).reshape(-1, n))


def draw_sizes(
    law: Float[np.ndarray, " sizes"], count: int, kind: Reuse, generator: np.random.Generator
) -> Int64[Tensor, "count one"]:
    """A size for each of `count` permutations of `draw_orders`, by the law."""
    n = len(law) + 1
    drawn = 1 + generator.choice(n - 1, count if kind == "adalina" else count // 2, p=law)
    sizes = drawn if kind == "adalina" else np.stack([drawn, n - drawn], 1).ravel()
    return torch.from_numpy(sizes.astype(np.int64))[:, None]


def values_of(
    drawn: Drawn,
    ends: Float[Tensor, "ends columns"],
    weights: Float[np.ndarray, "semivalues n"],
    law: Float[np.ndarray, " sizes"],
    kind: Reuse,
) -> Float[Tensor, "semivalues n columns"]:
    """An unbiased estimate of the semivalues of all examples; Shapley values sum to U(all) - U(0).

    `ends` are U(empty) and U(all), `weights` w_k of each semivalue, and `law` p_s, which the
    coalitions have each for itself. Cost: `adalina` linear in the numbers of `drawn`;
    `regression_msr` coalitions x n^2 for the normal equations and FOLDS n^3 / 3 to solve them.
    """
    n, w = weights.shape[1], torch.from_numpy(weights)
    own = torch.zeros(len(w), n, ends.shape[1], dtype=torch.float64)
    last, first = (w[:, at, None, None] / n for at in (-1, 0))
    if n == 1:
        own += last * ends[1] - first * ends[0]
        return own
    sizes = torch.arange(1, n, dtype=torch.float64)
    p = torch.from_numpy(law)
    inside, outside = w[:, :-1] / (sizes * p), w[:, 1:] / ((n - sizes) * p)
    squares = (sizes * inside.square() + (n - sizes) * outside.square()).sum(0)
    importance = (squares / squares.max())[drawn.sizes - 1]
    if kind == "adalina":
        centre = _other_means(drawn.worth, importance)
        of_ends = ends[:, None] - centre
        own += (last * of_ends[1].mean(0)) - first * of_ends[0].mean(0)
        own += _mean_effect(drawn, drawn.worth - centre[:, None], inside, outside)
        return own
    curve = _curve(n)
    steps = torch.einsum("sk,kc->sc", w / n, curve.diff(dim=0))
    folds = torch.arange(len(drawn.orders)) // 2 % FOLDS
    for fold, fit in _fits(drawn, importance, curve, folds):
        member, bend = fit[:n] - fit[:n].mean(0), fit[n:]
        part = Drawn(*(each[folds == fold] for each in drawn))
        of_ends = ends - curve[[0, -1]] @ bend
        known = member + (steps @ bend)[:, None] + last * of_ends[1] - first * of_ends[0]
        along = member[part.orders].cumsum(1)
        reached = (part.sizes - 1)[..., None].expand(-1, -1, ends.shape[1])
        residual = part.worth - along.gather(1, reached) - curve[part.sizes] @ bend
        effect = known + _mean_effect(part, residual, inside, outside)
        own += effect * (len(part.orders) / len(drawn.orders))
    return own


def _other_means(
    worth: Float[Tensor, "orders cuts columns"], importance: Float[Tensor, "orders cuts"]
) -> Float[Tensor, "orders columns"]:
    """For each permutation the weighted mean utility of the coalitions of all others."""
    sums, total = (worth * importance[..., None]).sum(1), importance.sum(1)
    mean: Tensor = (sums.sum(0) - sums) / (total.sum() - total)[:, None]
    return mean


def _curve(n: int) -> Float[Tensor, "sizes_and_ends 2"]:
    """A constant and a line, for coalitions of 0 to n examples."""
    sizes = torch.arange(n + 1, dtype=torch.float64)
    return torch.stack([torch.ones_like(sizes), sizes / n - 0.5], 1)


def _fits(
    drawn: Drawn,
    importance: Float[Tensor, "orders cuts"],
    curve: Float[Tensor, "sizes_and_ends 2"],
    folds: Int64[Tensor, " orders"],
) -> Iterator[tuple[int, Float[Tensor, "coefficients columns"]]]:
    """For each fold the coefficients of the regression on all others: of members, then of `curve`.

    Members enter less their share, 1 - s / n or - s / n, so that the ridge draws the coefficients
    to their mean. A fold that is empty, or all there is, is left out.
    """
    n = drawn.orders.shape[1]
    width, present = n + curve.shape[1], sorted(set(folds.tolist()))
    left = torch.zeros(len(present), width, width, dtype=torch.float64)
    right = left.new_zeros(len(present), width, drawn.worth.shape[2])
    for at, fold in enumerate(present):
        mine = (folds == fold).nonzero()[:, 0]
        for part in torch.split(mine, max(1, NUMBERS // (drawn.sizes.shape[1] * n))):
            sizes = drawn.sizes[part]
            rank = drawn.orders[part].argsort(1)
            member = (rank[:, None] < sizes[..., None]).double() - (sizes / n)[..., None]
            rows = torch.cat([member, curve[sizes]], 2).flatten(0, 1)
            weighted = rows * importance[part].flatten()[:, None]
            left[at].addmm_(weighted.T, rows)
            right[at].addmm_(weighted.T, drawn.worth[part].flatten(0, 1))
    for at, fold in enumerate(present):
        equations = left.sum(0) - left[at]
        scale = equations.diagonal()[:n].mean()
        n_fitted = int((folds != fold).sum()) * drawn.sizes.shape[1]
        equations.diagonal()[:n].add_(RIDGE * n / n_fitted * scale)
        equations.diagonal()[n:].add_(1e-9 * scale)
        factor = torch.linalg.cholesky(equations)
        yield fold, torch.cholesky_solve(right.sum(0) - right[at], factor)


def _mean_effect(
    drawn: Drawn,
    residual: Float[Tensor, "orders cuts columns"],
    inside: Float[Tensor, "semivalues sizes"],
    outside: Float[Tensor, "semivalues sizes"],
) -> Float[Tensor, "semivalues n columns"]:
    """The mean over all coalitions of c_i(S) times the residual of S.

    An example at place t of a permutation is in the coalitions of more than t examples.
    """
    (n_orders, n), n_columns = drawn.orders.shape, residual.shape[2]
    total = residual.new_zeros(len(inside), n, n_columns)
    for part in torch.split(torch.arange(n_orders), max(1, NUMBERS // (n * n_columns))):
        orders, sizes = drawn.orders[part], drawn.sizes[part]
        for row, factors in enumerate(zip(inside, outside, strict=True)):
            gained, lost = (
                residual.new_zeros(len(part), n + 1, n_columns).scatter_(
                    1, sizes[..., None].expand_as(residual[part]), residual[part] * scale[..., None]
                )
                for scale in (factor[sizes - 1] for factor in factors)
            )
            after = gained.flip(1).cumsum(1).flip(1)[:, 1:] - lost.cumsum(1)[:, :-1]
            total[row].index_add_(0, orders.flatten(), after.flatten(0, 1))
    return total / drawn.sizes.numel()
