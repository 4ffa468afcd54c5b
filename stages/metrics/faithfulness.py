"""What happens to a prediction without the tokens that are said to matter, or with them alone.

With p the probability of the explained choice, T the top tokens by score, max(1, floor(top L)) of
them in a row of L tokens, special ones counted:

| column | formula | better |
|---|---|---|
| log_odds | log p(T's embeddings replaced by the baseline) - log p(all) | lower |
| comprehensiveness | p(all) - p(without T) | higher |
| sufficiency | p(all) - p(T alone) | lower |
| aopc | the mean comprehensiveness over the shares of `curve` | higher |
| delta_percent | the convergence delta as a share of what was to be explained, median | lower |
| word_distance | mean distance of a path's points to the nearest word | lower |
| correlation | Pearson correlation with the scores of `reference` | higher |

For a regression p is the predicted number, differences are absolute and relative to it (the rise of
the error, of arXiv:2204.10893), and there are no log-odds. An answer has a place in the text, so
its tokens are replaced, never deleted.

Source: DeYoung et al. 2020, arXiv:1911.03429 (comprehensiveness, sufficiency), Shrikumar et al.
2017, arXiv:1704.02685 (log-odds), Samek et al. 2017, arXiv:1509.06321 (the area), in the form of
methods.md 3.5. Other than in the code of arXiv:2108.13654 special tokens and templates are always
kept, as a classifier may read the state of the first one, and T has at least one token.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pyarrow as pa

from stages.metrics.explanations import Methods
from stages.metrics.metric import Result
from stages.model.spec import ModelSpec
from stages.saliency.ablation import Kind, Variant, answers, unchanged
from stages.saliency.from_embeddings import BaselineName, FromEmbeddings
from stages.saliency.outputs import (
    ExplainedOutputs,
    load_embedded,
    queries,
    tables_read,
    with_probe,
)
from stages.stage import ConfigError, DataError, Inputs, Steps

Key = tuple[int, int]
KINDS: tuple[Kind, Kind] = ("probability", "log")
TOP, TOP_OF_ANSWERS = 0.2, 0.5


@dataclass(frozen=True)
class Faithfulness(Methods):
    """The measures above for each method, means over explained outputs with intervals."""

    methods: tuple[str, ...] = ("ig",)
    """Instances that score tokens."""
    top: float | None = None
    """Share of the tokens that are taken away or kept; null takes 0.2, and 0.5 for answers."""
    by: Literal["signed", "absolute"] = "signed"
    """Whether a large negative score is at the end of the order, or at its beginning."""
    removal: Literal["delete", "replace"] | None = None
    """How tokens go; null deletes them, but for answers."""
    baseline: BaselineName = "mask"
    """What replaces them."""
    curve: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
    """Shares of the tokens that `aopc` is the mean over."""
    queries: tuple[int, ...] | None = None
    """Ids of the queries that count, such as those that are answered correctly; null takes all."""
    reference: str | None = None
    """Instance whose scores are compared with, such as one of `occlusion`."""
    model: ModelSpec | None = None
    """The model; by itself that of the methods."""
    continuation: str = "continuation"
    """Instance that chose the tokens to be explained, with `head: completion`."""
    token_budget: int = 2048
    """Padded tokens per batch."""

    tasks: ClassVar[tuple[str, ...]] = (
        "classification",
        "regression",
        "completion",
        "question_answering",
    )

    def check(self) -> None:
        """Refuses fields that cannot be used.

        Raises:
            ConfigError: a share is none, or see `Methods.check`.
        """
        super().check()
        top = TOP if self.top is None else self.top
        if not all(0 < share <= 1 for share in (top, *self.curve)) or not self.curve:
            raise ConfigError(
                f"top: found {self.top} and curve: {list(self.curve)}, expected shares of the "
                "tokens in (0, 1]. Correct them."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The methods' tables, the text, and what the model needs."""
        more = (self.reference,) if self.reference else ()
        tables = (*self.methods, *(f"{name}.explained" for name in self.methods), *more)
        if self.model is None:
            return (*tables, "text", "label")
        needs = with_probe(self.model, tables_read(self.model, self.continuation))
        return (*tables, *needs, "label")

    def with_models(self, models: Callable[[], Mapping[str, Any]]) -> Self:
        """The metric with the model that its methods explain.

        Raises:
            ConfigError: they explain several, or none.
        """
        of_run = models()
        of_methods = {name: of_run[name] for name in self.methods if name in of_run}
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
            DataError: a method scores no token of what is asked.
        """
        if self.model is None:
            raise ConfigError("model: found none, expected that of the methods. Name it.")
        embedded = load_embedded(self.model, inputs)
        scores = {name: _scores(inputs.table(name), name) for name in self.methods}
        units = queries(embedded, inputs, self.token_budget, self.continuation, self._asked(scores))
        beside = _scores(inputs.table(self.reference), self.reference) if self.reference else {}
        whole = [unchanged(unit) for unit in range(units.n)]
        p, log_p = (self._answers(embedded, units, whole, kind) for kind in KINDS)
        stepped(0, len(self.methods))
        rows, details = [], []
        for nth, name in enumerate(self.methods):
            own = self._of_method(embedded, units, scores[name], p, log_p)
            facts = _facts(inputs.table(f"{name}.explained"))
            for one in own:
                key = (one["query_id"], one["output"])
                one |= {"method": name, **facts[key]}
                if self.reference:
                    one["correlation"] = _correlation(scores[name][key], beside.get(key))
            details += own
            rows.append(self._row(name, own))
            stepped(nth + 1, len(self.methods))
        return Result(rows, {"n_outputs": units.n}, details)

    def _asked(self, scores: dict[str, dict[Key, dict[int, float]]]) -> set[int]:
        """Queries that every method has scored, and that count."""
        asked = set.intersection(*({query for query, _ in own} for own in scores.values()))
        asked &= set(self.queries) if self.queries is not None else asked
        if not asked:
            raise DataError(
                "methods: found no query that all of them score, expected at least one. Correct "
                "methods or queries."
            )
        return asked

    def _answers(
        self,
        embedded: FromEmbeddings,
        units: ExplainedOutputs,
        variants: list[Variant],
        kind: Kind = "probability",
    ) -> np.ndarray:
        return answers(embedded, units, variants, self.baseline, self.token_budget, kind)

    def _of_method(
        self,
        embedded: FromEmbeddings,
        units: ExplainedOutputs,
        scores: dict[Key, dict[int, float]],
        p: np.ndarray,
        log_p: np.ndarray,
    ) -> list[dict[str, Any]]:
        """The measures of every output."""
        deletes = self.removal or ("replace" if embedded.answers_by_place else "delete")
        if deletes == "delete" and embedded.answers_by_place:
            raise ConfigError(
                "removal: found delete for answers, whose place in the text would change, expected "
                "replace. Leave removal out."
            )
        none = np.zeros(0, np.int64)
        top = self.top or (TOP_OF_ANSWERS if embedded.answers_by_place else TOP)
        shares = (top, *self.curve)
        without: list[Variant] = []
        alone, replaced = [], []
        for unit in range(units.n):
            key = (int(units.query_ids[unit]), int(units.outputs[unit]))
            order = self._order(scores[key])
            for share in shares:
                gone = order[: max(1, int(share * int(units.tokens.lengths[unit])))]
                without.append(_variant(unit, gone, deletes))
            first = order[: max(1, int(top * int(units.tokens.lengths[unit])))]
            rest = np.setdiff1d(np.array(sorted(scores[key]), np.int64), first)
            alone.append(_variant(unit, rest, deletes))
            replaced.append(Variant(unit, none, first))
        gone_p = self._answers(embedded, units, without).reshape(units.n, len(shares))
        falls = p[:, None] - gone_p
        fall_alone = p - self._answers(embedded, units, alone)
        odds: list[float | None] = [None] * units.n
        if embedded.is_regression:
            falls, fall_alone = (
                np.abs(falls) / np.abs(p)[:, None],
                np.abs(fall_alone) / np.abs(p),
            )
        else:
            odds = (self._answers(embedded, units, replaced, "log") - log_p).tolist()
        return [
            {
                "query_id": int(units.query_ids[unit]),
                "output": int(units.outputs[unit]),
                "log_odds": odds[unit],
                "comprehensiveness": float(falls[unit, 0]),
                "sufficiency": float(fall_alone[unit]),
                "aopc": float(falls[unit, 1:].mean()),
                "falls": falls[unit, 1:].tolist(),
            }
            for unit in range(units.n)
        ]

    def _order(self, scores: dict[int, float]) -> np.ndarray:
        """Places of the scored tokens, those that matter most first, equal ones by place."""
        key = abs if self.by == "absolute" else float
        return np.array(sorted(scores, key=lambda at: (-key(scores[at]), at)), np.int64)

    def _row(self, name: str, own: list[dict[str, Any]]) -> dict[str, Any]:
        row: dict[str, Any] = {"method": name, "outputs": len(own)}
        measures = ["log_odds", "comprehensiveness", "sufficiency", "aopc"]
        for measure in [*measures, *(["correlation"] if self.reference else [])]:
            values = [one[measure] for one in own if one[measure] is not None]
            row |= self.mean(values).named(measure)
        deltas = [one["delta_percent"] for one in own if one["delta_percent"] is not None]
        far = [one["word_distance"] for one in own if one["word_distance"] is not None]
        row["delta_percent"] = float(np.median(deltas)) if deltas else None
        row["word_distance"] = float(np.mean(far)) if far else None
        row["gradients"] = float(np.mean([one["n_gradients"] for one in own]))
        return row


def _variant(unit: int, gone: np.ndarray, how: str) -> Variant:
    none = np.zeros(0, np.int64)
    return Variant(unit, gone, none) if how == "delete" else Variant(unit, none, gone)


def _scores(table: pa.Table, name: str) -> dict[Key, dict[int, float]]:
    """By query and output, the score of every token by its place."""
    if "token_index" not in table.column_names or "score" not in table.column_names:
        raise DataError(
            f"{name}: found a table with the columns {', '.join(table.column_names)}, expected the "
            "scores of tokens. Name an instance such as ig or lafa."
        )
    found: dict[Key, dict[int, float]] = {}
    columns = (table[c].to_pylist() for c in ("query_id", "output", "token_index", "score"))
    for query, output, at, score in zip(*columns, strict=True):
        found.setdefault((query, output), {})[at] = score
    return found


def _facts(table: pa.Table) -> dict[Key, dict[str, Any]]:
    found = {}
    for row in table.to_pylist():
        percent = None
        if row["delta"] is not None and row["value"] != row["baseline_value"]:
            percent = 100 * abs(row["delta"] / (row["value"] - row["baseline_value"]))
        facts = {"delta_percent": percent, "word_distance": row["word_distance"]}
        found[row["query_id"], row["output"]] = {**facts, "n_gradients": row["n_gradients"]}
    return found


def _correlation(one: dict[int, float], other: dict[int, float] | None) -> float | None:
    """None where one of them is constant, or has other tokens."""
    if other is None or one.keys() != other.keys() or len(one) < 3:
        return None
    a, b = (np.array([scores[at] for at in sorted(one)]) for scores in (one, other))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


METRIC = Faithfulness
