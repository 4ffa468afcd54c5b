"""Anchor words of the vocabulary, searched once and shared by all queries and workers.

They depend on the word and the baseline alone (`stages/saliency/anchors.py`). A method that needs a
word whose anchors are not here searches them itself, with the same result: the table saves time
only.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch

from stages.model.offsets import token_offsets
from stages.model.size import network_size
from stages.model.spec import ModelSpec, RunsModel
from stages.saliency.anchors import Candidates, Strategy, check_anchors, search
from stages.saliency.from_embeddings import BaselineName
from stages.saliency.outputs import load_embedded, with_probe
from stages.stage import Cost, Inputs, Rows, Split, Stage, Work
from storage.schema import TableSpec

WORD_PATH = TableSpec(
    name="word_path",
    schema=pa.schema([("token_id", pa.int64()), ("anchors", pa.list_(pa.int64()))]),
    key=("token_id",),
)
"""The anchors of a token, from the word towards the baseline; -1 is the baseline itself."""


@dataclass(frozen=True)
class WordPath(RunsModel, Stage):
    """The anchors of the words of all queries, or of the whole vocabulary.

    One task; its memory is a few rows of the vocabulary. Its fields are those of `udig` and `dig`,
    which ask for it with their own.
    """

    model: ModelSpec
    """The model whose word embeddings are walked through."""
    anchors: int = 30
    """Words of a path, m."""
    neighbours: int = 50
    """Candidates for each, k."""
    strategy: Strategy = "maxcount"
    """Which candidate is taken; see `stages/saliency/anchors.py`."""
    candidates: Candidates = "uniform"
    """Words near the straight line (UDIG) or near the previous anchor (DIG)."""
    baseline: BaselineName = "mask"
    """Where paths begin: the token for masking or padding, or the zero vector."""
    words: Literal["queries", "vocabulary"] = "queries"
    """Tokens that are searched: those of the queries' texts, or all, which then serves queries that
    are still to come."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "whole"

    def __post_init__(self) -> None:
        """Refuse what cannot be computed; see `check_anchors`."""
        check_anchors(self.anchors, self.neighbours, 0)

    @property
    def reads(self) -> tuple[str, ...]:
        """The text of the queries."""
        return with_probe(self.model, ("text",))

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """Anchors by token."""
        return (WORD_PATH,)

    def compute(self, inputs: Inputs) -> Rows:
        """All of them."""
        embedded = load_embedded(self.model, inputs)
        own = embedded.baseline_id(self.baseline)
        if self.words == "vocabulary":
            ids = np.arange(len(embedded.table))
        else:
            measurement = embedded.measurement
            text = inputs.table("text", "query")
            tokens = measurement.tokenise(text, with_offsets=True)
            places = token_offsets(measurement, text, tokens)
            rows = zip(tokens.columns["input_ids"], places, strict=True)
            moved = [np.array(row)[place.is_text] for row, place in rows]
            ids = np.unique(np.concatenate([np.zeros(0, np.int64), *moved]))
        found = search(
            embedded.table,
            torch.from_numpy(ids).to(embedded.table.device),
            embedded.baseline(self.baseline),
            own,
            self.anchors,
            self.neighbours,
            self.strategy,
            self.candidates,
        )
        columns = [pa.array(ids), pa.array(found.tolist(), pa.list_(pa.int64()))]
        yield WORD_PATH.name, pa.RecordBatch.from_arrays(columns, schema=WORD_PATH.schema)

    def cost(self, work: Work) -> Cost:
        """Products with the vocabulary, and a selection from it for every anchor."""
        size = network_size(self.model, None)
        vocabulary = 30_000
        n_words = vocabulary if self.words == "vocabulary" else min(vocabulary, work.n_tokens)
        products = 1 if self.candidates == "uniform" else self.anchors
        chosen = self.anchors * (20 * vocabulary + 10 * self.neighbours * size.dim)
        return Cost(
            flops=n_words * (2.0 * products * vocabulary * size.dim + chosen),
            written_bytes=8 * n_words * (self.anchors + 1),
            memory_bytes=4 * size.n_parameters + 8 * 16 * self.neighbours * size.dim * 8,
            note="for a vocabulary of about 30,000 words",
        )


STAGE = WordPath
