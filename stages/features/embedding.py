"""Embeddings: the mean over a row's tokens of one hidden state of the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from stages.model.averaged import Averaged, vector_table
from stages.stage import Inputs
from storage.schema import TableSpec

EMBEDDING = vector_table("embedding")


@dataclass(frozen=True)
class Embedding(Averaged):
    """One embedding per row, which the probe, nearest neighbours and cheap baselines read."""

    layer: int = -1
    """Hidden state that is averaged: 0 follows the embedding tables, -1 is what a head reads. All
    of them are the stage `hidden_states`."""

    version: ClassVar[int] = 1

    @property
    def _layer(self) -> int:
        return self.layer

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """One vector per row of text."""
        return (EMBEDDING,)

    def details(self, inputs: Inputs) -> Mapping[str, Any]:
        """The layer, so that a probe knows what it was fitted on."""
        return {"layer": self.layer}


STAGE = Embedding
