"""Bases of the stages that score the tokens of queries: fields, tables, and loading the model."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from stages.model.spec import ModelSpec, RunsModel
from stages.saliency.from_embeddings import FromEmbeddings
from stages.saliency.outputs import (
    EXPLAINED,
    TOKEN,
    ExplainedOutputs,
    ScoredOutput,
    load_embedded,
    read_outputs,
    tables_read,
    token_rows,
    with_probe,
)
from stages.stage import Inputs, Rows, Split, Stage
from storage.schema import TableSpec


@dataclass(frozen=True)
class TokenStage(RunsModel, Stage, contract=True):
    """A stage that scores the tokens of every query."""

    model: ModelSpec
    """The model that is explained."""
    continuation: str = field(default="continuation", kw_only=True)
    """Instance of `continuation` that chose the explained tokens, for `head: completion`."""
    token_budget: int = field(default=2048, kw_only=True)
    """Padded tokens per batch."""

    version: ClassVar[int] = 3
    split: ClassVar[Split] = "query"
    outside_key: ClassVar[frozenset[str]] = frozenset({"model.train"})

    @property
    def reads(self) -> tuple[str, ...]:
        """The text, for `head: completion` the explained tokens, and a fitted head's table."""
        return with_probe(self.model, tables_read(self.model, self.continuation))

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """The tables of token scores and of explained outputs."""
        return (TOKEN, EXPLAINED)

    def _by_block(
        self,
        inputs: Inputs,
        embedded: FromEmbeddings,
        score: Callable[[ExplainedOutputs], list[ScoredOutput]],
    ) -> Rows:
        """Token scores of the part's queries, by `score` of the outputs of one block at a time."""
        blocks = list(query_blocks(inputs.table("text", "query"), self.token_budget))
        inputs.stepped(0, len(blocks))
        for nth, ids in enumerate(blocks):
            explained = read_outputs(
                embedded, inputs, self.token_budget, self.continuation, set(ids)
            )
            yield from token_rows(explained, score(explained) if explained.n else [])
            inputs.stepped(nth + 1, len(blocks))


@dataclass(frozen=True)
class TokenScores(TokenStage, contract=True):
    """A stage whose token scores depend on the model and the query alone.

    Each method computes them in `score`.
    """

    def open(self, inputs: Inputs) -> Any:
        """The model, ready to be called with word embeddings."""
        return load_embedded(self.model, inputs)

    def compute(self, inputs: Inputs) -> Rows:
        """Token scores of the part's queries, computed a block at a time."""
        embedded = inputs.opened
        return self._by_block(inputs, embedded, lambda explained: self.score(embedded, explained))

    @abstractmethod
    def score(self, embedded: Any, explained: ExplainedOutputs) -> list[ScoredOutput]:
        """The token scores of each explained output; `embedded` is what `open` returned."""


def query_blocks(text: pa.Table, token_budget: int) -> Iterator[list[int]]:
    """The ids of queries, ascending, in blocks whose tokens, offsets and paths are held at a time.

    A block has as many queries as a batch has tokens for 64 each, or fewer of long texts: as many
    as have eight characters for each token of a batch, but always one. So batches are full, and
    minutes of work are told of in parts.
    """
    text = text.sort_by("id")
    lengths = pc.add(pc.utf8_length(text["text"]), pc.fill_null(pc.utf8_length(text["text_b"]), 0))
    block: list[int] = []
    n_characters = 0
    for query, length in zip(text["id"].to_pylist(), lengths.to_pylist(), strict=True):
        is_full = len(block) >= max(1, token_budget // 64)
        if block and (is_full or n_characters + length > 8 * token_budget):
            yield block
            block, n_characters = [], 0
        block.append(query)
        n_characters += length
    if block:
        yield block
