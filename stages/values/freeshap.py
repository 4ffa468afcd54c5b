"""FreeShap: Shapley values of examples in the game "utility of kernel regression on a subset".

Source: arXiv:2406.04606 (methods.md 1.4 to 1.6). The players are the labelled examples, the
utility is a mean over the labelled queries, and every marginal contribution is exact. What the
paper does along permutations, with a new inverse per step, is one Cholesky factor here; and by
default permutations give way to coalitions of drawn sizes, which give an error several times
smaller in the same time (`stages/game/coalitions.py`). The paper's own estimator is
`sampling: uniform, truncation: tolerance`.

Round r draws from (seed, r) alone: values do not depend on the number of workers, and more rounds
extend them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int64
from torch import Tensor

from stages.game.coalitions import Design
from stages.game.from_tables import (
    RIDGE_EXAMPLES,
    Opened,
    asked_of,
    labelled_game,
    read_game,
    read_source,
)
from stages.game.game import Game, PlaysGame, Values
from stages.game.sampling import Valuation
from stages.game.stopping import StopRule, Watch
from stages.game.sums import Tally
from stages.stage import ConfigError, Cost, DataError, Inputs, Rows, Samples, Split, Steps, Work
from stages.tables import SHAPLEY_ROUND
from storage.schema import TableSpec

SHAPLEY_STRATUM = TableSpec(
    name="shapley_stratum",
    schema=pa.schema(
        [
            ("round", pa.int64()),
            ("utility", pa.string()),
            ("smallest", pa.int64()),
            ("n_marginals", pa.int64()),
            ("total_abs", pa.float64()),
            ("total_sq", pa.float64()),
        ]
    ),
    key=("utility", "smallest"),
)
"""Marginals of a round by the size of the coalition, from `smallest` to 2 `smallest` + 1 less 1:
how many, the sum of their absolute values, and of their squares."""


class Opening(NamedTuple):
    """What a worker keeps."""

    opened: Opened
    ends: Float[Tensor, "utilities ends"]
    """Each utility of no and of all examples."""
    design: Design | None
    """How coalitions are drawn, where no permutations are."""


@dataclass(frozen=True)
class FreeShap(Valuation, Samples, PlaysGame):
    """Semivalues of examples with standard errors, from sampled coalitions, round by round.

    Memory of a task with n examples, m queries and C classes (two count as one): 16 n^2 + 8 n m C
    bytes for `prefix_cholesky`, and up to 16 n^2 while it computes; 24 d^2 + 8 d m bytes for
    `least_squares`; and 40 n bytes per semivalue and utility.
    """

    units_per_round: int = 2
    """Independent estimates in a round; the standard error is taken over them."""
    rounds: int = 12
    """Rounds wanted at most; more can be added later."""
    minutes: float | None = None
    """Stop after the first round that ends later than this, in all executions together."""
    stderr: float | None = None
    """Stop when the root mean square of the examples' standard errors is no larger, for every
    utility."""
    sign_confidence: float | None = None
    """Stop when half of the examples have a sign that is as sure, 0.5 to 1, for every utility."""

    version: ClassVar[int] = 3
    split: ClassVar[Split] = "round"
    outside_key: ClassVar[frozenset[str]] = frozenset(
        {"rounds", "minutes", "stderr", "sign_confidence"}
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be computed.

        Raises:
            ConfigError: a field is empty, negative or not a number.
        """
        self.check()
        if self.units_per_round < 1 or self.rounds < 1:
            raise ConfigError(
                f"freeshap: found units_per_round: {self.units_per_round}, rounds: {self.rounds}, "
                "expected at least 1. Raise them."
            )
        self._stop_rule().check()

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Sums over the units of a round, and how marginals spread over sizes."""
        return (SHAPLEY_ROUND, SHAPLEY_STRATUM)

    def _stop_rule(self) -> StopRule:
        """When rounds are enough."""
        return StopRule(self.minutes, self.stderr, self.sign_confidence)

    def watch(self) -> Watch | None:
        """Who says when rounds are enough; see `stages.stage.Stage`."""
        return Watch(self._stop_rule()) if self._stop_rule().is_open else None

    def play(self, game: Game, draw: int = 0) -> Values:
        """Values of all players from all rounds; another `draw` has rounds of its own."""
        design, ends = self.design(game), game.ends(self.utilities)
        tally = Tally(self.utilities, self.weights(game, design))
        for index in range(draw * self.rounds, (draw + 1) * self.rounds):
            self.sample(game, design, tally, self.units_per_round, index, ends)
        return Values(self.semivalues, *tally.estimates())

    def replay(
        self,
        inputs: Inputs,
        query_id: int,
        rounds: Sequence[int],
        stepped: Steps,
    ) -> tuple[Int64[np.ndarray, " examples"], Values]:
        """Ids of the examples, ascending, and what each is worth for one query alone.

        The rounds are drawn again as they were for all queries: the mean over the labelled queries
        of what this returns is what these rounds say. A query without a label is valued for the
        class that all examples together predict. Costs the units of the rounds for one query, and
        the pilot. `stepped` hears how many rounds of how many are done, first that none is.

        Raises:
            DataError: the query has no features, or permutations ended by a rule for the mean.
        """
        if self.truncation == "tolerance":
            raise DataError(
                "truncation: found tolerance, expected none or random: the rule ends a permutation "
                "by the mean over queries, and says nothing of one. Use another method."
            )
        source = read_source(inputs, self)
        if query_id not in source.query_ids:
            raise DataError(
                f"{', '.join(self.kernel)}: found no features of query {query_id}, expected some. "
                "Look into the view diagnostics for what happened to them."
            )
        of_all = labelled_game(inputs, self, source).game
        design = self.design(of_all)
        known, labels = asked_of(inputs, source.n_classes)
        label = int(labels[known == query_id][0]) if query_id in known else -1
        game = source.game(np.array([query_id]), np.array([label]), by_query=True)
        tally = Tally(self.utilities, self.weights(of_all, design), n_queries=1)
        ends = game.ends(self.utilities)
        for done, index in enumerate(rounds):
            stepped(done, len(rounds))
            self.sample(game, design, tally, self.units_per_round, index, ends)
        stepped(len(rounds), len(rounds))
        mean, error = (found[..., 0] for found in tally.estimates())
        return source.example_ids, Values(self.semivalues, mean, error)

    def replay_cost(self, work: Work, n_rounds: int) -> Cost:
        """So many rounds for one query; before them features, the ridge and the pilot.

        The pilot is taken for a unit of all queries.
        """
        n = work.n_examples
        unit = self.unit_cost(replace(work, n_queries=1))
        some = min(n, RIDGE_EXAMPLES)
        is_chosen = self.ridge == "auto" and self.utilities != ("loss",)
        held = n if self.engine_for(n) == "prefix_cholesky" else some
        opening = 2.0 * held**2 * work.dim + (10.0 * some**3 if is_chosen else 0.0)
        pilot = self.unit_cost(work).flops if self.sampling == "stratified" else 0.0
        return Cost(
            flops=opening + pilot + n_rounds * self.units_per_round * unit.flops,
            memory_bytes=self.unit_cost(work).memory_bytes,
        )

    def open(self, inputs: Inputs) -> Opening:
        """The game, once per worker, with the utilities' ends and the pilot."""
        opened = read_game(inputs, self)
        return Opening(opened, opened.game.ends(self.utilities), self.design(opened.game))

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """Engine, ridge, counts, the utilities of no and of all examples, and sizes drawn."""
        opened, ends, design = inputs.opened
        return {
            **opened.facts,
            "median_coalition": None if design is None else design.median,
            "utility_of_none": dict(zip(self.utilities, ends[:, 0].tolist(), strict=True)),
            "utility_of_all": dict(zip(self.utilities, ends[:, 1].tolist(), strict=True)),
        }

    def compute(self, inputs: Inputs) -> Rows:
        """The sums of one round."""
        (opened, ends, design), index = inputs.opened, inputs.part.index
        game = opened.game
        tally = Tally(self.utilities, self.weights(game, design))
        self.sample(game, design, tally, self.units_per_round, index, ends)
        for row, semivalue in enumerate(self.semivalues):
            for column, utility in enumerate(self.utilities):
                columns = [
                    pa.array(np.full(game.n, index)),
                    pa.array([semivalue] * game.n, pa.string()),
                    pa.array([utility] * game.n, pa.string()),
                    pa.array(opened.example_ids),
                    pa.array(tally.total[row, column].numpy()),
                    pa.array(tally.total_sq[row, column].numpy()),
                    pa.array(np.full(game.n, tally.n_units)),
                    pa.array(tally.n_observed[column].numpy()),
                ]
                yield (
                    SHAPLEY_ROUND.name,
                    pa.RecordBatch.from_arrays(columns, schema=SHAPLEY_ROUND.schema),
                )
        yield SHAPLEY_STRATUM.name, _strata(self.utilities, tally, index)

    def cost(self, work: Work) -> Cost:
        """Units of all rounds, by the engine that `engine` means for so many examples."""
        unit = self.unit_cost(work)
        n_values = work.n_examples * len(self.semivalues) * len(self.utilities)
        return Cost(
            flops=self.rounds * self.units_per_round * unit.flops,
            written_bytes=self.rounds * n_values * 32,
            memory_bytes=unit.memory_bytes + 40 * n_values,
            note=unit.note,
        )


def _strata(utilities: tuple[str, ...], tally: Tally, index: int) -> pa.RecordBatch:
    rows = [
        {
            "round": index,
            "utility": utility,
            "smallest": 2**stratum - 1,
            "n_marginals": round(float(sums[0])),
            "total_abs": float(sums[1]),
            "total_sq": float(sums[2]),
        }
        for utility, strata in zip(utilities, tally.strata, strict=True)
        for stratum, sums in enumerate(strata)
        if sums[0] > 0
    ]
    return pa.RecordBatch.from_pylist(rows, schema=SHAPLEY_STRATUM.schema)


STAGE = FreeShap
