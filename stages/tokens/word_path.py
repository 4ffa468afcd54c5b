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
"""Token ids of the anchors of a token, from the word towards the baseline; -1 is the baseline."""


@dataclass(frozen=True)
class WordPath(RunsModel, Stage):
    """The anchors of the words of all queries, or of the whole vocabulary.

    One task; its memory is a few rows of the vocabulary. `udig` and `dig`, which read its table,
    plan it with their own fields of the same names.
    """

    model: ModelSpec
    """The model whose word embeddings the paths lead through."""
    anchors: int = 30
    """Anchor words of a path, m."""
    neighbours: int = 50
    """Candidates for each anchor, k."""
    strategy: Strategy = "maxcount"
    """Which candidate is taken; see `stages/saliency/anchors.py`."""
    candidates: Candidates = "uniform"
    """Where candidates are near: the straight line (UDIG) or the previous anchor (DIG)."""
    baseline: BaselineName = "mask"
    """Embedding where paths begin: of the mask or padding token, or the zero vector."""
    words: Literal["queries", "vocabulary"] = "queries"
    """Words whose anchors are searched: those of the queries' texts; or all of the vocabulary,
    which also serves later queries."""

    version: ClassVar[int] = 1
    split: ClassVar[Split] = "whole"

    def __post_init__(self) -> None:
        """Refuses numbers that make no path; see `check_anchors`."""
        check_anchors(self.anchors, self.neighbours, 0)

    @property
    def reads(self) -> tuple[str, ...]:
        """The text of the queries, and a fitted head's table."""
        return with_probe(self.model, ("text",))

    @property
    def writes(self) -> tuple[TableSpec, ...]:
        """The table of anchors, a row for each token id."""
        return (WORD_PATH,)

    def compute(self, inputs: Inputs) -> Rows:
        """The anchors of all words that `words` asks for."""
        embedded = load_embedded(self.model, inputs)
        baseline_id = embedded.baseline_id(self.baseline)
        if self.words == "vocabulary":
            ids = np.arange(len(embedded.table))
        else:
            measurement = embedded.measurement
            text = inputs.table("text", "query")
            tokens = measurement.tokenise(text, with_offsets=True)
            offsets = token_offsets(measurement, text, tokens)
            rows = zip(tokens.columns["input_ids"], offsets, strict=True)
            text_tokens = [np.array(ids)[of_row.is_text] for ids, of_row in rows]
            ids = np.unique(np.concatenate([np.zeros(0, np.int64), *text_tokens]))
        anchors = search(
            embedded.table,
            torch.from_numpy(ids).to(embedded.table.device),
            embedded.baseline(self.baseline),
            baseline_id,
            self.anchors,
            self.neighbours,
            self.strategy,
            self.candidates,
        )
        columns = [pa.array(ids), pa.array(anchors.tolist(), pa.list_(pa.int64()))]
        yield WORD_PATH.name, pa.RecordBatch.from_arrays(columns, schema=WORD_PATH.schema)

    def cost(self, work: Work) -> Cost:
        """The cost of products with the vocabulary, and of a selection from it for every anchor."""
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
