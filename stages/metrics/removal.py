"""The change of a prediction when the examples that a method lists as helpful are removed.

A query's listed examples are removed, all at once, the model is fitted to the rest, and the change
of its output for the query is recorded: after minus before, so that more negative means the method
found the examples that carried the prediction. The measure is the margin, the output of the
explained class less the largest other one, or that class's output alone. The explained class is
that of `predictions`, though the new fit may predict another.

`by: kernel` fits the kernel regression of the labels anew, exactly and in closed form. With
M = (K + damping I)^-1, A = M Y and R the removed examples,

    f_-R(t) - f(t) = -(K[t,:] M)[R] (M[R,R])^-1 A[R],

from the block inverse, at a cost of |R| n + |R|^3 for a query; the damping is held. For one example
it is the closed form of leave-one-out. [derived]

`by: retrain` trains a linear head on the vectors of `embedding` anew without the examples, for some
queries, from the same start and in the same order as on all. The outputs of a
training without a few rows differ by some noise, for its batches are cut elsewhere: compare with
the removal of random examples.

Source: ours, for the supports of arXiv:2408.05976; removal and retraining as in Hooker et al. 2019,
arXiv:1806.10758, there of features.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.metrics.explanations import Explanations, read_logits
from stages.metrics.metric import Result
from stages.metrics.refitted import trained_on
from stages.model.learners import read_vectors
from stages.model.seeded import generator_of
from stages.model.training import Training
from stages.stage import ConfigError, DataError, Inputs, Steps
from stages.surrogate.kernel import Solution, solve
from stages.surrogate.labelled_kernel import Ridge, check_fields, read_labelled_kernel

RETRAINED = 20
"""The default number of queries with `by: retrain`, where each costs a training per method."""

Fitted = Callable[[int, Int64[np.ndarray, " removed"]], Float[Tensor, " classes"]]
"""The outputs for a query id of a fit without the examples of these ids."""


def change_without(
    solution: Solution,
    to_examples: Float[Tensor, " examples"],
    removed: Int64[Tensor, " removed"],
) -> Float[Tensor, " classes"]:
    """How much the outputs for a query rise if the regression is fitted without `removed` examples.

    `removed` are row numbers of the kernel, `to_examples` is the query's row of the kernel. Exact.
    Cost removed * examples + removed^3.
    """
    reach = to_examples @ solution.inverse[:, removed]
    block = solution.inverse[removed][:, removed]
    carried: Tensor = reach @ torch.linalg.solve(block, solution.dual[removed])
    return -carried


def measured(
    outputs: Float[Tensor, " classes"], predicted: int, measure: Literal["margin", "output"]
) -> float:
    """The output of the class `predicted`, for the margin less the largest other output."""
    others = torch.arange(len(outputs)) != predicted
    less = outputs[others].max() if measure == "margin" else 0.0
    return float(outputs[predicted] - less)


@dataclass(frozen=True)
class Removal(Explanations):
    """The change of a query's prediction when its listed examples are removed, for each method.

    Memory 24 n^2 bytes for n labelled examples with `by: kernel`.
    """

    by: Literal["kernel", "retrain"] = "kernel"
    """Whether the kernel regression is solved anew or a head is trained anew."""
    measure: Literal["margin", "output"] = "margin"
    """The measure whose change is recorded: the margin, or the class's output alone."""
    predictions: str = "prediction"
    """Instance whose predicted classes are explained."""
    queries: int | None = None
    """Number of queries, drawn with `seed`; null takes all, and 20 with `by: retrain`."""
    kernel: tuple[str, ...] = ("ntk",)
    """Feature tables of the regression; with several, their kernels' mean."""
    normalize: bool = True
    """Scale every feature vector to unit length."""
    ridge: Ridge = "auto"
    """Ridge, relative to the kernel's mean diagonal; `auto` takes the least leave-one-out error."""
    embedding: str = "embedding"
    """Feature table that a head is trained on: an instance of `embedding`, or `features`."""
    training: Training = field(default_factory=Training)
    """How a head is trained."""

    def check(self) -> None:
        """Refuses fields out of range.

        Raises:
            ConfigError: there would be no query, the regression cannot be built, or see
                `Explanations.check`.
        """
        super().check()
        check_fields(self.kernel, self.ridge)
        if self.queries is not None and self.queries < 1:
            raise ConfigError(f"queries: found {self.queries}, expected at least 1. Raise it.")

    @property
    def reads(self) -> tuple[str, ...]:
        """The methods' tables, predictions, labels, and the features that the fit reads."""
        features = self.kernel if self.by == "kernel" else (self.embedding,)
        return (*self.methods, self.predictions, *features, "label")

    def compute(self, inputs: Inputs, stepped: Steps) -> Result:
        """One row for each method; details are the changes of single queries.

        Raises:
            DataError: no method lists an example for a query that has features and a prediction.
        """
        lists = self.lists(inputs)
        build = self._kernel if self.by == "kernel" else self._head
        example_ids, query_ids, fitted, facts = build(inputs)
        wanted = self.queries or (RETRAINED if self.by == "retrain" else None)
        ids, logits = read_logits(inputs, self.predictions, "query")
        class_of = dict(zip(ids.tolist(), logits.argmax(1).tolist(), strict=True))
        listed = {query for of_method in lists.values() for query in of_method}
        explained = sorted(listed & set(query_ids.tolist()) & set(class_of))
        order = np.random.default_rng([self.seed, 0, 5]).permutation(explained)
        chosen = sorted(order[:wanted].tolist())
        if not chosen:
            raise DataError(
                "methods: found no list of a query that has features and a prediction, expected at "
                "least one. Name other methods."
            )
        stepped(0, len(chosen))
        details: list[dict[str, Any]] = []
        for nth, query in enumerate(chosen):
            predicted = class_of[query]
            before = measured(fitted(query, np.zeros(0, np.int64)), predicted, self.measure)
            for method, of_query in lists.items():
                if query not in of_query:
                    continue
                # An example without features or label took no part in the fit.
                removed = np.intersect1d(of_query[query].ids, example_ids)
                if len(removed):
                    after = measured(fitted(query, removed), predicted, self.measure)
                    named = {"method": method, "query_id": query, "removed": removed.tolist()}
                    named |= {"predicted": predicted, "before": before, "change": after - before}
                    details.append(named)
            stepped(nth + 1, len(chosen))
        rows = []
        for method in lists:
            own_rows = [one for one in details if one["method"] == method]
            lengths = [len(one["removed"]) for one in own_rows]
            rows.append(
                {
                    "method": method,
                    "queries": len(own_rows),
                    "length": float(np.mean(lengths)) if lengths else None,
                    **self.mean([one["change"] for one in own_rows]).named("change"),
                    "before": self.mean([one["before"] for one in own_rows]).value,
                }
            )
        return Result(rows, {"n_queries": len(chosen), **facts}, details)

    def _kernel(self, inputs: Inputs) -> tuple[np.ndarray, np.ndarray, Fitted, dict[str, Any]]:
        """Ids of examples and queries, the kernel regression as a `Fitted`, and facts on it."""
        read = read_labelled_kernel(inputs, self.kernel, self.normalize, self.ridge)
        solution = solve(read.kernel, read.targets, read.damping)
        place = {query: row for row, query in enumerate(read.query_ids.tolist())}

        def fitted(query: int, removed: Int64[np.ndarray, " removed"]) -> Tensor:
            row = read.query_kernel[place[query]]
            at = torch.from_numpy(np.searchsorted(read.example_ids, removed))
            return row @ solution.dual + change_without(solution, row, at)

        facts = {"n_examples": len(read.example_ids), "ridge": read.ridge, "damping": read.damping}
        return read.example_ids, read.query_ids, fitted, facts

    def _head(self, inputs: Inputs) -> tuple[np.ndarray, np.ndarray, Fitted, dict[str, Any]]:
        """Ids of examples and queries, trainings of a head as a `Fitted`, and facts on them."""
        players, learner = read_vectors(inputs, self.embedding)
        drawn = generator_of(f"removal/{self.seed}")
        visits = torch.randperm(players.n, generator=drawn).numpy()
        place = {query: players.n + row for row, query in enumerate(players.query_ids.tolist())}

        def trained(
            removed: Int64[np.ndarray, " removed"], rows: Int64[np.ndarray, " rows"]
        ) -> Tensor:
            gone = np.searchsorted(players.example_ids, removed)
            rest = visits[~np.isin(visits, gone)]
            return trained_on(players, learner, rest, rows, self.training).T

        everything = players.n + np.arange(len(players.query_ids))
        on_all = trained(np.zeros(0, np.int64), everything)

        def fitted(query: int, removed: Int64[np.ndarray, " removed"]) -> Tensor:
            if not len(removed):
                return on_all[place[query] - players.n]
            return trained(removed, np.array([place[query]]))[0]

        return players.example_ids, players.query_ids, fitted, {"n_examples": players.n}


METRIC = Removal
