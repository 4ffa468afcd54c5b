"""Representer points: the logit of a prediction as a sum over the training examples.

Where the probe's objective is at its minimum its weights are, in the coordinates x of
`stages/surrogate/probe_head.py`, a sum over the examples, as the derivative by W vanishes:

    W_c = sum_i alpha_ic x_i,    alpha_ic = -r_ic / (n * regularization),

with r_i the slope of the example's loss, p_i - e_y or f_i - y. So the scores of a query t and the
class c that the probe predicts for it, of a regression its one output,

    score(t, i) = alpha_ic x_i . x_t,

add up to the logit less the bias. A positive one raises the logit: an example of the class that
lies on the query's side of the mean, or one of another class on the other side.

Global: max_c |alpha_ic|, large for examples that the probe gets wrong or is unsure of; local: what
is left. Of two classes |alpha_i0| = |alpha_i1|, and the local part is +-(x_i . x_t).

A probe that was kept while labels were corrected, or rows appended, is not at that minimum: the
values then miss the logit, and `details` says by how much on the queries.

Source: Yeh et al. 2018, arXiv:1811.09720, eq. 2, in the units of our own probe and with its bias
left out of the penalty.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from stages.pairs.scores import (
    ATTRIBUTION,
    TOP_K,
    Side,
    check_top_k,
    left_out,
    merged,
    pairs_cost,
    scored,
)
from stages.stage import Cost, Inputs, Role, Split, Work
from stages.surrogate.probe_head import Head, Rows, all_examples, examples_of, queries_of, read_head
from storage.schema import TableSpec

LARGE_MISS = 0.01
"""Share of the logits that values may miss without a notice."""


class Opened(NamedTuple):
    """What all shards share."""

    head: Head
    queries: Side
    n_examples: int
    miss: float
    """Root mean square, over queries, of what values miss, relative to that of the logits."""


def dual(head: Head, rows: Rows, n_examples: int) -> Float[Tensor, "rows outputs"]:
    """The alpha of some of `n_examples` examples."""
    return -rows.slopes / (n_examples * head.regularization)


@dataclass(frozen=True)
class Representer:
    """Values of all examples that have a label and an embedding, for all queries.

    A task holds the embeddings of one shard and of the queries, and 16 million scores.
    """

    embedding: str = "embedding"
    """Feature table that the probe was fitted on: an instance of `embedding`, or `features`."""
    top_k: int | None = TOP_K
    """Scores of each sign that are kept per query; null keeps all pairs, which add up."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"
    speaks_for: ClassVar[str] = "prediction"
    opens: ClassVar[tuple[Role, ...]] = ("example", "query")
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression")

    def __post_init__(self) -> None:
        """Refuses a number of scores that cannot be kept."""
        check_top_k(self.top_k)

    @property
    def reads(self) -> tuple[str, ...]:
        """What the probe was fitted on, and the probe."""
        return (self.embedding, "probe", "label")

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Values with their two parts."""
        return (ATTRIBUTION,)

    def open(self, inputs: Inputs) -> Opened:
        """The queries' side, and how far the values are from adding up."""
        head = read_head(inputs, self.embedding)
        asked = queries_of(head, inputs, self.embedding)
        moments, n_examples = torch.zeros_like(head.weight), 0
        for rows in all_examples(head, inputs, self.embedding):
            moments -= rows.slopes.T @ rows.x
            n_examples += len(rows.ids)
        added_up = moments / (n_examples * head.regularization)
        logits, values = (
            ((asked.x @ weight.T) * asked.chosen).sum(1) for weight in (head.weight, added_up)
        )
        miss = float((values - logits).norm() / logits.norm()) if logits.any() else 0.0
        queries = Side(asked.ids, (asked.chosen.float(), asked.x.float()))
        return Opened(head, queries, n_examples, miss)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """How many examples there are, how far values are from adding up, and who has none."""
        opened: Opened = inputs.opened
        facts: dict[str, Any] = {
            "n_examples": opened.n_examples,
            "miss": opened.miss,
            "n_left_out": left_out(inputs, (self.embedding,)),
        }
        if opened.miss > LARGE_MISS and inputs.part.index == 0:
            facts["notices"] = [
                f"values miss the logits of the queries by {opened.miss:.1%}, as the probe was "
                "fitted on other labels or rows; artefacts.probe=refit fits it anew"
            ]
        return facts

    def compute(self, inputs: Inputs) -> Iterator[tuple[str, pa.RecordBatch]]:
        """The largest values of either sign among the examples of one shard."""
        opened: Opened = inputs.opened
        found = examples_of(opened.head, inputs, self.embedding)
        if len(found.ids):
            alpha = dual(opened.head, found, opened.n_examples)
            factors = (alpha.float(), found.x.float())
            examples = Side(found.ids, factors, alpha.abs().amax(1))
            yield ATTRIBUTION.name, scored(opened.queries, examples, self.top_k)

    def merge(
        self, parts: Mapping[str, Sequence[pa.Table]]
    ) -> Iterator[tuple[str, pa.RecordBatch]]:
        """The largest of several parts."""
        return merged(parts, self.top_k)

    def cost(self, work: Work) -> Cost:
        """Products of the embeddings of queries and examples, and of their classes."""
        return pairs_cost(work, work.dim + work.n_classes, self.top_k)


STAGE = Representer
