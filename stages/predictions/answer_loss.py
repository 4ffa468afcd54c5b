"""How likely the model finds each answer of a corpus of completions: with its prompt, and alone.

    difficulty = loss of the text with its prompt / loss of the text alone

the instruction-following difficulty (IFD) of arXiv:2308.12032, near or above 1 where the prompt
does not help to say the answer, which is then another prompt's, or says too little. `gain` is about
what the prompt tells of the whole answer, in nats: the difference of both losses times all its
tokens, those of its end among them. `end_loss` is large where the answer stops in the middle.

Losses are of the model as it is. The source fine-tunes it a little first; a model that was taught
to follow instructions needs that less.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from stages.model.answers import Answered, Reader, answer_columns, told
from stages.model.measurement import load_measurement
from stages.model.size import network_size
from stages.model.spec import ModelSpec, RunsModel
from stages.stage import Cost, Inputs, Rows, Split, Stage, Work
from stages.tables import ANSWER_COLUMNS
from storage.schema import TableSpec

ANSWER_LOSS = TableSpec(
    name="answer_loss",
    schema=pa.schema([("id", pa.int64()), ("role", pa.string()), *ANSWER_COLUMNS]),
    key=("id",),
)
"""One row per text."""


@dataclass(frozen=True)
class AnswerLoss(RunsModel, Stage):
    """Losses of each answer of examples and queries. Two forward passes a row, no gradients."""

    model: ModelSpec
    """The language model, head: completion."""
    token_budget: int = 2048
    """Padded tokens per batch; changes the last bits of a loss, hence part of the key."""

    version: ClassVar[int] = 3
    split: ClassVar[Split] = "shard"
    tasks: ClassVar[tuple[str, ...]] = ("completion",)
    outside_key: ClassVar[frozenset[str]] = frozenset({"model.train", "model.reduction"})

    @property
    def reads(self) -> tuple[str, ...]:
        """The texts."""
        return ("text",)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per text."""
        return (ANSWER_LOSS,)

    def open(self, inputs: Inputs) -> Reader:
        """The model."""
        return Reader(load_measurement(self.model, inputs), self.token_budget)

    def compute(self, inputs: Inputs) -> Rows:
        """The losses of one shard."""
        text = inputs.table("text")
        if not text.num_rows:
            return
        reader: Reader = inputs.opened
        read: Answered = reader.read(text["text"].to_pylist(), text["text_b"].to_pylist())
        found = [told(*row) for row in zip(read.tokens, read.alone, strict=True)]
        names: Any = [text["id"].combine_chunks(), text["role"].combine_chunks()]
        columns = [*names, *answer_columns(found, read.prompts, read.answers)]
        yield ANSWER_LOSS.name, pa.RecordBatch.from_arrays(columns, ANSWER_LOSS.schema.names)

    def cost(self, work: Work) -> Cost:
        """Two forward passes per row, the second of the answer alone."""
        size = network_size(self.model, None)
        n = work.n_examples + work.n_queries
        return Cost(
            forward_rows=2 * n,
            flops=2 * size.forward_flops(work.n_tokens),
            written_bytes=n * (8 * size.dim + 60),
            memory_bytes=size.forward_bytes(self.token_budget)
            + (24 * size.dim + 40) * (n // max(1, work.n_shards)),
        )


STAGE = AnswerLoss
