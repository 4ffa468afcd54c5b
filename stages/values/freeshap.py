"""FreeShap: Shapley values of examples in the game "utility of kernel regression on a subset".

Source: arXiv:2406.04606. The players are the labelled examples, the utility is a mean over the
labelled queries, and every marginal contribution is exact. What the paper does along permutations,
with a new inverse per step, is one Cholesky factor here; and by default permutations give way to
coalitions of drawn sizes, which give an error several times smaller in the same time
(`stages/game/coalitions.py`). The paper's own estimator is
`sampling: uniform, truncation: tolerance`.

Round r draws from (seed, r) alone: values do not depend on the number of workers, and more rounds
extend them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.capabilities import Samples
from stages.game.coalitions import Design
from stages.game.efficiency import of_units
from stages.game.from_tables import (
    RIDGE_EXAMPLES,
    LabelledGame,
    labelled_game,
    labelled_queries,
    read_game,
    read_game_tables,
)
from stages.game.game import Game, PlaysGame, Values
from stages.game.sampling import Valuation
from stages.game.stopping import StopRule, Watch
from stages.game.sums import MarginalSums
from stages.stage import ConfigError, Cost, DataError, Inputs, Rows, Size, Split, Steps, Work
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
"""Marginals of a round whose coalitions have `smallest` to 2 `smallest` examples: how many, the sum
of their absolute values, and of their squares."""


ROUNDS, LEAST_ROUNDS, ROUNDS_EXAMPLES = 12, 4, 10_000
"""What `rounds: auto` takes of few examples, at least, and of how many the first is the work."""


def rounds_for(n_examples: int) -> int:
    """What `rounds: auto` takes: the work of 12 rounds of 10,000 examples, and at least 4."""
    return min(ROUNDS, max(LEAST_ROUNDS, ROUNDS * ROUNDS_EXAMPLES // max(1, n_examples)))


class SampledGame(NamedTuple):
    """The game of a worker, and how its coalitions are drawn in every round."""

    labelled: LabelledGame
    ends: Float[Tensor, "utilities ends"]
    """U(empty) and U(all) of each utility."""
    design: Design | None
    """How coalitions of `sampling: stratified` are drawn; None for permutations."""


@dataclass(frozen=True)
class FreeShap(Valuation, Samples, PlaysGame):
    """Semivalues of examples with standard errors, from sampled coalitions, round by round.

    Memory of a task with n examples, m queries and C classes (two count as one): 16 n^2 + 8 n m C
    bytes for `prefix_cholesky`, and up to 16 n^2 while it computes; 100 d^2 + 8 d m bytes for
    `least_squares`, and 0.2 GB; 100 n + 8 n C bytes, and 200 n per semivalue and utility.
    """

    units_per_round: int = 2
    """Independent estimates in a round; the standard error is taken over them."""
    rounds: int | Literal["auto"] = "auto"
    """Rounds wanted at most; more can be added later. `auto` is 12 and, where no rule stops them
    earlier, for more than 10,000 examples the work of these: 12 x 10,000 / examples, at least 4."""
    minutes: float | None = None
    """Stop after the first round that ends later than this, in all executions together."""
    stderr: float | None = None
    """Stop when the root mean square of the examples' standard errors is no larger, for every
    utility."""
    sign_confidence: float | None = None
    """Stop when half of the examples have a sign that is as sure, 0.5 to 1, for every utility."""

    version: ClassVar[int] = 5
    split: ClassVar[Split] = "round"

    def __post_init__(self) -> None:
        """Refuses fields that no value can be computed from.

        Raises:
            ConfigError: a field is empty, negative or not a number.
        """
        self.check()
        if self.units_per_round < 1 or self.n_rounds < 1:
            raise ConfigError(
                f"freeshap: found units_per_round: {self.units_per_round}, rounds: {self.rounds}, "
                "expected at least 1. Raise them."
            )
        self._stop_rule().check()

    @property
    def outside_key(self) -> frozenset[str]:
        """What tells how many rounds count, beside what is outside of every game's key."""
        return super().outside_key | {"rounds", "minutes", "stderr", "sign_confidence"}

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Sums over the units of a round, and moments of its marginals by coalition size."""
        return (SHAPLEY_ROUND, SHAPLEY_STRATUM)

    def sized(self, size: Size) -> "FreeShap":
        """The game of so many examples, and how many rounds of it where `rounds` is left open."""
        stage: FreeShap = super().sized(size)
        if stage.rounds != "auto":
            return stage
        is_ruled = self._stop_rule().is_open
        return replace(stage, rounds=ROUNDS if is_ruled else rounds_for(size.n_examples))

    @property
    def n_rounds(self) -> int:
        """The rounds wanted at most; 12 where their number is still to be chosen by size."""
        return ROUNDS if self.rounds == "auto" else self.rounds

    def _how_many(self, n_examples: int) -> str:
        """The number of rounds and why, for `Cost.note`."""
        is_chosen = self.n_rounds == rounds_for(n_examples) < ROUNDS
        why = f": the work of {ROUNDS} for {ROUNDS_EXAMPLES:,}, at least {LEAST_ROUNDS}"
        return f"{self.n_rounds} rounds{why if is_chosen else ''}"

    def _stop_rule(self) -> StopRule:
        """The limits of the fields `minutes`, `stderr` and `sign_confidence`."""
        return StopRule(self.minutes, self.stderr, self.sign_confidence)

    def watch(self) -> Watch | None:
        """A fresh stopping rule; None, where no limit is set, runs all rounds."""
        return Watch(self._stop_rule()) if self._stop_rule().is_open else None

    def play(self, game: Game, draw: int = 0) -> Values:
        """Values of all players, from all rounds; each number `draw` has rounds of its own."""
        design, ends = self.design(game), game.ends(self.utilities)
        tally = MarginalSums(self.utilities, self.weights(game, design))
        for index in range(draw * self.n_rounds, (draw + 1) * self.n_rounds):
            self.sample(game, design, tally, self.units_per_round, index, ends)
        return Values(self.semivalues, *tally.estimates(self.n_prior(game.n)))

    def replay(
        self,
        inputs: Inputs,
        query_id: int,
        rounds: Sequence[int],
        stepped: Steps,
    ) -> tuple[Int64[np.ndarray, " examples"], Values]:
        """Ids of the examples, ascending, and their values for the query `query_id` alone.

        The rounds are drawn again as they were for all queries: the mean of these values over the
        labelled queries is the value that the same rounds give in the game of all. A query without
        a label is valued for the class that all examples together predict. Costs the units of the
        rounds for one query, and the pilot. `stepped` is called with the number of rounds done and
        of all, from 0 done on.

        Raises:
            DataError: the query has no features, or permutations ended by a rule for the mean.
        """
        if self.truncation == "tolerance":
            raise DataError(
                "truncation: found tolerance, expected none or random: the rule ends a permutation "
                "by the mean over queries, and says nothing of one. Use another method."
            )
        tables = read_game_tables(inputs, self)
        if query_id not in tables.query_ids:
            raise DataError(
                f"{', '.join(self.features)}: found no features of query {query_id}, expected "
                "some. Look into the view diagnostics for what happened to them."
            )
        of_all = labelled_game(inputs, self, tables).game
        design = self.design(of_all)
        labelled, labels = labelled_queries(inputs, tables.n_classes)
        label = int(labels[labelled == query_id][0]) if query_id in labelled else -1
        game = tables.game(np.array([query_id]), np.array([label]), by_query=True)
        tally = MarginalSums(self.utilities, self.weights(of_all, design), n_queries=1)
        ends = game.ends(self.utilities)
        for done, index in enumerate(rounds):
            stepped(done, len(rounds))
            self.sample(game, design, tally, self.units_per_round, index, ends)
        stepped(len(rounds), len(rounds))
        mean, error = (estimate[..., 0] for estimate in tally.estimates(self.n_prior(game.n)))
        return tables.example_ids, Values(self.semivalues, mean, error)

    def replay_cost(self, work: Work, n_rounds: int) -> Cost:
        """`n_rounds` rounds for one query; before them features, the ridge and the pilot.

        The pilot is counted as one unit for all queries.
        """
        n = work.n_examples
        unit = self.unit_cost(replace(work, n_queries=1))
        n_sampled = min(n, RIDGE_EXAMPLES)
        is_chosen = self.ridge == "auto" and self.utilities != ("loss",)
        held = n if self.engine_for(n) == "prefix_cholesky" else n_sampled
        opening = 2.0 * held**2 * self.n_numbers(work) + (10.0 * n_sampled**3 if is_chosen else 0.0)
        pilot = self.unit_cost(work).flops if self.sampling == "stratified" else 0.0
        return Cost(
            flops=opening + pilot + n_rounds * self.units_per_round * unit.flops,
            memory_bytes=self.unit_cost(work).memory_bytes,
        )

    def open(self, inputs: Inputs) -> SampledGame:
        """The game, U(empty) and U(all), and the pilot's law of sizes, once per worker."""
        labelled = read_game(inputs, self)
        game = labelled.game
        return SampledGame(labelled, game.ends(self.utilities), self.design(game))

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """Engine, ridge, counts, U(empty) and U(all), and the median size of coalitions."""
        labelled, ends, design = inputs.opened
        return {
            **labelled.facts,
            "median_coalition": None if design is None else design.median,
            "utility_of_none": dict(zip(self.utilities, ends[:, 0].tolist(), strict=True)),
            "utility_of_all": dict(zip(self.utilities, ends[:, 1].tolist(), strict=True)),
        }

    def compute(self, inputs: Inputs) -> Rows:
        """The sums of one round, a row for each semivalue, utility and example; and its strata."""
        (labelled, ends, design), index = inputs.opened, inputs.part.index
        game = labelled.game
        tally = MarginalSums(self.utilities, self.weights(game, design))
        self.sample(game, design, tally, self.units_per_round, index, ends)
        if "shapley" in self.semivalues:
            sums = torch.stack(tally.unit_sums)[:, self.semivalues.index("shapley")].numpy()
            inputs.tell(
                efficiency={
                    name: of_units(sums[:, at], tuple(ends[at].tolist()), labelled.precision)
                    for at, name in enumerate(self.utilities)
                }
            )
        for row, semivalue in enumerate(self.semivalues):
            for column, utility in enumerate(self.utilities):
                columns = [
                    pa.array(np.full(game.n, index)),
                    pa.array([semivalue] * game.n, pa.string()),
                    pa.array([utility] * game.n, pa.string()),
                    pa.array(labelled.example_ids),
                    pa.array(tally.total[row, column].numpy()),
                    pa.array(tally.total_sq[row, column].numpy()),
                    pa.array(np.full(game.n, tally.n_units)),
                    pa.array(tally.n_observed[column].numpy()),
                    pa.array(np.full(game.n, self.n_prior(game.n))),
                ]
                yield (
                    SHAPLEY_ROUND.name,
                    pa.RecordBatch.from_arrays(columns, schema=SHAPLEY_ROUND.schema),
                )
        yield SHAPLEY_STRATUM.name, _strata(self.utilities, tally, index)

    def cost(self, work: Work) -> Cost:
        """The units of all rounds, with the engine that serves so many examples."""
        unit = self.unit_cost(work)
        n_values = work.n_examples * len(self.semivalues) * len(self.utilities)
        return Cost(
            flops=self.n_rounds * self.units_per_round * unit.flops,
            written_bytes=self.n_rounds * n_values * 32,
            memory_bytes=unit.memory_bytes + 200 * n_values,
            note=f"{unit.note}; {self._how_many(work.n_examples)}",
        )


def _strata(utilities: tuple[str, ...], tally: MarginalSums, index: int) -> pa.RecordBatch:
    """Rows of `SHAPLEY_STRATUM` for round `index`, of the strata that have marginals."""
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
