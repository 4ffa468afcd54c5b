"""LAFA: the score of a token, smoothed by the scores of similar tokens in similar texts.

LAFA(X_0)_t = m_{0,t} + weight E(w_{0,t}), with m the squared gradients of
`stages/saliency/squares.py` and E their aggregate over neighbours (`stages/saliency/smoothing.py`).
Scores have no sign. What is explained of a neighbour is the same output as of the query: what in
similar texts speaks for this class. Of an answer's place it is the neighbour's own.

The paper contradicts itself twice in its sentiment case: its kernel is called polynomial and
printed as the indicator (`kernel: cubic`, `kernel: indicator`), and its cut-off is 0.39 in the text
and the quantile 0.05 in the appendix (`quantile`). The defaults are the printed kernel and the
appendix's quantile. E is not divided by the sum of kernels and m differs in scale between texts, so
a `weight` does not carry over from one model to another; `normalize` gives the scores of each text
the sum 1 before they are aggregated. [ours, after methods.md 4.6]

Source: Zhang et al. 2022, arXiv:2204.10893.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from stages.model.offsets import token_offsets
from stages.ranking.similar_texts import TABLES, Kind, cut_off, nearest, of_spectrum, of_values
from stages.saliency.cost import gradient_cost
from stages.saliency.from_embeddings import FromEmbeddings, Targets
from stages.saliency.outputs import (
    ExplainedOutputs,
    Scored,
    load_embedded,
    queries,
    token_rows,
    units_of,
)
from stages.saliency.smoothing import KernelName, aggregate
from stages.saliency.squares import Squares, squared_scores
from stages.stage import ConfigError, Cost, Inputs, Rows, Work
from stages.tokens.scores import TokenStage


class Opening(NamedTuple):
    """What a worker keeps."""

    embedded: FromEmbeddings
    text: pa.Table
    """Of the examples, by id."""
    labels: dict[int, int]
    """Of the examples, where only those of the query's class count."""
    radius: float


@dataclass(frozen=True)
class Lafa(TokenStage):
    """Scores of the tokens of every query, without a sign: large matters."""

    scores: Squares = field(default_factory=Squares)
    """The base score."""
    kernel: KernelName = "indicator"
    """How alike two words are, by their word embeddings."""
    weight: float = 1.0
    """Of the neighbours' part, lambda."""
    neighbours: Kind = "embedding"
    """Which texts: see `stages/ranking/similar_texts.py`."""
    source: str | None = None
    """Instance that says so; by default `embedding`, `support` or `shapley_by_query`. The paper
    takes a hidden layer of the explained model: `embedding: {layer: 2}`."""
    limit: int = 10
    """Neighbours at most, M."""
    quantile: float | None = 0.05
    """Share of the distances between examples that a neighbour's lies within, epsilon; null takes
    the nearest however far they are."""
    same_class: bool = False
    """Whether only examples labelled with the query's predicted class are neighbours."""
    normalize: bool = False
    """Whether the scores of each text are divided by their sum."""
    seed: int = 0
    """Of the pairs that the quantile is taken over."""

    def __post_init__(self) -> None:
        """Refuse what cannot be computed.

        Raises:
            ConfigError: a number is out of range, or classes are asked for where there are none.
        """
        if self.limit < 1 or not 0 < (self.quantile or 1) <= 1:
            raise ConfigError(
                f"lafa: found limit: {self.limit}, quantile: {self.quantile}, expected at least 1, "
                "and a share in (0, 1] or null. Correct them."
            )
        if self.same_class and self.neighbours != "embedding":
            raise ConfigError(
                f"same_class: found it with neighbours: {self.neighbours}, which are of the class "
                "that they support, expected neighbours: embedding. Remove same_class."
            )

    @property
    def _source(self) -> str:
        return self.source or TABLES[self.neighbours]

    @property
    def reads(self) -> tuple[str, ...]:
        """The texts, and what says which are neighbours."""
        tables = (*super().reads, self._source)
        return (*tables, "label") if self.same_class else tables

    def open(self, inputs: Inputs) -> Opening:
        """The model, the corpus's texts, and the distance that neighbours lie within."""
        embedded = load_embedded(self.model, inputs)
        text = inputs.table("text", "example")
        text = text.filter(pc.equal(text["role"], "example")).sort_by("id")
        labels: dict[int, int] = {}
        if self.same_class:
            table = inputs.table("label", "example").select(["id", "label"]).drop_null()
            labels = dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))
        radius = float("inf")
        if self.neighbours == "embedding" and self.quantile is not None:
            radius = cut_off(
                inputs.vectors(self._source, "example").matrix, self.quantile, self.seed
            )
        return Opening(embedded, text, labels, radius)

    def compute(self, inputs: Inputs) -> Rows:
        """Scores of one block of queries."""
        opened: Opening = inputs.opened
        embedded = opened.embedded
        units = queries(embedded, inputs, self.token_budget, self.continuation)
        similar = self._similar(inputs, opened, units)
        own = self._scores(embedded, units)
        beside, place = self._neighbours(opened, units, similar)
        theirs = self._scores(embedded, beside)
        found = []
        for unit in range(units.n):
            at = [place[key] for key in _keys(units, unit, similar)]
            moved = [np.flatnonzero(beside.offsets[row].is_text) for row in at]
            # A text whose every token was cut away has nothing to say.
            kept = [(row, some) for row, some in zip(at, moved, strict=True) if len(some)]
            ids = np.array(units.tokens.columns["input_ids"][unit])
            rest = aggregate(
                self.kernel,
                embedded.table,
                torch.from_numpy(ids).to(embedded.table.device),
                [_tensor(np.array(beside.tokens.columns["input_ids"][r])[s]) for r, s in kept],
                [_tensor(theirs[r][s]) for r, s in kept],
            )
            scores = own[unit] + self.weight * rest.cpu().numpy() * units.offsets[unit].is_text
            found.append(Scored(scores, self.scores.n_gradients * (1 + len(at))))
        yield from token_rows(units, found)

    def cost(self, work: Work) -> Cost:
        """Gradients of the queries and their neighbours, and distances to all examples."""
        count = self.scores.n_gradients * (1 + self.limit)
        return gradient_cost(self.model, work, count, self.token_budget)

    def _scores(self, embedded: FromEmbeddings, units: ExplainedOutputs) -> list[np.ndarray]:
        found = squared_scores(embedded, units, self.scores, self.token_budget)
        if not self.normalize:
            return found
        return [own / (own.sum() or 1.0) for own in found]

    def _similar(
        self, inputs: Inputs, opened: Opening, units: ExplainedOutputs
    ) -> dict[int, list[int]]:
        """The neighbours of every query of the block, itself not among them."""
        text = inputs.table("text", "query")
        rows = [_row(row) for row in text.to_pylist()]
        own_text = dict(zip(text["id"].to_pylist(), rows, strict=True))
        same: dict[tuple[str, str | None], list[int]] = {}
        for row in opened.text.select(["id", "text", "text_b"]).to_pylist():
            same.setdefault(_row(row), []).append(row["id"])
        query_ids = sorted(set(units.query_ids.tolist()))
        classes = dict(zip(units.query_ids.tolist(), units.targets.choice.tolist(), strict=True))

        def is_left_out(query: int, examples: np.ndarray) -> np.ndarray:
            gone = np.isin(examples, same.get(own_text[query], []))
            if self.same_class:
                gone |= [opened.labels.get(i) != classes[query] for i in examples.tolist()]
            return np.asarray(gone, dtype=bool)

        if self.neighbours == "embedding":
            found = nearest(inputs, self._source, query_ids, self.limit, opened.radius, is_left_out)
            return {query: found.get(query, []) for query in query_ids}
        table = inputs.table(self._source, "query")
        pick = of_spectrum if self.neighbours == "spectrum" else of_values
        chosen = {}
        for query in query_ids:
            ids = pick(table, query, self.limit)
            left_out = is_left_out(query, np.array(ids, np.int64))
            chosen[query] = [i for i, gone in zip(ids, left_out, strict=True) if not gone]
        return chosen

    def _neighbours(
        self, opened: Opening, units: ExplainedOutputs, similar: dict[int, list[int]]
    ) -> tuple[ExplainedOutputs, dict[tuple[int, int, int], int]]:
        """Every neighbour once for each output that is explained of it, and where it is."""
        keys = sorted({key for unit in range(units.n) for key in _keys(units, unit, similar)})
        place = {key: row for row, key in enumerate(keys)}
        ids = np.array([example for example, _, _ in keys], np.int64)
        rows = opened.text.take(np.searchsorted(opened.text["id"].to_numpy(), ids))
        embedded = opened.embedded
        tokens = embedded.measurement.tokenise(rows, with_offsets=True)
        which = np.array([w for _, w, _ in keys], np.int64)
        choice = np.array([c for _, _, c in keys], np.int64)
        if embedded.answers_by_place:
            # The place of an answer is the text's own.
            logits = embedded.all_choices(tokens, which, self.token_budget)
            choice = np.array([int(row.argmax()) for row in logits], np.int64)
        places = token_offsets(embedded.measurement, rows, tokens)
        targets = Targets(which, choice)
        names: list[str | None] = [None] * len(keys)
        found = units_of(embedded, ids, choice, names, tokens, places, targets, self.token_budget)
        return found, place


def _keys(
    units: ExplainedOutputs, unit: int, similar: dict[int, list[int]]
) -> list[tuple[int, int, int]]:
    """Example, and output explained of it, of each neighbour of a unit."""
    which, choice = int(units.targets.which[unit]), int(units.targets.choice[unit])
    return [(example, which, choice) for example in similar[int(units.query_ids[unit])]]


def _row(row: Mapping[str, Any]) -> tuple[str, str | None]:
    return str(row["text"]), row["text_b"]


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


STAGE = Lafa
