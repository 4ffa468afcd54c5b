"""TracIn: the inner product of the loss gradients of a query and of an example.

A gradient step on example i at rate eta lowers the loss of query t by eta g_i . g_t, to first
order, and so raises the log-probability of the class that the query's loss is taken at: its label,
or the class that the model predicts where it has none. Over checkpoints these add up, weighed by
their rates.

Global: the length of the example's gradients, sqrt(sum_c eta_c |g_i,c|^2), the root of its
self-influence; local: what is left.

Source: Pruthi et al. 2020, arXiv:2002.08484, eq. 3 (TracInCP); projected gradients stand for whole
ones here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch

from stages.pairwise import (
    ATTRIBUTION,
    TOP_K,
    Side,
    check_top_k,
    merged,
    pairs_cost,
    query_vectors,
    scored,
    vectors_of,
)
from stages.stage import ConfigError, Cost, Inputs, Role, Split, Work
from storage.schema import TableSpec


@dataclass(frozen=True)
class TracIn:
    """Scores of the pairs of all queries and examples that have gradients.

    A task holds one shard's gradients and the queries', and 16 million scores.
    """

    gradients: tuple[str, ...] = ("gradient",)
    """Instances of `gradient`, one per checkpoint, projected in the same way or not."""
    rates: tuple[float, ...] | None = None
    """Learning rate of each checkpoint; by default 1."""
    top_k: int | None = TOP_K
    """Scores of each sign that are kept per query; null keeps all pairs."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"
    opens: ClassVar[tuple[Role, ...]] = ("query",)

    def __post_init__(self) -> None:
        """Refuse what cannot be computed.

        Raises:
            ConfigError: no gradients are named, or rates do not fit them.
        """
        check_top_k(self.top_k)
        if not self.gradients or len(set(self.gradients)) < len(self.gradients):
            raise ConfigError(
                f"gradients: found {list(self.gradients)}, expected at least one instance, each "
                "once. Name instances of gradient."
            )
        rates = self.rates or (1.0,) * len(self.gradients)
        if len(rates) != len(self.gradients) or min(rates) <= 0:
            raise ConfigError(
                f"rates: found {list(rates)} for {len(self.gradients)} checkpoints, expected one "
                "positive number for each. Correct them, or leave them out."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The gradients of every checkpoint."""
        return self.gradients

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Scores with their two parts."""
        return (ATTRIBUTION,)

    def open(self, inputs: Inputs) -> Side:
        """The queries that every checkpoint has gradients of."""
        found = [query_vectors(inputs, name) for name in self.gradients]
        return self._side(found)

    def compute(self, inputs: Inputs) -> Iterator[tuple[str, pa.RecordBatch]]:
        """The best scores among the examples of one shard."""
        queries: Side = inputs.opened
        examples = self._side([vectors_of(inputs, name) for name in self.gradients])
        if len(examples.ids):
            (rows,) = examples.factors
            examples = examples._replace(magnitude=rows.norm(dim=1))
            yield ATTRIBUTION.name, scored(queries, examples, self.top_k)

    def merge(
        self, parts: Mapping[str, Sequence[pa.Table]]
    ) -> Iterator[tuple[str, pa.RecordBatch]]:
        """The best of several parts."""
        return merged(parts, self.top_k)

    def cost(self, work: Work) -> Cost:
        """One product of the gradients of queries and examples."""
        return pairs_cost(work, work.dim * len(self.gradients), self.top_k)

    def _side(self, found: list[tuple[np.ndarray, torch.Tensor]]) -> Side:
        """Gradients of all checkpoints side by side, of the rows that have them all."""
        ids = found[0][0]
        for other, _ in found[1:]:
            ids = np.intersect1d(ids, other)
        parts = []
        for rate, (own, rows) in zip(self.rates or (1.0,) * len(found), found, strict=True):
            parts.append(rows[torch.from_numpy(np.searchsorted(own, ids))] * rate**0.5)
        return Side(ids, (torch.cat(parts, 1) if len(parts) > 1 else parts[0],))


STAGE = TracIn
