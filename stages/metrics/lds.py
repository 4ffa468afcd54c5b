"""The linear datamodeling score: do a method's sums predict what really retrained models say?

A stage `retrain` with `subsets: random` trained the model on m random subsets S_1 ... S_m of the
examples, each of the same size. For a query z, with f(z; S) its outcome after training on S and
tau(z)_i the method's score of example i,

    LDS(tau, z) = Spearman over j of f(z; S_j) and sum over i in S_j of tau(z)_i,

and the score of the method is the mean over the queries. 1 is best, 0 says nothing. A query whose
sums, or outcomes, are equal for all subsets counts 0. Source: Park et al. 2023, arXiv:2303.14186,
definition 2.4, after the datamodels of Ilyas et al. 2022, arXiv:2202.00622.

**Outcome.** The log-odds log(p / (1 - p)) of a class, the measure of the source; its ranks are
those of the class's cross-entropy, less. The class is the one that the method speaks for: a query's
label, or the class that `predictions` predicts for it, which also stands for a missing label.

**Likeness.** `similarity`, `bm25` and the like know of no class: an example that is much alike
lowers a prediction where it has another label. Such a method has a second row, `signed`, where the
score of an example of another class counts with the factor -1 / (C - 1). [ours]

**Ceiling.** What is left of a perfect method: a training depends on the order in which it visits
its rows, and that is noise to all methods. Where subsets were trained on several times (`retrain:
{repeats: 2}`), the outcome is the mean of these, and the reliability of that mean over subsets is
2 r / (1 + r), r being the mean over queries of Spearman's correlation of the means of two halves
(Spearman and Brown, 1910). No method can be expected to come above its root. [derived]

**Beside the methods.** With `kernel`, two rows of the kernel regression on these feature tables:
`kernel_leave_one_out`, whose scores are its leave-one-out changes of single queries in closed form,
f(t) - f_-i(t) = (K[t,:] M)_i A_i / M_ii with M = (K + damping I)^-1 and A = M Y; and
`kernel_refit`, no sum at all but the regression fitted on the subset, which is what FreeShap takes
for the model. Memory 24 n^2 bytes, cost a solve of each subset. [ours]
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64

from stages.metrics.bootstrap import Estimate, draws, estimated
from stages.metrics.metric import Instance, Metric, Result
from stages.metrics.outcomes import Outcomes, log_odds, of_queries, read_outcomes
from stages.metrics.ranks import Coded, coded, rank_correlations
from stages.metrics.scored import PAIRS, VALUES, Scores, scores_of
from stages.reading.logits import read_logits
from stages.reading.supervision import count_classes, read_labels
from stages.stage import ConfigError, DataError, Inputs, Steps
from stages.surrogate.kernel import factor, solve
from stages.surrogate.labelled_kernel import Ridge, check_ridge, read_labelled_kernel

SPLITS = 20
"""Ways to halve the repeats."""
Speaks = Literal["label", "prediction", "likeness"]
SCORED = (*PAIRS, *VALUES[:-1])
"""Tables whose writers are methods; a label score is none of a query's output."""


@dataclass(frozen=True)
class Lds(Metric):
    """The linear datamodeling score of each method, with a 95 % interval.

    The interval is over subsets and queries, both drawn again. Cost beside reading: subsets times
    rows of scores, and resamples times subsets times queries, for each method.
    """

    methods: tuple[str, ...] = ()
    """Instances that score pairs or examples; by default all of the run."""
    truth: str = "retrain"
    """Instance of `retrain` with `subsets: random`."""
    predictions: str = "prediction"
    """Instance whose predicted classes methods of the prediction explain; for `kernel_representer`
    an instance of `kernel_regression`."""
    explained: Mapping[str, Speaks] = field(default_factory=dict)
    """The class that a method's scores are about, for methods that are to be judged by another than
    they declare: `label`, `prediction` or `likeness`."""
    kernel: tuple[str, ...] = ()
    """Feature tables of a kernel regression that is judged beside the methods; none by default."""
    normalize: bool = True
    """Scale every feature vector of `kernel` to unit length."""
    ridge: Ridge = "auto"
    """Ridge of that regression, relative to the kernel's mean diagonal."""
    queries: tuple[int, ...] | None = None
    """Ids of the queries that are judged; by default all with an outcome."""
    seed: int = 0
    """Seed of the bootstrap and of the halves of repeats."""
    resamples: int = 1000
    """Bootstrap draws for each interval."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Classification, as of `retrain`."""
        return ("classification",)

    def __post_init__(self) -> None:
        """Refuses fields out of range.

        Raises:
            ConfigError: a method is named twice, or a number is out of range.
        """
        check_ridge(self.ridge)
        if len(set(self.methods)) < len(self.methods):
            raise ConfigError(
                f"methods: found {list(self.methods)}, expected each once. Name each once, or "
                "none for all of the run."
            )
        if self.seed < 0 or self.resamples < 1 or self.queries == ():
            raise ConfigError(
                f"lds: found seed: {self.seed}, resamples: {self.resamples}, queries: "
                f"{self.queries}, expected at least 0, at least 1 and at least one. Correct them."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """Scores of the methods, outcomes, subsets, predictions, labels, features of `kernel`."""
        truth = (f"{self.truth}.outcome", f"{self.truth}.subset")
        return (*self.methods, *truth, self.predictions, *self.kernel, "label")

    def with_instances(self, instances: Callable[[], Mapping[str, Instance]]) -> "Lds":
        """With the methods of the run, where none is named, and the class that each speaks for.

        Raises:
            ConfigError: no instance of the run is a method.
        """
        of_run = instances()
        methods = self.methods or tuple(
            name for name, one in of_run.items() if one.tables[0] in SCORED and name != self.truth
        )
        if not methods:
            raise ConfigError(
                "methods: found no instance that scores pairs or examples, expected at least one. "
                "Add some, such as tracin: {top_k: null}, under `stages:` and run again."
            )
        declared = {
            name: one.speaks_for for name, one in of_run.items() if one.speaks_for is not None
        }
        explained = {name: self.explained.get(name, declared.get(name)) for name in methods}
        known: Any = {name: speaks or "label" for name, speaks in explained.items()}
        return replace(self, methods=methods, explained=known)

    def compute(self, inputs: Inputs, stepped: Steps) -> Result:
        """One row for each set of scores, best first; details are the scores of single queries.

        Columns: method, semivalue, utility, class (that it speaks for), signed, kept (the share of
        all pairs that the table holds; a pair without a row counts 0), queries, lds and its ends,
        and constant (queries for which the method says the same of all subsets).

        Raises:
            DataError: there are too few subsets, or they are of several sizes.
        """
        outcomes = read_outcomes(inputs, self.truth)
        if self.queries is not None:
            outcomes = of_queries(outcomes, self.queries)
        judge = _Judge(self, inputs, outcomes)
        stepped(0, len(self.methods) + bool(self.kernel))
        rows: list[dict[str, Any]] = []
        details: list[dict[str, Any]] = []

        def judged(named: dict[str, Any], speaks: Speaks, sums: np.ndarray) -> None:
            row, of_queries = judge(speaks, sums)
            rows.append({**named, **row})
            details.extend({**named, **one} for one in of_queries)

        for nth, method in enumerate(self.methods):
            speaks = self.explained.get(method, "label")
            for scores in scores_of(inputs, method, method):
                kept = judge.kept(scores)
                for signed in (False, True) if speaks == "likeness" else (False,):
                    named = {**scores.named(), "class": speaks, "signed": signed, "kept": kept}
                    judged(named, speaks, judge.sums(scores, signed))
            stepped(nth + 1, len(self.methods) + bool(self.kernel))
        if self.kernel:
            for name, sums in judge.of_kernel().items():
                named = {"method": name, "semivalue": None, "utility": None}
                judged({**named, "class": "label", "signed": False, "kept": 1.0}, "label", sums)
            stepped(len(self.methods) + 1, len(self.methods) + 1)
        rows.sort(key=lambda row: -row["lds"])
        return Result(rows, judge.facts(), details)


class _Judge:
    """The outcomes, ready to be compared with the sums of one method after the other."""

    def __init__(self, metric: Lds, inputs: Inputs, outcomes: Outcomes) -> None:
        self._metric, self._inputs, self._outcomes = metric, inputs, outcomes
        self.example_ids = np.unique(np.concatenate(outcomes.members))
        n_classes = count_classes(inputs)
        ids, labels = read_labels(inputs, "example", n_classes)
        self._label_of = dict(zip(ids.tolist(), labels.tolist(), strict=True))
        predicted_ids, logits = read_logits(inputs, metric.predictions, "query")
        predicted = dict(zip(predicted_ids.tolist(), logits.argmax(1).tolist(), strict=True))
        known = dict(
            zip(*(a.tolist() for a in read_labels(inputs, "query", n_classes)), strict=True)
        )
        queries = outcomes.query_ids.tolist()
        if missing := [query for query in queries if query not in predicted]:
            raise DataError(
                f"{metric.predictions}: found no prediction of the query {missing[0]}, expected "
                "one for each that `retrain` has an outcome of. Name another instance."
            )
        self._n_classes = n_classes
        self._classes = {
            "prediction": np.array([predicted[query] for query in queries]),
            "label": np.array([known.get(query, predicted[query]) for query in queries]),
        }
        self._classes["likeness"] = self._classes["label"]
        self._coded: dict[str, Coded] = {}
        self._n_unlabelled = sum(query not in known for query in queries)

    @property
    def _n_subsets(self) -> int:
        return len(self._outcomes.members)

    def _truth(self, speaks: str) -> Coded:
        """The order of the subsets by the outcome of each query."""
        if speaks not in self._coded:
            found = self._outcomes.log_odds(self._classes[speaks])
            self._coded[speaks] = coded(np.stack([each.mean(0) for each in found], axis=1))
        return self._coded[speaks]

    def kept(self, scores: Scores) -> float:
        """The share of the pairs of these queries and examples that have a row."""
        is_known = np.isin(scores.example_ids, self.example_ids)
        if scores.query_ids is None:
            return float(is_known.sum() / len(self.example_ids))
        is_known &= np.isin(scores.query_ids, self._outcomes.query_ids)
        return float(is_known.sum() / (len(self.example_ids) * len(self._outcomes.query_ids)))

    def sums(self, scores: Scores, signed: bool) -> Float[np.ndarray, "queries subsets"]:
        """The summed scores of the examples of each subset, for every query."""
        queries = self._outcomes.query_ids
        is_known = np.isin(scores.example_ids, self.example_ids)
        if scores.query_ids is not None:
            is_known &= np.isin(scores.query_ids, queries)
        at = np.searchsorted(self.example_ids, scores.example_ids[is_known])
        score = scores.score[is_known].astype(np.float64)
        if scores.query_ids is None:
            of_queries = np.zeros(len(score), np.int64)
        else:
            of_queries = np.searchsorted(queries, scores.query_ids[is_known])
        if signed:
            labels = np.array([self._label_of[i] for i in self.example_ids.tolist()])
            same = labels[at] == self._classes["label"][of_queries]
            score = np.where(same, score, -score / (self._n_classes - 1))
        width = 1 if scores.query_ids is None else len(queries)
        columns = []
        for members in self._outcomes.members:
            is_member = np.isin(self.example_ids, members)[at]
            columns.append(np.bincount(of_queries, score * is_member, width))
        summed = np.stack(columns, axis=1)
        return np.broadcast_to(summed, (len(queries), len(columns)))

    def of_kernel(self) -> dict[str, Float[np.ndarray, "queries subsets"]]:
        """What the kernel regression says of each subset: leave-one-out sums, and its fit."""
        metric = self._metric
        read = read_labelled_kernel(self._inputs, metric.kernel, metric.normalize, metric.ridge)
        queries, classes = self._outcomes.query_ids, self._classes["label"]
        order = np.argsort(read.query_ids, kind="stable")
        at = order[np.searchsorted(read.query_ids, queries, sorter=order).clip(max=len(order) - 1)]
        if (read.query_ids[at] != queries).any():
            raise DataError(
                f"{', '.join(metric.kernel)}: found no features of some queries that have an "
                "outcome, expected them of all. Name other tables in kernel, or name queries."
            )
        to_examples = read.query_kernel[torch.from_numpy(at)]
        solution = solve(read.kernel, read.targets, read.damping)
        reach = to_examples @ solution.inverse / solution.inverse.diagonal()
        alone = (reach * solution.dual.T[torch.from_numpy(classes)]).numpy()
        leave_one_out, refit = [], []
        for members in self._outcomes.members:
            rows = np.flatnonzero(np.isin(read.example_ids, members))
            leave_one_out.append(alone[:, rows].sum(1))
            own = torch.from_numpy(rows)
            lower = factor(read.kernel[own][:, own], read.damping)
            weights = torch.cholesky_solve(read.targets[own], lower)
            refit.append(log_odds((to_examples[:, own] @ weights).numpy(), classes))
        return {
            "kernel_leave_one_out": np.stack(leave_one_out, 1),
            "kernel_refit": np.stack(refit, 1),
        }

    def __call__(
        self, speaks: Speaks, sums: Float[np.ndarray, "queries subsets"]
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The columns of a row, and those of its details."""
        truth, said = self._truth(speaks), coded(sums)
        found, estimate = self._estimate(truth, said)
        queries = self._outcomes.query_ids.tolist()
        row = {
            "queries": len(queries),
            **estimate.named("lds"),
            "constant": int((np.ptp(sums, axis=1) == 0).sum()),
        }
        pairs = zip(queries, found.tolist(), strict=True)
        return row, [{"query_id": query, "lds": value} for query, value in pairs]

    def _estimate(self, a: Coded, b: Coded) -> tuple[Float[np.ndarray, " queries"], Estimate]:
        """Correlations of single queries, and their mean with its interval."""
        metric = self._metric
        q, m = a.codes.shape

        def of_queries(counts: Int64[np.ndarray, " subsets"]) -> Float[np.ndarray, " queries"]:
            found: np.ndarray = np.nan_to_num(rank_correlations(a, b, counts))
            return found

        whole = of_queries(np.ones(m, np.int64))
        both = zip(
            draws(m, metric.resamples, metric.seed),
            draws(q, metric.resamples, metric.seed, stream=4),
            strict=True,
        )
        drawn = (
            float(of_queries(np.bincount(subsets, minlength=m))[queries].mean())
            for subsets, queries in both
        )
        return whole, estimated(float(whole.mean()), drawn)

    def facts(self) -> dict[str, Any]:
        """Sizes, and how well the outcomes repeat where subsets were trained on again."""
        repeats = [len(each) for each in self._outcomes.logits]
        facts: dict[str, Any] = {
            "n_subsets": self._n_subsets,
            "repeats": min(repeats),
            "subset_size": len(self._outcomes.members[0]),
            "n_examples": len(self.example_ids),
            "n_queries": len(self._outcomes.query_ids),
            "n_unlabelled": self._n_unlabelled,
        }
        if min(repeats) < 2:
            return {**facts, "reliability": None, "ceiling": None}
        r = self._between_halves()
        ends = [None if end is None else float(brown(max(0.0, end))) for end in r]
        roots = [None if end is None else end**0.5 for end in ends]
        return {
            **facts,
            **Estimate(*ends).named("reliability"),
            **Estimate(*roots).named("ceiling"),
        }

    def _between_halves(self) -> Estimate:
        """The mean correlation, over splits and queries, of the means of two halves of repeats."""
        generator = np.random.default_rng([self._metric.seed, 0, 5])
        said = self._outcomes.log_odds(self._classes["label"])
        found = []
        n_splits = 1 if all(len(each) == 2 for each in said) else SPLITS
        for _ in range(n_splits):
            halves: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
            for each in said:
                half = len(each) // 2
                order = generator.permutation(len(each)) if n_splits > 1 else np.arange(len(each))
                halves[0].append(each[order[:half]].mean(0))
                halves[1].append(each[order[half : 2 * half]].mean(0))
            first, second = (coded(np.stack(half, 1)) for half in halves)
            found.append(self._estimate(first, second)[1])
        columns = zip(*found, strict=True)
        return Estimate(*(float(np.mean([x for x in ends if x is not None])) for ends in columns))


def brown(r: float) -> float:
    """The reliability of a whole whose halves correlate at `r` (Spearman and Brown, 1910)."""
    return 2 * r / (1 + r)


METRIC = Lds
