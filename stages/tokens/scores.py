"""Bases of the stages that score the tokens of queries: fields, tables, and loading the model."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from stages.model.spec import ModelSpec, RunsModel
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

    version: ClassVar[int] = 2
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


@dataclass(frozen=True)
class TokenScores(TokenStage, contract=True):
    """A stage whose token scores depend on the model and the query alone.

    Each method computes them in `score`.
    """

    def open(self, inputs: Inputs) -> Any:
        """The model, ready to be called with word embeddings."""
        return load_embedded(self.model, inputs)

    def compute(self, inputs: Inputs) -> Rows:
        """Token scores of one block of queries."""
        explained = read_outputs(inputs.opened, inputs, self.token_budget, self.continuation)
        scored = self.score(inputs.opened, explained) if explained.n else []
        yield from token_rows(explained, scored)

    @abstractmethod
    def score(self, embedded: Any, explained: ExplainedOutputs) -> list[ScoredOutput]:
        """The token scores of each explained output; `embedded` is what `open` returned."""
