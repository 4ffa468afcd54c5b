"""The change of a prediction without a query's top-scored tokens, or with them alone.

With p the probability of the explained choice, T the top tokens by score, max(1, floor(top L)) of
them in a row of L tokens, special ones counted:

| column | formula | better |
|---|---|---|
| log_odds | log p(T's embeddings replaced by the baseline) - log p(all) | lower |
| comprehensiveness | p(all) - p(without T) | higher |
| sufficiency | p(all) - p(T alone) | lower |
| aopc | the mean comprehensiveness over the shares of `curve` | higher |
| delta_percent | abs(delta) in percent of abs(F(query) - F(baseline)), median | lower |
| word_distance | mean distance of a path's points to the nearest word | lower |
| correlation | Pearson correlation with the scores of `reference` | higher |
| soft_nc | D(the more important, the less is kept) / D(nothing is kept) | higher |
| soft_ns | 1 - D(the more important, the more is kept) / D(nothing is kept) | higher |

The soft measures read the whole scores, not T alone: each token of the text keeps a share of the
elements of its embedding, drawn at random, the others become 0; on average a text keeps `retention`
of its elements, for every method (`retention` in `stages/saliency/soft_ablation.py`). D is the mean
over outputs and draws of max(0, p(all) - p(what is kept)).

For a regression p is the predicted number, differences are absolute and relative to it (the rise of
the error, of arXiv:2204.10893), and there are no log-odds. An answer is a position in the text, so
tokens are replaced, never deleted.

Source: DeYoung et al. 2020, arXiv:1911.03429 (comprehensiveness, sufficiency), Shrikumar et al.
2017, arXiv:1704.02685 (log-odds), Samek et al. 2017, arXiv:1509.06321 (the area), in the form of
the code of arXiv:2108.13654. Other than there special tokens and templates are always kept, as a
classifier may read the hidden state of the first token, and T has at least one token.

Soft measures: Zhao and Aletras 2023, arXiv:2305.10496, at one expected retention for all methods as
in the pi-Soft-NC and pi-Soft-NS of Huang and Chan 2026, arXiv:2601.03089. Of the latter only the
abstract could be read: the map from scores to shares is ours. So is the ratio of means; the former
takes the mean of ratios, in which texts rule whose prediction hardly needs their words.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from stages.metrics.explanations import Methods
from stages.metrics.metric import Instance, Result
from stages.model.spec import ModelSpec
from stages.saliency.ablation import Kind, Variant, unchanged, variant_outputs
from stages.saliency.from_embeddings import BaselineName, FromEmbeddings
from stages.saliency.outputs import (
    ExplainedOutputs,
    load_embedded,
    read_outputs,
    tables_read,
    with_probe,
)
from stages.saliency.soft_ablation import retention, softly_ablated
from stages.stage import ConfigError, DataError, Inputs, Steps

Key = tuple[int, int]
"""Query id and number of the explained output."""
KINDS: tuple[Kind, Kind] = ("probability", "log")
TOP, TOP_OF_ANSWERS = 0.2, 0.5
"""Default shares of a row's tokens that are removed, and for answers of questions."""


@dataclass(frozen=True)
class Faithfulness(Methods):
    """The measures above for each method, means over explained outputs with intervals."""

    methods: tuple[str, ...] = ("ig",)
    """Instances that score tokens."""
    top: float | None = None
    """Share of the tokens that are removed or kept alone; null takes 0.2, and 0.5 for answers."""
    by: Literal["signed", "absolute"] = "signed"
    """Whether the top tokens have the largest scores (`signed`) or the largest absolute ones."""
    removal: Literal["delete", "replace"] | None = None
    """How tokens are removed; null replaces them for answers, and deletes them otherwise."""
    baseline: BaselineName = "mask"
    """Embedding that replaces them: of the mask or padding token, or the zero vector."""
    curve: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
    """Shares of the tokens that `aopc` is the mean over."""
    queries: tuple[int, ...] | None = None
    """Ids of the queries to measure, such as those predicted correctly; null takes all."""
    reference: str | None = None
    """Instance whose token scores the methods' are correlated with, such as one of `occlusion`."""
    model: ModelSpec | None = None
    """The model; by default that of the methods."""
    continuation: str = "continuation"
    """Instance of `continuation` that chose the explained tokens, for `head: completion`."""
    draws: int = 5
    """Random draws for each soft measure, each a forward pass; 0 leaves these measures out."""
    retention: float = 0.5
    """Mean share of the elements of a text's embeddings that soft measures keep."""
    token_budget: int = 2048
    """Padded tokens per batch."""

    tasks: ClassVar[tuple[str, ...]] = (
        "classification",
        "regression",
        "completion",
        "question_answering",
    )

    def check(self) -> None:
        """Refuses fields out of range.

        Raises:
            ConfigError: `top`, `curve` or `retention` is no share, or see `Methods.check`.
        """
        super().check()
        top = TOP if self.top is None else self.top
        if not all(0 < share <= 1 for share in (top, *self.curve)) or not self.curve:
            raise ConfigError(
                f"top: found {self.top} and curve: {list(self.curve)}, expected shares of the "
                "tokens in (0, 1]. Correct them."
            )
        if self.draws < 0 or not 0 < self.retention < 1:
            raise ConfigError(
                f"draws: found {self.draws} and retention: {self.retention}, expected 0 or more "
                "draws and a share between 0 and 1. Correct them."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The methods' tables, the text, and the tables that the model's head needs."""
        more = (self.reference,) if self.reference else ()
        tables = (*self.methods, *(f"{name}.explained" for name in self.methods), *more)
        if self.model is None:
            return (*tables, "text", "label")
        needs = with_probe(self.model, tables_read(self.model, self.continuation))
        return (*tables, *needs, "label")

    def with_instances(self, instances: Callable[[], Mapping[str, Instance]]) -> "Faithfulness":
        """The metric with the model that its methods explain.

        Raises:
            ConfigError: they explain several, or none.
        """
        of_run = instances()
        of_methods = {name: of_run[name].model for name in self.methods if name in of_run}
        different = list(dict.fromkeys(of_methods.values()))
        if len(different) > 1 or different == [None]:
            raise ConfigError(
                f"methods: found that {', '.join(of_methods)} explain {len(different)} models, "
                "expected one for all. Evaluate those of one model at a time."
            )
        return replace(self, model=different[0]) if different else self

    def compute(self, inputs: Inputs, stepped: Steps) -> Result:
        """One row for each method; details are the numbers of single outputs.

        Raises:
            DataError: there is no query that all methods score.
        """
        if self.model is None:
            raise ConfigError("model: found none, expected that of the methods. Name it.")
        embedded = load_embedded(self.model, inputs)
        scores = {name: _scores(inputs.table(name), name) for name in self.methods}
        explained = read_outputs(
            embedded, inputs, self.token_budget, self.continuation, self._scored_by_all(scores)
        )
        reference_scores = (
            _scores(inputs.table(self.reference), self.reference) if self.reference else {}
        )
        whole = [unchanged(row) for row in range(explained.n)]
        p, log_p = (self._outputs_of(embedded, explained, whole, kind) for kind in KINDS)
        none_kept = [1.0 - np.array(offsets.is_text) for offsets in explained.offsets]
        whole_fall = float(
            self._falls(embedded, explained, none_kept, p, min(1, self.draws)).mean()
        )
        stepped(0, len(self.methods))
        rows, details = [], []
        for nth, name in enumerate(self.methods):
            measures = self._measures(embedded, explained, scores[name], p, log_p)
            soft = self._soft_measures(embedded, explained, scores[name], p, whole_fall)
            for of_output, of_soft in zip(measures, soft, strict=True):
                of_output |= of_soft
            facts = _facts(inputs.table(f"{name}.explained"))
            for of_output in measures:
                key = (of_output["query_id"], of_output["output"])
                of_output |= {"method": name, **facts[key]}
                if self.reference:
                    other = reference_scores.get(key)
                    of_output["correlation"] = _correlation(scores[name][key], other)
            details += measures
            rows.append(self._row(name, measures))
            stepped(nth + 1, len(self.methods))
        return Result(rows, {"n_outputs": explained.n}, details)

    def _scored_by_all(self, scores: dict[str, dict[Key, dict[int, float]]]) -> set[int]:
        """Ids of the queries that every method has scored, and that `queries` names."""
        ids = set.intersection(*({query for query, _ in of_one} for of_one in scores.values()))
        ids &= set(self.queries) if self.queries is not None else ids
        if not ids:
            raise DataError(
                "methods: found no query that all of them score, expected at least one. Correct "
                "methods or queries."
            )
        return ids

    def _outputs_of(
        self,
        embedded: FromEmbeddings,
        explained: ExplainedOutputs,
        variants: list[Variant],
        kind: Kind = "probability",
    ) -> np.ndarray:
        return variant_outputs(
            embedded, explained, variants, self.baseline, self.token_budget, kind
        )

    def _measures(
        self,
        embedded: FromEmbeddings,
        explained: ExplainedOutputs,
        scores: dict[Key, dict[int, float]],
        p: np.ndarray,
        log_p: np.ndarray,
    ) -> list[dict[str, Any]]:
        """The measures of every explained output, in order, for one method's token scores.

        `p` and `log_p` are the outputs' probabilities, and their logarithms, of the whole rows.
        """
        deletes = self.removal or ("replace" if embedded.explains_positions else "delete")
        if deletes == "delete" and embedded.explains_positions:
            raise ConfigError(
                "removal: found delete for answers, whose place in the text would change, expected "
                "replace. Leave removal out."
            )
        none = np.zeros(0, np.int64)
        top = self.top or (TOP_OF_ANSWERS if embedded.explains_positions else TOP)
        shares = (top, *self.curve)
        without: list[Variant] = []
        alone, replaced = [], []
        for row in range(explained.n):
            key = (int(explained.query_ids[row]), int(explained.outputs[row]))
            order = self._order(scores[key])
            for share in shares:
                gone = order[: max(1, int(share * int(explained.tokens.lengths[row])))]
                without.append(_variant(row, gone, deletes))
            first = order[: max(1, int(top * int(explained.tokens.lengths[row])))]
            rest = np.setdiff1d(np.array(sorted(scores[key]), np.int64), first)
            alone.append(_variant(row, rest, deletes))
            replaced.append(Variant(row, none, first))
        gone_p = self._outputs_of(embedded, explained, without).reshape(explained.n, len(shares))
        falls = p[:, None] - gone_p
        fall_alone = p - self._outputs_of(embedded, explained, alone)
        odds: list[float | None] = [None] * explained.n
        if embedded.is_regression:
            falls, fall_alone = (
                np.abs(falls) / np.abs(p)[:, None],
                np.abs(fall_alone) / np.abs(p),
            )
        else:
            odds = (self._outputs_of(embedded, explained, replaced, "log") - log_p).tolist()
        return [
            {
                "query_id": int(explained.query_ids[row]),
                "output": int(explained.outputs[row]),
                "log_odds": odds[row],
                "comprehensiveness": float(falls[row, 0]),
                "sufficiency": float(fall_alone[row]),
                "aopc": float(falls[row, 1:].mean()),
                "falls": falls[row, 1:].tolist(),
            }
            for row in range(explained.n)
        ]

    def _soft_measures(
        self,
        embedded: FromEmbeddings,
        explained: ExplainedOutputs,
        scores: dict[Key, dict[int, float]],
        p: np.ndarray,
        whole_fall: float,
    ) -> list[dict[str, float | None]]:
        """The soft measures of every explained output; `whole_fall` is D(nothing is kept)."""
        if not self.draws or not whole_fall:
            return [{"soft_nc": None, "soft_ns": None}] * explained.n
        falls = []
        for sign in (-1, 1):
            kept = [np.ones(int(n)) for n in explained.tokens.lengths]
            for row, shares in enumerate(kept):
                own = scores[int(explained.query_ids[row]), int(explained.outputs[row])]
                values = np.array(list(own.values()))
                values = np.abs(values) if self.by == "absolute" else values
                shares[list(own)] = retention(sign * values, self.retention)
            falls.append(self._falls(embedded, explained, kept, p, self.draws) / whole_fall)
        return [
            {"soft_nc": float(without), "soft_ns": 1 - float(with_them)}
            for without, with_them in zip(*falls, strict=True)
        ]

    def _falls(
        self,
        embedded: FromEmbeddings,
        explained: ExplainedOutputs,
        kept: list[np.ndarray],
        p: np.ndarray,
        n_draws: int,
    ) -> np.ndarray:
        """How far each output falls where its tokens keep these shares, the mean over draws."""
        if not n_draws:
            return np.zeros(explained.n)
        outputs = softly_ablated(embedded, explained, kept, n_draws, self.seed, self.token_budget)
        falls: np.ndarray = p[:, None] - outputs
        falls = np.abs(falls) if embedded.is_regression else falls.clip(0)
        means: np.ndarray = falls.mean(1)
        return means

    def _order(self, scores: dict[int, float]) -> np.ndarray:
        """Positions of the scored tokens, the top one first, equal ones by position."""
        key = abs if self.by == "absolute" else float
        return np.array(sorted(scores, key=lambda token: (-key(scores[token]), token)), np.int64)

    def _row(self, name: str, outputs: list[dict[str, Any]]) -> dict[str, Any]:
        """The result row of one method: means and medians over its explained outputs."""
        row: dict[str, Any] = {"method": name, "outputs": len(outputs)}
        measures = ["log_odds", "comprehensiveness", "sufficiency", "aopc", "soft_nc", "soft_ns"]
        for measure in [*measures, *(["correlation"] if self.reference else [])]:
            values = [of[measure] for of in outputs if of[measure] is not None]
            row |= self.mean(values).named(measure)
        deltas = [of["delta_percent"] for of in outputs if of["delta_percent"] is not None]
        distances = [of["word_distance"] for of in outputs if of["word_distance"] is not None]
        row["delta_percent"] = float(np.median(deltas)) if deltas else None
        row["word_distance"] = float(np.mean(distances)) if distances else None
        row["gradients"] = float(np.mean([of["n_gradients"] for of in outputs]))
        return row


def _variant(row: int, gone: np.ndarray, how: str) -> Variant:
    none = np.zeros(0, np.int64)
    return Variant(row, gone, none) if how == "delete" else Variant(row, none, gone)


def _scores(table: pa.Table, name: str) -> dict[Key, dict[int, float]]:
    """The score of every token by its position, for each query and output.

    Raises:
        DataError: the table holds no token scores.
    """
    if "token_index" not in table.column_names or "score" not in table.column_names:
        raise DataError(
            f"{name}: found a table with the columns {', '.join(table.column_names)}, expected the "
            "scores of tokens. Name an instance such as ig or lafa."
        )
    scores: dict[Key, dict[int, float]] = {}
    columns = (table[c].to_pylist() for c in ("query_id", "output", "token_index", "score"))
    for query, output, token, score in zip(*columns, strict=True):
        scores.setdefault((query, output), {})[token] = score
    return scores


def _facts(table: pa.Table) -> dict[Key, dict[str, Any]]:
    """Convergence delta in percent, word distance and gradients of each output of `explained`."""
    facts_of = {}
    for row in table.to_pylist():
        percent = None
        if row["delta"] is not None and row["value"] != row["baseline_value"]:
            percent = 100 * abs(row["delta"] / (row["value"] - row["baseline_value"]))
        facts = {"delta_percent": percent, "word_distance": row["word_distance"]}
        facts_of[row["query_id"], row["output"]] = {**facts, "n_gradients": row["n_gradients"]}
    return facts_of


def _correlation(one: dict[int, float], other: dict[int, float] | None) -> float | None:
    """The Pearson correlation of two methods' token scores of one output.

    None where one of them is constant, they are of different tokens, or of fewer than three.
    """
    if other is None or one.keys() != other.keys() or len(one) < 3:
        return None
    a, b = (np.array([scores[token] for token in sorted(one)]) for scores in (one, other))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


METRIC = Faithfulness
