"""Games read from tables: the regression of labels on features, and that on loss gradients.

The second needs no classes. With g_i the gradient of example i's loss, a damped Gauss-Newton step
on a set S, with the empirical Fisher matrix for the curvature, lowers the loss of a query with
gradient g_q, to first order, by

    g_q^T (sum_S g_i g_i^T + damping I)^-1 sum_S g_i,

which is the prediction at g_q of a ridge regression of 1 on the g_i: the same engines apply, and
for the mean over queries their mean gradient is the only query. At a small ridge every example
would be promised the same fall, hence the ridge of 1 that `auto` means here. With `target: loss`
the regression predicts an example's own loss instead of 1. [ours]
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stages.game.fields import GameFields
from stages.game.game import Game
from stages.game.least_squares import RecursiveLeastSquares
from stages.game.prefix_cholesky import PrefixCholesky
from stages.game.regression import Regression
from stages.game.utility import Judge, LinearJudge, fitted
from stages.reading.feature_rows import FeatureRows
from stages.reading.supervision import count_classes, one_hot, read_labels
from stages.reading.vectors import aligned
from stages.stage import DataError, Inputs
from stages.surrogate.kernel import auto_ridge, gram, mean_diagonal
from stages.surrogate.labelled_kernel import LeftOut, has_features

RIDGE_EXAMPLES = 2048
"""Of more examples than these the ridge is chosen on a sample of so many: its choice costs 10 n^3,
a minute for 5,000."""
FLOAT32_RIDGE, FLOAT32_ACCURACY_RIDGE = 0.01, 1.0
"""The least ridge at which float32 is trusted, and where accuracy is asked for: rounding turns
queries that are close to the boundary (seen: in half of the values at 0.01, in 2 % at 3)."""
LOSS_RIDGE = 1.0


class Opened(NamedTuple):
    """What a worker keeps."""

    game: Game
    example_ids: Int64[np.ndarray, " examples"]
    """Ascending; player i of the game is the i-th."""
    query_ids: Int64[np.ndarray, " queries"]
    facts: dict[str, Any]


class Source(NamedTuple):
    """Examples with features and answers, queries with features: games over any of the queries."""

    example_ids: Int64[np.ndarray, " examples"]
    query_ids: Int64[np.ndarray, " queries"]
    """Both ascending."""
    queries: Float[Tensor, "queries _"]
    """What the engine needs of each query."""
    begin: Callable[[Tensor], Callable[[], Regression]]
    """From such rows, as a game sees them, to regressions on no example."""
    n_classes: int
    temperature: float
    is_linear: bool
    """Whether the mean of several queries may stand for them."""
    dim: int | None
    facts: dict[str, Any]

    def game(self, query_ids: np.ndarray, labels: np.ndarray, by_query: bool = False) -> Game:
        """The game of some queries; -1 labels one whose class is the one that all predict."""
        rows = self.queries[torch.from_numpy(np.searchsorted(self.query_ids, query_ids))]
        n = len(self.example_ids)
        if self.n_classes == 1:
            rows = rows if by_query else rows.mean(0, keepdim=True)
            return Game(n, self.begin(rows), LinearJudge(len(rows)), self.dim, by_query)
        # Class 1 for a query without a label: of two classes it leaves the sign of outputs alone.
        given = torch.from_numpy(np.where(labels < 0, 1, labels))
        judge = Judge(given, self.n_classes, self.temperature)
        if (labels < 0).any():
            everyone = self.begin(rows * judge.signs(rows.dtype)[:, None])()
            everyone.take(torch.arange(n))
            predicted = judge.predicted(everyone.outputs)
            known = torch.from_numpy(labels >= 0)
            judge = Judge(torch.where(known, given, predicted), self.n_classes, self.temperature)
        signed = rows * judge.signs(rows.dtype)[:, None]
        if self.is_linear and not by_query:
            mean = signed.mean(0, keepdim=True)
            return Game(n, self.begin(mean), LinearJudge(1, scale=2.0), self.dim)
        return Game(n, self.begin(signed), judge, self.dim, by_query)


def player_ids(inputs: Inputs, fields: GameFields) -> Int64[np.ndarray, " examples"]:
    """Ids, ascending, of the examples that can play: those with an answer and with features."""
    n_classes = 1 if fields.utilities == ("loss",) else count_classes(inputs)
    known, _ = _players(inputs, n_classes)
    found: np.ndarray = known[has_features(inputs, fields.kernel, "example", known)]
    return found


def read_game(inputs: Inputs, fields: GameFields, players: np.ndarray | None = None) -> Opened:
    """The game of labelled examples and the mean over labelled queries, or of loss gradients.

    With `players`, ids of examples, no others are read, and the ridge is chosen on these.

    Raises:
        DataError: no example or no query can take part.
    """
    return labelled_game(inputs, fields, read_source(inputs, fields, players))


def labelled_game(inputs: Inputs, fields: GameFields, source: Source) -> Opened:
    """The game over `source` whose queries are those that have a label, or of loss gradients all.

    Raises:
        DataError: there is no such query.
    """
    asked, labels = asked_of(inputs, source.n_classes)
    unlabelled = inputs.table("label", "query").num_rows - len(asked)
    if len(asked) == 0:
        raise DataError(
            f"label: found no label among {unlabelled} queries, expected at least 1 to measure a "
            "utility on. Label some queries."
        )
    found = np.isin(asked, source.query_ids)
    if not found.any():
        raise _without_features(fields, "labelled query")
    left_out = LeftOut(source.facts["n_left_out"], int((~found).sum()))
    facts = {
        **{name: fact for name, fact in source.facts.items() if name != "n_left_out"},
        "n_examples": len(source.example_ids),
        "n_queries": int(found.sum()),
        "n_unlabelled_queries": unlabelled,
        **left_out.details(),
    }
    game = source.game(asked[found], labels[found])
    return Opened(game, source.example_ids, asked[found], facts)


def read_source(inputs: Inputs, fields: GameFields, players: np.ndarray | None = None) -> Source:
    """All that games over the same examples share: features, answers, the ridge.

    Raises:
        DataError: no example can take part.
    """
    n_classes = 1 if fields.utilities == ("loss",) else count_classes(inputs)
    known, labels = _players(inputs, n_classes)
    if players is not None:
        named = np.isin(known, players)
        known, labels = known[named], labels[named]
    found = has_features(inputs, fields.kernel, "example", known)
    ids, labels = known[found], labels[found]
    if len(ids) == 0:
        raise _without_features(fields, "labelled example")
    query_ids = np.sort(inputs.vectors(fields.kernel[0], "query").ids)
    query_ids = query_ids[has_features(inputs, fields.kernel, "query", query_ids)]
    targets = _targets(inputs, fields, ids, labels, n_classes)
    engine = fields.engine_for(len(ids))
    build = _by_kernel if engine == "prefix_cholesky" else _by_features
    queries, begin, dim, facts = build(inputs, fields, ids, query_ids, targets)
    facts = {"engine": engine, **facts, "n_left_out": int((~found).sum())}
    temperature, is_linear = fields.temperature, fields.is_linear(n_classes)
    return Source(ids, query_ids, queries, begin, n_classes, temperature, is_linear, dim, facts)


def asked_of(inputs: Inputs, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids, ascending, and labels of the queries of a part that have one; of the loss game all."""
    if n_classes > 1:
        return read_labels(inputs, "query", n_classes)
    ids = np.sort(inputs.table("label", "query")["id"].to_numpy())
    return ids, np.zeros(len(ids), np.int64)


def _without_features(fields: GameFields, role: str) -> DataError:
    return DataError(
        f"{', '.join(fields.kernel)}: found no {role} with features, expected at least 1 to play "
        "on. Label some, or look into the view diagnostics for what happened to their features."
    )


def _players(inputs: Inputs, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids, ascending, and labels of those who can play; of the loss game all, with label 0."""
    if n_classes > 1:
        return read_labels(inputs, "example", n_classes)
    ids = np.sort(inputs.table("label", "example")["id"].to_numpy())
    return ids, np.zeros(len(ids), np.int64)


def _targets(
    inputs: Inputs, fields: GameFields, ids: np.ndarray, labels: np.ndarray, n_classes: int
) -> Float[Tensor, "examples outputs"]:
    if n_classes > 1:
        columns = one_hot(torch.from_numpy(labels), n_classes) - 1 / n_classes
        return fitted(columns)
    if fields.target == "one":
        return torch.ones(len(ids), 1, dtype=torch.float64)
    table = inputs.table("diagnostics", "example")
    losses = dict(zip(table["id"].to_pylist(), table["measured"].to_pylist(), strict=True))
    return torch.tensor([[losses[i]] for i in ids.tolist()], dtype=torch.float64)


def _is_unit(fields: GameFields) -> bool:
    return fields.normalize if fields.normalize is not None else fields.utilities != ("loss",)


Built = tuple[Tensor, Callable[[Tensor], Callable[[], Regression]], int | None, dict[str, Any]]
"""Fields of `Source`: `queries`, `begin`, `dim` and what is to be told."""


def _by_kernel(
    inputs: Inputs, fields: GameFields, ids: np.ndarray, query_ids: np.ndarray, targets: Tensor
) -> Built:
    features = [
        (
            aligned(inputs.vectors(name, "example"), ids),
            aligned(inputs.vectors(name, "query"), query_ids),
        )
        for name in fields.kernel
    ]
    kernel, to_examples = gram(features, _is_unit(fields))
    sample = _sample(len(ids))
    ridge = _ridge(fields, kernel[sample[:, None], sample], targets[sample])
    damping = ridge * mean_diagonal(kernel)

    def begin(rows: Tensor) -> Callable[[], Regression]:
        to_queries = rows.T.contiguous()
        return lambda: PrefixCholesky(kernel, to_queries, targets, damping)

    return to_examples, begin, None, {"ridge": ridge, "damping": damping, "precision": "float64"}


def _by_features(
    inputs: Inputs, fields: GameFields, ids: np.ndarray, query_ids: np.ndarray, targets: Tensor
) -> Built:
    is_unit = _is_unit(fields)
    tables = [inputs.vectors(name, "example") for name in fields.kernel]
    of_queries = [inputs.vectors(name, "query") for name in fields.kernel]
    rows = FeatureRows(tables, ids, is_unit, torch.float64)
    sample = _sample(len(ids))
    some = rows(sample)
    ridge = _ridge(fields, some @ some.T, targets[sample])
    damping = ridge * float(some.square().sum(1).mean())
    if damping == 0:
        raise DataError(
            f"{', '.join(fields.kernel)}: found only zero vectors among {len(some)} examples, "
            "expected features that tell examples apart. Check the stage that writes them."
        )
    precision = fields.precision
    if precision == "auto":
        least = FLOAT32_ACCURACY_RIDGE if "accuracy" in fields.utilities else FLOAT32_RIDGE
        precision = "float32" if ridge >= least else "float64"
    dtype = torch.float32 if precision == "float32" else torch.float64
    read = FeatureRows(tables, ids, is_unit, dtype, rows.scales)
    queries = FeatureRows(of_queries, query_ids, is_unit, torch.float64, rows.scales)
    goal = targets.to(dtype)

    def begin(rows: Tensor) -> Callable[[], Regression]:
        own = rows.to(dtype)
        return lambda: RecursiveLeastSquares(read, own, goal, damping)

    of_all = queries(torch.arange(len(query_ids)))
    dim = of_all.shape[1]
    facts = {"ridge": ridge, "damping": damping, "precision": precision, "dim": dim}
    return of_all, begin, dim, facts


def _sample(n: int) -> Int64[Tensor, " some"]:
    """The examples that the ridge is chosen on, ascending."""
    return torch.from_numpy(np.sort(np.random.default_rng(0).permutation(n)[:RIDGE_EXAMPLES]))


def _ridge(fields: GameFields, kernel: Tensor, targets: Tensor) -> float:
    if fields.ridge != "auto":
        return float(fields.ridge)
    return LOSS_RIDGE if fields.utilities == ("loss",) else auto_ridge(kernel, targets)[0]
