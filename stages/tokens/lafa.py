"""LAFA: the score of a token, smoothed by the scores of similar tokens in similar texts.

LAFA(X_0)_t = m_{0,t} + weight E(w_{0,t}), with m the squared gradients of
`stages/saliency/squares.py` and E their aggregate over neighbours (`stages/saliency/smoothing.py`).
Scores have no sign. The output explained of a neighbour is the same as of the query: its scores say
which tokens of a similar text matter for the query's class. Where the output is the position of an
answer, it is the position of the neighbour's own answer.

The paper contradicts itself twice in its sentiment case: its kernel is called polynomial and
printed as the indicator (`kernel: cubic`, `kernel: indicator`), and its cut-off is 0.39 in the text
and the quantile 0.05 in the appendix (`quantile`). The defaults are the printed kernel and the
appendix's quantile. E is not divided by the sum of kernels and m differs in scale between texts, so
a `weight` does not carry over from one model to another; `normalize` gives the scores of each text
the sum 1 before they are aggregated. [ours]

Source: Zhang et al. 2022, arXiv:2204.10893.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float64, Int64

from stages.model.offsets import token_offsets
from stages.ranking.similar_texts import (
    DISTANCES,
    TABLES,
    Kind,
    cut_off,
    nearest,
    of_spectrum,
    of_values,
)
from stages.reading.supervision import answered_rows_of
from stages.saliency.cost import gradient_cost
from stages.saliency.from_embeddings import FromEmbeddings, Targets
from stages.saliency.outputs import (
    ExplainedOutputs,
    ScoredOutput,
    explained_outputs,
    load_embedded,
)
from stages.saliency.smoothing import KernelName, aggregate
from stages.saliency.squares import Squares, squared_scores
from stages.stage import ConfigError, Cost, Inputs, Rows, Work
from stages.tokens.scores import TokenStage

Key = tuple[int, int, int]
"""A neighbour: the example's id, and distribution and choice of the output explained of it."""


class Scored(NamedTuple):
    """The tokens of a neighbour's text and their scores m, which are kept for other queries."""

    ids: Int64[np.ndarray, " tokens"]
    scores: Float64[np.ndarray, " tokens"]


class LafaState(NamedTuple):
    """What a worker opens once and uses for all blocks: the model, the examples, the cut-off."""

    embedded: FromEmbeddings
    labelled: Int64[np.ndarray, " labelled"]
    """Ids, ascending, of the examples that have a label; empty unless `same_class` is set."""
    labels: Int64[np.ndarray, " labelled"]
    radius: float
    """The largest distance of a neighbour from the query; infinite where there is no cut-off."""


@dataclass(frozen=True)
class Lafa(TokenStage):
    """Scores of the tokens of every query, without a sign: large matters."""

    scores: Squares = field(default_factory=Squares)
    """The score m of a single text's tokens."""
    kernel: KernelName = "indicator"
    """The similarity kappa of two words, from their word embeddings."""
    weight: float = 1.0
    """The factor lambda of the neighbours' aggregate E."""
    neighbours: Kind = "embedding"
    """Which examples are neighbours: see `stages/ranking/similar_texts.py`."""
    source: str | None = None
    """Instance whose table says which are neighbours; by default `embedding`, `support` or
    `shapley_by_query`. The paper takes a hidden layer of the explained model: `embedding: {layer:
    2}`."""
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
    """Seed of the pairs of examples whose distances the quantile is taken over."""

    version: ClassVar[int] = 4

    def __post_init__(self) -> None:
        """Refuses fields that do not go together.

        Raises:
            ConfigError: a number is out of range, or `same_class` is set for other neighbours than
                those of an embedding.
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
        """The texts, the table that says which are neighbours, and labels for `same_class`."""
        tables = (*super().reads, self._source)
        return (*tables, "label") if self.same_class else tables

    def open(self, inputs: Inputs) -> LafaState:
        """The model, for `same_class` the examples' labels, and the distance of the cut-off."""
        embedded = load_embedded(self.model, inputs)
        labelled = labels = np.zeros(0, np.int64)
        if self.same_class:
            shards = inputs.by_shard("label", "example")
            columns = [shard.select(["id", "label"]).drop_null() for shard in shards]
            table = pa.concat_tables(columns).sort_by("id")
            labelled, labels = table["id"].to_numpy(), table["label"].to_numpy()
        radius = float("inf")
        if self.neighbours == "embedding" and self.quantile is not None:
            radius = cut_off(
                inputs.vectors(self._source, "example").matrix, self.quantile, self.seed
            )
        return LafaState(embedded, labelled, labels, radius)

    def compute(self, inputs: Inputs) -> Rows:
        """Token scores of the part's queries, computed a block at a time with its neighbours."""
        same, known = _same_texts(inputs), dict[Key, Scored]()

        def score(explained: ExplainedOutputs) -> list[ScoredOutput]:
            similar = self._similar(inputs, explained, same)
            keys = [_keys(explained, row, similar) for row in range(explained.n)]
            new = sorted({key for of_row in keys for key in of_row} - known.keys())
            known.update(self._scored(inputs, new) if new else {})
            return self._smoothed(inputs.opened.embedded, explained, keys, known)

        return self._by_block(inputs, inputs.opened.embedded, score)

    def cost(self, work: Work) -> Cost:
        """The cost of gradients of the queries and of `limit` neighbours for each."""
        count = self.scores.n_gradients * (1 + self.limit)
        cost = gradient_cost(self.model, work, count, self.token_budget)
        pairs = min(DISTANCES, work.n_queries * work.n_examples)
        searched = 48 * pairs if self.neighbours == "embedding" else 0
        return replace(cost, memory_bytes=cost.memory_bytes + searched)

    def _smoothed(
        self,
        embedded: FromEmbeddings,
        explained: ExplainedOutputs,
        keys: Sequence[Sequence[Key]],
        known: Mapping[Key, Scored],
    ) -> list[ScoredOutput]:
        """Token scores of a block of outputs; `keys` name the neighbours of each, in `known`."""
        query_scores = self._scores(embedded, explained)
        scored = []
        for row, own in enumerate(keys):
            # A text without any token left by max_length is no neighbour.
            kept = [known[key] for key in own if len(known[key].ids)]
            ids = np.array(explained.tokens.columns["input_ids"][row])
            smoothed = aggregate(
                self.kernel,
                embedded.table,
                torch.from_numpy(ids).to(embedded.table.device),
                [_tensor(text.ids) for text in kept],
                [_tensor(text.scores) for text in kept],
            )
            smoothed_scores = smoothed.cpu().numpy() * explained.offsets[row].is_text
            scores = query_scores[row] + self.weight * smoothed_scores
            scored.append(ScoredOutput(scores, self.scores.n_gradients * (1 + len(own))))
        return scored

    def _scored(self, inputs: Inputs, keys: Sequence[Key]) -> dict[Key, Scored]:
        """The tokens of neighbours and their scores m, by key."""
        neighbours = self._neighbours(inputs, keys)
        found = {}
        for row, scores in enumerate(self._scores(inputs.opened.embedded, neighbours)):
            is_text = np.array(neighbours.offsets[row].is_text)
            ids = np.array(neighbours.tokens.columns["input_ids"][row])
            found[keys[row]] = Scored(ids[is_text], scores[is_text])
        return found

    def _scores(self, embedded: FromEmbeddings, explained: ExplainedOutputs) -> list[np.ndarray]:
        """The scores m of the tokens of each row, with sum 1 where `normalize` is set."""
        of_rows = squared_scores(embedded, explained, self.scores, self.token_budget)
        if not self.normalize:
            return of_rows
        return [scores / (scores.sum() or 1.0) for scores in of_rows]

    def _similar(
        self, inputs: Inputs, explained: ExplainedOutputs, same: Mapping[int, list[int]]
    ) -> dict[int, list[int]]:
        """Ids of the neighbours of every query of the block, by query id.

        Examples of the same text as the query, which `same` holds, and with `same_class` those of
        another label than its predicted class, are left out.
        """
        state: LafaState = inputs.opened
        query_ids = sorted(set(explained.query_ids.tolist()))
        classes = dict(
            zip(explained.query_ids.tolist(), explained.targets.choice.tolist(), strict=True)
        )

        def is_left_out(query: int, examples: np.ndarray) -> np.ndarray:
            left_out = np.isin(examples, same[query])
            if self.same_class:
                rows, at = answered_rows_of(examples, state.labelled)
                is_other = np.ones(len(examples), dtype=bool)
                is_other[rows] = state.labels[at] != classes[query]
                left_out |= is_other
            return np.asarray(left_out, dtype=bool)

        if self.neighbours == "embedding":
            ids_of = nearest(inputs, self._source, query_ids, self.limit, state.radius, is_left_out)
            return {query: ids_of.get(query, []) for query in query_ids}
        table = inputs.table(self._source, "query")
        pick = of_spectrum if self.neighbours == "spectrum" else of_values
        chosen = {}
        for query in query_ids:
            ids = pick(table, query, self.limit)
            left_out = is_left_out(query, np.array(ids, np.int64))
            chosen[query] = [i for i, gone in zip(ids, left_out, strict=True) if not gone]
        return chosen

    def _neighbours(self, inputs: Inputs, keys: Sequence[Key]) -> ExplainedOutputs:
        """The neighbours as rows, one for each key."""
        ids = np.array([example for example, _, _ in keys], np.int64)
        text = _rows_of(inputs, ids)
        embedded = inputs.opened.embedded
        tokens = embedded.measurement.tokenise(text, with_offsets=True)
        distribution = np.array([w for _, w, _ in keys], np.int64)
        choice = np.array([c for _, _, c in keys], np.int64)
        if embedded.explains_positions:
            # The position of an answer is that in the neighbour itself.
            logits = embedded.all_choices(tokens, distribution, self.token_budget)
            choice = np.array([int(row.argmax()) for row in logits], np.int64)
        offsets = token_offsets(embedded.measurement, text, tokens)
        targets = Targets(distribution, choice)
        names: list[str | None] = [None] * len(keys)
        return explained_outputs(
            embedded, ids, choice, names, tokens, offsets, targets, self.token_budget
        )


def _keys(explained: ExplainedOutputs, row: int, similar: dict[int, list[int]]) -> list[Key]:
    """The key of each neighbour of an explained output."""
    targets = explained.targets
    distribution, choice = int(targets.distribution[row]), int(targets.choice[row])
    return [(example, distribution, choice) for example in similar[int(explained.query_ids[row])]]


def _same_texts(inputs: Inputs) -> dict[int, list[int]]:
    """Ids of the examples of the same text as a query, for every query of the part, by its id."""
    text = inputs.table("text", "query")
    examples_of: dict[tuple[str, str | None], list[int]] = {}
    for shard in inputs.by_shard("text", "example"):
        equal = shard.filter(pc.is_in(shard["text"], text["text"].combine_chunks()))
        for row in equal.select(["id", "text", "text_b"]).to_pylist():
            examples_of.setdefault(_texts_of(row), []).append(row["id"])
    return {row["id"]: examples_of.get(_texts_of(row), []) for row in text.to_pylist()}


def _rows_of(inputs: Inputs, ids: np.ndarray) -> pa.Table:
    """The text of the examples `ids`, some of them several times, in that order."""
    wanted = pa.array(np.unique(ids))
    shards = inputs.by_shard("text", "example")
    text = pa.concat_tables([shard.filter(pc.is_in(shard["id"], wanted)) for shard in shards])
    return text.take(pc.index_in(pa.array(ids), text["id"].combine_chunks()))


def _texts_of(row: Mapping[str, Any]) -> tuple[str, str | None]:
    return str(row["text"]), row["text_b"]


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


STAGE = Lafa
