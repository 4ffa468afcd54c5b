"""Pairs of answers whose order looks wrong: the rejected one is probably the better.

A fit on the corpus's own pairs tells the better answer from what `answer_margin` measures of both;
each pair is judged by a fit that has not seen it. `stages/surrogate/pair_order.py` has the
formulas. The policy's own margin is no part of it: a model that was trained on these pairs knows
their orders, the wrong ones, too. For the same reason the model of the run should be one that was
not trained on them.

What is wrong in all of a corpus alike, or in most of it, is not found: then the given orders teach
the wrong one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64

from stages.reading.drawn import is_drawn, mixed
from stages.reading.vectors import matrix_of
from stages.stage import Cost, DataError, Inputs, Role, Rows, Split, Stage, Work
from stages.surrogate.answer_mixture import NUMBERS
from stages.surrogate.pair_order import PARTS, SCALES, Differences, Order, differences, fit_order
from storage.schema import TableSpec

PREFERENCE_ISSUE = TableSpec(
    name="preference_issue",
    schema=pa.schema(
        [
            ("example_id", pa.int64()),
            ("p_wrong", pa.float64()),
            ("reason", pa.string()),
            ("score", pa.float64()),
            ("is_preference_issue", pa.bool_()),
        ]
    ),
    key=("example_id",),
)
"""The probability that the order of a pair is wrong, what speaks most against it, and the log odds
that it is right."""

ANSWER_SIDE = "answer_side"
"""The table of `answer_margin` with what is measured of each answer."""
LEAST = 30
"""Pairs below which there is nothing to learn from."""
STEPS = 300
"""Products of all features with a vector that a fit takes, about."""


@dataclass(frozen=True)
class PreferenceIssues(Stage):
    """The probability that each pair has the wrong order, the reason, and a decision.

    Flagged are those that are likelier wrong than right. A task holds the states of `compared`
    pairs and of a shard.
    """

    margins: str = "answer_margin"
    """Instance of `answer_margin`."""
    compared: int = 8192
    """Most pairs that the fit is on, drawn by a hash of their ids."""
    random_seed: int = 0
    """Of the parts that fits leave out."""

    version: ClassVar[int] = 1
    judges_rows: ClassVar[bool] = True
    split: ClassVar[Split] = "shard"
    opens: ClassVar[tuple[Role, ...]] = ("example",)
    roles: ClassVar[tuple[Role, ...]] = ("example",)
    tasks: ClassVar[tuple[str, ...]] = ("preference",)
    instead: ClassVar[Mapping[str, str]] = {
        "classification": "label_issues",
        "completion": "answer_issues",
    }

    @property
    def seed(self) -> int:
        """The seed of the parts."""
        return self.random_seed

    @property
    def reads(self) -> tuple[str, ...]:
        """What is measured of both answers, and which rows are not dropped."""
        return (self.margins, f"{self.margins}.{ANSWER_SIDE}", "label")

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per example with both answers, unless it is dropped."""
        return (PREFERENCE_ISSUE,)

    def open(self, inputs: Inputs) -> Order:
        """What tells the better answer, learned once per worker.

        Raises:
            DataError: there are too few pairs.
        """
        _, read, _ = self.reads
        every = [table["id"].to_numpy() for table in inputs.by_shard("label", "example")]
        kept = np.concatenate(every) if every else np.zeros(0, np.int64)
        found = [_pairs(table)[0] for table in inputs.by_shard(read, "example")]
        drawn = np.intersect1d(kept, np.concatenate(found)) if found else kept[:0]
        drawn = drawn[is_drawn(drawn, self.compared)]
        if len(drawn) < LEAST:
            raise DataError(
                f"{self.margins}: found {len(drawn)} pairs with both answers, expected at least "
                f"{LEAST}. Raise max_length, or leave preference_issues out."
            )
        few = [
            _pairs(table.filter(pc.is_in(table["id"], pa.array(drawn))))
            for table in inputs.by_shard(read, "example")
        ]
        ids = np.concatenate([own for own, _ in few])
        order = np.argsort(ids)
        blocks = zip(*(pairs for _, pairs in few), strict=True)
        pairs = Differences(*(np.concatenate(parts)[order] for parts in blocks))
        return fit_order(pairs, self._parts(ids[order]))

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """The estimated share of wrong orders."""
        order: Order = inputs.opened
        return {"share": order.share}

    def compute(self, inputs: Inputs) -> Rows:
        """The judgements of one shard."""
        order: Order = inputs.opened
        kept = inputs.table("label", "example")["id"].combine_chunks()
        table = inputs.table(self.reads[1], "example")
        ids, pairs = _pairs(table.filter(pc.is_in(table["id"], value_set=kept)))
        if not len(ids):
            return
        judged = order.judge(pairs, self._parts(ids))
        columns = [ids, judged.p_wrong, judged.reasons, judged.score, judged.p_wrong > 0.5]
        yield (
            PREFERENCE_ISSUE.name,
            pa.RecordBatch.from_arrays(
                list(map(pa.array, columns)), schema=PREFERENCE_ISSUE.schema
            ),
        )

    def cost(self, work: Work) -> Cost:
        """Fits on pairs drawn, in each worker."""
        n, most = work.n_examples, min(self.compared, work.n_examples)
        per_shard = n // max(1, work.n_shards)
        return Cost(
            flops=4.0 * STEPS * PARTS * len(SCALES) * most * work.dim / 2 + 2.0 * n * work.dim,
            written_bytes=40 * n,
            memory_bytes=20 * work.dim * (most + per_shard) + 8 * n,
        )

    def _parts(self, ids: Int64[np.ndarray, " pairs"]) -> Int64[np.ndarray, " pairs"]:
        """The part that each pair is in, by its id."""
        hashed = mixed(ids.astype(np.uint64) + np.uint64(self.random_seed + 1))
        parts: np.ndarray = (hashed % np.uint64(PARTS)).astype(np.int64)
        return parts


def _pairs(table: pa.Table) -> tuple[Int64[np.ndarray, " pairs"], Differences]:
    """Ids, ascending, of the pairs with both answers, and what their answers differ in."""
    both = table.sort_by([("id", "ascending"), ("side", "ascending")])
    n_tokens = both["n_tokens"].to_numpy().reshape(-1, 2)
    kept = np.flatnonzero((n_tokens > 0).all(1))
    both = both.take(pa.array(np.column_stack([2 * kept, 2 * kept + 1]).reshape(-1)))
    numbers = np.column_stack([pc.cast(both[name], pa.float64()).to_numpy() for name in NUMBERS])
    vectors = matrix_of(both["vector"]).astype(np.float32)
    states = vectors[:, vectors.shape[1] // 2 :]
    # "chosen" comes before "rejected".
    ids: np.ndarray = both["id"].to_numpy()[::2]
    return ids, differences(
        numbers[::2], numbers[1::2], states.reshape(len(ids), 2, states.shape[1])
    )


STAGE = PreferenceIssues
