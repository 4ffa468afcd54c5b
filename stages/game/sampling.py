"""Sampling of coalitions, and its cost: what all stages that value examples by sampling share."""

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stages.game.coalitions import WIDE_NUMBERS, Design, add_unit
from stages.game.fields import GameFields
from stages.game.game import Game
from stages.game.least_squares import SHORT
from stages.game.permutations import (
    Sampling,
    Truncation,
    orders_per_unit,
    prior_units,
    survival_of,
    unit_of,
    walk,
)
from stages.game.pilot import pilot, size_law
from stages.game.sample_reuse import (
    FOLDS,
    REUSING,
    Drawn,
    Prefixes,
    Reuse,
    check_coalitions,
    check_size,
    draw_orders,
    regression_bytes,
    values_of,
)
from stages.game.semivalue import parse_semivalue, size_weights
from stages.game.sums import MarginalSums
from stages.game.utility import Utility
from stages.model.seeded import permutations
from stages.stage import ConfigError, Cost, Work


@dataclass(frozen=True)
class Valuation(GameFields):
    """The fields of a game and of the sampling of its coalitions, and the sampling itself."""

    semivalues: tuple[str, ...] = ("shapley",)
    """`shapley`, and `beta(a,b)` such as beta(16,1), which weighs small coalitions more."""
    sampling: Sampling = "stratified"
    """`stratified`: every example's marginals to coalitions of drawn sizes
    (`stages/game/coalitions.py`); or permutations: `uniform`, `paired`, `quasi_random`; or whole
    utilities of the prefixes of permutations: `regression_msr`, for up to 5,000 examples, and
    `adalina` (`stages/game/sample_reuse.py`)."""
    coalitions: int = 8
    """Of `stratified`: coalitions in a unit; `stages/game/pilot.py` says of which sizes. Of
    `regression_msr` and `adalina`: permutations in a unit."""
    block: int = 32
    """Of `stratified`: examples that join together where accuracy is measured."""
    orders: int = 4
    """Of `stratified`: orders they join in, whose marginals are averaged."""
    truncation: Truncation = "none"
    """Of permutations: `tolerance` is the paper's rule, which is biased towards small coalitions,
    `random` a random length, without bias."""
    tolerance: float = 0.05
    """Share of U(all) - U(none) at which a permutation ends, for truncation: tolerance."""
    survival: float = 60.0
    """For truncation: random, a permutation has a marginal at size s with min(1, survival / s)."""
    seed: int = 0
    """Seed of all draws, together with the round's number."""

    def check(self) -> None:
        """Refuses fields that no value can be computed from.

        Raises:
            ConfigError: a field is empty, negative, or not a number that can be used.
        """
        self.check_game()
        if not self.semivalues or len(set(self.semivalues)) < len(self.semivalues):
            raise ConfigError(
                f"semivalues: found {list(self.semivalues)}, expected at least one, each once. "
                "Name some of shapley and beta(a,b)."
            )
        for name in self.semivalues:
            parse_semivalue(name)
        for name, least in (("coalitions", 1), ("block", 1), ("orders", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name}: found {getattr(self, name)}, expected at least {least}. Raise it."
                )
        for name in ("tolerance", "survival"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(
                    f"{name}: found {getattr(self, name)}, expected a positive number. Correct it."
                )
        if self.sampling == "stratified" and self.truncation != "none":
            raise ConfigError(
                f"truncation: found {self.truncation} with sampling: stratified, expected none, "
                "which is cut short by nature. Leave it out, or set sampling: uniform."
            )
        if self.sampling in REUSING:
            check_coalitions(cast(Reuse, self.sampling), self.coalitions)
            if self.truncation != "none":
                raise ConfigError(
                    f"truncation: found {self.truncation} with sampling: {self.sampling}, expected "
                    "none: it takes the utilities of all prefixes. Leave it out, or set sampling: "
                    "uniform."
                )

    def design(self, game: Game) -> Design | None:
        """How coalitions of `sampling: stratified` are drawn; None for permutations.

        A pilot chooses the law of sizes from the game and the seed; rounds have it in common. The
        utilities of `game` must be means over the queries (`by_query` false).

        Raises:
            DataError: there are more examples than `regression_msr` fits a regression to.
        """
        check_size(self.sampling, game.n)
        if self.sampling != "stratified":
            return None
        n, generator = game.n, np.random.default_rng([self.seed, 0, 2])
        flat = Design(n, np.full(n + 1, 1 / (n + 1)), self.coalitions, self.block, self.orders)
        spread = pilot(game, flat, self.utilities, generator)
        cost = coalition_costs(
            n, game.width, game.dim, self.utilities, is_binary=game.judge.n_outputs == 1
        )
        law = size_law(n, list(spread.values()), self._semivalue_weights(n), cost)
        return replace(flat, law=law)

    def weights(
        self, game: Game, design: Design | None
    ) -> dict[str, Float[np.ndarray, "semivalues sizes"]]:
        """The weight of a marginal at each coalition size, by utility, for `MarginalSums`."""
        by_size = self._semivalue_weights(game.n)
        if self.sampling in REUSING:
            return dict.fromkeys(self.utilities, by_size)
        if design is None:
            n_orders = orders_per_unit(game.n, self.sampling)
            expected = survival_of(game.n, self.truncation, self.survival) * n_orders / game.n
            return {name: by_size / (game.n * expected) for name in self.utilities}
        return {
            name: by_size
            / (game.n * design.draws * design.expected(design.block if name == "accuracy" else 1))
            for name in self.utilities
        }

    def n_prior(self, n: int) -> int:
        """`n_prior` of the units of n players (`stages.game.uncertainty.moderated`)."""
        is_alike = self.sampling == "stratified" or self.sampling in REUSING
        return 0 if is_alike else prior_units(n, self.sampling)

    def _semivalue_weights(self, n: int) -> Float[np.ndarray, "semivalues sizes"]:
        """w_k of each semivalue (`stages.game.semivalue`)."""
        return np.stack([size_weights(name, n) for name in self.semivalues])

    def sample(
        self,
        game: Game,
        design: Design | None,
        tally: MarginalSums,
        n_units: int,
        index: int,
        ends: Float[Tensor, "utilities ends *queries"],
    ) -> None:
        """Adds the `n_units` units of round `index` to `tally`; they follow from seed and round.

        `ends` are U(empty) and U(all) of each utility, for truncation: tolerance.
        """
        if design is not None:
            generator = np.random.default_rng([self.seed, index])
            for _ in range(n_units):
                add_unit(game, design, self.utilities, tally, generator)
                tally.close_unit()
            return
        if self.sampling in REUSING:
            generator = np.random.default_rng([self.seed, index])
            for _ in range(n_units):
                tally.add_values(self._reused(game, generator, ends))
                tally.close_unit()
            return
        orders = [
            order
            for first in permutations(game.n, n_units, self.seed, index)
            for order in unit_of(first, self.sampling)
        ]
        lengths = [game.n] * len(orders)
        if self.truncation == "random":
            # A draw of its own, so that permutations are the same with and without truncation.
            chance = np.random.default_rng([self.seed, index, 1]).random(len(orders))
            lengths = [int(min(game.n, self.survival / (1 - x))) for x in chance]
        tolerance = self.tolerance if self.truncation == "tolerance" else None
        per_unit = len(orders) // n_units
        for at in walk(game, orders, lengths, self.utilities, tally, ends, tolerance):
            if at % per_unit == per_unit - 1:
                tally.close_unit()

    def _reused(
        self,
        game: Game,
        generator: np.random.Generator,
        ends: Float[Tensor, "utilities ends *queries"],
    ) -> Float[Tensor, "semivalues utilities n *queries"]:
        """The values of a unit, from the utilities of all prefixes of its permutations."""
        kind, n = cast(Reuse, self.sampling), game.n
        orders = draw_orders(n, self.coalitions, kind, generator)
        prefixes = Prefixes(self.utilities)
        for _ in walk(game, list(orders), [n] * len(orders), self.utilities, prefixes, ends):
            prefixes.close_order(ends)
        sizes = torch.arange(1, n).expand(len(orders), -1)
        of_ends = ends.movedim(1, 0).flatten(1)
        law = np.full(n - 1, 1 / max(1, n - 1))
        drawn = Drawn(orders, sizes, prefixes.worth)
        values = values_of(drawn, of_ends, self._semivalue_weights(n), law, kind)
        shape = (*values.shape[:2], len(self.utilities), *ends.shape[2:])
        return values.view(shape).movedim(2, 1)

    def unit_cost(self, work: Work) -> Cost:
        """Operations and memory of one unit, with the engine that serves so many examples."""
        n, width = work.n_examples, self.n_judged(work)
        is_dense = self.engine_for(n) == "prefix_cholesky"
        dim = None if is_dense else self.n_numbers(work)
        if self.sampling == "stratified":
            sizes, counts = _sizes(n)
            costs = coalition_costs(
                n, width, dim, self.utilities, is_binary=work.n_classes <= 2, sizes=sizes
            )
            # What a pilot says of a corpus is not known yet: between both ends of what was seen.
            usual = counts * (sizes + 1.0) ** -0.6 / np.sqrt(costs)
            flops = 2 * self.coalitions * float(usual @ costs / usual.sum())
        else:
            in_unit = orders_per_unit(n, self.sampling)
            if self.sampling in REUSING:
                in_unit = self.coalitions
            reach, sizes = survival_of(n, self.truncation, self.survival), np.arange(n)
            steps = sizes**2 + 2.0 * sizes * width if dim is None else 2.0 * dim * (dim + width)
            judged = width * sum(OUTPUT_COST[name] for name in self.utilities)
            each = float((reach * (steps + judged)).sum())
            flops = 2 * in_unit * each
        regressed = 0
        if self.sampling == "regression_msr":
            flops += 2 * self.coalitions * n**3 + 2 * FOLDS * n**3 / 3
            regressed = regression_bytes(n)
        memory = 32 * n**2 + 8 * n * width
        if dim is not None:
            memory = 100 * dim**2 + 8 * dim * width + 40 * WIDE_NUMBERS
        memory += n * (100 + 8 * work.n_classes) + regressed
        return Cost(flops=flops, memory_bytes=memory, note=self.how(n))


MANY_SIZES = 100_000
"""Sizes of coalitions whose costs are added up; of larger corpora a part stands for all."""
OUTPUT_COST = {"accuracy": 1100, "cross_entropy": 400, "margin": 300, "loss": 300}
"""Time to turn one output into a utility by its definition, in multiplications; seen on one
core."""
ROW_COST = 120
"""Time to read one number of a feature vector, in multiplications; seen on one core, 100 for
float32 and 150 for float16."""


def coalition_costs(
    n: int,
    width: int,
    dim: int | None,
    utilities: tuple[Utility, ...],
    is_binary: bool,
    sizes: Float[np.ndarray, " sizes"] | None = None,
) -> Float[np.ndarray, " sizes"]:
    """Multiplications for the marginals of all examples to one coalition of each of the sizes.

    By default of each size 0 to n.
    """
    sizes = np.arange(n + 1.0) if sizes is None else sizes
    judged = n * width * sum(_judging(name, is_binary, sizes) for name in utilities)
    if dim is None:
        return np.asarray(judged + n * (sizes**2 / 2 + sizes * width) + sizes**3 / 2)
    rank = np.where(sizes < SHORT * dim, sizes, dim)
    seen = n * (dim * (rank + width + ROW_COST) + rank * width)
    return np.asarray(judged + seen + sizes * dim * rank)


def _judging(
    utility: Utility, is_binary: bool, sizes: Float[np.ndarray, " sizes"]
) -> Float[np.ndarray, " sizes"]:
    """Multiplications to turn one output into a marginal (`stages/game/marginals.py`).

    Seen on one core with 2 and 20 classes of 45,000 tweets. The larger a coalition is, the fewer
    queries can an example still turn.
    """
    turning = 1 / (1 + sizes / 500)
    if utility == "accuracy":
        return 750 + 350 * turning if is_binary else 100 + 1000 * turning
    return np.full(len(sizes), 20.0 if utility == "cross_entropy" and not is_binary else 300.0)


def _sizes(n: int) -> tuple[Float[np.ndarray, " sizes"], Float[np.ndarray, " sizes"]]:
    """Sizes of coalitions of n examples, all or some, and how many sizes each stands for."""
    if n <= MANY_SIZES:
        return np.arange(n + 1.0), np.ones(n + 1)
    sizes = np.unique(np.geomspace(1, n + 1, MANY_SIZES).round()) - 1
    return sizes, np.diff(np.append(sizes, n + 1.0))
