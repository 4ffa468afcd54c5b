"""What stages that value examples by sampling share: how coalitions are drawn."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from stages.coalition_sampling import Design, add_unit, size_law
from stages.drawing import permutations
from stages.game import Game
from stages.game_fields import GameFields
from stages.permutation_sampling import (
    Sampling,
    Truncation,
    orders_per_unit,
    survival_of,
    unit_of,
    walk,
)
from stages.semivalue import parse_semivalue, size_weights
from stages.stage import ConfigError, Cost, Work
from stages.tally import Tally


@dataclass(frozen=True)
class Valuation(GameFields):
    """The game, and how its coalitions are sampled."""

    semivalues: tuple[str, ...] = ("shapley",)
    """`shapley`, and `beta(a,b)` such as beta(16,1), which weighs small coalitions more."""
    sampling: Sampling = "stratified"
    """`stratified`: every example's marginals to coalitions of drawn sizes
    (`stages/coalition_sampling.py`); or permutations: `uniform`, `paired`, `quasi_random`."""
    coalitions: int = 8
    """Of `stratified`: coalitions in a unit."""
    size_exponent: float = 0.4
    """Of `stratified`: coalitions of a examples are drawn as (a + 1) to minus this power, over the
    root of their cost."""
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
        """Refuse what cannot be computed.

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
        if not 0 <= self.size_exponent <= 2:
            raise ConfigError(
                f"size_exponent: found {self.size_exponent}, expected 0 to 2. Correct it."
            )
        if self.sampling == "stratified" and self.truncation != "none":
            raise ConfigError(
                f"truncation: found {self.truncation} with sampling: stratified, expected none, "
                "which is cut short by nature. Leave it out, or set sampling: uniform."
            )

    def weights(self, game: Game) -> dict[str, Float[np.ndarray, "semivalues sizes"]]:
        """What a marginal at each size counts, for each utility; see `stages.tally`."""
        wanted = np.stack([size_weights(name, game.n) for name in self.semivalues])
        if self.sampling != "stratified":
            n_orders = orders_per_unit(game.n, self.sampling)
            often = survival_of(game.n, self.truncation, self.survival) * n_orders / game.n
            return {name: wanted / (game.n * often) for name in self.utilities}
        design = self.design(game)
        return {
            name: wanted
            / (game.n * design.draws * design.expected(design.block if name == "accuracy" else 1))
            for name in self.utilities
        }

    def design(self, game: Game) -> Design:
        """The coalitions of `stratified`."""
        law = size_law(game.n, self.size_exponent, coalition_costs(game.n, game.width, game.dim))
        return Design(game.n, law, self.coalitions, self.block, self.orders)

    def sample(
        self,
        game: Game,
        tally: Tally,
        n_units: int,
        index: int,
        ends: Float[Tensor, "utilities ends *queries"],
    ) -> None:
        """Adds the units of round `index` to `tally`; they follow from the seed and the round.

        `ends` are each utility of none and of all examples, for truncation: tolerance.
        """
        if self.sampling == "stratified":
            design = self.design(game)
            generator = np.random.default_rng([self.seed, index])
            for _ in range(n_units):
                add_unit(game, design, self.utilities, tally, generator)
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

    def unit_cost(self, work: Work) -> Cost:
        """Operations and memory of a unit, by the engine for so many examples."""
        n, width = work.n_examples, self.n_judged(work)
        is_dense = self.engine_for(n) == "prefix_cholesky"
        dim = None if is_dense else max(1, work.dim)
        if self.sampling == "stratified":
            costs = coalition_costs(n, width, dim)
            flops = 2 * self.coalitions * float(size_law(n, self.size_exponent, costs) @ costs)
        else:
            reach, sizes = survival_of(n, self.truncation, self.survival), np.arange(n)
            steps = sizes**2 + 2.0 * sizes * width if dim is None else 2.0 * dim * (dim + width)
            each = float((reach * (steps + OUTPUT_COST * width)).sum())
            flops = 2 * orders_per_unit(n, self.sampling) * each
        memory = 32 * n**2 + 8 * n * width if dim is None else 24 * dim**2 + 8 * dim * width
        note = "prefix Cholesky" if is_dense else "recursive least squares"
        return Cost(flops=flops, memory_bytes=memory, note=note)


OUTPUT_COST = 40
"""Multiplications that it would take as long as to judge one output."""


def coalition_costs(n: int, width: int, dim: int | None) -> Float[np.ndarray, " sizes_and_one"]:
    """Multiplications to see all examples beside a coalition of each size 0 to n."""
    sizes = np.arange(n + 1.0)
    if dim is not None:
        return n * (dim * (dim + width) + OUTPUT_COST * width) + sizes * dim**2 + dim**3
    return n * (sizes**2 / 2 + sizes * width + OUTPUT_COST * width) + sizes**3 / 2
