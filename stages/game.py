"""The game whose players are examples: what any set of them is worth to a kernel regression."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stages.conditioned import Measure, Regression
from stages.utility import Judge, LossJudge, Utility


@dataclass(frozen=True)
class Game:
    """Players 0 to n - 1, and how to ask for the worth of sets of them."""

    n: int
    regression: Callable[[], Regression]
    """A regression on no example."""
    judge: Judge | LossJudge
    dim: int | None = None
    """Length of the features where the regression is by features."""
    by_query: bool = False
    """Whether a set is worth one number per query instead of their mean."""

    @property
    def width(self) -> int:
        """Numbers that the regression puts out for a set."""
        return self.judge.n_outputs * self.judge.n_queries

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
