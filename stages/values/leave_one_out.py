"""Leave-one-out values of examples, U(all) - U(all but i), in closed form.

Source: arXiv:2406.04606 (g_LOO), in the same game as `freeshap`. With
M = (K + damping I)^-1 and A = M targets, the outputs without example i are
f(t) - (K[t,:] M)_i A_i / M_ii. [derived]
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from stages.game.fields import GameFields
from stages.game.from_tables import RIDGE_EXAMPLES, LabelledGame, read_game
from stages.game.game import Game, PlaysGame, Values
from stages.game.regression import gains, join
from stages.game.sampling import OUTPUT_COST
from stages.game.utility import Utility
from stages.stage import Cost, Inputs, Rows, Split, Stage, Work
from stages.tables import EXACT_VALUE
from storage.schema import TableSpec

NUMBERS = 2**19
"""Most outputs (left-out examples x outputs x queries) held at a time."""


def leave_one_out(
    game: Game, utilities: tuple[Utility, ...]
) -> Float[Tensor, "utilities examples"]:
    """U(all) - U(all but i) of each utility and example i. Positive helps.

    The damping stays that of the full set. Cost n^3 + 2 n^2 queries by a kernel, memory 16 n^2
    bytes beside it; 2 n dim (dim + queries) by features.
    """
    regression = game.regression()
    regression.take(torch.arange(game.n))
    measures = [game.measure(name) for name in utilities]
    values = []
    for singles in torch.split(torch.arange(game.n)[:, None], max(1, NUMBERS // game.width)):
        blocks = regression.inside(singles).without()
        values.append(torch.stack(gains(join(blocks), blocks.outputs, measures))[:, :, 0])
    return torch.cat(values, 1)


@dataclass(frozen=True)
class LeaveOneOut(GameFields, Stage, PlaysGame):
    """The value of each example as the last to join, exact and without sampling.

    One task; its memory grows as 8 n (4 n + 2 m) bytes for n labelled examples and m queries where
    the kernel is held, else as 24 dim^2.
    """

    version: ClassVar[int] = 3
    split: ClassVar[Split] = "whole"

    def __post_init__(self) -> None:
        """Refuses fields that define no game.

        Raises:
            ConfigError: a field is empty, negative or not a number.
        """
        self.check_game()

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Values with `semivalue` "loo"."""
        return (EXACT_VALUE,)

    def play(self, game: Game, draw: int = 0) -> Values:
        """Leave-one-out values of all players; exact, the same for every `draw`."""
        values = leave_one_out(game, self.utilities)[None]
        return Values(("loo",), values, torch.zeros_like(values))

    def open(self, inputs: Inputs) -> LabelledGame:
        """The game of the labelled examples and queries, once per worker."""
        return read_game(inputs, self)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """Engine, ridge, damping, and the number of queries the utilities are means over."""
        labelled: LabelledGame = inputs.opened
        return labelled.facts

    def compute(self, inputs: Inputs) -> Rows:
        """One row for each utility and example."""
        labelled: LabelledGame = inputs.opened
        n = labelled.game.n
        for name, row in zip(
            self.utilities, leave_one_out(labelled.game, self.utilities), strict=True
        ):
            columns = [
                pa.array(["loo"] * n, pa.string()),
                pa.array([name] * n, pa.string()),
                pa.array(labelled.example_ids),
                pa.array(np.ascontiguousarray(row.numpy())),
            ]
            yield EXACT_VALUE.name, pa.RecordBatch.from_arrays(columns, schema=EXACT_VALUE.schema)

    def cost(self, work: Work) -> Cost:
        """An inverse, a product with the queries, and for `ridge: auto` an eigendecomposition."""
        n, m, dim = work.n_examples, work.n_queries, self.n_numbers(work)
        outputs = n * self.n_judged(work)
        judged = 2.0 * outputs * sum(OUTPUT_COST[name] for name in self.utilities)
        choice = 10.0 * min(n, RIDGE_EXAMPLES) ** 3 if self.ridge == "auto" else 0.0
        if self.engine_for(n) == "least_squares":
            return Cost(
                flops=4.0 * n * dim * (dim + m) + judged + choice,
                written_bytes=n * len(self.utilities) * 8,
                memory_bytes=24 * dim**2 + 8 * dim * m + 40 * NUMBERS,
                note=self.how(n),
            )
        return Cost(
            flops=n**3 + choice + 2.0 * n * (n + m) * dim + 4.0 * n**2 * m + judged,
            written_bytes=n * len(self.utilities) * 8,
            memory_bytes=32 * n**2 + 16 * n * m + 8 * (n + m) * dim,
            note=self.how(n),
        )


STAGE = LeaveOneOut
