"""Models fitted anew on chosen examples: what metrics of removal, selection and order share.

`by: kernel` solves the kernel regression of the labels on the chosen rows, exactly; the damping is
that of all rows, whatever is chosen. `by: retrain` trains a linear head on the vectors of
`embedding` from zero weights or, with `last_blocks`, the last blocks of `model`, each time from the
same start and in the same order of the rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from stages.metrics.metric import Metric
from stages.metrics.scored import Scores, scores_of
from stages.model.learners import LastBlocks, Players, read_texts, read_vectors
from stages.model.seeded import generator_of
from stages.model.spec import ModelSpec
from stages.model.training import Learner, Training, prefix_outputs
from stages.reading.supervision import count_classes, one_hot, read_labels
from stages.reading.vectors import aligned
from stages.stage import ConfigError, DataError, Inputs
from stages.surrogate.kernel import auto_ridge, factor, gram, mean_diagonal
from stages.surrogate.labelled_kernel import Ridge, check_fields, has_features

TOKENS = 2048
"""Rows of vectors, or tokens, in one forward pass."""
RIDGE_EXAMPLES = 2048
"""Most examples that the automatic ridge is chosen on."""


class Refittable(NamedTuple):
    """Examples to choose from, labelled queries to judge by, and the fit on a choice."""

    example_ids: Int64[np.ndarray, " examples"]
    """Ascending."""
    labels: Int64[np.ndarray, " examples"]
    query_ids: Int64[np.ndarray, " queries"]
    """Ascending; all have a label."""
    answers: Int64[np.ndarray, " queries"]
    fit: Callable[[Int64[np.ndarray, " chosen"]], Float[np.ndarray, "queries classes"]]
    """The outputs for the queries of a fit on the examples with these numbers."""
    facts: dict[str, Any]

    def judged(self, chosen: Int64[np.ndarray, " chosen"]) -> Float[np.ndarray, "numbers queries"]:
        """Whether each query is right after a fit on these examples, and its log-probability.

        A share of right where several classes have the largest output.
        """
        said = self.fit(chosen)
        own = np.take_along_axis(said, self.answers[:, None], 1)[:, 0]
        largest = said.max(1)
        is_right = (own == largest) / (said == largest[:, None]).sum(1)
        return np.stack([is_right, own - np.logaddexp.reduce(said, axis=1)])


class Ordered(NamedTuple):
    """A ranking of the examples, and the queries that may judge it."""

    score: Float[np.ndarray, " examples"]
    judges: Bool[np.ndarray, " queries"]


@dataclass(frozen=True)
class Refitted(Metric):
    """The base of metrics that fit anew on examples chosen by scores."""

    methods: tuple[str, ...] = ("tracin",)
    """Instances that score pairs or examples, or `label_issues`."""
    by: Literal["kernel", "retrain"] = "kernel"
    """Whether the kernel regression is solved anew or a model is really trained anew."""
    per_class: bool = True
    """Whether the same share of each class is chosen."""
    parts: int = 2
    """Parts of the queries. A ranking by pairs that judges a part is that of the other parts."""
    examples: int = 2000
    """Examples to choose from at most; of more, a random sample."""
    kernel: tuple[str, ...] = ("ntk",)
    """Feature tables of the regression; with several, their kernels' mean."""
    normalize: bool = True
    """Scale every feature vector to unit length."""
    ridge: Ridge = "auto"
    """Ridge, relative to the kernel's mean diagonal; `auto` takes the least leave-one-out error."""
    embedding: str = "embedding"
    """Feature table that a head is trained on: an instance of `embedding`, or `features`."""
    model: ModelSpec | None = None
    """The model whose last blocks are trained, with `last_blocks`."""
    last_blocks: LastBlocks = 0
    """Blocks of `model` that are trained with its head, or `all`; 0 trains a head alone."""
    training: Training = field(default_factory=Training)
    """How a model is trained."""
    draws: int = 10
    """Random choices of rows that stand beside."""
    seed: int = 0
    """Seed of the sample of examples, the parts, the random choices and the bootstrap."""
    resamples: int = 1000
    """Bootstrap draws for each interval."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Classification: accuracy and cross-entropy are judged."""
        return ("classification",)

    def __post_init__(self) -> None:
        """Refuses fields out of range; see `check`."""
        self.check()

    def check(self) -> None:
        """Refuses fields that nothing can be fitted or judged with.

        Raises:
            ConfigError: a field is out of range.
        """
        check_fields(self.kernel, self.ridge)
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ConfigError(
                f"methods: found {list(self.methods)}, expected at least one, each once. Name "
                "instances of the run that score pairs or examples, such as tracin or freeshap."
            )
        counts = (self.parts, self.draws, self.examples)
        if min(counts) < 2 or self.resamples < 1 or self.seed < 0:
            raise ConfigError(
                f"found parts, draws, examples: {counts}, resamples: {self.resamples}, seed: "
                f"{self.seed}, expected at least 2 each, 1 and 0. Raise them."
            )
        if (self.last_blocks != 0) != (self.model is not None):
            raise ConfigError(
                f"last_blocks: found {self.last_blocks} with model: {self.model}, expected blocks "
                "of a model, or 0 for a head alone. Name both, or neither."
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """The methods' tables, what the fit reads, and the labels."""
        if self.by == "kernel":
            return (*self.methods, *self.kernel, "label")
        return (*self.methods, "text" if self.model else self.embedding, "label")

    def refit(self, inputs: Inputs) -> Refittable:
        """Examples, queries and the fit.

        Raises:
            DataError: there are fewer labelled queries than parts, or no examples.
        """
        made = self._of_kernel(inputs) if self.by == "kernel" else self._trained(inputs)
        if len(made.query_ids) < self.parts or not len(made.example_ids):
            raise DataError(
                f"label: found {len(made.query_ids)} labelled queries and {len(made.example_ids)} "
                f"labelled examples to fit on, expected at least {self.parts} and 1. Label more."
            )
        return made

    def ranked(
        self, inputs: Inputs, method: str, made: Refittable
    ) -> Iterator[tuple[Scores, list[Ordered]]]:
        """Each set of scores of a method with its rankings of the examples.

        Pairs are ranked by their mean over the queries of all parts but one, which judges. Scores
        of examples alone have one ranking, which all queries judge, also those that it was made by.

        Raises:
            DataError: an example has no score.
        """
        for scores in scores_of(inputs, method, method):
            ranked = []
            if scores.query_ids is None:
                ranked.append(
                    Ordered(
                        scores.of_examples(made.query_ids, made.example_ids),
                        np.ones(len(made.query_ids), bool),
                    )
                )
            else:
                part_of = self._generator(4).permutation(len(made.query_ids)) % self.parts
                for part in range(self.parts):
                    asked = made.query_ids[part_of != part]
                    score = scores.of_examples(asked, made.example_ids)
                    ranked.append(Ordered(score, part_of == part))
            if missing := int(np.isnan(ranked[0].score).sum()):
                raise DataError(
                    f"{method}: found no score of {missing} of {len(made.example_ids)} examples, "
                    "expected one of each, as all methods choose from the same. Leave the method "
                    "out, or evaluate it on features that these examples lack, too."
                )
            yield scores, ranked

    def _generator(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 1, stream])

    def _sampled(self, ids: np.ndarray) -> Int64[np.ndarray, " rows"]:
        """Places, ascending, of the examples to choose from."""
        return np.sort(self._generator(0).permutation(len(ids))[: self.examples])

    def _of_kernel(self, inputs: Inputs) -> Refittable:
        n_classes = count_classes(inputs)
        ids, labels = read_labels(inputs, "example", n_classes)
        has_row = has_features(inputs, self.kernel, "example", ids)
        ids, labels = ids[has_row], labels[has_row]
        kept = self._sampled(ids)
        ids, labels = ids[kept], labels[kept]
        query_ids, answers = read_labels(inputs, "query", n_classes)
        has_row = has_features(inputs, self.kernel, "query", query_ids)
        query_ids, answers = query_ids[has_row], answers[has_row]
        if not len(ids) or not len(query_ids):
            return Refittable(ids, labels, query_ids, answers, lambda rows: np.zeros((0, 0)), {})
        features = [
            (
                aligned(inputs.vectors(name, "example"), ids),
                aligned(inputs.vectors(name, "query"), query_ids),
            )
            for name in self.kernel
        ]
        kernel, to_examples = gram(features, self.normalize)
        targets = one_hot(torch.from_numpy(labels), n_classes) - 1 / n_classes
        ridge = self.ridge
        if ridge == "auto":
            some = torch.from_numpy(self._generator(1).permutation(len(ids))[:RIDGE_EXAMPLES])
            ridge = auto_ridge(kernel[some][:, some], targets[some])[0]
        damping = ridge * mean_diagonal(kernel)

        def fit(chosen: Int64[np.ndarray, " chosen"]) -> Float[np.ndarray, "queries classes"]:
            rows = torch.from_numpy(chosen)
            lower = factor(kernel[rows][:, rows], damping)
            weights = torch.cholesky_solve(targets[rows], lower)
            said: np.ndarray = (to_examples[:, rows] @ weights).numpy() + 1 / n_classes
            return said

        facts = {"by": "kernel", "ridge": ridge, "damping": damping}
        return Refittable(ids, labels, query_ids, answers, fit, facts)

    def _trained(self, inputs: Inputs) -> Refittable:
        if self.model is None:
            players, learner = read_vectors(inputs, self.embedding)
        else:
            players, learner = read_texts(inputs, self.model, self.last_blocks, TOKENS)
        kept = self._sampled(players.example_ids)
        labels = players.labels.numpy()
        of_queries = labels[players.n :]
        order = np.argsort(players.query_ids, kind="stable")
        asked = order[of_queries[order] >= 0]
        visits = torch.randperm(players.n, generator=generator_of(f"refitted/{self.seed}")).numpy()

        def fit(chosen: Int64[np.ndarray, " chosen"]) -> Float[np.ndarray, "queries classes"]:
            rows = visits[np.isin(visits, kept[chosen])]
            said = trained_on(players, learner, rows, players.n + asked, self.training)
            return said.T.numpy()

        facts = {"by": "retrain", "n_trained": sum(w.numel() for w in learner.start)}
        ids, query_ids = players.example_ids[kept], players.query_ids[asked]
        return Refittable(ids, labels[: players.n][kept], query_ids, of_queries[asked], fit, facts)


def trained_on(
    players: Players,
    learner: Learner,
    visits: Int64[np.ndarray, " visits"],
    asked: Int64[np.ndarray, " asked"],
    training: Training,
) -> Float[Tensor, "classes asked"]:
    """Outputs for the rows `asked` after a training from the start on `visits`, in that order."""
    (said,) = prefix_outputs(
        *(learner, players.labels, visits, visits, (len(visits),), asked),
        *(training, TOKENS),
    )
    return said


def places(
    score: Float[np.ndarray, " rows"], labels: Int64[np.ndarray, " rows"], per_class: bool
) -> Float[np.ndarray, " rows"]:
    """Where each row stands in (0, 1), the largest score first, within its class if `per_class`.

    Ties by number. The k-th of n rows stands at (k - 1/2) / n.
    """
    found = np.empty(len(score))
    for label in np.unique(labels) if per_class else (None,):
        members = np.arange(len(score)) if label is None else np.flatnonzero(labels == label)
        order = members[np.argsort(-score[members], kind="stable")]
        found[order] = (np.arange(len(order)) + 0.5) / len(order)
    return found


def best_rows(
    score: Float[np.ndarray, " rows"],
    labels: Int64[np.ndarray, " rows"],
    count: int,
    per_class: bool = True,
) -> Int64[np.ndarray, " chosen"]:
    """The `count` rows with the largest scores, the same share of each class; ties by number."""
    place = places(score, labels, per_class)
    chosen: np.ndarray = np.lexsort((np.arange(len(score)), -score, place))[:count]
    return chosen


def weights_of(shares: Sequence[float]) -> Float[np.ndarray, " shares"]:
    """What the value at each share counts for in the mean over shares, by the trapezoid rule."""
    at = np.asarray(shares)
    if len(at) == 1:
        return np.ones(1)
    widths = np.diff(at)
    weights = (np.append(widths, 0) + np.append(0, widths)) / 2
    whole: np.ndarray = weights / weights.sum()
    return whole
