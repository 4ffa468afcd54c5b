"""The length of a text before it is cut: how many tokens it has, for how many a model has room.

A row with more tokens than `max_length` loses its end, or its beginning, in every stage that runs
the model: what follows of it is about the rest. Of a preference the longer side counts. No network
is run.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from stages.corpus.preferences import SIDE_FORMS, side_columns
from stages.model.heads.head import Head, head_of
from stages.model.pretrained import load_tokenizer
from stages.model.spec import ModelSpec, RunsModel
from stages.stage import Cost, Inputs, Rows, Split, Stage, Work
from storage.schema import TableSpec

TEXT_LENGTH = TableSpec(
    name="text_length",
    schema=pa.schema(
        [
            ("id", pa.int64()),
            ("role", pa.string()),
            ("n_tokens", pa.int64()),
            ("max_length", pa.int64()),
        ]
    ),
    key=("id",),
)
"""The tokens of a whole row, those of its template and special ones among them, and how many of
them are read."""


class Encoder(NamedTuple):
    """A tokenizer, and the head that lays rows out for it."""

    tokenizer: Any
    head: Head
    form: str


@dataclass(frozen=True)
class TextLength(RunsModel, Stage):
    """Counts of tokens, as the model of the run reads a row. A task holds the texts of a shard."""

    model: ModelSpec
    """The model whose tokenizer, head and `max_length` count."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "shard"

    @property
    def reads(self) -> tuple[str, ...]:
        """The texts."""
        return ("text",)

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One row per text."""
        return (TEXT_LENGTH,)

    def open(self, inputs: Inputs) -> Encoder:
        """The tokenizer, and the head.

        Raises:
            ModelError: the tokenizer cannot be loaded.
        """
        form = str(inputs.details("text").get("format", "text"))
        return Encoder(load_tokenizer(self.model), head_of(self.model), form)

    def compute(self, inputs: Inputs) -> Rows:
        """The lengths of the texts of one shard."""
        encoder: Encoder = inputs.opened
        text = inputs.table("text")
        texts, pairs = text["text"].to_pylist(), text["text_b"].to_pylist()
        form = encoder.form
        if form in SIDE_FORMS:
            texts, pairs = side_columns(texts, pairs, form)
            form = SIDE_FORMS[form]
        lengths = np.array(encoder.head.lengths(encoder.tokenizer, texts, pairs, form), np.int64)
        if form != encoder.form:
            lengths = lengths.reshape(-1, 2).max(1)
        columns = [
            text["id"].combine_chunks(),
            text["role"].combine_chunks(),
            pa.array(lengths, pa.int64()),
            pa.array(np.full(len(lengths), self.model.max_length)),
        ]
        yield TEXT_LENGTH.name, pa.RecordBatch.from_arrays(columns, schema=TEXT_LENGTH.schema)

    def cost(self, work: Work) -> Cost:
        """A look at every token."""
        n = work.n_examples + work.n_queries
        return Cost(
            flops=5000.0 * work.n_tokens,
            written_bytes=8 * n,
            memory_bytes=60 * work.n_tokens // max(1, work.n_shards),
        )


STAGE = TextLength
