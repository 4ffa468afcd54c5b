"""The game whose players are examples: what any set of them is worth to a kernel regression."""

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
    """Players 0 to n - 1, and how to ask for the worth of sets of them."""

    n: int
    regression: Callable[[], Regression]
    """A regression on no example."""
    judge: Judge | LinearJudge
    dim: int | None = None
    """Length of the features where the regression is by features."""
    by_query: bool = False
    """Whether a set is worth one number per query instead of their mean."""

    @property
    def width(self) -> int:
        """Numbers that the regression puts out for a set."""
        return self.judge.n_outputs * self.judge.n_queries

    def among(self, players: Int64[Tensor, " players"]) -> "Game":
        """The same game played by some alone: player j of it is the one named `players[j]`.

        Any set of them is worth what it is worth here: the damping stays that of this game, and so
        do the queries. Costs nothing but an index for each question.
        """
        return replace(self, n=len(players), regression=lambda: _Among(self.regression(), players))

    def measure(self, utility: Utility) -> Measure:
        """A utility as a function of outputs."""
        found = self.judge.each if self.by_query else self.judge.mean
        return lambda outputs: found(outputs, utility)

    def ends(self, utilities: tuple[Utility, ...]) -> Float[Tensor, "utilities ends *queries"]:
        """Each utility of no and of all examples; the cost of one prefix of all."""
        regression = self.regression()
        none = regression.outputs
        regression.take(torch.arange(self.n))
        outputs = torch.stack([none, regression.outputs])
        return torch.stack([self.measure(name)(outputs) for name in utilities])


class Values(NamedTuple):
    """What a method says of every player of a game. Positive helps."""

    semivalues: tuple[str, ...]
    """What is estimated: `loo`, `shapley`, `beta(16,1)`."""
    value: Float[Tensor, "semivalues utilities players"]
    stderr: Float[Tensor, "semivalues utilities players"]
    """Of sampling; zero where values are exact."""


class PlaysGame(ABC):
    """A method that needs nothing of examples but what sets of them are worth.

    A stage that has `play` can be asked about any game, hence about any training set. Methods that
    look at the examples' features or gradients, such as influence or KNN-Shapley, cannot have it.
    """

    utilities: tuple[Utility, ...]
    """What sets are worth; the order of values."""

    @abstractmethod
    def play(self, game: Game, draw: int = 0) -> Values:
        """The values of all players; a method that samples draws anew for another `draw`."""


class _Among:
    """`Regression` with names of its own for the examples."""

    def __init__(self, whole: Regression, players: Int64[Tensor, " players"]):
        self._whole, self._players = whole, players
        self.rows, self.outputs = whole.rows, whole.outputs

    def take(self, ids: Int64[Tensor, " rows"]) -> None:
        self._whole.take(self._players[ids])
        self.outputs = self._whole.outputs

    def outside(self, ids: Int64[Tensor, "blocks rows"]) -> Blocks:
        return self._whole.outside(self._players[ids])

    def inside(self, at: Int64[Tensor, "blocks rows"]) -> Members:
        return self._whole.inside(at)  # named by their places among those who joined

    def take_block(self, ids: Int64[Tensor, " rows"], blocks: Blocks, joined: Joined) -> None:
        self._whole.take_block(self._players[ids], blocks, joined)
        self.outputs = self._whole.outputs
