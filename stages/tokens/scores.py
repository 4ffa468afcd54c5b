"""What all stages share that score the tokens of queries: fields, tables, the model."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from stages.model.spec import ModelSpec, RunsModel
from stages.saliency.outputs import (
    EXPLAINED,
    TOKEN,
    ExplainedOutputs,
    Scored,
    load_embedded,
    queries,
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
    """Instance that chose the tokens to be explained, with `head: completion`."""
    token_budget: int = field(default=2048, kw_only=True)
    """Padded tokens per batch."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "query"
    outside_key: ClassVar[frozenset[str]] = frozenset({"model.train"})

    @property
    def reads(self) -> tuple[str, ...]:
        """The text of the queries, and what says what is explained of it."""
        return with_probe(self.model, tables_read(self.model, self.continuation))

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Scores, and what was explained."""
        return (TOKEN, EXPLAINED)


@dataclass(frozen=True)
class TokenScores(TokenStage, contract=True):
    """One whose scores follow from the model and the query alone: a method says how in `score`."""

    def open(self, inputs: Inputs) -> Any:
        """The model as a function of its word embeddings."""
        return load_embedded(self.model, inputs)

    def compute(self, inputs: Inputs) -> Rows:
        """Scores of one block of queries."""
        units = queries(inputs.opened, inputs, self.token_budget, self.continuation)
        yield from token_rows(units, self.score(inputs.opened, units))

    @abstractmethod
    def score(self, embedded: Any, units: ExplainedOutputs) -> list[Scored]:
        """The scores of each unit; `embedded` is what `open` returned."""
