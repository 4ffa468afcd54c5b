"""The cooperative game of examples: a coalition's utility is that of a regression fitted on it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.game.regression import Blocks, Joined, Measure, Members, Regression
from stages.game.utility import Judge, LinearJudge, Utility


@dataclass(frozen=True)
class Game:
    """Players 0 to n - 1, each an example, and the engine and utilities that value coalitions."""

    n: int
    regression: Callable[[], Regression]
    """Makes the engine's regression on the empty coalition."""
    judge: Judge | LinearJudge
    """Turns the outputs for the queries into utilities."""
    dim: int | None = None
    """Length of a feature vector, where the engine computes with features; None for a kernel."""
    by_query: bool = False
    """Whether the utility of a coalition is one number per query instead of their mean."""

    @property
    def width(self) -> int:
        """Numbers that the regression predicts for a coalition: outputs x queries."""
        return self.judge.n_outputs * self.judge.n_queries

    def among(self, players: Int64[Tensor, " players"]) -> "Game":
        """The subgame of these players alone: its player j is `players[j]` of this game.

        A coalition has the same utility in both: damping and queries stay those of this game. Costs
        an index per call of the engine.
        """
        regression = self.regression
        return replace(
            self, n=len(players), regression=lambda: _SubgameRegression(regression(), players)
        )

    def measure(self, utility: Utility) -> Measure:
        """The utility as a function of outputs: per query, or of all queries their mean."""
        utility_of = self.judge.each if self.by_query else self.judge.mean
        return lambda outputs: utility_of(outputs, utility)

    def ends(self, utilities: tuple[Utility, ...]) -> Float[Tensor, "utilities ends *queries"]:
        """U(empty) and U(all) of each utility; the cost of fitting all examples once."""
        regression = self.regression()
        outputs_of_none = regression.outputs
        regression.take(torch.arange(self.n))
        outputs = torch.stack([outputs_of_none, regression.outputs])
        return torch.stack([self.measure(name)(outputs) for name in utilities])


class Values(NamedTuple):
    """A method's value of every player of a game, by semivalue and utility. Positive helps."""

    semivalues: tuple[str, ...]
    """Names of the semivalues estimated: `loo`, `shapley`, `beta(16,1)`."""
    value: Float[Tensor, "semivalues utilities players"]
    stderr: Float[Tensor, "semivalues utilities players"]
    """Standard errors of sampling; zero where values are exact."""


class PlaysGame(ABC):
    """A stage that values examples by the utilities of coalitions alone.

    Its `play` values the players of any game, hence of any training set. Methods that look at the
    examples' features or gradients, such as influence or KNN-Shapley, cannot have it.
    """

    utilities: tuple[Utility, ...]
    """Utilities of a coalition, in the order of the values."""

    @abstractmethod
    def play(self, game: Game, draw: int = 0) -> Values:
        """The values of all players; each number `draw` has samples of its own."""


class _SubgameRegression:
    """The `Regression` of a subgame: translates its players to those of the whole game."""

    def __init__(self, whole: Regression, players: Int64[Tensor, " players"]):
        self._whole, self._players = whole, players
        self.rows, self.outputs = whole.rows, whole.outputs

    def take(self, ids: Int64[Tensor, " rows"]) -> None:
        self._whole.take(self._players[ids])
        self.outputs = self._whole.outputs

    def outside(self, ids: Int64[Tensor, "blocks rows"]) -> Blocks:
        return self._whole.outside(self._players[ids])

    def inside(self, at: Int64[Tensor, "blocks rows"]) -> Members:
        return self._whole.inside(at)  # positions among the members, the same in both games

    def take_block(self, ids: Int64[Tensor, " rows"], blocks: Blocks, joined: Joined) -> None:
        self._whole.take_block(self._players[ids], blocks, joined)
        self.outputs = self._whole.outputs
