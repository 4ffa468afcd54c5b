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

A probe that was kept while labels were corrected, or rows appended, is not at that minimum, nor is
one that was fitted on a part of the examples: the values of all then miss the logit, and `details`
says by how much on the queries.

Source: Yeh et al. 2018, arXiv:1811.09720, eq. 2, in the units of our own probe and with its bias
left out of the penalty.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stages.pairs.scores import FactorRows, PairScores, left_out
from stages.reading.vectors import BLOCK
from stages.stage import Cost, Inputs, Role, Work
from stages.surrogate.probe_head import (
    LABEL_BYTES,
    Head,
    ProbeExamples,
    all_examples,
    examples_of,
    queries_of,
    read_head,
)

LARGE_MISS = 0.01
"""Relative difference between summed values and logits above which a notice is given."""


class ProbeState(NamedTuple):
    """The probe, and how far it is from its minimum on the present examples."""

    head: Head
    n_examples: int
    """Examples that have a label and an embedding now."""
    miss: float
    """Root mean square over queries of summed values less logits (without the bias), relative to
    that of the logits."""


def dual(head: Head, rows: ProbeExamples, n_examples: int) -> Float[Tensor, "rows outputs"]:
    """The alpha of each of `rows`, which are some of the probe's `n_examples` examples."""
    return -rows.slopes / (n_examples * head.regularization)


@dataclass(frozen=True)
class Representer(PairScores):
    """Values of all examples that have a label and an embedding, for all queries.

    A task holds the embeddings of one shard, of the queries and of 65,536 examples, 16 million
    scores, and 40 bytes per example for its label.
    """

    embedding: str = "embedding"
    """Feature table that the probe was fitted on: an instance of `embedding`, or `features`."""

    speaks_for: ClassVar[str] = "prediction"
    opens: ClassVar[tuple[Role, ...]] = ("example", "query")
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression")

    @property
    def reads(self) -> tuple[str, ...]:
        """The embeddings that the probe was fitted on, the probe, and the labels."""
        return (self.embedding, "probe", "label")

    def queries(self, inputs: Inputs) -> FactorRows:
        """Predicted classes and embeddings of the queries; `shared` says how far values miss."""
        head = read_head(inputs, self.embedding)
        queries = queries_of(head, inputs, self.embedding)
        moments, n_examples = torch.zeros_like(head.weight), 0
        for rows in all_examples(head, inputs, self.embedding):
            moments -= rows.slopes.T @ rows.x
            n_examples += len(rows.ids)
        added_up = moments / (n_examples * head.regularization)
        logits, values = (
            ((queries.x @ weight.T) * queries.chosen).sum(1) for weight in (head.weight, added_up)
        )
        miss = float((values - logits).norm() / logits.norm()) if logits.any() else 0.0
        factors = (queries.chosen.float(), queries.x.float())
        return FactorRows(queries.ids, factors, shared=ProbeState(head, n_examples, miss))

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """The number of examples, `miss`, and the shard's labelled examples without embedding."""
        shared: ProbeState = inputs.opened.shared
        facts: dict[str, Any] = {
            "n_examples": shared.n_examples,
            "miss": shared.miss,
            "n_left_out": left_out(inputs, (self.embedding,)),
        }
        if shared.miss > LARGE_MISS and inputs.part.index == 0:
            facts["notices"] = [
                f"values miss the logits of the queries by {shared.miss:.1%}, as the probe was "
                "fitted on other labels or rows, or on a part of them; artefacts.probe=refit fits "
                "it anew, with stages.probe.rows on more of them"
            ]
        return facts

    def examples(self, inputs: Inputs) -> FactorRows:
        """Alpha and embeddings of a shard's examples that have a label and an embedding."""
        shared: ProbeState = inputs.opened.shared
        examples = examples_of(shared.head, inputs, self.embedding)
        alpha = dual(shared.head, examples, shared.n_examples)
        magnitude = alpha.abs().amax(1) if len(examples.ids) else None
        return FactorRows(examples.ids, (alpha.float(), examples.x.float()), magnitude)

    def width(self, work: Work) -> int:
        """Embeddings, and outputs."""
        return work.dim + work.n_classes

    def cost(self, work: Work) -> Cost:
        """One product of factors, and one pass over all embeddings, which every worker makes."""
        pairs = super().cost(work)
        passed = 4.0 * work.n_examples * work.dim * work.n_classes
        block = 28 * min(BLOCK, work.n_examples) * work.dim
        memory_bytes = pairs.memory_bytes + LABEL_BYTES * work.n_examples + block
        return replace(pairs, flops=pairs.flops + passed, memory_bytes=memory_bytes)


STAGE = Representer
