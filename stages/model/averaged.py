"""What the stages share that run a model's trunk and average its hidden states over a row's tokens.

Labels are never read. A row's vector depends on its batch by rounding only (1e-6 relative).
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import pyarrow as pa
import torch

from stages.model.batches import batches
from stages.model.measurement import Measurement, load_embedder
from stages.model.size import network_size
from stages.model.spec import ModelSpec, RunsModel
from stages.reading.chosen_rows import text_of
from stages.reading.vectors import vector_rows
from stages.stage import Cost, Inputs, Rows, Split, Stage, Work
from storage.schema import TableSpec


def vector_table(name: str) -> TableSpec:
    """A table of one vector per row of text."""
    columns = [("id", pa.int64()), ("role", pa.string()), ("vector", pa.list_(pa.float32()))]
    return TableSpec(name=name, schema=pa.schema(columns), key=("id",))


@dataclass(frozen=True)
class Averaged(RunsModel, Stage, contract=True):
    """One vector per row of text. `_layer` and `writes` say which and where."""

    model: ModelSpec
    """The model whose trunk is run; its head is not."""
    token_budget: int = 1024
    """Padded tokens per batch; changes the last bits of a vector, hence part of the key."""
    rows: str | None = None
    """Instance of `row_selection` with the examples that are computed; by default all are. Others
    have no features, and what reads these leaves them out."""

    split: ClassVar[Split] = "shard"
    outside_key: ClassVar[frozenset[str]] = frozenset(
        {
            "model.head",
            "model.num_labels",
            "model.seed",
            "model.prompt",
            "model.reduction",
            "model.truncation_mode",
            "model.train",
            "rows",
        }
    )
    """The trunk is run without its head; which rows are chosen says the key of what is read."""

    @property
    @abstractmethod
    def _layer(self) -> int | Literal["all"]:
        """The hidden state that is averaged, or all of them."""

    @property
    def _by_position(self) -> bool:
        """Whether the t-th token of a row has weight t."""
        return False

    @property
    def reads(self) -> tuple[str, ...]:
        """The text, and which rows are chosen."""
        return ("text", *((self.rows,) if self.rows is not None else ()))

    def open(self, inputs: Inputs) -> Measurement:
        """The trunk and its tokenizer."""
        form = str(inputs.details("text").get("format", "text"))
        return load_embedder(self.model, self._layer, form=form, by_position=self._by_position)

    def compute(self, inputs: Inputs) -> Rows:
        """Vectors of one shard, one forward pass per row."""
        embedder: Measurement = inputs.opened
        text = text_of(inputs, self.rows)
        tokens = embedder.tokenise(text)
        for rows in batches(tokens.lengths, self.token_budget):
            with torch.no_grad():
                vectors = embedder.outputs(embedder.batch(tokens, rows))
            yield self.writes[0].name, vector_rows(text, rows, vectors.cpu().numpy())

    def cost(self, work: Work) -> Cost:
        """One forward pass per row."""
        size = network_size(self.model, None)
        n_rows = work.n_examples + work.n_queries
        n_states = size.n_states if self._layer == "all" else 1
        return Cost(
            forward_rows=n_rows,
            flops=size.forward_flops(work.n_tokens),
            written_bytes=n_rows * (4 * size.dim * n_states + 16),
            memory_bytes=size.forward_bytes(self.token_budget)
            + 12 * size.dim * n_states * work.n_examples // max(1, work.n_shards),
            vector_length=size.dim * n_states,
        )
