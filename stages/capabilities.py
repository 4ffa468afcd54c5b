"""Capabilities that a stage may have: to merge results, to sample in rounds, to answer queries."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from stages.stage import Cost, Inputs, Rows, Stage, Steps, Work


@dataclass(frozen=True)
class Merges(Stage, contract=True):
    """A stage of `split="shard"` whose shards' partial results a tree of tasks merges.

    `compute` is asked for the shards of examples alone; what it yields are partial results such as
    sums, and the tables hold the rows of the last `merge` (`pipeline.merge_tree`).
    """

    shards_per_part: ClassVar[int] = 1
    """Shards that one `compute` sums up, by `Inputs.by_shard`, as its result is as large as one."""

    @abstractmethod
    def merge(self, parts: Mapping[str, Sequence[pa.Table]]) -> Rows:
        """The rows of each table that replace those of several parts together.

        `parts` are by table, in the order of the corpus, computed or already merged; they may have
        no rows. Associative up to rounding. Memory of a task: eight parts.
        """


@dataclass(frozen=True)
class Samples(Stage, contract=True):
    """A stage of `split="round"` that a stopping rule may end, and that can replay its rounds.

    To replay is to draw the coalitions of a round again, for the values of a single query.
    """

    @property
    @abstractmethod
    def units_per_round(self) -> int:
        """Independent estimates in a round."""

    @property
    @abstractmethod
    def utilities(self) -> tuple[str, ...]:
        """Utilities of a coalition, in the order of the values."""

    @abstractmethod
    def watch(self) -> Any:
        """A fresh stopping rule (`stages.game.stopping.Watch`); None runs all rounds.

        It is given the first table's rows of each round in turn (`add`), and asked for the `reason`
        to stop. The rounds that count are then those up to the first reason.
        """

    @abstractmethod
    def replay(
        self, inputs: Inputs, query_id: int, rounds: Sequence[int], stepped: Steps
    ) -> tuple[np.ndarray, Any]:
        """Ids of the examples, and their values for a single query from these rounds.

        `stepped` is told of every round.
        """

    @abstractmethod
    def replay_cost(self, work: Work, n_rounds: int) -> Cost:
        """The expected cost of replaying `n_rounds` rounds."""


@dataclass(frozen=True)
class AnswersQueries(Stage, contract=True):
    """A stage of `split="whole"` that computes rows of new queries from its finished tables."""

    @abstractmethod
    def of_queries(self, inputs: Inputs) -> Rows:
        """The rows that `compute` yields of queries, without computing those of examples again.

        The rows of the examples are in the stage's own tables, which `inputs` has under their
        names.
        """
